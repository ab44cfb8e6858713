"""A net whose weights go on learning without forgetting: what is held while it is adapted.

Batch norm keeps its statistics: those of a batch of other images differ, and every layer behind
them was learnt for the old ones. (Its scale and shift learn.) Filters of a single channel keep
their weights. Learning those as well gave the same clusters, and their gradients take two thirds of
a step on a processor: the gradient of their input is a convolution like the forward one, and is
computed as one here.

So no image of a batch depends on another one within the net, which may see them piece by piece.
What a piece leaves for the way back can be kept or computed again: the operations and their order
are the same, and so are the bits of the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

PROBE, MOST = 4, 2**19  # images on which a net's activations are counted, or pixels of fewer


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


def in_pieces(net: nn.Module, pixels: int, *, again: bool) -> Callable[[], None]:
    """Have a net see a batch piece by piece.

    Args:
        net: ``(b, c, s, s)`` -> ``(b, d)``, in which no image depends on the others of the batch.
        pixels: of the images of a piece together; it has one image at least.
        again: whether what a piece leaves for the way back is computed again there, not kept.

    Returns:
        What ends it.
    """
    own = vars(net).get("forward")
    whole: Callable[[Tensor], Tensor] = net.forward

    def forward(images: Tensor) -> Tensor:
        each = max(1, pixels // (images.shape[2] * images.shape[3]))
        pieces = images.tensor_split(math.ceil(len(images) / each))
        if again and torch.is_grad_enabled():
            return torch.cat([checkpoint(whole, piece, use_reentrant=False) for piece in pieces])
        return torch.cat([whole(piece) for piece in pieces])

    net.forward = forward

    def release() -> None:
        del net.forward
        if own is not None:
            net.forward = own

    return release


@contextmanager
def counting(module: nn.Module) -> Iterator[dict[int, int]]:
    """Count what waits for the way back meanwhile, without the weights of a module.

    Yields:
        Storages and the bytes of each. The way back itself cannot be gone.
    """
    held: dict[int, int] = {}
    weights = {p.shape for p in module.parameters() if p.ndim > 1}  # as many for any batch

    def note(tensor: Tensor) -> Tensor:
        if tensor.shape not in weights:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # with what made it, it would hold itself in memory for good

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield held


def activations(net: nn.Module, *, channels: int, size: int, dtype: torch.dtype) -> float:
    """Bytes that wait for the way back for each pixel of the images that a net learns from.

    Args:
        net: on its device; it is left in training mode, with the statistics of batch norm kept.
        channels: of its images.
        size: side of the images in pixels.
        dtype: arithmetic.

    Returns:
        0 for a net that must see its batch as a whole, and once: one whose buffers change.
    """
    parameter = next(net.parameters(), torch.zeros(()))
    device = parameter.device
    count = max(1, min(PROBE, MOST // size**2))
    images = torch.zeros(count, channels, size, size, device=device, dtype=parameter.dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    net.train()
    keep_statistics(net)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if any(norm.running_mean is None for norm in norms):  # by the batch, always
        return 0.0
    before = [
        (module._buffers, name, buffer, buffer.clone(), buffer._version)
        for module in net.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    numbers = torch.random.fork_rng([device] if device.type == "cuda" else [])
    arithmetic = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with numbers, arithmetic, counting(net) as held:
        kept = net(images)
    del kept
    changed = False
    for buffers, name, buffer, value, version in before:
        if buffers[name] is not buffer or buffer._version != version:
            changed = True
            buffer.data.copy_(value)
            buffers[name] = buffer
    return 0.0 if changed else sum(held.values()) / (count * size**2)
