"""Images of more than 8 bits: one range for a source, whatever its files could hold."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import picture, png, save, tiff
from PIL import Image

from deepcluster.config import Config, ConfigError, DataSettings, override, to_toml
from deepcluster.errors import NoImagesError
from deepcluster.images.store import ImageStore, open_images, scan_images


def shares(seed: int, side: int = 40) -> np.ndarray:
    """A grey picture with values from 0.1 to 0.9, and noise."""
    rng = np.random.default_rng(seed)
    smooth = picture(seed, side)[..., 0] / 255
    return np.clip(0.15 + 0.7 * smooth + rng.normal(0, 0.02, smooth.shape), 0.1, 0.9)


def write(folder: Path, images: list[np.ndarray], suffix: str = ".tif") -> Path:
    for i, image in enumerate(images):
        save(folder / f"{i:02d}{suffix}", image)
    return folder


def by_range(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Written out once more, with nothing of ours."""
    return np.round(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255)


def agree(store: ImageStore, images: list[np.ndarray], low: float, high: float) -> None:
    assert store.range == ("full" if (low, high) == (0, 65535) else (low, high))
    for got, values in zip(store.pixels, images, strict=True):
        expected = by_range(values, low, high)
        assert np.abs(got.squeeze(-1 if values.ndim == 2 else ()) - expected).max() <= 1


# -- whole numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tif", ".png", ".npy"])
@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
def test_bits_in_a_container_of_sixteen(tmp_path: Path, bits: int, suffix: str) -> None:
    images = [np.uint16(shares(i) * (2**bits - 1)) for i in range(6)]
    if suffix == ".npy":
        np.save(tmp_path / "a.npy", np.stack(images))
        store = open_images(tmp_path / "a.npy")
    else:
        store = open_images(write(tmp_path / "a", images, suffix))
    agree(store, images, 0, 2**bits - 1)
    assert len(np.unique(store.pixels)) > 150


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_low_light_fills_the_range(tmp_path: Path, dtype: Any) -> None:
    images = [(135 + 245 * shares(i)).astype(dtype) for i in range(8)]
    store = open_images(write(tmp_path, images))
    low, high = store.range
    assert isinstance(low, float) and 135 <= low < 175 and 340 < high <= 380
    assert len(np.unique(store.pixels)) > 120
    assert store.remarks == [
        f"grey values {low:g}–{high:g} of {np.dtype(dtype).itemsize * 8} bits are shown as 0–255 "
        "(data.range)"
    ]
    agree(store, images, low, high)


def test_hot_pixels_do_not_count_and_bright_spots_do(tmp_path: Path) -> None:
    hot = [np.uint16(135 + 245 * shares(i)) for i in range(8)]
    for image in hot[::2]:
        image[20, 20] = 60_000
    assert open_images(write(tmp_path / "hot", hot)).range[1] <= 380
    spots = [np.uint16(135 + 245 * shares(i)) for i in range(8)]
    spots[3][10:13, 10:13] = 4000 + np.arange(9).reshape(3, 3)
    store = open_images(write(tmp_path / "spots", spots))
    assert store.range[1] > 4000 and store.pixels[3].max() > 245


def test_one_bright_picture_is_not_saturated(tmp_path: Path) -> None:
    images = [np.uint16(4095 * shares(i)) for i in range(30)]
    images[7] = np.uint16(40_000 * shares(7))
    agree(open_images(write(tmp_path, images)), images, 0, 65535)


def test_a_damaged_picture_does_not_take_the_range_from_the_others(tmp_path: Path) -> None:
    images = [np.float32(shares(i)) for i in range(30)]
    images[7] = np.float32(shares(7) * 1e30)
    store = open_images(write(tmp_path, images))
    assert store.range == "full"
    assert any(
        "1 of 30 images that were looked at lie for the most part outside the range" in line
        for line in store.remarks
    )


@pytest.mark.parametrize(("n", "odd"), [(3, 1), (10, 1), (19, 1), (40, 4), (250, 25)])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_few_far_ones_do_not_take_the_range_from_the_others(n: int, odd: int, dtype: Any) -> None:
    images = [(20 + 100 * shares(i, 16)).astype(dtype) for i in range(n)]
    clean = open_images(images)
    for i in range(odd):  # 300 to 600 times as bright
        images[i * n // odd] = (65535 * shares(i, 16)).astype(dtype)
    store = open_images(images)
    assert isinstance(store.range, tuple) and store.range[1] <= 120
    assert np.abs(np.subtract(store.range, clean.range)).max() < 2
    said = [line for line in store.remarks if "outside the range" in line]
    assert len(said) == 1 and f"{odd} of {n} images" in said[0]
    low, high = (float(x) for x in said[0].split("--data.range ")[1].split()[:2])
    whole = open_images(images, data=DataSettings(range=(low, high)))  # as is said
    assert not any("outside" in line for line in whole.remarks)
    for i in range(odd):
        assert 0.05 < (whole.pixels[i * n // odd] > 128).mean() < 0.95


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_where_one_range_does_not_serve_all_it_is_said(share: float, dtype: Any) -> None:
    """Some of the images dim, the others 200 times as bright: none is saturated, the dim are said.

    What is said to be typed shows them.
    """
    dim = [i < 40 * share for i in range(40)]
    images = [((300 if d else 60_000) * shares(i, 16)).astype(dtype) for i, d in enumerate(dim)]
    store = open_images(images)
    assert isinstance(store.range, tuple) or store.range == "full"
    for pixels in store.pixels:
        assert (pixels == 255).mean() < 0.5
    said = [line for line in store.remarks if "are dim" in line]
    assert len(said) == 1 and said[0].startswith(f"{share:.0%} of the images are dim")
    assert said == [line for line in scan_images(images).remarks if "are dim" in line]
    low, high = (float(x) for x in said[0].split("--data.range ")[1].split()[:2])
    typed = open_images(images, data=DataSettings(range=(low, high)))
    assert all(np.ptp(typed.pixels[i]) > 90 for i in range(40) if dim[i])


def test_what_is_not_dim_is_not_said_to_be() -> None:
    for images in (
        [np.uint16(4095 * shares(i, 16)) for i in range(20)],
        [np.uint16((4095 if i else 400) * shares(i, 16)) for i in range(20)],  # one in twenty
        [np.uint16(4095 * shares(i, 16) * (i % 2)) for i in range(20)],  # blank ones
        [np.uint16(4095 * shares(i, 16) / (1 + i % 2 * 5)) for i in range(20)],  # a sixth
        [np.uint8(255 * shares(i, 16) / (1 + i % 2 * 50)) for i in range(20)],  # 8 bits
    ):
        assert not any("dim" in line for line in open_images(images).remarks)


def test_eight_bits_among_others_are_left_alone(tmp_path: Path) -> None:
    deep = [np.uint16(4095 * shares(i)) for i in range(3)]
    plain = [picture(i, 40) // 4 for i in range(3)]
    for i in range(3):
        save(tmp_path / f"a{i}.tif", deep[i])
        save(tmp_path / f"b{i}.png", plain[i])
    store = open_images(tmp_path)
    assert store.range == (0, 4095)
    np.testing.assert_array_equal(store.pixels[3:], np.stack(plain))
    for got, values in zip(store.pixels[:3], deep, strict=True):
        np.testing.assert_allclose(got[..., 0], by_range(values, 0, 4095), atol=1)


def test_a_rare_deep_image_is_said_to_have_its_own_range() -> None:
    items: list[Any] = [np.full((8, 8), i % 256, np.uint8) for i in range(600)]
    items[301] = np.uint16(4095 * shares(0))  # not in the sample, which takes every second or so
    store = open_images(items, size=8)
    assert store.range == "auto" and any(
        "more than 8 bits among others of 8: 1 image," in r for r in store.remarks
    )
    assert store.pixels[301].max() > 128


# -- floats -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "spot", "expected"),
    [
        (lambda a: a, 1.02, "full"),  # reflectance, sharpened
        (lambda a: a, 7.0, "full"),
        (lambda a: a * 0.8, -0.9, "full"),  # a vegetation index
        (lambda a: a * 240, 255.4, (0, 255)),
        (lambda a: a * 2 - 1, None, (-1, 1)),
        (lambda a: a * 60000, 65535.0, (0, 65535)),
    ],
)
def test_a_spot_does_not_change_a_picture(
    tmp_path: Path, scale: Any, spot: float | None, expected: Any
) -> None:
    images = [np.float32(scale(shares(i))) for i in range(8)]
    clean = open_images(write(tmp_path / "clean", images))
    for image in images[::2]:
        image[20, 20] = image[20, 20] if spot is None else spot
    store = open_images(write(tmp_path / "spot", images))
    assert store.range == clean.range == expected
    far = np.abs(store.pixels.astype(int) - clean.pixels)
    far[:, 20, 20] = 0
    assert far.max() == 0
    assert np.ptp(store.pixels) > 90


@pytest.mark.parametrize("scale", [100, 16, 0.01, 1e-6, 1e5])
def test_floats_of_any_scale_look_alike(tmp_path: Path, scale: float) -> None:
    images = [np.float32(shares(i) * scale) for i in range(6)]
    store = open_images(write(tmp_path, images))
    assert isinstance(store.range, tuple)
    agree(store, images, *store.range)
    assert np.ptp(store.pixels) > 90


MARKS = {
    "n9999": -9999.0,
    "n999": -999.0,
    "n32768": -32768.0,
    "min": -3.4028235e38,
    "max": 3.4028235e38,
    "fill": 9.96921e36,
    "zero": 0.0,
    "inf": np.inf,
    "ninf": -np.inf,
    "nan": np.nan,
}


@pytest.mark.parametrize("marks", [[name] for name in MARKS] + [list(MARKS)])
def test_marks_of_missing_values_change_nothing_else(tmp_path: Path, marks: list[str]) -> None:
    heights = [np.float32(200 + 50 * shares(i)) for i in range(6)]
    clean = open_images(write(tmp_path / "clean", heights))
    assert isinstance(clean.range, tuple) and 200 <= clean.range[0] < 210 < 240 < clean.range[1]
    for i, image in enumerate(heights):
        image[:9, :9] = MARKS[marks[i % len(marks)]]
    store = open_images(write(tmp_path / "marked", heights))
    assert isinstance(store.range, tuple)
    assert np.abs(np.subtract(store.range, clean.range)).max() < 2
    far = np.abs(store.pixels.astype(int) - clean.pixels)
    far[:, :9, :9] = 0
    assert far.max() <= 10 and len(np.unique(store.pixels[:, 9:])) > 100
    if marks in (["nan"], ["inf"], ["ninf"], ["n9999"]):
        assert store.pixels[:, :9, :9].max() == 0  # black


def test_a_drawing_of_two_values_keeps_both(tmp_path: Path) -> None:
    images = [np.zeros((20, 20), np.uint16) for _ in range(4)]
    for image in images:
        image[10] = 65535  # a line of one pixel, which no median sees
    store = open_images(write(tmp_path, images))
    assert set(store.pixels.ravel().tolist()) == {0, 255}


def test_an_image_without_a_number_is_left_out() -> None:
    images = np.stack([shares(i) for i in range(5)])
    images[1], images[3, :20] = np.nan, np.nan
    store = open_images(images)
    assert store.ids == ["0", "2", "3", "4"]
    assert store.skipped == [("1", "none of its values is a number")]


def test_images_all_alike(tmp_path: Path) -> None:
    for value, dtype in ((0.0, np.float32), (77.0, np.float32), (900, np.uint16), (-5, np.int32)):
        store = open_images(np.full((3, 8, 8), value, dtype))
        assert len(np.unique(store.pixels)) == 1
    with pytest.raises(NoImagesError, match="none of its values is a number"):
        open_images(np.full((3, 8, 8), np.inf))


def test_whole_numbers_and_floats_without_a_common_scale(tmp_path: Path) -> None:
    whole, floats = np.uint16(65535 * shares(0)), np.float32(shares(1))
    write(tmp_path, [whole, floats])
    store = open_images(tmp_path)
    assert store.range == "full" and "floats by 0–1" in store.remarks[0]
    np.testing.assert_allclose(store[0][..., 0], by_range(whole, 0, 65535), atol=1)
    np.testing.assert_allclose(store[1][..., 0], by_range(floats, 0, 1), atol=1)


# -- colour -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "<", ">", "<packed", ">packed"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_colour_of_sixteen_bits(tmp_path: Path, kind: str, channels: int) -> None:
    """All 16 bits count: 12 of them, and the lower ones make the picture."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4096, (12, 17, channels)).astype(np.uint16)
    if channels in (2, 4):
        values[..., -1] = 65535
    if kind == "png":
        (tmp_path / "a.png").write_bytes(png(values))
    elif channels < 3:
        return
    else:
        (tmp_path / "a.tif").write_bytes(tiff(values, order=kind[0], packed="packed" in kind))
    store = open_images(tmp_path, size=12)
    assert store.skipped == [] and store.range == (0, 4095)
    colour = values if channels in (1, 3) else values[..., :-1]
    wide = by_range(colour[:, 2:14], 0, 4095)  # of 17 columns the middle ones, near enough
    assert np.abs(store[0][:, 1:-1].astype(int) - wide[:, 1:-1]).mean() < 60
    array = open_images(colour[None, :, 2:14], size=12)
    np.testing.assert_array_equal(array.pixels[0], wide)


def test_a_square_of_sixteen_bits_is_exact(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (12, 12, 3)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png(values))
    (tmp_path / "b.tif").write_bytes(tiff(values))
    store = open_images(tmp_path, size=12)
    for i in range(2):
        np.testing.assert_array_equal(store[i], by_range(values, 0, 4095))


# -- arrays and tensors -----------------------------------------------------------------------


def test_arrays_of_eight_bits_in_wider_types_are_as_they_were() -> None:
    import torch

    stack = np.stack([picture(i, 16) // 5 for i in range(5)])  # dark, and still 8 bits
    for other in (
        stack.astype(np.int64),
        stack.astype(np.int32),
        torch.from_numpy(stack.astype(np.int16)),
        [image.astype(np.int64) for image in stack],
    ):
        np.testing.assert_array_equal(open_images(other).pixels, stack)
        assert open_images(other).range == "full"  # so that other types can follow it
    bright = np.stack([picture(i, 16) for i in range(5)])
    for other in (bright / 255, (bright / 255).astype(np.float16), torch.from_numpy(bright) / 255):
        assert np.abs(open_images(other).pixels.astype(int) - bright).max() <= 1


@pytest.mark.parametrize("kind", ["stack", "list", "tensor", "PIL"])
def test_arrays_have_one_range_as_well(kind: str) -> None:
    import torch

    images = [np.int32(135 + 245 * shares(i)) for i in range(6)]
    source: Any = np.stack(images)
    if kind == "list":
        source = images
    elif kind == "tensor":
        source = torch.from_numpy(source)
    elif kind == "PIL":
        source = [Image.fromarray(image) for image in images]
    store = open_images(source)
    assert isinstance(store.range, tuple) and 340 < store.range[1] <= 380
    agree(store, images, *store.range)


def test_normalised_tensors_are_read() -> None:
    import torch

    found = open_images(torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert found.channels == 3 and np.ptp(found.pixels) == 255


# -- the setting ------------------------------------------------------------------------------


def test_the_range_can_be_set(tmp_path: Path) -> None:
    images = [np.uint16(4095 * shares(i)) for i in range(3)]
    write(tmp_path, images)
    full = open_images(tmp_path, data=DataSettings(range="full"))
    assert full.range == "full" and full.pixels.max() <= 15 and full.remarks == []
    own = open_images(tmp_path, data=DataSettings(range=(1000.0, 2000.0)))
    agree(own, images, 1000, 2000)
    again = open_images(tmp_path / "00.tif", data=DataSettings(range=(0.0, 4095.0)))
    np.testing.assert_array_equal(again[0], open_images(tmp_path)[0])  # as predict has it


@pytest.mark.parametrize(
    "value", [[1], [2, 1], [1, 1], [0, float("nan")], [0, "a"], "wide", 3, [True, 2], None]
)
def test_a_range_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.range = .* will not do: it takes 'auto' or 'full'"
    ):
        override(Config(), {"data.range": value})


def test_the_range_is_written_down() -> None:
    import tomllib

    config = override(Config(), {"data.range": [np.float32(-1.5), np.int64(380)]})
    assert config.data.range == (-1.5, 380.0)
    assert "range = [-1.5, 380.0]" in to_toml(config)
    assert override(Config(), tomllib.loads(to_toml(config))) == config


def test_a_scan_says_the_range(tmp_path: Path) -> None:
    write(tmp_path, [np.uint16(4095 * shares(i)) for i in range(3)])
    assert scan_images(tmp_path).remarks == [
        "grey values 0–4095 of 16 bits are shown as 0–255 (data.range)"
    ]


def test_a_giant_of_sixteen_bits_is_there_once(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.zeros((4000, 4000), np.uint16), compress_level=1)
    tracemalloc.start()
    store = open_images(tmp_path, size=32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(store) == 1 and peak < 80e6  # 16 MB of bytes, and strips; as floats it is 128 MB
