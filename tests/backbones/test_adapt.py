"""What is held while a net is adapted, against torch's own gradients."""

import timm
import torch
from torch import nn

from deepcluster.backbones.adapt import hold, keep_statistics


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
