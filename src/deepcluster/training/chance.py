"""All chance of a fit comes from its seed and the epoch."""

from __future__ import annotations

import numpy as np
import torch

ORDER, VIEWS, DROPOUT = range(3)  # uses of chance in an epoch, each with a seed of its own


def mix(seed: int, epoch: int, stream: int) -> int:
    """A seed for one use of chance in an epoch, far from all others."""
    return int(np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)[0] >> 1)


class seeded:
    """Seed torch's global CPU and device generators for a block; the CPU's is put back after."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()
        torch.manual_seed(self.seed)

    def __exit__(self, *exception: object) -> None:
        torch.set_rng_state(self.state)
