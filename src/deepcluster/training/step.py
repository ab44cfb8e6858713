"""One training step: a batch of images in, the weights changed.

On a GPU a small net waits for Python, which starts some two thousand operations a step one by one.
There the views, the loss and its gradients are recorded once for each size of batch, as a CUDA
graph, and replayed from then on; only the optimizer's operations, few for all weights together,
are started anew. The numbers drawn are the same either way.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcluster import processes
from deepcluster.backbones.build import prepare_backbone
from deepcluster.backbones.preprocessing import Batches, Preprocessing
from deepcluster.config import Config
from deepcluster.training.views import Views, small_views

WAITS = "called a synchronizing CUDA operation"  # what torch says of a step that waits


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    index: Tensor  # (b,) int64: read by the graph
    images: Tensor | None  # (b, c, s, s) uint8: read by the graph, unless all are on the device
    gradients: list[tuple[nn.Parameter, Tensor]]  # written by the graph


class Step:
    """Steps of a fit, one epoch after the other.

    Args:
        method: a :class:`deepcluster.methods.Method` on its device.
        optimizer: of the method's groups.
        config: resolved settings.
        preprocessing: how views become the net's input.
        images: gives the batches.
        record: whether steps may be recorded on a GPU; False for a net of which nothing is known,
            since a recording goes on doing what Python decided when it was made.

    Raises:
        ConfigError: the net cannot take images as small as the small views.
    """

    def __init__(
        self,
        method: Any,
        optimizer: torch.optim.Optimizer,
        config: Config,
        preprocessing: Preprocessing,
        images: Batches,
        *,
        record: bool = True,
    ) -> None:
        self.method, self.optimizer = method, optimizer
        self.preprocessing, self.images = preprocessing, images
        self.device = torch.device(config.device)
        self.dtype: torch.dtype = getattr(torch, config.train.precision)
        self.views = [Views(config.views, preprocessing.size)] * method.views
        if method.small_views:
            wanted = method.small_views
            small = small_views(config.views, preprocessing.size, wanted.side, wanted.scale)
            prepare_backbone(
                method.backbone,
                channels=len(preprocessing.mean),
                size=small.size,
                name=f"{config.backbone}, which is to see small views,",
            )
            self.views += [small] * wanted.count
        self.total = torch.zeros((), device=self.device)
        """Sum of the losses since :meth:`begin`."""
        self._seed = 0
        self._generator = torch.Generator(self.device)
        alone = processes.world() == 1
        self._record = record and alone and self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if self._record else None
        self._recordings: dict[int, _Recording] = {}  # of batches of a size
        self._tried: set[int] = set()  # sizes that have made a step as the method is now
        self._state: Any = None

    def begin(self, seed: int) -> None:
        """Before the steps of an epoch: `seed` is that of the views."""
        self._seed = seed
        self._generator.manual_seed(seed)
        self.total.zero_()
        if self._record:
            # What a recording holds fast: where the tensors lie, and what Python decided.
            plain = {k: v for k, v in vars(self.method).items() if isinstance(v, int | float | str)}
            tensors = (*self.method.parameters(), *self.method.buffers())
            state = plain, [tensor.data_ptr() for tensor in tensors]
            if state != self._state:
                self._state = state
                self._recordings.clear()
                self._tried.clear()

    def __call__(self, index: Tensor) -> None:
        """One step on the images `index`, ``(b,)`` int64 on the CPU."""
        size = len(index)
        if self._record and size in self._tried and size not in self._recordings:
            self._make_recording(index)
        if size in self._recordings:
            self._replay(self._recordings[size], index)
        elif self._record:
            self._try(index)
        else:
            self._gradients(self.images.share(index), index.to(self.device))
        processes.average_gradients(self.method.parameters())
        self.optimizer.step()

    def _gradients(self, images: Tensor, index: Tensor) -> None:
        """Gradients of the loss, of views of this process's images ``(b, c, s, s)`` uint8."""
        size = len(index)
        rows = processes.share(size)
        images = self.preprocessing.enlarge(images)
        batch = [
            self.preprocessing.normalise(
                view(images, self._generator, rows=rows, among=size)
            ).contiguous(memory_format=torch.channels_last)
            for view in self.views
        ]
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.method.loss(batch, index)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.total += loss.detach()

    def _try(self, index: Tensor) -> None:
        """Gradients as ever; they will not be recorded if they wait for the device in between."""
        images, there = self.images(index), index.to(self.device)
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught, self._aside():
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self._gradients(images, there)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        self._record = not any(WAITS in str(warning.message) for warning in caught)
        self._tried.add(len(index))

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Compute on the stream that recordings are made on: gradients remember their stream."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def _make_recording(self, index: Tensor) -> None:
        """Record the gradients of batches of this size; nothing is computed yet."""
        gc.collect()  # what is left of the last step must not go while this one is recorded
        there = index.to(self.device)
        given = None if self.images.resident else self.images(index)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        others = next(iter(self._recordings.values()), None)  # never run at once: memory is shared
        pool = others.graph.pool() if others else None
        try:
            with torch.cuda.graph(graph, pool=pool, stream=self._stream):
                self._gradients(self.images(there) if given is None else given, there)
        except RuntimeError as error:
            self._record = False
            self._generator = torch.Generator(self.device).manual_seed(self._seed)
            warnings.warn(f"steps cannot be recorded and will be slower: {error}", stacklevel=2)
            return
        gradients = [(p, p.grad) for p in self.method.parameters() if p.grad is not None]
        self._recordings[len(index)] = _Recording(graph, there, given, gradients)

    def _replay(self, recording: _Recording, index: Tensor) -> None:
        recording.index.copy_(index, non_blocking=True)
        if recording.images is not None:
            recording.images.copy_(self.images(index))
        for parameter, gradient in recording.gradients:
            parameter.grad = gradient
        recording.graph.replay()
