"""Muon against torch's own optimizers and the singular values."""

import pytest
import torch

from deepcluster.config import Config, override
from deepcluster.training.optimizers import Muon, build_optimizer, orthogonalise


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (12, 12)])
def test_singular_values_are_near_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    made = orthogonalise(matrix, dtype=dtype)
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


def test_weights_stepped_together_are_stepped_as_each_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 3, 3, 3), (8, 27), (8, 3, 3, 3), (6, 8), (8, 3, 3, 3), (6,), (6,)]
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    starts[2] = starts[2].contiguous(memory_format=torch.channels_last)
    gradients = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)]
    kinds = [{"lr": 0.1, "weight_decay": 0.1, "matrices": len(shape) > 1} for shape in shapes]
    kinds[4]["lr"] = 0.3

    def stepped(numbers: list[int]) -> list[torch.Tensor]:
        weights = {i: starts[i].clone().requires_grad_() for i in numbers}
        optimizer = Muon([{"params": weights[i], **kinds[i]} for i in numbers])
        for step in gradients:
            for i in numbers:
                weights[i].grad = step[i].clone()
            optimizer.step()
        return [weights[i].detach() for i in numbers]

    together = stepped(list(range(len(shapes))))
    for i, weight in enumerate(together):
        assert torch.allclose(weight, stepped([i])[0], atol=1e-6)


def test_a_weight_without_a_gradient_stays() -> None:
    weight = torch.ones(4, 4, requires_grad=True)
    Muon([{"params": weight, "lr": 0.1, "weight_decay": 0.1, "matrices": True}]).step()
    assert torch.equal(weight, torch.ones(4, 4))


def test_the_first_layer_of_a_transformer_is_its_first_product() -> None:
    """Tokens and places are no matrices, and come before the layer that sees the pixels."""
    shapes = {"cls": (1, 1, 8), "places": (1, 5, 8), "patches": (8, 3, 4, 4), "bias": (8,)}
    weights = {name: torch.zeros(shape, requires_grad=True) for name, shape in shapes.items()}
    weights["inner"] = torch.zeros(24, 8, requires_grad=True)
    train = override(Config(), {"train.lr": 0.02, "train.precision": "float32"}).train
    optimizer = build_optimizer([{"params": list(weights.values())}], train)
    stepped = {
        id(p) for group in optimizer.param_groups if group["matrices"] for p in group["params"]
    }
    assert stepped == {id(weights["inner"])}


def test_on_a_processor_muon_keeps_its_digits() -> None:
    train = override(Config(), {"train.lr": 0.02, "train.precision": "bfloat16"}).train
    optimizer = build_optimizer([{"params": [torch.zeros(2, 2, requires_grad=True)]}], train)
    assert isinstance(optimizer, Muon)
    assert optimizer.dtype == torch.float32
