"""What a fit needs to go on: written between epochs as safetensors, never as pickle."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deepcluster.run import RunDir


def save_checkpoint(
    run: RunDir,
    epoch: int,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    previous: Tensor | None,
) -> None:
    """Write all that :func:`load_checkpoint` needs; keep the last two. safetensors, no pickle."""
    tensors = {f"method.{name}": value for name, value in method.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
    if previous is not None:
        tensors["previous"] = previous
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    run.checkpoints.mkdir(exist_ok=True)
    path = run.checkpoints / f"epoch-{epoch:05d}.safetensors"
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"epoch": json.dumps(epoch)})
    part.replace(path)
    for old in sorted(run.checkpoints.glob("epoch-*.safetensors"))[:-2]:
        old.unlink()


def last_checkpoint(run: RunDir) -> Path:
    """The newest checkpoint of a run.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(run.checkpoints.glob("epoch-*.safetensors"))
    if not found:
        raise FileNotFoundError(
            f"{run.checkpoints} holds no checkpoint: start again with --overwrite"
        )
    return found[-1]


def load_checkpoint(
    path: Path, method: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, Tensor | None]:
    """Put a checkpoint's state into `method` and `optimizer`.

    Returns:
        epochs that are done, and the clusters of the last one.
    """
    with safe_open(path, framework="pt") as file:
        epoch = json.loads(file.metadata()["epoch"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    method.load_state_dict(
        {k.removeprefix("method."): v for k, v in tensors.items() if k.startswith("method.")}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return epoch, tensors.get("previous")
