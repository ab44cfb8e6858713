import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from deepcluster import segmentation
from deepcluster.config import SegmentSettings
from deepcluster.errors import ConfigError, NoImagesError, RunError, SourceError
from deepcluster.segmentation import _open, _vote, segment, segment_files


def regions(seed: int, side: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A disc and a block on a ground, with noise; and which pixel is of which."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    truth = np.zeros((side, side), int)
    truth[np.hypot(x - 0.3, y - 0.3) < 0.2] = 1
    truth[(x > 0.55) & (y > 0.5)] = 2
    colours = np.array([[60, 90, 160], [220, 170, 60], [60, 170, 80]])[truth]
    return np.clip(colours + rng.normal(0, 12, colours.shape), 0, 255).astype(np.uint8), truth


@pytest.mark.parametrize("seed", [0, 1])
def test_known_regions_are_found(seed: int) -> None:
    pixels, truth = regions(seed)
    labels = segment(pixels, SegmentSettings(seed=seed))
    assert labels.shape == truth.shape and labels.dtype == np.int32
    assert adjusted_rand_score(truth.ravel(), labels.ravel()) >= 0.9
    sizes = np.bincount(labels.ravel())
    assert len(sizes) >= 3 and (np.diff(sizes) <= 0).all()


def test_the_same_seed_gives_the_same_labels_at_the_size_of_the_picture() -> None:
    pixels, _ = regions(0)
    large = Image.fromarray(pixels).resize((200, 120))
    settings = SegmentSettings(side=40, iterations=20)
    labels = segment(large, settings)
    assert labels.shape == (120, 200)
    assert (labels == segment(large, settings)).all()


def test_superpixels_vote() -> None:
    import torch

    labels = torch.tensor([4, 4, 7, 7, 7, 2])
    parts = torch.tensor([0, 0, 0, 1, 1, 1])
    assert _vote(labels, parts).tolist() == [4, 4, 4, 7, 7, 7]


def test_superpixels_without_their_library_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skimage.segmentation", None)
    with pytest.raises(ConfigError, match="superpixels"):
        segment(regions(0)[0], SegmentSettings(superpixels="slic", iterations=1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (3, 3)])
def test_tiny_pictures(shape: tuple[int, int]) -> None:
    assert segment(np.zeros(shape, np.uint8), SegmentSettings(iterations=3)).shape == shape


def test_an_array_that_is_no_picture_is_refused() -> None:
    with pytest.raises(SourceError, match="float64"):
        segment(np.zeros((4, 4)))


def test_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(regions(0)[0]).save(tmp_path / folder / "one.png")
    files = [tmp_path / "a/one.png", tmp_path / "b/one.png"]
    out = tmp_path / "out"
    done = segment_files(files, out, SegmentSettings(iterations=5))
    assert sorted(path.name for path in out.iterdir()) == [
        "areas.csv",
        "one-2.labels.png",
        "one-2.overlay.png",
        "one.labels.png",
        "one.overlay.png",
    ]
    labels = np.asarray(Image.open(out / "one.labels.png"))
    assert int(labels.max()) + 1 == done[0].labels
    with (out / "areas.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["image"] == str(files[0])]
    assert [int(row["pixels"]) for row in rows] == np.bincount(labels.ravel()).tolist()
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-4)
    with pytest.raises(RunError, match="new or empty"):
        segment_files(files, out)


def test_a_hot_pixel_does_not_darken_a_picture_of_twelve_bits(tmp_path: Path) -> None:
    """More than 8 bits are shown as a fit shows them; upright, as the camera was held."""
    pixels = regions(0)[0][..., 0].astype(np.uint16) * 16
    hot = pixels.copy()
    hot[7, 9] = 65535
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for name, values in (("calm", pixels), ("hot", hot)):
        Image.fromarray(values).save(tmp_path / f"{name}.tif", exif=exif)
    calm, seen = (np.asarray(_open(tmp_path / f"{name}.tif")) for name in ("calm", "hot"))
    assert calm.max() > 200
    differs = (calm != seen).any(axis=2)
    assert differs.sum() == 1 and differs[9, -1 - 7]


def test_a_file_that_is_no_image_is_left_out_and_listed(tmp_path: Path) -> None:
    bad, good = tmp_path / "no.png", tmp_path / "yes.png"
    bad.write_text("no")
    with pytest.raises(NoImagesError, match="no image among 1 file:"):
        segment_files([bad], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    Image.fromarray(regions(0)[0]).save(good)
    told: list[str] = []
    done = segment_files(
        [bad, good, tmp_path / "gone.png"],
        tmp_path / "out",
        SegmentSettings(iterations=2),
        note=told.append,
    )
    assert [item.image for item in done] == [str(good)]
    with (tmp_path / "out/skipped.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == ["path", str(bad), str(tmp_path / "gone.png")]
    assert rows[1][1] == "not an image in a format that Pillow reads"
    assert told == [f"left out: {path}: {reason}" for path, reason in rows[1:]]


def steps(pixels: np.ndarray, settings: SegmentSettings) -> tuple[np.ndarray, int]:
    done: list[int] = []
    labels = segment(pixels, settings, device="cpu", advance=done.append)
    return labels, sum(done)


def test_it_ends_when_labels_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, _ = regions(0, side=24)
    settings = SegmentSettings(min_labels=1, iterations=200, continuity=2)
    labels, taken = steps(pixels, settings)
    assert taken < 200 and taken % segmentation.STILL == 0
    monkeypatch.setattr(segmentation, "MOVED", -1)
    later, all_ = steps(pixels, settings)
    assert all_ == 200
    assert adjusted_rand_score(labels.ravel(), later.ravel()) > 0.9


def test_a_small_copy_is_learnt_from_and_the_picture_gets_its_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Borders are at its own pixels, and its noise makes no new regions."""
    monkeypatch.setattr(segmentation, "LEARN", 48)
    pixels, truth = regions(0, side=96)
    labels = segment(pixels, SegmentSettings(), device="cpu")
    found = adjusted_rand_score(truth.ravel(), labels.ravel())
    coarse = labels[::2, ::2].repeat(2, 0).repeat(2, 1)
    assert found >= 0.95 and found > adjusted_rand_score(truth.ravel(), coarse.ravel())
    assert labels[4:20, 60:90].max() == 0  # far from any border
