"""Make queries from the shop's own images, for a shop that has no labelled photos. Each row says how it was made.

A product's second image, held out of the answers, is the nearest thing to a customer's photo that a shop has: another
view of the same product. A phone-like variant of an image that is itself in the index is found far too easily: such
queries measure the effect of the camera, not how well the search recognises the product.
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
class MadeQueries:
    """How many queries were written of each kind, and a line for each product without any."""

    counts: dict[str, int]
    problems: list[str]


def make_queries(
    folder: Path, *, limit: int | None = None, seed: int = 0, progress: Callable[[], object] = lambda: None
) -> MadeQueries:
    """Write queries.csv and its photos into a new folder; the same seed makes the same queries.

    limit: only the first products of the catalogue. Raises InvalidLabels if the folder is not empty or no query can be
    made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidLabels(f"{str(folder)!r} already exists. Name a folder that is new or empty.")
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    made = MadeQueries({}, [])
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
    """Yield each query's photo, what it was made from, and the key of the image to hold out."""
    import numpy as np

    from visual_search.quality.variants import phone_like

    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    files = [(image, image.read()) for image in get_catalog().images_of(product)]
    if not files:
        return
    second = _other_view(files)
    if second is None:
        yield phone_like(_open_image(files[0][1]), rng), VARIANT, ""
        return
    image, data = second
    photo = _open_image(data)
    yield photo, SECOND, image.key
    yield phone_like(photo, rng), SECOND_VARIANT, image.key


def _other_view(files: list[tuple[CatalogImage, bytes]]) -> tuple[CatalogImage, bytes] | None:
    """Return the first image after the main one that is no byte-for-byte duplicate within the product."""
    digests = [content_digest(data) for _, data in files]
    return next((file for file, digest in zip(files[1:], digests[1:], strict=True) if digests.count(digest) == 1), None)


def _open_image(data: bytes) -> Image:
    max_pixels = get_settings().MAX_PHOTO_PIXELS
    return open_product_image(io.BytesIO(data), max_pixels=max_pixels, target_px=LONGEST_PX)
