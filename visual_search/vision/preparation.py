"""Prepare images for embedding: the whole image, or mainly the object in it. Pure functions on PIL.

Each strategy has a fallback: if the mask covers almost nothing or almost everything, fails or takes too long, the
unchanged image is embedded and the result gives the reason. docs/preparation.md compares the strategies.
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

VERSION = 1  # increment when a strategy changes its result for the same image and mask
OBJECT_ALPHA = 128  # mask pixels from this value on are the object; getbbox() alone would include every faint pixel
MARGIN = 0.05  # kept around the object, as a share of the box's longer side
AREA_MIN, AREA_MAX = 0.10, 0.90  # share of the image; outside, the mask is one item of a pile, or useless
WHITE, GREY = (255, 255, 255), (128, 128, 128)

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready to be embedded.

    images: their embeddings are averaged. strategy: the strategy applied. fallback: why the image was left unchanged
    despite the requested strategy: `mask_too_small`, `mask_too_large`, `background_slow` or `background_failed`;
    otherwise empty.
    """

    images: tuple[Image, ...]
    strategy: str = "none"
    fallback: str = ""


def preparation_id(strategy: str, model: str) -> str:
    """Return the id of a preparation: strategy, version and background model (`crop/1/u2net`), or `none`."""
    return strategy if strategy == "none" else f"{strategy}/{VERSION}/{model}"


def parse_preparation_id(text: str) -> tuple[str, str]:
    """Return the strategy and background model of a preparation id. Raises IndexOutdated for an obsolete id."""
    strategy, _, rest = text.partition("/")
    model = rest.partition("/")[2]
    if strategy not in STRATEGIES or preparation_id(strategy, model) != text:
        raise IndexOutdated(f"The preparation {text!r} is no longer supported. Run `manage.py build_version`.")
    return strategy, model


def prepare(image: Image, strategy: str, find_mask: Callable[[Image], Image]) -> Prepared:
    """Return an RGB image, prepared for embedding.

    strategy: a key of STRATEGIES. find_mask: returns the object's mask, see BackgroundRemover.find_mask. If it raises,
    the image is left unchanged; errors other than BackgroundSlow are logged.
    """
    apply_mask = STRATEGIES[strategy]
    if apply_mask is None:
        return Prepared((image,))
    try:
        mask = find_mask(image)
    except BackgroundSlow:
        return Prepared((image,), fallback="background_slow")
    except Exception as error:  # from rembg's models; searching without the cut-out is better than failing
        logger.warning("The background removal failed: %s: %s", type(error).__name__, error)
        return Prepared((image,), fallback="background_failed")
    solid = mask.point(lambda alpha: 255 if alpha >= OBJECT_ALPHA else 0)
    share = solid.histogram()[255] / (solid.width * solid.height)
    box = solid.getbbox()
    if box is None or share < AREA_MIN:
        return Prepared((image,), fallback="mask_too_small")
    if share > AREA_MAX:
        return Prepared((image,), fallback="mask_too_large")
    return Prepared(apply_mask(image, mask, box), strategy)


def embed_prepared(encoder: Encoder, prepared: Sequence[Prepared]) -> FloatArray:
    """Return one unit-length embedding per item of `prepared`: float32 (len(prepared), dim).

    The embeddings of an item's images are averaged with equal weights. Raises what `embed_images` raises.
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
    """Crop to the object and a margin. Nothing is painted over."""
    return (image.crop(_with_margin(box, image.size)),)


def _cutout(image: Image, mask: Image, box: Box) -> tuple[Image, ...]:
    """Put the object alone on white, cropped tightly: the classic recipe."""
    return (_on_colour(image, mask, WHITE).crop(box),)


def _blend(image: Image, mask: Image, box: Box) -> tuple[Image, ...]:
    """Return the unchanged image and the object alone on grey: each keeps what the other loses."""
    return image, _on_colour(image, mask, GREY)


def _with_margin(box: Box, size: tuple[int, int]) -> Box:
    left, top, right, bottom = box
    margin = round(max(right - left, bottom - top) * MARGIN)
    return max(0, left - margin), max(0, top - margin), min(size[0], right + margin), min(size[1], bottom + margin)


def _on_colour(image: Image, mask: Image, colour: tuple[int, int, int]) -> Image:
    from PIL.Image import composite, new

    return composite(image, new("RGB", image.size, colour), mask)


STRATEGIES: dict[str, Callable[[Image, Image, Box], tuple[Image, ...]] | None] = {
    "none": None,
    "crop": _crop,
    "cutout": _cutout,
    "blend": _blend,
}
