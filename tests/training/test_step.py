"""A step against the same step written out; on a GPU, recorded steps against others."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_shapes

from deepcluster.backbones.build import build_backbone
from deepcluster.backbones.preprocessing import Batches, Preprocessing, filled
from deepcluster.config import Config, override
from deepcluster.errors import ConfigError
from deepcluster.images.store import ImageStore, open_images
from deepcluster.methods import METHODS, load_method
from deepcluster.training.optimizers import build_optimizer
from deepcluster.training.resolve import resolve
from deepcluster.training.step import Step
from deepcluster.training.views import Views


def build(store: ImageStore, config: Config, **options: Any) -> tuple[Any, Step]:
    device = torch.device(config.device)
    torch.manual_seed(0)
    net = build_backbone(config.backbone, channels=store.channels, size=store.size)
    method: Any = load_method(config.method)(config, net, len(store))
    method.to(device, memory_format=torch.channels_last).train()
    optimizer = build_optimizer(method.groups(), config.train)
    batches = Batches(store, device)
    return method, Step(method, optimizer, config, Preprocessing.measure(store), batches, **options)


def resolved(tiny: Config, store: ImageStore, **values: Any) -> Config:
    config = override(tiny, values)
    return resolve(config, n=len(store), size=store.size, channels=store.channels)


def test_a_step_is_views_loss_gradients_and_the_optimizer(tiny: Config, shapes: ImageStore) -> None:
    config = resolved(tiny, shapes, **{"train.optimizer": "sgd"})
    method, step = build(shapes, config)
    parts = [torch.arange(0, 32), torch.arange(40, 71)]
    step.begin(7)
    for index in parts:
        step(index)

    other, unused = build(shapes, config)
    optimizer, generator = unused.optimizer, torch.Generator().manual_seed(7)
    pixels = torch.from_numpy(shapes.pixels).permute(0, 3, 1, 2)
    view, preprocessing = Views(config.views, shapes.size), Preprocessing.measure(shapes)
    total = 0.0
    for index in parts:
        images = [preprocessing.normalise(view(pixels[index], generator)) for _ in range(2)]
        loss = other.loss(images, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
    assert float(step.total) == pytest.approx(total, rel=1e-5)
    for ours, theirs in zip(method.parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_seed_is_of_the_views(tiny: Config, shapes: ImageStore) -> None:
    totals = []
    for seed in (1, 1, 2):
        _, step = build(shapes, resolved(tiny, shapes))
        step.begin(seed)
        step(torch.arange(32))
        totals.append(float(step.total))
    assert totals[0] == totals[1] != totals[2]


def test_small_views_that_the_net_cannot_take_are_refused(tiny: Config) -> None:
    store = open_images(make_shapes(40, side=8))
    values = {"method": "deepcluster-v2", "deepcluster_v2.small_views": 2}
    with pytest.raises(ConfigError, match=r"small views, cannot take 1-channel images of 3 × 3"):
        build(store, resolved(tiny, store, **values))
    larger = open_images(make_shapes(40, side=16))
    _, step = build(larger, resolved(tiny, larger, **values))
    assert [view.size for view in step.views] == [16, 16, 7, 7]


def test_batches_are_the_images_asked_for(shapes: ImageStore) -> None:
    index = torch.tensor([5, 0, 90])
    batch = Batches(shapes, torch.device("cpu"))(index)
    assert np.array_equal(batch.permute(0, 2, 3, 1).numpy(), shapes.pixels[index.numpy()])


def test_filled_is_of_the_other_s_type() -> None:
    made = filled(torch.zeros(1, dtype=torch.float64), [1, 2.5])
    assert torch.equal(made, torch.tensor([1, 2.5], dtype=torch.float64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_recorded_steps_are_the_others(method: str, tiny: Config, shapes: ImageStore) -> None:
    config = resolved(tiny, shapes, device="cuda", method=method)
    found = []
    for record in (True, False):
        fitted, step = build(shapes, config, record=record)
        totals = []
        for epoch in range(4):
            if method == "contrastive-clusters":
                fitted.labelling = epoch >= 2  # another loss: the recordings must go
            step.begin(epoch)
            for index in torch.arange(96).split([32, 31, 33]):
                step(index)
            totals.append(float(step.total))
        assert len(step._recordings) == (3 if record else 0)
        found.append(totals)
    assert found[0] == pytest.approx(found[1], rel=1e-3)
