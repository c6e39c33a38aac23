"""Make phone-like variants of a picture: another crop, angle, light and background, noise, blur, JPEG, clutter.

They replace the photos that a shop does not have, and keep a training from overfitting to its few pictures.
Pure functions on PIL and numpy: the same picture and the same state of the Generator give the same variant. Lengths
are shares of the picture's side, so that a variant looks the same at every size.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    Picture = Image.Image

# The maximum of each effect, at strength 1: as from a hand-held phone in a shop or a kitchen, judged by eye.
TURN_DEGREES = 25.0
TILT = 0.10  # how far perspective moves a corner
CROP_MIN = 0.55  # the smallest part of the picture's side that is kept
ZOOM_OUT_MAX = 1.35  # the largest frame, in sides of the picture: the object seen from further away
EXPOSURE = 0.45  # natural logarithm of the gain
WHITE_BALANCE = 0.15
SHADE = 0.5  # of the light, lost at the darkest end of a shadow
NOISE = 10.0  # standard deviation, of 255
BLUR = 0.008
JPEG_QUALITY = (35, 90)

GROUND_TOLERANCE = 22  # the largest difference of a packshot's background from the border's colour, of 255
GROUND_SHARE = 0.85  # the least share of the border with that colour
OBJECT_SHARE = (0.05, 0.9)  # of the picture: less or more is not an object on a background
SOFT_EDGE = 0.006  # blur radius of the mask


def phone_like(
    image: Picture,
    dice: Generator,
    *,
    strength: float = 1.0,
    grounds: Sequence[Picture] = (),
    mask: Picture | None = None,
) -> Picture:
    """Return a phone-like variant of an RGB picture: RGB, of the same size.

    dice: the random generator. strength: 0 for hardly a difference, 1 for a phone at its worst. grounds: other pictures
    to use as background and clutter; if empty, these are drawn. mask: the object (L, the picture's size), from a
    background remover; if None, the object is found if its background has one colour, as in a packshot.
    """
    mask = packshot_mask(image) if mask is None else mask
    ground = any_ground(image.size, dice, grounds)
    if mask is not None and dice.random() < 0.8:
        image = Image.composite(image, ground, mask)
    image = seen_askew(image, ground, dice, strength=strength)
    if dice.random() < 0.3 * strength:
        image = with_clutter(image, dice, grounds)
    return as_taken(in_other_light(image, dice, strength=strength), dice, strength=strength)


def packshot_mask(image: Picture) -> Picture | None:
    """Return the mask (L) of an object on a background of one colour; None if there is no such background.

    A pixel between two edges of the object both across and down belongs to it, whatever its colour.
    """
    pixels = np.asarray(image, dtype=np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    if (np.abs(border - ground).max(axis=1) <= GROUND_TOLERANCE).mean() < GROUND_SHARE:
        return None
    differs = np.abs(pixels - ground).max(axis=2) > GROUND_TOLERANCE
    inside = _between(differs, axis=0) & _between(differs, axis=1)
    if not OBJECT_SHARE[0] <= inside.mean() <= OBJECT_SHARE[1]:
        return None
    mask = Image.fromarray(inside.astype(np.uint8) * 255)
    return mask.filter(ImageFilter.GaussianBlur(SOFT_EDGE * min(image.size)))


def any_ground(size: tuple[int, int], dice: Generator, grounds: Sequence[Picture] = ()) -> Picture:
    """Return a background for a product: one of `grounds` out of focus, or a drawn one."""
    if grounds and dice.random() < 0.5:
        chosen = grounds[int(dice.integers(len(grounds)))].resize(size, Image.Resampling.BILINEAR)
        return chosen.filter(ImageFilter.GaussianBlur(dice.uniform(0.005, 0.03) * min(size)))
    return drawn_ground(size, dice)


def drawn_ground(size: tuple[int, int], dice: Generator) -> Picture:
    """Return a surface of one colour with large and small spots, half of the time with boards."""
    colour = dice.uniform(40, 235) + dice.uniform(-40, 40, 3)  # tables and shelves are rarely vivid
    spots = np.zeros((size[1], size[0]), dtype=np.float32)
    for cells, depth in ((3, 40), (12, 20), (48, 12)):
        coarse = Image.fromarray(dice.uniform(-depth, depth, (cells, cells)).astype(np.float32))
        spots += np.asarray(coarse.resize(size, Image.Resampling.BILINEAR))
    ground = Image.fromarray(np.clip(spots[..., None] + colour, 0, 255).astype(np.uint8))
    if dice.random() < 0.5:
        pen = ImageDraw.Draw(ground)
        step = dice.uniform(0.08, 0.3) * size[1]
        dark = tuple(int(part * 0.6) for part in colour)
        for y in np.arange(dice.uniform(0, step), size[1], step):
            slope = dice.uniform(-0.01, 0.01) * size[1]
            pen.line((0, y, size[0], y + slope), fill=dark, width=max(1, round(0.006 * size[1])))
    return ground


def seen_askew(image: Picture, ground: Picture, dice: Generator, *, strength: float = 1.0) -> Picture:
    """Return the picture rotated, tilted, off centre, nearer or further; `ground` fills the rest."""
    width, height = image.size
    nearest, furthest = 1 - (1 - CROP_MIN) * strength, 1 + (ZOOM_OUT_MAX - 1) * strength
    reach = dice.uniform(nearest, furthest) / 2  # half of the visible part, in sides of the picture
    free = max(0.0, 0.5 - reach) if reach < 0.5 else (reach - 0.5) / 2
    middle = 0.5 + dice.uniform(-free, free, 2)
    angle = math.radians(float(dice.uniform(-TURN_DEGREES, TURN_DEGREES)) * strength)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * reach
    seen = corners @ turn.T + middle + dice.uniform(-TILT, TILT, (4, 2)) * strength * reach
    coefficients = _perspective([(0, 0), (width, 0), (width, height), (0, height)], seen * [width, height])
    layer = image.convert("RGBA").transform(
        image.size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC
    )
    result = ground.copy()
    result.paste(layer, mask=layer.getchannel("A"))
    return result


def with_clutter(image: Picture, dice: Generator, grounds: Sequence[Picture] = ()) -> Picture:
    """Return the picture with one to three objects that reach into it from the edge."""
    result = image.copy()
    for _ in range(int(dice.integers(1, 4))):
        side = round(float(dice.uniform(0.15, 0.4)) * min(image.size))
        thing = any_ground((side, side), dice, grounds)
        shape = Image.new("L", (side, side))
        pen = ImageDraw.Draw(shape)
        (pen.ellipse if dice.random() < 0.5 else pen.rectangle)((0, 0, side - 1, side - 1), fill=255)
        shape = shape.rotate(float(dice.uniform(0, 90)))
        along, where = float(dice.uniform(0, 1)), int(dice.integers(4))
        x, y = ((along, 0.0), (along, 1.0), (0.0, along), (1.0, along))[where]
        result.paste(thing, (round(x * image.width - side / 2), round(y * image.height - side / 2)), shape)
    return result


def in_other_light(image: Picture, dice: Generator, *, strength: float = 1.0) -> Picture:
    """Return the picture brighter or darker, warmer or colder, duller or more vivid, with or without a shadow."""
    gain = math.exp(float(dice.uniform(-EXPOSURE, EXPOSURE)) * strength)
    gamma = math.exp(float(dice.uniform(-0.3, 0.3)) * strength)
    balance = 1 + dice.uniform(-WHITE_BALANCE, WHITE_BALANCE, 3) * strength
    levels = (np.arange(256) / 255) ** gamma * gain * 255
    table = np.clip(levels * balance[:, None], 0, 255).round().astype(int)
    image = image.point(table.flatten().tolist())
    image = ImageEnhance.Color(image).enhance(float(dice.uniform(1 - 0.4 * strength, 1 + 0.3 * strength)))
    if dice.random() < 0.4:
        dark = 1 - float(dice.uniform(0, SHADE)) * strength
        corners = np.clip(dice.uniform(2 * dark - 1, 1.4, (2, 2)), dark, 1) * 255
        shade = Image.fromarray(corners.astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
        image = ImageChops.multiply(image, Image.merge("RGB", (shade, shade, shade)))
    return image


def as_taken(image: Picture, dice: Generator, *, strength: float = 1.0) -> Picture:
    """Return the picture with the effects of a lens, a sensor and JPEG compression."""
    if dice.random() < 0.5:
        radius = float(dice.uniform(0, BLUR)) * strength * min(image.size)
        image = image.filter(ImageFilter.GaussianBlur(radius))
    if dice.random() < 0.5:
        noise = dice.standard_normal((image.height, image.width, 3), dtype=np.float32)
        noisy = np.asarray(image) + noise * np.float32(dice.uniform(0, NOISE) * strength)
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    worst = JPEG_QUALITY[1] - (JPEG_QUALITY[1] - JPEG_QUALITY[0]) * strength
    file = io.BytesIO()
    image.save(file, "JPEG", quality=round(float(dice.uniform(worst, JPEG_QUALITY[1]))))
    return Image.open(file).convert("RGB")


def _between(marked: NDArray[np.bool_], *, axis: int) -> NDArray[np.bool_]:
    """Return the pixels between the first and the last marked one of each line along an axis."""
    after_first = np.logical_or.accumulate(marked, axis=axis)
    before_last = np.flip(np.logical_or.accumulate(np.flip(marked, axis), axis=axis), axis)
    between: NDArray[np.bool_] = after_first & before_last
    return between


def _perspective(wanted: Sequence[tuple[int, int]], source: NDArray[np.float64]) -> list[float]:
    """Return PIL's eight coefficients of the perspective transform that puts `source` points at `wanted` places."""
    rows, values = [], []
    for (x, y), (u, v) in zip(wanted, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    coefficients: list[float] = np.linalg.solve(np.array(rows), np.array(values)).tolist()
    return coefficients
