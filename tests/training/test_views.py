import dataclasses
import math

import pytest
import torch
import torchvision.transforms.v2 as tv
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from deepcluster.backbones.preprocessing import centre, normalise
from deepcluster.config import Config, ViewSettings, override
from deepcluster.errors import ConfigError
from deepcluster.training import views as augment
from deepcluster.training.views import Views, resolve_views


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def floats(n: int, channels: int = 3, height: int = 20, width: int = 20) -> Tensor:
    return torch.rand(n, channels, height, width, generator=generator())


def photographs(n: int, channels: int = 3, side: int = 32) -> Tensor:
    """Uint8 noise with some black, white and grey pixels."""
    x = torch.randint(0, 256, (n, channels, side, side), generator=generator(), dtype=torch.uint8)
    x[:, :, :2] = 0
    x[:, :, 2:4] = 255
    x[:, :, 4:6] = x[:, :1, 4:6]
    return x


def settings(size: int = 32, channels: int = 3, **values) -> ViewSettings:
    return resolve_views(ViewSettings(**values), size, channels)


def one_by_one(function, x: Tensor, *parameters: Tensor) -> Tensor:
    """Torchvision's function on each image with its own parameters."""
    return torch.stack(
        [
            function(image, *(p.tolist() for p in own))
            for image, *own in zip(x, *parameters, strict=True)
        ]
    )


# -- crop, flip, rotation -----------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (20, 33, 16), (9, 9, 24)])
def test_crop_and_flip_are_torchvisions(height, width, size):
    x = floats(24, 3, height, width)
    boxes = augment.sample_boxes(24, height, width, (0.1, 1.0), 4 / 3, generator(1))
    flip = torch.rand(24, generator=generator(2)) < 0.5
    assert 0 < flip.sum() < 24

    def reference(image, box, flipped):
        out = TF.resized_crop(image, *map(int, box), [size, size], antialias=False)
        return TF.horizontal_flip(out) if flipped else out

    torch.testing.assert_close(
        augment.crop(x, size, boxes, flip), one_by_one(reference, x, boxes, flip), atol=2e-5, rtol=0
    )


def test_crop_of_everything_is_the_image():
    x = floats(3)
    torch.testing.assert_close(augment.crop(x, 20), x, atol=1e-5, rtol=0)
    flipped = augment.crop(x, 20, flip=torch.tensor([True, False, True]))
    torch.testing.assert_close(flipped[0], x[0].flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(flipped[1], x[1], atol=1e-5, rtol=0)


def test_rotation_is_torchvisions():
    x = floats(12)
    angle = torch.linspace(-90, 180, 12)
    around = 20

    def reference(image, degrees):
        image, edge = padded(image, around)
        turned = TF.rotate(image, degrees, tv.InterpolationMode.BILINEAR)
        return TF.center_crop(turned, [20, 20]) + edge

    torch.testing.assert_close(
        augment.crop(x, 20, angle=angle), one_by_one(reference, x, angle), atol=1e-4, rtol=0
    )


def padded(image: Tensor, around: int) -> tuple[Tensor, Tensor]:
    """The image less its background, with zeros around it; and the background."""
    edges = [image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]]
    edge = torch.cat(edges, 1).sort(1).values  # (c, edge pixels)
    edge = edge[:, (edge.shape[1] - 1) // 2][:, None, None]
    return F.pad(image - edge, (around,) * 4), edge


def test_shear_is_torchvisions():
    x = floats(6)
    shear = torch.linspace(-0.4, 0.4, 6)

    def reference(image, by):
        image, edge = padded(image, 20)
        degrees = [math.degrees(math.atan(by)), 0.0]
        made = TF.affine(image, 0, [0, 0], 1, degrees, tv.InterpolationMode.BILINEAR)
        return TF.center_crop(made, [20, 20]) + edge

    torch.testing.assert_close(
        augment.crop(x, 20, shear=shear), one_by_one(reference, x, shear), atol=1e-4, rtol=0
    )


def test_shift_by_whole_pixels():
    x = floats(1)
    moved = augment.crop(x, 20, shift=torch.tensor([[0.3, -0.1]]))  # 3 and -1 of 20 pixels
    torch.testing.assert_close(moved[..., 1:, :17], x[..., :-1, 3:], atol=1e-5, rtol=0)


def test_a_box_larger_than_the_image_shows_its_background():
    x = floats(2)
    boxes = torch.tensor([[-5.0, -10.0, 30.0, 30.0], [0.0, 0.0, 20.0, 20.0]])
    found = augment.crop(x, 30, boxes)
    image, edge = padded(x[0], 10)
    torch.testing.assert_close(found[0], image[:, 5:35, :30] + edge, atol=1e-5, rtol=0)
    torch.testing.assert_close(augment.crop(x, 20, boxes)[1], x[1], atol=1e-5, rtol=0)


def test_boxes_hold_the_image_or_lie_in_it():
    boxes = augment.sample_boxes(5000, 30, 20, (0.5, 1.5), 1.2, generator())
    top, left, h, w = boxes.unbind(1)
    for start, side, whole in ((top, h, 30), (left, w, 20)):
        inside = side <= whole
        assert (start[inside] >= 0).all() and (start + side <= whole)[inside].all()
        assert (start[~inside] <= 0).all() and (start + side >= whole)[~inside].all()
    area = h * w / 600
    assert area.mean() == pytest.approx(1.0, abs=0.03)
    assert area.max() > 1.4


def test_bending_is_torchvisions_elastic():
    x = floats(3)
    field = 0.3 * (2 * torch.rand(3, 2, 4, 4, generator=generator()) - 1)
    whole = F.interpolate(field, (20, 20), mode="bicubic", align_corners=True)

    def reference(image, displacement):
        edge = padded(image, 0)[1]
        moved = torch.tensor(displacement).permute(1, 2, 0)[None]  # (1, h, w, 2) in half sides
        return TF.elastic(image - edge, moved, tv.InterpolationMode.BILINEAR) + edge

    torch.testing.assert_close(
        augment.crop(x, 20, field=field), one_by_one(reference, x, whole), atol=1e-4, rtol=0
    )


def test_rotation_of_a_crop_turns_the_crop_and_then_takes_in_what_lies_around():
    x = floats(1, 1, 40, 40)
    box = torch.tensor([[10.0, 12.0, 16.0, 16.0]])
    turned = augment.crop(x, 16, box, angle=torch.tensor([30.0]))
    everything = TF.rotate(x, 30.0, tv.InterpolationMode.BILINEAR, center=[12 + 8.0, 10 + 8.0])
    torch.testing.assert_close(turned, everything[..., 10:26, 12:28], atol=1e-4, rtol=0)


def test_flip_comes_before_rotation():
    x = floats(4)
    flip, angle = torch.ones(4, dtype=torch.bool), torch.full((4,), 20.0)
    expected = augment.crop(augment.crop(x, 20, flip=flip), 20, angle=angle)
    torch.testing.assert_close(augment.crop(x, 20, None, flip, angle), expected, atol=1e-5, rtol=0)


def test_boxes_are_drawn_as_torchvision_draws_them():
    n, height, width, scale, ratio = 20_000, 48, 64, (0.2, 1.0), 4 / 3
    top, left, h, w = augment.sample_boxes(n, height, width, scale, ratio, generator()).T
    assert all(torch.equal(p, p.round()) for p in (top, left, h, w))
    assert top.min() == 0 and left.min() == 0
    assert (top + h).max() == height and (left + w).max() == width
    share, aspect = h * w / (height * width), w / h
    assert share.min() > 0.2 * 0.9 and share.max() <= 1  # 0.9: sides are rounded to pixels
    assert aspect.min() > 0.75 * 0.9 and aspect.max() < 4 / 3 * 1.1
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    draw = RandomResizedCrop.get_params
    theirs = torch.tensor(
        [draw(image, list(scale), [1 / ratio, ratio]) for _ in range(4000)]
    ).float()
    for ours, other in zip((top, left, h, w), theirs.T, strict=True):
        probabilities = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
        found, expected = ours.quantile(probabilities), other.quantile(probabilities)
        assert (found - expected).abs().max() <= 1.5  # pixels
    aspects = (theirs[:, 3] / theirs[:, 2]).log()
    assert aspect.log().mean().item() == pytest.approx(aspects.mean().item(), abs=0.01)


def test_box_that_never_fits_is_the_central_one():
    boxes = augment.sample_boxes(5, 10, 100, (1.0, 1.0), 4 / 3, generator())
    assert boxes.tolist() == [[0.0, 43.0, 10.0, 13.0]] * 5  # 13 = round(10 · 4 / 3)


# -- colour -------------------------------------------------------------------------------------

FACTORS = torch.tensor([0.0, 0.2, 0.6, 1.0, 1.4, 2.5])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_is_torchvisions(name, channels):
    x = photographs(len(FACTORS), channels).float() / 255
    ours, theirs = getattr(augment, f"adjust_{name}"), getattr(TF, f"adjust_{name}")
    torch.testing.assert_close(ours(x, FACTORS), one_by_one(theirs, x, FACTORS), atol=1e-6, rtol=0)


def test_hue_is_torchvisions():
    shift = torch.tensor([-0.5, -0.31, -0.1, 0.0, 0.05, 0.1, 0.25, 0.5])
    x = photographs(len(shift)).float() / 255
    expected = one_by_one(TF.adjust_hue, x, shift)
    torch.testing.assert_close(augment.adjust_hue(x, shift), expected, atol=1e-5, rtol=0)


def test_hue_turns_red_into_green_and_blue():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    for shift, expected in ((1 / 3, [0, 1, 0]), (-1 / 3, [0, 0, 1]), (1 / 6, [1, 1, 0])):
        turned = augment.adjust_hue(red, torch.tensor([shift])).flatten().tolist()
        assert turned == pytest.approx(expected, abs=1e-6)


def test_grey_is_torchvisions():
    x = photographs(3).float() / 255
    torch.testing.assert_close(augment.grey(x), TF.rgb_to_grayscale(x, 3), atol=1e-6, rtol=0)


def test_blur_is_torchvisions():
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0])
    x = floats(4, 3, 20, 24)
    ours = augment.gaussian_blur(x.clone(), sigma, 6)
    expected = one_by_one(lambda image, s: TF.gaussian_blur(image, [13, 13], [s, s]), x, sigma)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_blur_of_sigma_0_changes_nothing():
    x = floats(2)
    assert torch.equal(augment.gaussian_blur(x, torch.zeros(2), 3), x)


def test_solarise_is_torchvisions():
    x = photographs(4)
    chosen = torch.tensor([True, False, True, True])
    views = Views(settings(preset="none", solarise=0.5), 32).apply(x, {"solarise": chosen})
    x = x.float() / 255
    expected = torch.stack(
        [TF.solarize(i, 0.5) if c else i for i, c in zip(x, chosen, strict=True)]
    )
    torch.testing.assert_close(views, expected)


def test_all_together_is_torchvision_step_by_step():
    x = photographs(16, side=40)
    views = Views(settings(preset="photo", blur=0.5, blur_sigma=1.0, solarise=0.5), 32)
    parameters = views.sample(16, 3, 40, 40, generator(5))
    for i, view in enumerate(views.apply(x, parameters)):
        p = {name: tensor[i].tolist() for name, tensor in parameters.items()}
        image = TF.resized_crop(x[i] / 255, *map(int, p["boxes"]), [32, 32], antialias=False)
        image = TF.horizontal_flip(image) if p["flip"] else image
        image = TF.adjust_brightness(image, p["brightness"])
        image = TF.adjust_contrast(image, p["contrast"])
        image = TF.adjust_saturation(image, p["saturation"])
        image = TF.adjust_hue(image, p["hue"])
        image = TF.rgb_to_grayscale(image, 3) if p["grey"] else image
        image = TF.gaussian_blur(image, [7, 7], [p["sigma"]] * 2) if p["sigma"] else image
        off = (view - (TF.solarize(image, 0.5) if p["solarise"] else image)).abs()
        if p["solarise"]:  # a pixel within rounding of one half may fall on either side
            off = off[(image - 0.5).abs() > 1e-4]
        assert off.max() < 2e-4


# -- drawing ------------------------------------------------------------------------------------


def test_parameters_are_drawn_from_their_ranges():
    n = 20_000
    views = Views(settings(preset="photo", solarise=0.1, rotation=10.0, blur_sigma=2.0), 32)
    p = views.sample(n, 3, 32, 32, generator())
    for name, probability in (("flip", 0.5), ("grey", 0.2), ("solarise", 0.1)):
        assert p[name].dtype == torch.bool
        assert p[name].float().mean().item() == pytest.approx(probability, abs=0.015)
    assert (p["sigma"] > 0).float().mean().item() == pytest.approx(0.5, abs=0.015)
    jittered = p["hue"] != 0
    assert jittered.float().mean().item() == pytest.approx(0.8, abs=0.015)
    for name, low, high, chosen in (
        ("brightness", 0.6, 1.4, jittered),
        ("contrast", 0.6, 1.4, jittered),
        ("saturation", 0.6, 1.4, jittered),
        ("hue", -0.1, 0.1, jittered),
        ("angle", -10.0, 10.0, torch.ones(n, dtype=torch.bool)),
        ("sigma", 0.1, 2.0, p["sigma"] > 0),
    ):
        values, width = p[name][chosen], high - low
        assert low <= values.min() < low + 0.01 * width
        assert high - 0.01 * width < values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.02 * width)
        assert values.std().item() == pytest.approx(width / math.sqrt(12), rel=0.03)
    for name in ("brightness", "contrast", "saturation"):
        assert (p[name][~jittered] == 1).all()  # an image is jittered in all or in nothing


def test_drawn_parameters_are_independent():
    p = Views(settings(preset="photo", rotation=10.0), 32).sample(20_000, 3, 32, 32, generator())
    columns = [p["flip"], p["angle"], p["grey"], p["brightness"], p["contrast"], p["boxes"][:, 0]]
    correlation = torch.corrcoef(torch.stack([c.float() for c in columns]))
    assert (correlation - torch.eye(len(columns))).abs().max() < 0.03


def test_brightness_beyond_1_does_not_go_below_0():
    p = Views(settings(brightness=1.5), 32).sample(2000, 3, 32, 32, generator())
    assert 0 <= p["brightness"].min() < 0.1 and 2.4 < p["brightness"].max() <= 2.5


# -- Views --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preset", list(augment.PRESETS))
def test_views_have_the_right_form(preset, channels):
    x = photographs(8, channels, 40)
    views = Views(settings(preset=preset, channels=channels), 32)(x, generator())
    assert views.shape == (8, channels, 32, 32)
    assert views.dtype == torch.float32
    assert views.min() >= 0 and views.max() <= 1


def test_same_seed_same_bits():
    x, views = photographs(8), Views(settings(preset="photo", rotation=5.0, solarise=0.2), 32)
    assert torch.equal(views(x, generator(1)), views(x, generator(1)))
    assert not torch.equal(views(x, generator(1)), views(x, generator(2)))
    rng = generator(1)
    assert not torch.equal(views(x, rng), views(x, rng))


def test_images_of_a_batch_differ():
    x = photographs(1).expand(16, -1, -1, -1)
    views = Views(settings(), 32)(x, generator())
    assert len(views.flatten(1).unique(dim=0)) == 16


def test_an_images_view_does_not_depend_on_its_neighbours():
    x = photographs(8)
    views = Views(settings(preset="photo"), 32)
    parameters = views.sample(8, 3, 32, 32, generator())
    alone = views.apply(x[3:4], {name: p[3:4] for name, p in parameters.items()})
    torch.testing.assert_close(views.apply(x, parameters)[3:4], alone)


def test_the_image_is_left_alone():
    x = photographs(4)
    before = x.clone()
    Views(settings(preset="photo", solarise=1.0), 32)(x, generator())
    assert torch.equal(x, before)


def test_none_is_the_view_of_evaluation():
    x = photographs(4, side=40)
    assert torch.equal(Views(settings(preset="none"), 32)(x, generator()), centre(x, 32))


def test_what_is_off_is_not_drawn():
    rng = generator()
    before = rng.get_state()
    assert Views(settings(preset="none"), 32).sample(8, 3, 32, 32, rng) == {}
    assert torch.equal(rng.get_state(), before)
    drawn = Views(settings(preset="paper"), 32).sample(8, 3, 32, 32, rng)
    assert set(drawn) == {"boxes", "flip"}


def test_grey_images_have_no_colour_to_change():
    views = Views(settings(channels=1, saturation=0.4, hue=0.1, grey=0.2, jitter=1.0), 32)
    drawn = views.sample(8, 1, 32, 32, generator())
    assert set(drawn) == {"boxes", "angle", "shear", "shift", "brightness"}


def test_channels_last_images_give_the_same_views():
    x, views = photographs(4), Views(settings(), 32)
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(views(last, generator()), views(x, generator()))


# -- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "channels", "preset"),
    [
        (28, 1, "shape"),
        (8, 1, "tiny-shape"),
        (32, 3, "small-photo"),
        (64, 3, "small-photo"),
        (96, 3, "photo"),
        (224, 1, "photo"),
    ],
)
def test_preset_follows_from_the_images(size, channels, preset):
    resolved = resolve_views(ViewSettings(), size, channels)
    assert resolved.preset == preset
    assert "auto" not in dataclasses.asdict(resolved).values()
    assert resolve_views(resolved, size, channels) == resolved


def test_presets_are_what_they_say():
    paper = resolve_views(ViewSettings(preset="paper"), 224, 3)
    on = {k: v for k, v in dataclasses.asdict(paper).items() if k != "preset" and v}
    assert on == {
        "crop_scale": 0.08,
        "crop_scale_max": 1.0,
        "crop_ratio": 4 / 3,
        "flip": 0.5,
        "blur_sigma": 2.0,
    }
    shape = resolve_views(ViewSettings(), 28, 1)
    assert shape.flip == 0 and shape.crop_scale == 0.6 and shape.rotation == 8


def test_what_is_set_stays():
    resolved = resolve_views(ViewSettings(flip=0.0, hue=0.25), 32, 3)
    assert (resolved.flip, resolved.hue, resolved.grey) == (0.0, 0.25, 0.2)


def test_values_out_of_range_are_refused():
    for name, value in (("flip", 1.5), ("crop_scale", 0.0), ("crop_ratio", 0.5), ("hue", 0.6)):
        with pytest.raises(ConfigError, match=f"views.{name} = {value} will not do: give a number"):
            override(Config(), {f"views.{name}": value})


def test_views_need_resolved_settings():
    with pytest.raises(ConfigError, match="resolve_views"):
        Views(ViewSettings(), 32)


# -- evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (37, 40, 32), (33, 35, 32)])
def test_centre_is_torchvisions(height, width, size):
    x = torch.randint(0, 256, (2, 3, height, width), generator=generator(), dtype=torch.uint8)
    assert torch.equal(centre(x, size), TF.center_crop(x, [size, size]).float() / 255)


def test_centre_needs_enough_pixels():
    with pytest.raises(ValueError, match="64 pixels out of images of 32 × 32"):
        centre(photographs(1), 64)


def test_normalise_is_torchvisions():
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    torch.testing.assert_close(normalise(floats(2), mean, std), TF.normalize(floats(2), mean, std))
