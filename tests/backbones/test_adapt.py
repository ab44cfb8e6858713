"""What is held while a net is adapted, against torch's own gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from deepcluster.backbones.adapt import activations, counting, hold, in_pieces, keep_statistics


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()


def test_gradients_are_those_of_torch():
    """At a stride of two, at odd sides, with timm's padding by the size of the images."""
    for images in (torch.randn(2, 3, 45, 45), torch.randn(2, 3, 64, 64)):
        plain, held = small_net(), small_net()
        release = hold(held)
        plain(images).square().mean().backward()
        held(images).square().mean().backward()
        learnt = 0
        for (name, own), theirs in zip(held.named_parameters(), plain.parameters(), strict=True):
            if own.requires_grad:
                apart = (own.grad - theirs.grad).abs().max()
                assert apart < 1e-3 * theirs.grad.abs().max() + 1e-9, name
                learnt += 1
            else:
                assert own.grad is None and own.shape[1] == 1, name
        assert learnt > 100
        release()
        assert all(p.requires_grad for p in held.parameters())
        assert not any("forward" in vars(module) for module in held.modules())


def test_padding_and_bias_of_plain_convolutions():
    torch.manual_seed(0)
    for stride, kernel, padding in ((1, 3, 1), (2, 5, 2), (2, 3, 0), (3, 3, 1)):
        plain = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, kernel, stride, padding, groups=4)
        )
        held = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, kernel, stride, padding, groups=4))
        held.load_state_dict(plain.state_dict())
        hold(held)
        images = torch.randn(2, 3, 11, 12)
        a, b = plain(images), held(images)
        assert torch.allclose(a, b, atol=1e-6)
        a.square().sum().backward()
        b.square().sum().backward()
        for part in (0, 1):
            assert torch.allclose(plain[part].bias.grad, held[part].bias.grad, rtol=1e-4)
        assert torch.allclose(plain[0].weight.grad, held[0].weight.grad, rtol=1e-4, atol=1e-5)
        assert held[1].weight.grad is None


def test_batch_norm_keeps_its_statistics():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    net.train()
    keep_statistics(net)
    before = net[1].running_mean.clone()
    net(torch.randn(8, 3, 4, 4) + 3)
    assert torch.equal(net[1].running_mean, before)
    assert net[2].training and net[1].weight.requires_grad


class Dropping(nn.Module):
    """Batch norm as it is kept, dropout and drop path."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = timm.create_model("tf_efficientnet_lite0", num_classes=0, drop_path_rate=0.3)
        self.drop = nn.Dropout()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(self.net(images))


def gradients(net: nn.Module, images: torch.Tensor, **how: Any) -> list[torch.Tensor]:
    hold(net)
    net.train()
    keep_statistics(net)
    release = in_pieces(net, 3 * 32**2, **how) if how else lambda: None
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net(images).square().mean().backward()
        after = torch.rand(1)
    release()
    return [*(p.grad for p in net.parameters() if p.grad is not None), after]


@pytest.mark.parametrize("make", [Dropping, lambda: nn.Sequential(small_net(), nn.Dropout())])
def test_what_is_computed_again_gives_the_same_bits(make: Callable[[], nn.Module]) -> None:
    images = torch.randn(8, 3, 32, 32)
    torch.manual_seed(2)
    kept, again = (gradients(make(), images, again=again) for again in (False, True))
    assert len(kept) > 100
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_pieces_are_the_whole_batch() -> None:
    images = torch.randn(8, 3, 32, 32)
    whole, pieces = gradients(small_net(), images), gradients(small_net(), images, again=True)
    for a, b in zip(whole[:-1], pieces[:-1], strict=True):
        assert (a - b).abs().max() < 1e-4 * a.abs().max() + 1e-9


def test_pieces_wait_for_the_way_back_only_where_they_are_kept() -> None:
    images, held = torch.randn(8, 3, 32, 32), []
    for again in (False, True):
        net = small_net()
        seen: list[int] = []
        release = in_pieces(net, 3 * 32**2, again=again)
        net.conv_stem.register_forward_hook(lambda *parts: seen.append(len(parts[1][0])))  # noqa: B023
        with counting(net) as waiting:
            net(images)
        assert seen == [3, 3, 2]
        held.append(sum(waiting.values()))
        with torch.no_grad():
            net(images)
        assert seen[3:] == [3, 3, 2]
        release()
        assert "forward" not in vars(net)
    assert held[1] < held[0] / 100


def test_activations_are_counted_by_the_pixel_and_nothing_is_changed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten())
    state = torch.get_rng_state()
    found = activations(net, channels=3, size=16, dtype=torch.float32)
    # the images, what batch norm and tanh left, and a few numbers a channel
    assert 4 * (3 + 4 + 4) <= found < 4 * (3 + 4 + 4) + 0.1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_net_whose_buffers_change_sees_its_batch_as_a_whole() -> None:
    own = nn.Sequential(
        nn.Flatten(), torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2))
    )
    before = {name: value.clone() for name, value in own.state_dict().items()}
    assert activations(own, channels=3, size=1, dtype=torch.float32) == 0
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
