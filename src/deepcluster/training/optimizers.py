"""The optimizers: Muon here, SGD and AdamW from torch, each over groups of parameters.

Muon is momentum whose every matrix is made near-orthogonal before the step (Jordan et al. 2024,
"Muon: an optimizer for hidden layers in neural networks"). torch has it from 2.9 on, for matrices
only; here convolution kernels count as matrices ``(out, in·h·w)`` and everything that Muon is not
meant for (first layer, last layer, biases, norms) is stepped by AdamW in the same optimizer, so
that there is one state to save. Orthogonalisation is in float32: the matrices of small nets are too
small for bfloat16 to be faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepcluster.config import TrainSettings

ADAM_SHARE = 0.1  # AdamW's learning rate over Muon's, where one optimizer is both
QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of the iteration, from the authors


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Move all singular values of a matrix near 1 (to about 0.7 to 1.2), keeping its vectors.

    Args:
        matrix: ``(rows, columns)``.
        steps: Newton–Schulz iterations.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for groups with ``matrices=True``, AdamW for the others.

    Args:
        groups: parameter groups, each with ``params``, ``lr``, ``weight_decay`` and ``matrices``.
        momentum: of Muon (Nesterov), and first beta of AdamW.
        steps: Newton–Schulz iterations.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float = 0.9, steps: int = 5
    ) -> None:
        super().__init__(groups, {"momentum": momentum, "steps": steps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step from the gradients; `closure` is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                change = self._matrix_step if group["matrices"] else self._adam_step
                change(parameter, parameter.grad, group)

    def _matrix_step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].mul_(group["momentum"]).add_(gradient)
        look_ahead = gradient + group["momentum"] * momentum
        update = orthogonalise(look_ahead.flatten(1), group["steps"])
        rows, columns = update.shape
        scale = max(1.0, rows / columns) ** 0.5
        parameter.add_(update.view(parameter.shape), alpha=-group["lr"] * scale)

    def _adam_step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        beta1, beta2 = group["momentum"], 0.999
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].lerp_(gradient * gradient, 1 - beta2)
        step = float(state["step"])
        mean = state["mean"] / (1 - beta1**step)
        root = (state["square"] / (1 - beta2**step)).sqrt_().add_(1e-8)
        parameter.addcdiv_(mean, root, value=-group["lr"])


def build_optimizer(wanted: list[dict[str, Any]], train: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer over a method's groups; biases and norms are not decayed unless asked.

    Args:
        wanted: groups, each with ``params`` and what differs from `train`: ``lr``, ``momentum``,
            or ``matrices=False`` for weights that Muon shall leave to AdamW.
        train: resolved settings.
    """
    assert isinstance(train.lr, float)
    groups: list[dict[str, Any]] = []
    first = True  # the first layer sees pixels: no matrix for Muon
    for group in wanted:
        rest = {"lr": train.lr, "momentum": train.momentum, "matrices": True}
        rest |= {name: value for name, value in group.items() if name != "params"}
        for parameter in group["params"]:
            matrix = parameter.ndim > 1 and rest["matrices"] and not first
            first = first and parameter.ndim == 1
            decay = train.weight_decay if parameter.ndim > 1 or train.decay_all else 0.0
            facts = {**rest, "matrices": matrix, "weight_decay": decay}
            if groups and all(groups[-1][name] == value for name, value in facts.items()):
                groups[-1]["params"].append(parameter)
            else:
                groups.append({**facts, "params": [parameter]})
    for group in groups:
        if train.optimizer == "muon":
            if not group["matrices"]:
                group["lr"] *= ADAM_SHARE
        elif train.optimizer == "adamw":
            group["betas"] = (group.pop("momentum"), 0.999)
    optimizer: torch.optim.Optimizer
    if train.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=train.lr)
    elif train.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=train.lr)
    else:
        optimizer = Muon(groups, momentum=train.momentum)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
