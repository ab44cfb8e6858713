"""A net whose weights go on learning without forgetting: what is held while it is adapted.

Batch norm keeps its statistics: those of a batch of other images differ, and every layer behind
them was learnt for the old ones. (Its scale and shift learn.) Filters of a single channel keep
their weights. Learning those as well gave the same clusters, and their gradients take two thirds of
a step on a processor: the gradient of their input is a convolution like the forward one, and is
computed as one here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Filter(torch.autograd.Function):
    """A convolution of each channel alone, whose weights do not learn."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = images.shape, stride, padding
        return F.conv2d(images, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        rows, columns = ctx.stride
        if rows > 1 or columns > 1:  # zeros where the stride stepped over
            n, c, h, w = gradient.shape
            spread = gradient.new_zeros(n, c, (h - 1) * rows + 1, (w - 1) * columns + 1)
            spread = spread.contiguous(memory_format=torch.channels_last)
            spread[:, :, ::rows, ::columns] = gradient
            gradient = spread
        high, wide = weight.shape[2:]
        up, left = ctx.padding
        # the last pixels that no filter reached
        below = ctx.shape[2] + 2 * up - high + 1 - gradient.shape[2]
        right = ctx.shape[3] + 2 * left - wide + 1 - gradient.shape[3]
        gradient = F.pad(gradient, (0, right, 0, below))
        turned = weight.flip(2, 3)
        back = F.conv2d(
            gradient, turned, None, 1, (high - 1 - up, wide - 1 - left), groups=len(weight)
        )
        return back, None, None, None


def _filtered(module: nn.Conv2d, images: Tensor) -> Tensor:
    padding = module.padding
    if type(module).__name__ == "Conv2dSame":  # timm's: padded by the size of the images
        from timm.layers.padding import pad_same

        kernel, stride, dilation = map(list, (module.kernel_size, module.stride, module.dilation))
        images = pad_same(images, kernel, stride, dilation)
        padding = (0, 0)
    weight = module.weight
    if torch.is_autocast_enabled(images.device.type):
        dtype = torch.get_autocast_dtype(images.device.type)
        images, weight = images.to(dtype), weight.to(dtype)
    found: Tensor = _Filter.apply(images, weight, module.stride, padding)
    return found if module.bias is None else found + module.bias.to(found.dtype)[:, None, None]


def _is_filter(module: nn.Conv2d) -> bool:
    return (
        module.groups == module.in_channels == module.out_channels > 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and all(p < k for p, k in zip(module.padding, module.kernel_size, strict=True))
    )


def hold(net: nn.Module) -> Callable[[], None]:
    """Hold the filters of one channel.

    Returns:
        What lets them go: the net is as before then.
    """
    filters = [m for m in net.modules() if isinstance(m, nn.Conv2d) and _is_filter(m)]
    learnt = [module.weight.requires_grad for module in filters]
    for module in filters:
        module.weight.requires_grad_(False)
        module.forward = MethodType(_filtered, module)  # type: ignore[method-assign]

    def release() -> None:
        for module, before in zip(filters, learnt, strict=True):
            module.weight.requires_grad_(before)
            del module.forward

    return release


def keep_statistics(net: nn.Module) -> None:
    """Put batch norm in evaluation mode: call it after ``train()``."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
