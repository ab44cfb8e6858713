"""What this machine computes with, and what it gets back."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deepcluster.device import read_only

FREED = """
import ctypes, sys
from deepcluster.cli import keep_freed_memory
from deepcluster.device import give_back_memory

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024

if not hasattr(ctypes.CDLL(None), "malloc_trim"):
    sys.exit("another C library")
keep_freed_memory()
pairs = [(b"x" * 2**20, b"y" * 600) for _ in range(200)]
stay = [small for _, small in pairs]
del pairs
before = resident()
give_back_memory()
print(before - resident() > 150 * 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_goes_back_when_it_is_asked_for() -> None:
    command = [sys.executable, "-c", FREED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.stderr == "another C library\n":
        pytest.skip(done.stderr)
    assert done.stdout == "True\n", done.stderr


def test_a_mapped_file_is_read_as_it_lies(tmp_path: Path) -> None:
    """Without a warning, and without a map that takes memory of the system's to be written to."""
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    found = read_only(mapped)
    assert found.data_ptr() == mapped.ctypes.data
    assert torch.equal(found, torch.from_numpy(rows))
