"""What a fit needs to go on: written between epochs as safetensors, never as pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from deepcluster import processes
from deepcluster.errors import DamagedError, RunError
from deepcluster.files import reading, replacing
from deepcluster.run import RunDir


def save_checkpoint(
    run: RunDir,
    epoch: int,
    method: Any,
    optimizer: torch.optim.Optimizer,
    previous: Tensor | None,
) -> None:
    """Write all that :func:`load_newest` needs; keep the last two. safetensors, no pickle."""
    tensors = _state(epoch, method, optimizer)
    if previous is not None:
        tensors["previous"] = previous
    run.checkpoints.mkdir(exist_ok=True)
    path = run.checkpoints / f"epoch-{epoch:05d}.safetensors"
    with replacing(path) as part:
        save_file(tensors, part, metadata={"epoch": json.dumps(epoch)})
    for old in sorted(run.checkpoints.glob("epoch-*.safetensors"))[:-2]:
        old.unlink()


def load_newest(
    run: RunDir, method: Any, optimizer: torch.optim.Optimizer
) -> tuple[int, Tensor | None]:
    """Put the state of the newest checkpoint that is whole into `method` and `optimizer`.

    Returns:
        epochs that are done, and the clusters of the last one; 0 and None where none is whole: a
        fit that was stopped before its first begins again, and comes to the same.
    """
    found = sorted(run.checkpoints.glob("epoch-*.safetensors"), reverse=True)
    for path in found:
        try:
            return load_checkpoint(path, method, optimizer)
        except RunError as error:
            if error.__cause__ is None:  # whole, but of another net
                raise
    return 0, None


def load_checkpoint(
    path: Path, method: Any, optimizer: torch.optim.Optimizer
) -> tuple[int, Tensor | None]:
    """Put a checkpoint's state into `method` and `optimizer`.

    Returns:
        epochs that are done, and the clusters of the last one.

    Raises:
        RunError: it is damaged, or of another net or method; nothing was put anywhere.
    """
    with reading(path):
        with safe_open(path, framework="pt") as file:
            epoch = json.loads(file.metadata()["epoch"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if type(epoch) is not int or path.stem != f"epoch-{epoch:05d}":
            raise DamagedError(f"it says it is of epoch {str(epoch)[:20]}")
        if not all(t.isfinite().all() for t in tensors.values() if t.is_floating_point()):
            raise DamagedError("a number in it is not finite")
    _restore(tensors, method, optimizer, str(path))
    return epoch, tensors.get("previous")


def share_state(epochs: int, method: Any, optimizer: torch.optim.Optimizer) -> int:
    """Put the first process's state into that of all others that train along.

    Returns:
        the epochs that are done there.
    """
    if processes.world() == 1:
        return epochs
    held = save(_state(epochs, method, optimizer)) if processes.first() else b""
    held = processes.tell(held)
    if not processes.first():
        _restore(load(held), method, optimizer, "what the first process sent")
    return processes.agree(epochs)


def _state(epoch: int, method: Any, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies, on the CPU, of what is needed from the start of `epoch` on."""
    spared = () if method.reads(epoch) else method.refilled
    tensors = {
        f"method.{name}": value for name, value in method.state_dict().items() if name not in spared
    }
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def _restore(
    tensors: Mapping[str, Tensor], method: Any, optimizer: torch.optim.Optimizer, origin: str
) -> None:
    weights = {k.removeprefix("method."): v for k, v in tensors.items() if k.startswith("method.")}
    adopt = getattr(method, "adopt", None)  # of a method whose number of labels is found as it goes
    if adopt is not None:
        adopt(weights, optimizer)
    own = method.state_dict()
    weights = {name: own[name] for name in method.refilled if name in own} | weights
    wanted = {name: value.shape for name, value in own.items()}
    if wanted != {name: value.shape for name, value in weights.items()}:
        differing = sorted(wanted.keys() ^ weights.keys()) or sorted(
            name for name in wanted if wanted[name] != weights[name].shape
        )
        raise RunError(f"{origin} is of another net or method: {differing[0]} is not the same")
    method.load_state_dict(weights)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
