"""Views: random variants of a batch of images, made in one go on the device that trains.

Libraries that change one image at a time starve the device, so these are batched: every image draws
parameters of its own, and each step is a few tensor operations on the whole batch. Drawing
(:meth:`Views.sample`) stands apart from applying (:meth:`Views.apply` and the functions below), and
each function is torchvision's on the same parameters, with these differences:

- Crop, flip, rotation, shear, shift and bend are one bilinear resampling instead of several. It has
  no antialias filter: torchvision smooths where a crop is larger than the view. That happens only
  as far as the kept images are larger than the view (``data.margin``), by 1.14 for the paper's 256
  and 224.
- Rotation turns about the centre of the view. Beyond the edge of the image lies its background, the
  median of its edge, where torchvision puts black.
- Colour jitter takes brightness, contrast, saturation and hue in this order, torchvision in a
  random one.

Sources: random-resized crops of Szegedy et al. (2015), colour views of SimCLR (Chen et al., 2020).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from deepcluster.backbones.preprocessing import centre, filled
from deepcluster.config import ViewSettings
from deepcluster.errors import ConfigError

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey, as in torchvision."""

SMALLEST_SIGMA = 0.1

TINY = 24
"""Shapes below this side in pixels are tiny: they bear, and need, stronger views."""

FIELD = (4, 4)
"""Points of the smooth random field that bends a view."""

ATTEMPTS = 10
"""Draws of a crop before the largest central one is taken, as in torchvision."""

_NAMES = tuple(f.name for f in dataclasses.fields(ViewSettings) if f.name != "preset")

_OFF = dict.fromkeys(_NAMES, 0.0) | {"crop_scale": 1.0, "crop_scale_max": 1.0, "crop_ratio": 1.0}
_CROP = {"crop_ratio": 4 / 3}
_COLOUR = {
    "jitter": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grey": 0.2,
}

PRESETS: dict[str, dict[str, float]] = {
    "photo": _OFF | _CROP | _COLOUR | {"crop_scale": 0.2, "flip": 0.5, "blur": 0.5},
    "small-photo": _OFF | _CROP | _COLOUR | {"crop_scale": 0.25, "flip": 0.5},
    # No mirror image (a mirrored 2 is no digit), no crops that cut a part off: shapes are what is
    # left when slant, stretch, place and bend are not looked at. Views made for photographs ruin
    # digits.
    "shape": _OFF
    | {"crop_scale": 0.6, "crop_scale_max": 1.2, "crop_ratio": 1.2}
    | {"rotation": 8.0, "shear": 0.1, "shift": 0.1}
    | {"jitter": 0.8, "brightness": 0.3},
    "tiny-shape": _OFF
    | {"crop_scale": 0.5, "crop_scale_max": 1.5, "crop_ratio": 1.3}
    | {"rotation": 15.0, "shear": 0.3, "shift": 0.15, "elastic": 0.15}
    | {"jitter": 0.8, "brightness": 0.3},
    "paper": _OFF | _CROP | {"crop_scale": 0.08, "flip": 0.5},
    "none": _OFF,
}
"""What each preset puts for a setting left at auto."""


def resolve_views(settings: ViewSettings, size: int, channels: int) -> ViewSettings:
    """Put a value for every ``"auto"``.

    The preset follows from the images: small grey ones are shapes (tiny ones bear stronger views),
    small coloured ones small photographs, all others photographs. The blur is that of 2 pixels at
    224, scaled.

    Args:
        settings: what the user set.
        size: side of the views in pixels.
        channels: 1 or 3.
    """
    preset = settings.preset
    if preset == "auto":
        if size > 64:
            preset = "photo"
        elif channels == 3:
            preset = "small-photo"
        else:
            preset = "tiny-shape" if size < TINY else "shape"
    values = dict(PRESETS[preset])
    values["blur_sigma"] = max(SMALLEST_SIGMA, round(2.0 * size / 224, 2))
    if channels == 1:
        values |= {"saturation": 0.0, "hue": 0.0, "grey": 0.0}
    for name in _NAMES:
        given = getattr(settings, name)
        if given != "auto":
            values[name] = given
    return dataclasses.replace(settings, preset=preset, **values)


class Views:
    """Makes random views.

    Args:
        settings: from :func:`resolve_views`: nothing is left at auto.
        size: side of the views in pixels.
    """

    def __init__(self, settings: ViewSettings, size: int) -> None:
        self.size = size
        self.values: dict[str, float] = {}
        for name in _NAMES:
            value = getattr(settings, name)
            if value == "auto":
                raise ConfigError(f"views.{name} is still auto: pass settings to resolve_views")
            self.values[name] = value

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator,
        *,
        rows: slice = slice(None),
        among: int | None = None,
    ) -> Tensor:
        """One view of each image.

        Args:
            images: ``(n, c, H, W)`` uint8, c = 1 or 3, on any device.
            generator: of all random numbers; it may live on another device than the images.
            rows: which rows of a batch the images are, if they are not all of it; they get the
                views that they would get there.
            among: images in that batch.

        Returns:
            ``(n, c, size, size)`` float32 in [0, 1], on the images' device.
        """
        n, channels, height, width = images.shape
        parameters = self.sample(among or n, channels, height, width, generator)
        return self.apply(images, {k: v[rows].to(images.device) for k, v in parameters.items()})

    def sample(
        self, n: int, channels: int, height: int, width: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Draw the parameters of n views of images of one shape.

        Returns:
            One tensor of n rows for each step that is on, on the generator's device: ``boxes``
            (n, 4); ``flip`` (bool); ``angle`` in degrees; ``shear``; ``shift`` (n, 2) and ``field``
            (n, 2, 4, 4), x and y in half sides of the view; the factors ``brightness``,
            ``contrast``, ``saturation`` and the shift ``hue``, neutral where an image is not
            jittered; ``grey`` (bool); ``sigma``, 0 where an image is not blurred; ``solarise``
            (bool).
        """
        values = self.values

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(n, generator=generator, device=generator.device)

        def chosen(probability: float) -> Tensor:
            return uniform(0.0, 1.0) < probability  # (n,) bool

        parameters: dict[str, Tensor] = {}
        scale = values["crop_scale"], values["crop_scale_max"]
        if scale != (1, 1):
            parameters["boxes"] = sample_boxes(
                n, height, width, scale, values["crop_ratio"], generator
            )
        if values["flip"]:
            parameters["flip"] = chosen(values["flip"])
        if values["rotation"]:
            parameters["angle"] = uniform(-values["rotation"], values["rotation"])
        if values["shear"]:
            parameters["shear"] = uniform(-values["shear"], values["shear"])
        if values["shift"]:
            parameters["shift"] = torch.stack(
                [uniform(-values["shift"], values["shift"]) for _ in range(2)], 1
            )
        if values["elastic"]:
            draws = torch.rand(n, 2, *FIELD, generator=generator, device=generator.device)
            parameters["field"] = values["elastic"] * (2 * draws - 1)
        if values["jitter"]:
            jittered = chosen(values["jitter"])
            for name in ("brightness", "contrast", "saturation"):
                if values[name] and (channels == 3 or name != "saturation"):
                    factor = uniform(max(0.0, 1 - values[name]), 1 + values[name])
                    parameters[name] = torch.where(jittered, factor, 1.0)
            if values["hue"] and channels == 3:
                parameters["hue"] = uniform(-values["hue"], values["hue"]) * jittered
        if values["grey"] and channels == 3:
            parameters["grey"] = chosen(values["grey"])
        if values["blur"]:
            parameters["sigma"] = chosen(values["blur"]) * uniform(
                SMALLEST_SIGMA, values["blur_sigma"]
            )
        if values["solarise"]:
            parameters["solarise"] = chosen(values["solarise"])
        return parameters

    def apply(self, images: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """The views that these parameters describe; a step without parameters is not taken.

        Args:
            images: ``(n, c, H, W)`` uint8.
            parameters: from :meth:`sample`, on the images' device.
        """
        x = images.float().div_(255) if "boxes" in parameters else centre(images, self.size)
        names = ("boxes", "flip", "angle", "shear", "shift", "field")
        where = {name: parameters[name] for name in names if name in parameters}
        if where:
            x = crop(x, self.size, **where)
        for name, function in (
            ("brightness", adjust_brightness),
            ("contrast", adjust_contrast),
            ("saturation", adjust_saturation),
            ("hue", adjust_hue),
        ):
            if name in parameters:
                x = function(x, parameters[name])
        if "grey" in parameters:
            x = torch.where(parameters["grey"][:, None, None, None], grey(x), x)
        if "sigma" in parameters:
            radius = blur_radius(self.values["blur_sigma"], self.size)
            x = gaussian_blur(x, parameters["sigma"], radius)
        if "solarise" in parameters:
            x = torch.where(parameters["solarise"][:, None, None, None] & (x >= 0.5), 1 - x, x)
        return x


def small_views(
    settings: ViewSettings, size: int, side: float, scale: tuple[float, float] | None = None
) -> Views:
    """The views of fewer pixels.

    Args:
        settings: of the large views, from :func:`resolve_views`.
        size: side of the large views in pixels.
        side: of the small ones, over that of the large.
        scale: smallest and largest share of the area that a crop keeps, if not those of the large.
    """
    if scale is not None:
        settings = dataclasses.replace(settings, crop_scale=scale[0], crop_scale_max=scale[1])
    return Views(settings, max(1, round(size * side)))


# -- where --------------------------------------------------------------------------------------


def sample_boxes(
    n: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: float,
    generator: torch.Generator,
) -> Tensor:
    """Draw boxes for random-resized crops as torchvision does.

    The area is uniform in `scale` times the image's, the logarithm of the aspect ratio uniform
    within ± log `ratio`, sides are rounded to pixels; a box that does not fit is drawn again, and
    after 10 draws the largest central box within `ratio` is taken. Beyond torchvision: where
    `scale` goes above 1, boxes may be larger than the image, which then lies anywhere in the box.

    Returns:
        ``(n, 4)`` float32 whole numbers: top, left, height, width; on the generator's device.
    """
    device = generator.device
    draws = torch.rand(4, ATTEMPTS, n, generator=generator, device=device)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])  # (attempts, n)
    aspect = torch.exp(math.log(ratio) * (2 * draws[1] - 1))
    w = (area * aspect).sqrt().round()
    h = (area / aspect).sqrt().round()
    most_h, most_w = (math.inf, math.inf) if scale[1] > 1 else (height, width)
    fits = (w >= 1) & (w <= most_w) & (h >= 1) & (h <= most_h)
    # A last row that always fits: the whole image, cut to the largest aspect ratio.
    last_w = min(width, round(height * ratio))
    last_h = min(height, round(width * ratio))
    top, left = _place(draws[2], height - h), _place(draws[3], width - w)
    boxes = torch.stack([top, left, h, w], -1)  # (attempts, n, 4)
    last = filled(boxes, [(height - last_h) // 2, (width - last_w) // 2, last_h, last_w])
    boxes = torch.cat([boxes, last.expand(1, n, 4)])
    fits = torch.cat([fits, fits.new_ones(1, n)])
    first = fits.int().argmax(0)  # (n,) argmax gives the first of equal values
    return boxes[first, torch.arange(n, device=device)]


def _place(draw: Tensor, room: Tensor) -> Tensor:
    """Where a box begins: a whole number from 0 to `room`, or from `room` to 0 if that is less."""
    steps = (draw * (room.abs() + 1)).floor().minimum(room.abs())  # rounding up must not leave
    return steps * room.sign()


def crop(
    x: Tensor,
    size: int,
    boxes: Tensor | None = None,
    flip: Tensor | None = None,
    angle: Tensor | None = None,
    shear: Tensor | None = None,
    shift: Tensor | None = None,
    field: Tensor | None = None,
) -> Tensor:
    """Cut a box out of each image; mirror, turn, slant, move and bend it; resample it to a square.

    All at once. With a box inside the image and a mirror at most, this is torchvision's
    ``resized_crop(antialias=False)`` and then its ``horizontal_flip``: pixels outside the box are
    not looked at. Otherwise pixels around the box come into view, and outside the image there is
    its background: the median of its edge.

    Args:
        x: ``(n, c, H, W)`` float in [0, 1].
        size: side of the result in pixels.
        boxes: ``(n, 4)`` top, left, height, width in pixels; None takes all of each image.
        flip: ``(n,)`` bool, mirror left and right.
        angle: ``(n,)`` degrees, counter-clockwise.
        shear: ``(n,)`` horizontal shift over height.
        shift: ``(n, 2)`` x and y, in half sides of the view.
        field: ``(n, 2, a, b)`` shifts x and y at a × b points over the view, in its half sides;
            cubic between them.

    Returns:
        ``(n, c, size, size)``.
    """
    n, _, height, width = x.shape
    inside = angle is None and shear is None and shift is None and field is None
    if boxes is None:
        boxes = filled(x, [0, 0, height, width]).expand(n, 4)
    top, left, h, w = boxes.to(x.dtype)[:, :, None, None].unbind(1)  # each (n, 1, 1)
    # Centres of the result's pixels, from -1 to 1 across the view.
    line = (2 * torch.arange(size, device=x.device, dtype=x.dtype) + 1) / size - 1
    u, v = line.view(1, 1, size), line.view(1, size, 1)
    if field is not None:
        bend = F.interpolate(field.to(x.dtype), (size, size), mode="bicubic", align_corners=True)
        u, v = u + bend[:, 0], v + bend[:, 1]  # (n, size, size)
    if shear is not None:
        u = u + shear.to(x.dtype)[:, None, None] * v
    if angle is not None:
        radians = torch.deg2rad(angle.to(x.dtype))[:, None, None]
        cos, sin = radians.cos(), radians.sin()
        u, v = cos * u - sin * v, sin * u + cos * v  # (n, size, size)
    if shift is not None:
        by = shift.to(x.dtype)[:, :, None, None]
        u, v = u + by[:, 0], v + by[:, 1]
    if flip is not None:
        u = torch.where(flip[:, None, None], -u, u)
    columns = left + (u + 1) / 2 * w - 0.5  # in pixels of x, its first centre at 0
    rows = top + (v + 1) / 2 * h - 0.5
    if inside:
        # A box larger than the image shows its background there; one within it never looks outside.
        larger = (h > height) | (w > width)
        columns = torch.where(larger, columns, columns.clamp(min=left, max=left + w - 1))
        rows = torch.where(larger, rows, rows.clamp(min=top, max=top + h - 1))
    background = _background(x)
    grid = torch.stack(
        [
            ((2 * columns + 1) / width - 1).expand(n, size, size),
            ((2 * rows + 1) / height - 1).expand(n, size, size),
        ],
        -1,
    )
    x = F.grid_sample(x - background, grid, "bilinear", "zeros", align_corners=False)
    return x.add_(background).clamp_(0, 1)  # the sum may be off by a rounding


def _background(x: Tensor) -> Tensor:
    """Median of the pixels on the edge of each image and channel, ``(n, c, 1, 1)``."""
    sides = [x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]]
    return torch.cat(sides, -1).median(-1).values[..., None, None]


# -- colour -------------------------------------------------------------------------------------


def grey(x: Tensor) -> Tensor:
    """Drop the colour of ``(n, c, h, w)``: luma in every channel; grey images stay as they are."""
    return _luma(x).expand_as(x)


def _luma(x: Tensor) -> Tensor:
    """``(n, c, h, w) -> (n, 1, h, w)``."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.unbind(1)  # each (n, h, w)
    return (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b)[:, None]


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply each image ``(n, c, h, w)`` in [0, 1] by its factor ``(n,)``."""
    return (x * factor[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Stretch each image about the mean of its luma: 0 leaves that mean, 1 changes nothing."""
    return _blend(x, _luma(x).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Stretch each pixel about its luma: 0 leaves grey, 1 changes nothing."""
    return _blend(x, _luma(x), factor)


def _blend(x: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    factor = factor[:, None, None, None]
    return (x * factor + towards * (1 - factor)).clamp_(0, 1)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of colour images, keeping the value and saturation of HSV.

    Args:
        x: ``(n, 3, h, w)`` in [0, 1].
        shift: ``(n,)`` in turns, -0.5 to 0.5.
    """
    r, g, b = x.unbind(1)  # each (n, h, w)
    value = torch.maximum(torch.maximum(r, g), b)
    lowest = torch.minimum(torch.minimum(r, g), b)
    chroma = value - lowest
    # The hue in sixths of a turn; which of two equal maxima counts does not matter. Without chroma
    # there is no hue, and the result is the value whatever stands here: the divisor must not be 0.
    scale = 1 / chroma.clamp(min=1e-6)
    hue = torch.where(
        r == value,
        (g - b) * scale,
        torch.where(g == value, (b - r) * scale + 2, (r - g) * scale + 4),
    )
    hue += 6 * shift[:, None, None]
    hue -= 6 * torch.floor(hue / 6)  # to [0, 6); several times faster than remainder
    # Each channel is a trapezoid over the circle of hues: 1 for a third of a turn, 0 for a third.
    shares = ((hue - 3).abs_().sub_(1), 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_())
    return torch.stack([lowest + chroma * share.clamp_(0, 1) for share in shares], 1)


def blur_radius(sigma: float, size: int) -> int:
    """Pixels to each side that a Gaussian kernel takes: 3 standard deviations, below the image."""
    return min(math.ceil(3 * sigma), size - 1)


def gaussian_blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur each image by its own Gaussian; the image is mirrored at its edges.

    Args:
        x: ``(n, c, h, w)``.
        sigma: ``(n,)`` standard deviation in pixels; 0 leaves the image as it is.
        radius: pixels to each side that the kernel takes, below h and w.
    """
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    # A kernel narrower than 0.01 pixels is exactly 1 at the centre and 0 elsewhere.
    kernels = torch.exp(-0.5 * (offsets / sigma.clamp(min=0.01)[:, None]) ** 2)
    kernels = kernels / kernels.sum(1, keepdim=True)  # (n, 2 radius + 1)
    weights = kernels[:, :, None, None, None]
    # The kernel is separable: a weighted sum of shifted images along each axis.
    for axis, pad in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        length = x.shape[axis]
        padded = F.pad(x, pad, mode="reflect")
        x = weights[:, 0] * padded.narrow(axis, 0, length)
        for i in range(1, 2 * radius + 1):
            x = x.addcmul_(weights[:, i], padded.narrow(axis, i, length))
    return x
