"""Muon against torch's own optimizers and the singular values."""

import pytest
import torch

from deepcluster.training.optimizers import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (12, 12)])
def test_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    made = orthogonalise(matrix)
    assert torch.linalg.svdvals(made).sub(1).abs().max() < 0.35
    assert torch.nn.functional.cosine_similarity(made.flatten(), (u @ v).flatten(), 0) > 0.97


def descend(make: object, start: torch.Tensor, steps: int = 5) -> torch.Tensor:
    weight = start.clone().requires_grad_()
    optimizer = make([weight])  # type: ignore[operator]
    target = torch.linspace(-1, 1, start.numel()).view(start.shape)
    for _ in range(steps):
        loss = ((weight - target) ** 2 * (1 + target)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weight.detach()


def test_matrices_are_stepped_as_by_torch() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    start = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    ours = descend(
        lambda p: Muon([{"params": p, "lr": 0.02, "weight_decay": 0.1, "matrices": True}]), start
    )
    theirs = descend(lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.1, momentum=0.9), start)
    assert torch.allclose(ours, theirs, atol=3e-3)  # theirs rounds to bfloat16
    assert not torch.allclose(ours, start, atol=3e-2)


def test_the_rest_is_stepped_as_by_adamw() -> None:
    start = torch.randn(7, generator=torch.Generator().manual_seed(0))
    ours = descend(
        lambda p: Muon([{"params": p, "lr": 0.01, "weight_decay": 0.1, "matrices": False}]), start
    )
    theirs = descend(
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, betas=(0.9, 0.999)), start
    )
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_kernels_count_as_matrices() -> None:
    kernel = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    group = {"lr": 0.02, "weight_decay": 0.0, "matrices": True}
    as_kernel = descend(lambda p: Muon([{"params": p, **group}]), kernel)
    as_matrix = descend(lambda p: Muon([{"params": p, **group}]), kernel.flatten(1))
    assert torch.allclose(as_kernel.flatten(1), as_matrix)
