"""Blocks are kept between steps, and given back at the end."""

import ctypes
import sys

import pytest
import torch

from deepcluster.memory import kept_memory

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
BLOCK = 100_000_000  # bytes


class Mallinfo2(ctypes.Structure):
    """Of glibc's mallinfo2(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def heap() -> Mallinfo2:
    assert LIBC is not None
    LIBC.mallinfo2.restype = Mallinfo2
    found = LIBC.mallinfo2()
    assert isinstance(found, Mallinfo2)
    return found


@pytest.mark.skipif(not hasattr(LIBC, "mallinfo2"), reason="the C library is not glibc")
def test_freed_blocks_are_kept_for_the_next_step() -> None:
    before = heap()
    with kept_memory():
        block = torch.ones(BLOCK, dtype=torch.uint8)
        assert heap().hblks == before.hblks  # of the heap, not from the system
        del block
        assert heap().fordblks >= BLOCK  # free, and still there
    assert heap().fordblks < BLOCK  # given back
    block = torch.ones(BLOCK, dtype=torch.uint8)
    assert heap().hblks == before.hblks + 1
    del block


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with kept_memory():
        pass
