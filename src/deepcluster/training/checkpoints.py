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
    run: RunDir | None,
    epoch: int,
    method: Any,
    optimizer: torch.optim.Optimizer,
    previous: Tensor | None,
) -> None:
    """Write all that :func:`load_newest` needs; keep the last two. safetensors, no pickle.

    Args:
        run: where; None in the other processes, which give the first one their rows of the banks.
        epoch: epochs that are done.
        method: a :class:`deepcluster.methods.Method`.
        optimizer: of its groups.
        previous: the clusters of the last epoch.
    """
    banks = {
        _key(name): processes.collect(_copy(method.get_buffer(name)), method.n, dim)
        for name, dim in method.refilled.items()
        if method.reads(epoch)
    }
    if run is None:
        return
    tensors = _state(method, optimizer) | banks
    if previous is not None:
        tensors["previous"] = previous
    run.checkpoints.mkdir(exist_ok=True)
    path = _path(run, epoch)
    with replacing(path) as part:
        save_file(tensors, part, metadata={"epoch": json.dumps(epoch)})
    for old in sorted(run.checkpoints.glob("epoch-*.safetensors"))[:-2]:
        old.unlink()


def _path(run: RunDir, epoch: int) -> Path:
    return run.checkpoints / f"epoch-{epoch:05d}.safetensors"


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
    """Put a checkpoint's state into `method` and `optimizer`; of banks, this process's rows.

    Returns:
        epochs that are done, and the clusters of the last one.

    Raises:
        RunError: it is damaged, or of another net or method; nothing was put anywhere.
    """
    with reading(path):
        with safe_open(path, framework="pt") as file:
            epoch = json.loads(file.metadata()["epoch"])
            banks = {_key(name): dim for name, dim in method.refilled.items()}
            names = [*file.keys()]
            tensors = {name: file.get_tensor(name) for name in names if name not in banks}
            for name in banks.keys() & {*names}:
                dim = banks[name]
                if file.get_slice(name).get_shape()[dim] != method.n:
                    tensors[name] = file.get_tensor(name)  # of other images
                    continue
                for rows in reversed(processes.shares(method.n)):  # the first's own come last
                    tensors[name] = _rows(file, name, dim, rows)
                    _check_finite(tensors[name])
        if type(epoch) is not int or path.stem != f"epoch-{epoch:05d}":
            raise DamagedError(f"it says it is of epoch {str(epoch)[:20]}")
        for tensor in tensors.values():
            _check_finite(tensor)
    _restore(tensors, method, optimizer, str(path))
    return epoch, tensors.get("previous")


def _holds(path: Path, name: str) -> bool:
    """Whether a bank is in a checkpoint."""
    with safe_open(path, framework="pt") as file:
        return _key(name) in file.keys()  # noqa: SIM118 (it is no dict)


def _rows(file: Any, name: str, dim: int, rows: slice) -> Tensor:
    """Some rows of a bank in a checkpoint; only these are read."""
    found: Tensor = file.get_slice(name)[(*[slice(None)] * dim, rows)]
    return found


def _check_finite(tensor: Tensor) -> None:
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise DamagedError("a number in it is not finite")


def share_state(
    run: RunDir | None, epochs: int, method: Any, optimizer: torch.optim.Optimizer
) -> int:
    """Put the first process's state into that of all others that train along.

    Args:
        run: whose checkpoint of so many epochs the first process has loaded, if there are any.
        epochs: that are done there.
        method: a :class:`deepcluster.methods.Method`.
        optimizer: of its groups.

    Returns:
        the epochs that are done in the first process.
    """
    if processes.world() == 1:
        return epochs
    epochs = processes.agree(epochs)
    held = processes.tell(save(_state(method, optimizer)) if processes.first() else b"")
    if not processes.first():
        _restore(load(held), method, optimizer, "what the first process sent")
    for name, dim in method.refilled.items() if epochs and method.reads(epochs) else ():
        if not processes.agree(int(run is not None and _holds(_path(run, epochs), name))):
            continue  # it was not to be read, when it was written: the epochs became fewer since
        bank = method.get_buffer(name)
        if not processes.first():
            bank.copy_(processes.receive(_copy(bank), 0))
            continue
        assert run is not None
        with safe_open(_path(run, epochs), framework="pt") as file:
            for other, rows in enumerate(processes.shares(method.n)[1:], start=1):
                processes.send(_rows(file, _key(name), dim, rows), other)
    return epochs


def _key(name: str) -> str:
    return f"method.{name}"


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _state(method: Any, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of all but the banks, on the CPU."""
    kept = method.state_dict().items()
    tensors = {_key(name): value for name, value in kept if name not in method.refilled}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
    return {name: _copy(value) for name, value in tensors.items()}


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
