"""What every measured figure carries: where, with what and by which command it was measured."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info

from deepcluster.config import Config
from deepcluster.images.store import ImageStore
from deepcluster.machine import hardware, versions

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
PACKAGES = ("clustpy", "umap-learn", "numba", "scipy")


def part_of(store: ImageStore, index: np.ndarray) -> tuple[ImageStore, np.ndarray]:
    """Some images of a set, without their labels, and the labels for measuring."""
    assert store.labels is not None
    part = dataclasses.replace(
        store,
        pixels=store.pixels[index],
        ids=[store.ids[i] for i in index],
        paths=[store.paths[i] for i in index],
        labels=None,
    )
    return part, store.labels[index]


def commit() -> str:
    """The commit of the working tree, with a + where the package differs from it."""
    names = ["git", "rev-parse", "--short", "HEAD"]
    changed = ["git", "status", "--porcelain", "--", "src"]
    head, dirty = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
        for command in (names, changed)
    )
    return head + ("+" if dirty else "")


def shown(words: Sequence[str]) -> str:
    """A command as one line; of absolute paths, which mean nothing elsewhere, the last part."""
    bare = [re.sub(r"(^|(?<=[=:]))/\S*?([^/\s]+)/?$", r"\2", word) for word in words]
    return shlex.join(bare)


def command() -> str:
    """The command that runs now."""
    return shown(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def kernels() -> list[str]:
    """What multiplies: torch's instructions, and the kernels of each BLAS that NumPy may use."""
    libraries = {
        f"{lib['internal_api']} {lib['architecture']}"
        for lib in threadpool_info()
        if "architecture" in lib
    }
    return [torch.backends.cpu.get_cpu_capability(), *sorted(libraries)]


def load() -> float | None:
    """Processes that wanted a core in the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def circumstances(device: str = "cpu") -> dict[str, Any]:
    """Hardware, threads, kernels, the machine's load, versions, commit and command."""
    found = dict(versions())
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "hardware": hardware(Config(device=device)),
        "threads": torch.get_num_threads(),
        "kernels": kernels(),
        "load": load(),
        "versions": found,
        "commit": commit(),
        "command": command(),
    }


def write(path: Path, value: Any) -> None:
    """Write JSON under another name first, so that no half of a file is ever left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
