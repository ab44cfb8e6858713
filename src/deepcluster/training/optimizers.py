"""The optimizers: Muon here, SGD and AdamW from torch, each over groups of parameters.

Muon is momentum whose every matrix is made near-orthogonal before the step (Jordan et al. 2024,
"Muon: an optimizer for hidden layers in neural networks"). torch has it from 2.9 on, for matrices
only; here convolution kernels count as matrices ``(out, in·h·w)`` and everything that Muon is not
meant for (first layer, last layer, biases, norms) is stepped by AdamW in the same optimizer, so
that there is one state to save. On a CPU orthogonalisation is in float32:
bfloat16 saves little time for small nets and cost digits .015 NMI (30 epochs; each of 3 seeds was
lower). On a GPU it is in the arithmetic of the net.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deepcluster import processes
from deepcluster.config import TrainSettings

ADAM_SHARE = 0.1  # AdamW's learning rate over Muon's, where one optimizer is both
QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of the iteration, from the authors


def orthogonalise(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Move all singular values of matrices near 1 (to about 0.7 to 1.2), keeping their vectors.

    Args:
        matrices: ``(…, rows, columns)`` float32.
        steps: Newton–Schulz iterations.
        dtype: their arithmetic.
    """
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def orthogonalise_together(
    stacks: list[Tensor], steps: list[int], dtype: torch.dtype
) -> list[Tensor]:
    """As :func:`orthogonalise`, of which each process does a part.

    Args:
        stacks: each ``(weights, rows, columns)`` float32, the same in all processes.
        steps: iterations of each stack.
        dtype: their arithmetic.
    """
    if processes.world() == 1 or not stacks:
        return [orthogonalise(*each, dtype) for each in zip(stacks, steps, strict=True)]
    costs = [stack[0].numel() * min(stack.shape[1:]) for stack in stacks for _ in stack]
    owners = iter(processes.divide(costs))
    whose = [[next(owners) for _ in stack] for stack in stacks]

    def rows(process: int) -> list[list[int]]:
        """Of each stack, the weights that are this process's part."""
        return [[i for i, owner in enumerate(of) if owner == process] for of in whose]

    own = [
        orthogonalise(stack[mine], each, dtype).flatten()
        for stack, mine, each in zip(stacks, rows(processes.rank()), steps, strict=True)
    ]
    parts = [rows(process) for process in range(processes.world())]
    lengths = [[len(r) * s[0].numel() for r, s in zip(part, stacks, strict=True)] for part in parts]
    found = processes.join(torch.cat(own), [sum(each) for each in lengths])
    pieces = iter(found.split([length for each in lengths for length in each]))
    updates = [torch.empty_like(stack) for stack in stacks]
    for part in parts:
        for update, mine in zip(updates, part, strict=True):
            update[mine] = next(pieces).view(-1, *update.shape[1:])
    return updates


class Muon(torch.optim.Optimizer):
    """Muon for groups with ``matrices=True``, AdamW for the others.

    Weights that are stepped alike are stepped together, whatever groups they are in: on a GPU few
    large operations take less time than many small ones.

    Args:
        groups: parameter groups, each with ``params``, ``lr``, ``weight_decay`` and ``matrices``.
        momentum: of Muon (Nesterov), and first beta of AdamW.
        steps: Newton–Schulz iterations.
        dtype: their arithmetic.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        momentum: float = 0.9,
        steps: int = 5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(groups, {"momentum": momentum, "steps": steps, "weight_decay": 0.0})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step from the gradients; `closure` is not used."""
        alike: dict[tuple[Any, ...], tuple[dict[str, Any], list[Tensor]]] = {}
        for group in self.param_groups:
            facts = tuple(v for k, v in sorted(group.items()) if k != "params")
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shape = parameter.shape if group["matrices"] else None
                    alike.setdefault((shape, *facts), (group, []))[1].append(parameter)
        matrices = []
        for group, parameters in alike.values():
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            gradients = [p.grad for p in parameters if p.grad is not None]
            if group["matrices"]:
                matrices.append((group, parameters, self._momenta(parameters, gradients, group)))
            else:
                self._adam_step(parameters, gradients, group)
        steps = [group["steps"] for group, _, _ in matrices]
        updates = orthogonalise_together([stack for _, _, stack in matrices], steps, self.dtype)
        for (group, parameters, stack), update in zip(matrices, updates, strict=True):
            rows, columns = stack.shape[1:]
            scale = max(1.0, rows / columns) ** 0.5
            update = update.view(len(parameters), *parameters[0].shape)
            torch._foreach_add_(parameters, list(update), alpha=-group["lr"] * scale)

    def _momenta(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> Tensor:
        """Where weights of one shape are drawn to: ``(weights, rows, columns)``."""
        states = [self.state[parameter] for parameter in parameters]
        for state, parameter in zip(states, parameters, strict=True):
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
        momenta = [state["momentum"] for state in states]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        look_ahead = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
        return torch.stack(look_ahead).flatten(2)

    def _adam_step(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros(()),
                    "mean": torch.zeros_like(parameter),
                    "square": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        means = [state["mean"] for state in states]
        squares = [state["square"] for state in states]
        beta1, beta2 = group["momentum"], 0.999
        for state in states:
            state["step"] += 1
        steps = [float(state["step"]) for state in states]  # a head drawn anew counts from 1
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - beta2)
        change = torch._foreach_div(means, [1 - beta1**step for step in steps])
        roots = torch._foreach_div(squares, [1 - beta2**step for step in steps])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, 1e-8)
        torch._foreach_addcdiv_(parameters, change, roots, value=-group["lr"])


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
            several = parameter.ndim > 1 and len(parameter) > 1  # one row, of a token, is a vector
            matrix = several and rest["matrices"] and not first
            first = first and not several
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
        on_gpu = any(parameter.is_cuda for group in groups for parameter in group["params"])
        dtype = getattr(torch, train.precision) if on_gpu else torch.float32
        optimizer = Muon(groups, momentum=train.momentum, dtype=dtype)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
