"""Queries for a shop that has no labelled photos, made from its own images. A stand-in, and each row says so.

A product's second image, held out of the answers, is the nearest thing to a customer's photo that a shop has: another
view of the same product. A phone-like variant of an image that is in the index itself is found far too easily: such
queries show what the camera does to the search, not how well it knows the product.
"""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.catalog import CatalogImage, get_catalog
from visual_search.conf import get_settings
from visual_search.exceptions import InvalidLabels, VisualSearchError
from visual_search.index.relations import iter_key_slices
from visual_search.quality.evaluation import products_of
from visual_search.vision.images import content_digest, encode_jpeg, open_product_image

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = ("photo", "product_id", "made_from", "held_out_image")
LONGEST_PX = 1024
SECOND, SECOND_VARIANT = "second image, held out", "phone-like variant of a second image, held out"
VARIANT = "phone-like variant of an image that is in the index"


@dataclass(frozen=True, slots=True)
class Made:
    """How many queries were written of each sort, and a line for each product that gave none."""

    counts: dict[str, int]
    problems: list[str]


def make_queries(
    folder: Path, *, limit: int | None = None, seed: int = 0, progress: Callable[[], object] = lambda: None
) -> Made:
    """Write queries.csv and its photos into a new folder; the same seed makes the same ones.

    limit: products, the first of the catalogue. Raises InvalidLabels if the folder is not empty or no product gave one.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidLabels(f"{str(folder)!r} is there already. Name a folder that is new or empty.")
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    made = Made({}, [])
    with (folder / "queries.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for place, (key, product) in enumerate(_products(limit)):
            try:
                for number, (image, made_from, held_out) in enumerate(_queries_of(product, key, seed)):
                    photo = f"photos/{place}-{number}.jpg"
                    (folder / photo).write_bytes(encode_jpeg(image, longest_px=LONGEST_PX))
                    rows.writerow((photo, getattr(product, get_catalog().product_id_field), made_from, held_out))
                    made.counts[made_from] = made.counts.get(made_from, 0) + 1
            except (VisualSearchError, OSError) as error:
                made.problems.append(f"product {key}: {error}")
            progress()
    if not made.counts:
        raise InvalidLabels("No product of the catalogue has an image to make a query from.")
    return made


def _products(limit: int | None) -> Iterator[tuple[str, Any]]:
    catalog = get_catalog()
    left = limit
    for keys in iter_key_slices(catalog.queryset().using(catalog.database)):
        chosen = keys if left is None else keys[:left]
        yield from products_of(chosen).items()
        left = None if left is None else left - len(chosen)
        if left == 0:
            return


def _queries_of(product: Any, key: str, seed: int) -> Iterator[tuple[Image, str, str]]:
    """Yield each query's picture, what it was made from, and the key of the image to hold out."""
    import numpy as np

    from visual_search.quality.variants import phone_like

    dice = np.random.default_rng([seed, zlib.crc32(key.encode())])
    files = [(image, image.read()) for image in get_catalog().images_of(product)]
    if not files:
        return
    second = _other_view(files)
    if second is None:
        yield phone_like(_open(files[0][1]), dice), VARIANT, ""
        return
    image, data = second
    picture = _open(data)
    yield picture, SECOND, image.key
    yield phone_like(picture, dice), SECOND_VARIANT, image.key


def _other_view(files: list[tuple[CatalogImage, bytes]]) -> tuple[CatalogImage, bytes] | None:
    """Return the first image after the main one whose bytes the product has but once."""
    digests = [content_digest(data) for _, data in files]
    return next((file for file, digest in zip(files[1:], digests[1:], strict=True) if digests.count(digest) == 1), None)


def _open(data: bytes) -> Image:
    max_pixels = get_settings().MAX_PHOTO_PIXELS
    return open_product_image(io.BytesIO(data), max_pixels=max_pixels, target_px=LONGEST_PX)
