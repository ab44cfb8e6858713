"""Which device computes, and in which arithmetic: one answer for the fit and for what follows."""

from __future__ import annotations

import ctypes
import sys
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from deepcluster.config import Config
from deepcluster.errors import ConfigError


@dataclass(frozen=True)
class Compute:
    """Where a net computes features, and how.

    Attributes:
        device: where the net and its images go.
        dtype: arithmetic of the net.
        batch_size: images at once.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    batch_size: int = 256


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used here: choose auto or cpu ({error})"
        ) from error
    return device


def pick_inference(config: Config, name: str) -> Compute:
    """How features of new images are computed with the net of a fit.

    The arithmetic of the fit on the device of the fit, so that the same images get the same
    features; float32 elsewhere, since the fit's was chosen for its device.
    """
    device = pick_device(name)
    same = device.type == torch.device(config.device).type
    batch = config.train.batch_size
    settled = config.start == "frozen" and isinstance(batch, int)
    return Compute(
        device,
        getattr(torch, config.train.precision) if same else torch.float32,
        int(batch) if settled else 256,
    )


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in instructions)
    return False


def read_only(array: np.ndarray) -> torch.Tensor:
    """A tensor of an array as it lies, a mapped file perhaps, which nobody may write to.

    A file that is mapped to be written to in private takes as much of what the system may hand out
    as if it were read, and is refused where that is more than there is.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def give_back_memory() -> None:
    """Give freed memory back to the system: what comes next needs blocks of other sizes.

    glibc keeps freed blocks, and those of a training step serve no other purpose; elsewhere
    nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # musl has none
        trim(0)
