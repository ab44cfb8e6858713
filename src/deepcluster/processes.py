"""Several processes on one fit: how many, which one am I, and what all of them must know.

torchrun starts the same command N times and says so in the environment. The first process does all
that a single one does; the others do nothing but train along (``training/loop.py``). Each holds a
stretch of the images and of what is kept of them, and computes views and features of its share of
every batch; from there on all of them hold the whole batch, so that loss, banks and clusters are
those of one process. torch.distributed does the talking: gloo between CPUs, NCCL between CUDA
devices. Without a launcher nothing here does anything.

Long, because all that one process says to another is here, and nothing of it elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deepcluster.errors import ConfigError, ProcessError
from deepcluster.progress import counted

WAIT = timedelta(days=7)
"""So long one process waits for another that lives, such as for the first while it decodes or makes
the report. One that has ended is noticed by its closed connection."""

SLOW = 1.5, 2.0
"""A process is slow that computes for so many times as long an epoch as the others' median, and for
so many seconds longer."""

_waited = [0.0]  # seconds that this process has spent in messages, where they end before it goes on
_joined: ContextVar[bool] = ContextVar("joined", default=False)
_training: ContextVar[bool] = ContextVar("training", default=False)


def follows() -> bool:
    """Whether a launcher started this process, and it is not the first one."""
    return _launched() and int(os.environ["RANK"]) > 0


def _launched() -> bool:
    known = all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    return known and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Find the other processes of the launcher; when the first one leaves, all may.

    Raises:
        ProcessError: they cannot be found.
    """
    if not _launched():
        yield
        return
    # An optimizer imports it at its first step, and imported while there is a group it keeps that
    # for good: the group's threads would abort a process that ends while one of them is slow.
    import torch._dynamo

    cuda = torch.cuda.is_available()
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if place < torch.cuda.device_count():  # a fit on the processor may have more processes
        torch.cuda.set_device(place)
    with _talking():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=WAIT)
    token = _joined.set(True)
    try:
        yield
        if first():
            with contextlib.suppress(ProcessError):  # one has ended before: it is done all the same
                tell(b"")
    finally:
        _joined.reset(token)
        dist.destroy_process_group()


@contextlib.contextmanager
def training() -> Iterator[None]:
    """Within, all processes do the same: they share batches, gradients and features."""
    token = _training.set(_joined.get())
    try:
        yield
    finally:
        _training.reset(token)


def helpers() -> int:
    """How many processes will train together; 1 without a launcher."""
    return dist.get_world_size() if _joined.get() else 1


def world() -> int:
    """How many processes train together now; 1 while the first one works alone."""
    return dist.get_world_size() if _training.get() else 1


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if _joined.get() else 0


def first() -> bool:
    """Whether this is the process that does what is done once."""
    return rank() == 0


def share(n: int) -> slice:
    """Which of `n` rows this process works on: a stretch; sizes differ by one at most.

    Raises:
        ConfigError: there are fewer rows than processes.
    """
    return shares(n)[rank() if world() > 1 else 0]


def shares(n: int) -> list[slice]:
    """Which of `n` rows each process works on: see :func:`share`."""
    count = world()
    if count > 1 and n < count:
        raise ConfigError(
            f"{counted(n, 'image')}, too few for {count} processes: start fewer of them"
        )
    return [slice(one * n // count, (one + 1) * n // count) for one in range(count)]


def divide(costs: Sequence[int]) -> list[int]:
    """Which process does each of some things, so that all of them take about as long."""
    taken, owners = [0] * world(), [0] * len(costs)
    for thing in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[thing] = taken.index(min(taken))
        taken[owners[thing]] += costs[thing]
    return owners


# -- what one says to all -----------------------------------------------------------------------


def tell(message: bytes) -> bytes:
    """What the first process says, in all of them; the others' own `message` does not count."""
    if helpers() == 1:
        return message
    length = torch.tensor([len(message)])
    _broadcast(length)
    content = torch.empty(int(length), dtype=torch.uint8)
    if first() and message:
        content.copy_(torch.frombuffer(bytearray(message), dtype=torch.uint8))
    if len(content):
        _broadcast(content)
    return content.numpy().tobytes()


def agree(value: int) -> int:
    """The first process's number, in all of them."""
    if world() == 1:
        return value
    number = torch.tensor([value])
    _broadcast(number)
    return int(number)


def equalise(tensors: Iterable[Tensor]) -> None:
    """Give all processes the first one's values, in place."""
    if helpers() == 1:
        return
    for tensor in tensors:
        values = tensor.detach().contiguous()
        _broadcast(values)
        tensor.detach().copy_(values)


@contextlib.contextmanager
def computing() -> Iterator[list[float]]:
    """Seconds of what stands within, less those in messages, once it is done: one number."""
    spent: list[float] = []
    began, waited = time.perf_counter(), _waited[0]
    yield spent
    spent.append(time.perf_counter() - began - (_waited[0] - waited))


def latecomer(seconds: float) -> str:
    """Which process all others wait for, if one is SLOW; empty if none is.

    Args:
        seconds: that this process was :func:`computing` in an epoch.
    """
    if world() == 1:
        return ""
    each = join(torch.tensor([seconds], dtype=torch.float64), [1] * world()).tolist()
    late = max(range(len(each)), key=each.__getitem__)
    usual = statistics.median(each[:late] + each[late + 1 :])
    times, more = SLOW
    if each[late] < times * usual or each[late] < usual + more:
        return ""
    return (
        f"process {late} (from 0) of {len(each)} computes {each[late]:.1f} s an epoch, others "
        f"{usual:.1f} s, and wait for it: see what else its machine does"
    )


# -- what all say to all ------------------------------------------------------------------------


def gather(mine: Tensor, n: int, dim: int = 0) -> Tensor:
    """The rows of all processes, with gradients.

    The loss is then that of the whole batch in each process, and what flows back into a share is
    the sum of what all of them want of it: the mean of all gradients is the gradient.

    Args:
        mine: this process's :func:`share` of `n` rows, along `dim`.
        n: rows in all.
        dim: which dimension the rows are.
    """
    if world() == 1:
        return mine
    gathered: Tensor = _Gather.apply(mine, n, dim)
    return gathered


class _Gather(torch.autograd.Function):
    """Each sends its rows to all; of what flows back, each gets what all want of its rows."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, n: int, dim: int) -> Tensor:
        ctx.dim, ctx.sizes = dim, [rows.stop - rows.start for rows in shares(n)]
        return join(mine.movedim(dim, 0), ctx.sizes).movedim(0, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        whole = gradients[0].movedim(ctx.dim, 0)
        wanted = _trade(whole, ctx.sizes, [ctx.sizes[rank()]] * world())
        return wanted.unflatten(0, (world(), -1)).sum(0).movedim(0, ctx.dim), None, None


def join(mine: Tensor, sizes: list[int]) -> Tensor:
    """The rows of all processes, of which each has as many as `sizes` says."""
    whole = mine.repeat(world(), *[1] * (mine.ndim - 1))
    return _trade(whole, [len(mine)] * world(), sizes)


def collect(mine: Tensor, n: int, dim: int = 0) -> Tensor:
    """The rows of all processes, in the first one; the others keep what they have.

    Args:
        mine: this process's :func:`share` of `n` rows, along `dim`.
        n: rows in all.
        dim: which dimension the rows are.
    """
    if world() == 1:
        return mine
    if not first():
        send(mine, 0)
        return mine
    whole = mine.new_empty(*mine.shape[:dim], n, *mine.shape[dim + 1 :])
    for number, rows in enumerate(shares(n)):
        part = whole.narrow(dim, rows.start, rows.stop - rows.start)
        part.copy_(mine if number == 0 else receive(torch.empty_like(part).contiguous(), number))
    return whole


def exchange(held: Tensor, index: Tensor, n: int) -> Tensor:
    """This process's share of a batch whose rows lie in all processes; each row travels once.

    Args:
        held: ``(h, …)``, those of the batch that lie in this process's share of `n` rows, in the
            order of the batch.
        index: ``(b,)`` int64 on the CPU, the rows of the batch.
        n: rows in all.
    """
    if world() == 1:
        return held
    ends = [torch.tensor([rows.stop for rows in shares(count)]) for count in (n, len(index))]
    owner = torch.bucketize(index, ends[0], right=True)
    goal = torch.bucketize(torch.arange(len(index)), ends[1], right=True)
    sources = owner[goal == rank()]
    sent = goal[owner == rank()].bincount(minlength=world()).tolist()
    come = sources.bincount(minlength=world()).tolist()
    mine = _trade(held, sent, come)
    ordered = torch.empty_like(mine)
    ordered[sources.argsort(stable=True).to(mine.device)] = mine
    return ordered


@dataclass(frozen=True)
class Spread:
    """The rows of a matrix, of which each process holds its share, or all of them, if one does.

    Attributes:
        mine: ``(m, …)``, this process's :func:`share` of the rows.
        n: rows in all.
    """

    mine: Tensor
    n: int

    def __len__(self) -> int:
        return self.n

    @property
    def rows(self) -> slice:
        """Which of all rows this process holds."""
        return slice(0, self.n) if len(self.mine) == self.n else share(self.n)

    def locate(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Which of some rows are here ``(q,)`` bool, and the places of these among :attr:`mine`."""
        rows = self.rows
        here = (index >= rows.start) & (index < rows.stop)
        return here, index[here] - rows.start

    def take(self, index: Tensor) -> Tensor:
        """The rows `index` ``(q,)`` int64, in all processes; on the device of :attr:`mine`."""
        index = index.to(self.mine.device)
        if len(self.mine) == self.n:
            return self.mine[index]
        here, places = self.locate(index)
        found = self.mine.new_zeros(len(index), *self.mine.shape[1:])
        found[here] = self.mine[places]
        _add_up(found)
        return found

    def put(self, index: Tensor, values: Tensor) -> None:
        """Write those of some rows that are here; all processes know the values of all of them."""
        if len(self.mine) == self.n:
            self.mine[index] = values
        else:
            here, places = self.locate(index)
            self.mine[places] = values[here]

    def gather(self, values: Tensor) -> Tensor:
        """A value a row: from ``(m, …)``, of the rows that are here, to ``(n, …)``, of all."""
        return values if len(self.mine) == self.n else gather(values, self.n)

    def add_up(self, *tensors: Tensor) -> None:
        """Sums over the rows that are here become those over all, in place."""
        if len(self.mine) < self.n:
            for tensor in tensors:
                _add_up(tensor)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """The mean of all processes' gradients, in place."""
    if world() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    _add_up(flat)
    pieces = (flat / world()).split([gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))


def features_of_all(backbone: nn.Module, views: list[Tensor], n: int) -> Tensor:
    """Features of the whole batch: each process's net sees its share of the images.

    Args:
        backbone: ``(b, c, s, s)`` -> ``(b, d)``.
        views: v tensors ``(b, c, s, s)``, of this process's share of the images.
        n: images in the batch.

    Returns:
        ``(v·n, d)``, one view behind the other.
    """
    images = torch.cat(views)
    if world() == 1:
        features: Tensor = backbone(images)
        return features
    with _NormOverAll():
        features = backbone(images).float()
    return gather(features.unflatten(0, (len(views), -1)), n, dim=1).flatten(0, 1)


class _NormOverAll(TorchFunctionMode):
    """Batch norm over the images of all processes, whatever module asks for it.

    torch's own SyncBatchNorm knows no CPU and has to be put in the place of modules, of which timm
    has kinds of its own.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        call = _batch_norm if func is F.batch_norm else func
        return call(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As torch.nn.functional.batch_norm, of ``(b, c, …)``, with the statistics of all processes."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    normed: Tensor
    normed, mean, var, total = _Normed.apply(x, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * total / (total - 1), momentum)
    return normed


class _Normed(torch.autograd.Function):
    """Batch norm in as many passes as torch's own, which computes all but what is sent.

    What it takes as running statistics, when it does not train, are those of all processes here.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns what is normed, and ``(c,)`` each mean, variance and how many values."""
        unused = torch.zeros(2, x.shape[1], device=x.device)  # float32, and so are the others then
        mean, var = torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)
        count = torch.full_like(mean, x.numel() / x.shape[1])
        counts, means, variances = gather(torch.stack([count, mean, var])[None], world()).unbind(1)
        total = counts.sum(0)
        mean = (counts * means).sum(0) / total
        var = (counts * (variances + (means - mean) ** 2)).sum(0) / total
        ctx.save_for_backward(x, weight, mean, var, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, total)
        normed = torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]
        return normed, mean, var, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, total = ctx.saved_tensors
        # y = w z + b of z = (x - mean) / std. Of dx = w / std (dy - mean(dy) - z mean(z dy)) torch
        # has the first term, which is all where statistics are fixed, and sums for dw and db.
        fixed = mean, var, None, None, False, ctx.eps
        first, *own = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, torch.ones_like(mean) if weight is None else weight, *fixed, [True] * 3
        )
        sums = gather(torch.stack(own)[None], world()).sum(0)  # (2, c)
        factor = -torch.rsqrt(var + ctx.eps) / total
        scale, shift = sums * (factor if weight is None else factor * weight)
        rest = torch.native_batch_norm(x, scale, shift, mean, var, False, 0.0, ctx.eps)[0]
        dweight, dbias = (
            gradient if wanted else None
            for gradient, wanted in zip(own, ctx.needs_input_grad[1:3], strict=True)
        )
        return first.add_(rest), dweight, dbias, None


# -- torch.distributed --------------------------------------------------------------------------


def send(tensor: Tensor, to: int) -> None:
    """Send a tensor to one other process, which waits in :func:`receive`."""
    with _talking():
        dist.send(tensor.contiguous(), to)


def receive(tensor: Tensor, sender: int) -> Tensor:
    """Fill a tensor with what another process sends."""
    with _talking():
        dist.recv(tensor, sender)
    return tensor


def _trade(rows: Tensor, sent: list[int], come: list[int]) -> Tensor:
    """Send so many rows to each process, one behind the other; what comes from each, likewise.

    For small tensors several times as fast as adding up, between CPUs.
    """
    found = rows.new_empty(sum(come), *rows.shape[1:])
    with _talking():
        dist.all_to_all_single(found, rows.contiguous(), come, sent)
    return found


def _broadcast(tensor: Tensor) -> None:
    with _talking():
        dist.broadcast(tensor, 0)


def _add_up(tensor: Tensor) -> None:
    with _talking():
        dist.all_reduce(tensor)


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
        _waited[0] += time.perf_counter() - began
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ProcessError(
            "another process of this fit has ended or does not answer; what it said tells why. "
            f"Start all of them again, with --resume once epochs were done ({reason})"
        ) from error
