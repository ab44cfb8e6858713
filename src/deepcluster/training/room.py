"""Whether a step of a net that is adapted has room for all that waits for the way back.

Where it has not, what a piece of the batch leaves is computed again on the way back: a third to a
half more time, and the memory of a piece in place of that of a batch. On a processor the bits are
the same; on a GPU, which sees the batch as a whole else, they differ by rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from deepcluster import processes
from deepcluster.backbones.adapt import activations
from deepcluster.config import Config
from deepcluster.device import give_back_memory
from deepcluster.images.sinks import free_memory

PIECE = {"cpu": 2**19, "cuda": 2**21}  # pixels that the net sees at once
MOST = 0.75  # of the memory that is free


@dataclass(frozen=True)
class Room:
    """What waits for the way back.

    Attributes:
        kept: bytes of all of a step's.
        whole: the same, and of the gradients that are there at once.
        least: bytes, if those of one piece at a time are kept.
        piece: pixels of a piece; 0 where the net sees its batch as a whole.
        again: whether those of each piece are computed again.
    """

    kept: int
    whole: int
    least: int
    piece: int
    again: bool

    @property
    def bytes(self) -> int:
        """Of the way that is taken."""
        return self.least if self.again else self.whole

    @property
    def sentence(self) -> str:
        """What a person should know; empty where all is as usual."""
        if not self.again:
            return ""
        return (
            f"a step would keep {self.whole / 1e9:.1f} GB of activations, which is more than there "
            f"is room for: they are computed again on the way back, of {self.least / 1e9:.1f} GB "
            "at a time, which takes a third to a half longer"
        )


def find_room(
    method: Any, config: Config, channels: int, *, again: bool | None = None
) -> Room | None:
    """How the steps of a net that is adapted are made.

    On a processor the net always sees a batch in pieces, which is no slower, so that the bits do
    not hang on the memory that is free; on a GPU, where it is, only if they are computed again.

    Args:
        method: on its device.
        config: resolved settings.
        channels: of the net's images.
        again: as an earlier call has said; None finds it out.

    Returns:
        None for a net that must see its batch as a whole.
    """
    assert isinstance(config.size, int) and isinstance(config.train.batch_size, int)
    device = torch.device(config.device)
    dtype = getattr(torch, config.train.precision)
    each = activations(method.backbone, channels=channels, size=config.size, dtype=dtype)
    if not each:
        return None
    share = math.ceil(config.train.batch_size / processes.helpers())
    small = method.small_views
    views = method.views + (small.count * small.side**2 if small else 0)
    pixels = share * config.size**2 * views
    piece = max(PIECE["cuda" if device.type == "cuda" else "cpu"], config.size**2)
    one = each * min(pixels, piece)
    least = 3 * one  # its gradients, and freed blocks that fit nothing else
    kept = each * pixels
    whole = kept + (kept if device.type == "cuda" else one)
    if again is None:
        again = pixels > piece and whole > MOST * _free(device)
    in_pieces = again or device.type != "cuda"
    return Room(round(kept), round(whole), round(least), piece if in_pieces else 0, again)


def _free(device: torch.device) -> float:
    """Bytes of the memory that activations lie in."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    give_back_memory()
    return free_memory()
