"""What is embedded of an image: all of it, or rather the object in it. Pure functions on PIL.

Each strategy is gated: where the mask covers almost nothing or almost everything, where it fails or takes too long,
the image is taken as it is, and the result says so. How much each strategy finds: docs/preparation.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from visual_search.exceptions import IndexOutdated
from visual_search.vision.background import BackgroundSlow

if TYPE_CHECKING:
    from PIL.Image import Image

    from visual_search.vision.encoder import Encoder, FloatArray

logger = logging.getLogger(__name__)

VERSION = 1  # raise it when a strategy makes something else of the same image and mask
OBJECT_ALPHA = 128  # a pixel of the mask from here on is the object; getbbox() alone would take every faint one
MARGIN = 0.05  # of the box's longer side, left around the object
AREA_MIN, AREA_MAX = 0.10, 0.90  # share of the image; outside, the mask is a part of a pile or no mask at all
WHITE, GREY = (255, 255, 255), (128, 128, 128)

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready to be embedded.

    images: their embeddings are averaged. strategy: what was done. fallback: why the image was left as it is
    although something else was asked for, otherwise empty: `mask_too_small`, `mask_too_large`,
    `background_slow` or `background_failed`.
    """

    images: tuple[Image, ...]
    strategy: str = "none"
    fallback: str = ""


def identity(strategy: str, model: str) -> str:
    """Return what tells one preparation from another: strategy, version and background model, or `none`."""
    return strategy if strategy == "none" else f"{strategy}/{VERSION}/{model}"


def parse_identity(text: str) -> tuple[str, str]:
    """Return strategy and background model of an identity. Raises IndexOutdated for one that is not made any more."""
    strategy, _, rest = text.partition("/")
    model = rest.partition("/")[2]
    if strategy not in STRATEGIES or identity(strategy, model) != text:
        raise IndexOutdated(f"Product images are not prepared by {text!r} any more. Run `manage.py build_version`.")
    return strategy, model


def prepare(image: Image, strategy: str, find_mask: Callable[[Image], Image]) -> Prepared:
    """Return what is to be embedded of an RGB image.

    strategy: a key of STRATEGIES. find_mask: gives the object's mask, see BackgroundRemover.find_mask; whatever it
    raises is logged and leads to the image as it is.
    """
    make = STRATEGIES[strategy]
    if make is None:
        return Prepared((image,))
    try:
        mask = find_mask(image)
    except BackgroundSlow:
        return Prepared((image,), fallback="background_slow")
    except Exception as error:  # of rembg's models; a search without the cut-out is better than none
        logger.warning("No mask: %s: %s", type(error).__name__, error)
        return Prepared((image,), fallback="background_failed")
    solid = mask.point(lambda alpha: 255 if alpha >= OBJECT_ALPHA else 0)
    share = solid.histogram()[255] / (solid.width * solid.height)
    box = solid.getbbox()
    if box is None or share < AREA_MIN:
        return Prepared((image,), fallback="mask_too_small")
    if share > AREA_MAX:
        return Prepared((image,), fallback="mask_too_large")
    return Prepared(make(image, mask, box), strategy)


def embed_prepared(encoder: Encoder, prepared: Sequence[Prepared]) -> FloatArray:
    """Return one unit embedding for each prepared image: float32 (len(prepared), dim).

    Several images of one are averaged, each with the same weight. Raises what `embed_images` raises.
    """
    import numpy as np

    vectors = encoder.embed_images([image for item in prepared for image in item.images])
    if len(vectors) == len(prepared):
        return vectors
    starts = np.cumsum([0, *(len(item.images) for item in prepared[:-1])])
    sums = np.add.reduceat(vectors, starts, axis=0)
    sums /= np.linalg.norm(sums, axis=1, keepdims=True)
    return sums


def _crop(image: Image, mask: Image, box: Box) -> tuple[Image, ...]:
    """The object with what surrounds it: tight, but nothing painted over."""
    return (image.crop(_with_margin(box, image.size)),)


def _cutout(image: Image, mask: Image, box: Box) -> tuple[Image, ...]:
    """The classic recipe: the object alone on white, cropped tightly."""
    return (_on_ground(image, mask, WHITE).crop(box),)


def _blend(image: Image, mask: Image, box: Box) -> tuple[Image, ...]:
    """The image as it is, and the object alone on grey: what one loses the other keeps."""
    return image, _on_ground(image, mask, GREY)


def _with_margin(box: Box, size: tuple[int, int]) -> Box:
    left, top, right, bottom = box
    margin = round(max(right - left, bottom - top) * MARGIN)
    return max(0, left - margin), max(0, top - margin), min(size[0], right + margin), min(size[1], bottom + margin)


def _on_ground(image: Image, mask: Image, colour: tuple[int, int, int]) -> Image:
    from PIL.Image import composite, new

    return composite(image, new("RGB", image.size, colour), mask)


STRATEGIES: dict[str, Callable[[Image, Image, Box], tuple[Image, ...]] | None] = {
    "none": None,
    "crop": _crop,
    "cutout": _cutout,
    "blend": _blend,
}
