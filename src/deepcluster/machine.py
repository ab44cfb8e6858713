"""What computes: versions, hardware and the command line, for run.json."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from deepcluster import processes
from deepcluster.config import Config
from deepcluster.version import __version__


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {
        "deepcluster": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,  # with the kind of GPU it was built for
        **{name: version(name) for name in ("torchvision", "timm")},
        "sklearn": version("scikit-learn"),
        "numpy": version("numpy"),
    }


def hardware(config: Config) -> dict[str, Any]:
    """What the fit runs on."""
    facts: dict[str, Any] = {
        "device": config.device,
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu": _cpu_name(),
    }
    if processes.helpers() > 1:
        facts["processes"] = processes.helpers()
    if config.device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(config.device)
    return facts


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


def launcher() -> list[str]:
    """What is typed before a command that is to have as many processes as this one; or nothing."""
    count, here = processes.helpers(), os.environ.get("LOCAL_WORLD_SIZE")
    if count == 1:
        return []
    nodes = ["--standalone"] if here in (None, str(count)) else ["--nnodes", "…"]
    return ["torchrun", *nodes, "--nproc-per-node", here or str(count), "-m", "--"]


def command_line() -> list[str]:
    """The command as it was typed."""
    return ["deepcluster", *sys.argv[1:]]
