"""PCA, optionally whitening, and L2 rows: what features go through before k-means.

Section 3.3 of Caron et al., "Deep Clustering for Unsupervised Learning of Visual Features" (2018).
The original calls faiss's ``PCAMatrix(d, 256, eigen_power=-0.5)``; this one is exact, runs in torch
on the features' device, and differs in four points: it fits on all rows (faiss on at most 1000 d);
a whitened component has variance 1 (faiss: 1/n; the L2 rows that follow make them equal); fewer
than `dim` rows or features give fewer components instead of a crash; a row of zeros stays zero
instead of becoming NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.processes import Spread

BLOCK = 2**24  # numbers in float64 at a time: 128 MiB


@dataclass(frozen=True)
class PCA:
    """A fitted projection: ``((x - mean) @ components.T) * scale``."""

    mean: Tensor
    """``(d,)`` float32."""
    components: Tensor
    """``(dim, d)`` float32, orthonormal, the largest variance first; in each, the entry that is
    largest by magnitude is positive."""
    scale: Tensor
    """``(dim,)`` float32: 1, or 1 / standard deviation when whitening."""

    @torch.no_grad()
    def apply(self, x: Tensor) -> Tensor:
        """Project rows ``(n, d)`` to ``(n, dim)`` float32, on the device of `x`."""
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ValueError(f"found {tuple(x.shape)}, expected rows of {len(self.mean)} features")
        mean = self.mean.to(x.device)
        matrix = (self.components * self.scale[:, None]).T.to(x.device)  # (d, dim)
        out = torch.empty(len(x), matrix.shape[1], device=x.device)
        for a, b in _blocks(x):
            out[a:b] = (x[a:b].float() - mean) @ matrix
        return out


@torch.no_grad()
def fit_pca(
    x: Tensor | Spread, dim: int, *, whiten: bool = True, rounding: float | None = None
) -> PCA:
    """Fit on the rows of `x`, in float64 and in blocks: beside `x`, memory is ``(d, d)``.

    Args:
        x: ``(n, d)``; where several processes have a part of it, all of them fit.
        dim: components wanted. At most min(n, d) exist, so fewer may come: see
            ``len(pca.components)``.
        whiten: scale each component to variance 1 (divisor n - 1). A direction that varies no more
            than rounding does is scaled to 0. With n - 1 components or more, whitening n rows puts
            all of them equally far apart: nothing is left to cluster.
        rounding: relative error of the values, where they were computed in fewer digits than they
            are kept in; None is the rounding of their type.

    Raises:
        ValueError: `x` is empty, not a matrix, or holds NaN or infinity; dim < 1.
    """
    spread = x if isinstance(x, Spread) else Spread(x, len(x))
    x = spread.mine.detach()
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"found {tuple(x.shape)}, expected (n, d) with at least one row")
    if dim < 1:
        raise ValueError(f"dim = {dim}: keep at least one component")
    n, d = len(spread), x.shape[1]
    # MPS has no float64.
    home = torch.device("cpu") if x.device.type == "mps" else x.device
    total = torch.zeros(d, dtype=torch.float64, device=home)
    for a, b in _blocks(x):
        total += x[a:b].to(home).double().sum(0)
    spread.add_up(total)
    mean = total / n
    if not mean.isfinite().all():
        raise ValueError("the features hold NaN or infinity: leave out or repair those rows")
    if n > d:
        covariance = torch.zeros(d, d, dtype=torch.float64, device=home)
        for a, b in _blocks(x):
            centred = x[a:b].to(home).double() - mean
            covariance.addmm_(centred.T, centred)
        spread.add_up(covariance)
        variance, vectors = torch.linalg.eigh(covariance / (n - 1))  # ascending
        variance, components = variance.flip(0).clamp(min=0), vectors.flip(1).T
    else:  # the rows themselves are the smaller matrix
        rows = spread.gather(x).to(home).double()
        _, singular, components = torch.linalg.svd(rows - mean, full_matrices=False)
        variance = singular.square() / max(n - 1, 1)
    variance, components = variance[:dim], components[:dim]

    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * torch.where(largest < 0, -1.0, 1.0)

    if whiten:
        # Values are known to a relative eps: variance below that of their rounding is none.
        eps = rounding or torch.finfo(x.dtype if x.is_floating_point() else torch.float32).eps
        power = variance.sum() / d + mean.square().mean()  # mean square of a value, nearly
        least = torch.maximum(power * eps**2, variance[0] * d * torch.finfo(torch.float64).eps)
        scale = torch.where(variance > least, variance.clamp(min=1e-300).rsqrt(), 0.0)
    else:
        scale = torch.ones_like(variance)
    return PCA(*(t.float().to(x.device) for t in (mean, components, scale)))


@torch.no_grad()
def normalise(x: Tensor) -> Tensor:
    """Rows of unit length, ``(n, d)`` float32; a row of zeros stays zero."""
    return F.normalize(x.float(), dim=1)


@torch.no_grad()
def normalise_(x: Tensor) -> Tensor:
    """As :func:`normalise`, of float32 in the place of what was given."""
    return F.normalize(x, dim=1, out=x)


def _blocks(x: Tensor) -> Iterator[tuple[int, int]]:
    size = max(BLOCK // x.shape[1], 1)
    for a in range(0, len(x), size):
        yield a, min(a + size, len(x))
