"""Images, settings and a run small enough for a test."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line, before torch is loaded
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other cores have workers of their own

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from deepcluster.config import Config, override
from deepcluster.fitting import fit_source
from deepcluster.images.store import ImageStore, open_images
from deepcluster.run import RunDir

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

WAIT = 30_000  # milliseconds for what a page is to show: the machine may be busy

TINY = {
    "epochs": 2,
    "clusters": 3,
    "backbone": "convnet_tiny",
    "train.batch_size": 32,
    "train.precision": "float32",
    "device": "cpu",
}


def make_shapes(n: int = 96, side: int = 16, colour: bool = False, seed: int = 0) -> np.ndarray:
    """Bars, crosses and rings with noise: three classes in turn, ``(n, side, side[, 3])`` uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    images = []
    for i in range(n):
        cy, cx = rng.uniform(0.35, 0.65, 2) * side
        ring = np.abs(np.hypot(y - cy, x - cx) - side * 0.3) < 1.5
        shape = [np.abs(y - cy) < 2, (np.abs(y - cy) < 1.2) | (np.abs(x - cx) < 1.2), ring][i % 3]
        images.append(np.clip(200 * shape + rng.normal(20, 15, (side, side)), 0, 255))
    array = np.stack(images).astype(np.uint8)
    return np.stack([array, array // 2, 255 - array], -1) if colour else array


def make_net(folder: Path, name: str = "resnet10t", *, size: int = 32, **options: Any) -> Path:
    """A net of timm with random weights, in the folder that timm reads: weights made elsewhere."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=10, **options)
    said = {
        "num_classes": 10,
        "input_size": [3, size, size],
        "interpolation": "bicubic",
        "crop_pct": 0.8,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "first_conv": net.pretrained_cfg["first_conv"],
        "classifier": net.pretrained_cfg["classifier"],
        "license": "apache-2.0",
    }
    config = {"architecture": name, "num_classes": 10, "pretrained_cfg": said}
    if options:
        config["model_args"] = options
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(net.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def net_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_net(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="session", autouse=True)
def nothing_from_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No weights of this machine's cache, and a cache folder of the session's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deepcluster.backbones.start.cached", lambda hub: None)
        patch.setenv("DEEPCLUSTER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def tiny() -> Config:
    return override(Config(), TINY)


@pytest.fixture
def shapes() -> ImageStore:
    return open_images(make_shapes())


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of small pictures in sub-folders, one that is broken, and a raw one."""
    root = tmp_path_factory.mktemp("pictures")
    for i, pixels in enumerate(make_shapes(60)):
        place = root / ["bars", "crosses", "rings"][i % 3]
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i:02d}.png")
    (root / "bars" / "broken.png").write_bytes(b"no picture")
    (root / "bars" / "camera.nef").write_bytes(b"MM\0*")
    return root


@pytest.fixture(scope="session")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    out = tmp_path_factory.mktemp("runs") / "run"
    config = override(Config(), TINY)
    return fit_source(folder, config, out=out, labels="folders", report=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    playwright.expect.set_options(timeout=WAIT)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page from the disk; all pages of a test share what the browser keeps.

    Each is watched: a message on the console, an error, a dialog, a request for anything but a
    file, or an address of another kind fails the test that did it.
    """
    contexts: dict[tuple[int, str], Any] = {}
    seen: list[str] = []

    def open_page(address: str, *, width: int = 1280, scheme: str = "light") -> Any:
        if (width, scheme) not in contexts:
            contexts[width, scheme] = browser.new_context(
                viewport={"width": width, "height": 800}, color_scheme=scheme
            )
        page = contexts[width, scheme].new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: seen.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on(
            "dialog", lambda dialog: (seen.append(f"dialog: {dialog.message}"), dialog.accept())
        )
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "blob:", "data:")) or seen.append(request.url)
            ),
        )
        page.goto(address)
        page.wait_for_selector("html[data-ready=yes]")
        return page

    yield open_page
    for context in contexts.values():
        context.close()
    assert seen == []
