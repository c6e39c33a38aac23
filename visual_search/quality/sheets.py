"""Build contact sheets: example queries and the products they found, as pictures embedded in the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from visual_search.catalog import CatalogImage, get_catalog
from visual_search.conf import get_settings
from visual_search.exceptions import VisualSearchError
from visual_search.quality.evaluation import FoundProduct, Outcome, products_of
from visual_search.search.photos import read_photo
from visual_search.vision.images import encode_jpeg, open_product_image

if TYPE_CHECKING:
    from PIL.Image import Image

EXAMPLES = 12  # of each sheet
ANSWERS = 5  # products of each example
THUMBNAIL_PX = 120


@dataclass(frozen=True, slots=True)
class Card:
    """A picture (a data URI, empty if it can't be read) and its caption."""

    picture: str
    title: str
    score: float | None = None
    is_right: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """A query, the first products that it found, and a right product if none is among them."""

    query: Card
    answers: list[Card]
    right: Card | None
    place: int | None


def examples(outcomes: Sequence[Outcome]) -> list[Example]:
    """Return up to EXAMPLES of the queries, spread evenly over all of them."""
    count = min(EXAMPLES, len(outcomes))
    chosen = [outcomes[place * len(outcomes) // count] for place in range(count)]
    wanted = {item.product for outcome in chosen for item in outcome.found[:ANSWERS]}
    products = products_of([*wanted, *(outcome.query.products[0] for outcome in chosen)])
    return [_example(outcome, products) for outcome in chosen]


def _example(outcome: Outcome, products: dict[str, Any]) -> Example:
    query = outcome.query
    place = min(outcome.places, default=None)
    right = None
    if place is None or place > ANSWERS:
        right = _card(products, FoundProduct(query.products[0], "", 0.0), is_right=True)
    answers = [_card(products, item, is_right=item.product in query.products) for item in outcome.found[:ANSWERS]]
    return Example(
        Card(_photo(outcome), query.text or (query.photo.name if query.photo else query.name)), answers, right, place
    )


def _card(products: dict[str, Any], found: FoundProduct, *, is_right: bool) -> Card:
    product = products.get(found.product)
    if product is None:
        return Card("", f"product {found.product}", found.score, is_right)
    catalog = get_catalog()
    images = catalog.images_of(product)
    image = next((image for image in images if image.key == found.image), images[0] if images else None)
    picture = _thumbnail(partial(_product_image, image)) if image is not None else ""
    return Card(picture, catalog.title(product), found.score or None, is_right)


def _photo(outcome: Outcome) -> str:
    path = outcome.query.photo
    return _thumbnail(lambda: read_photo(path.read_bytes()).decode(THUMBNAIL_PX)) if path is not None else ""


def _product_image(image: CatalogImage) -> Image:
    max_pixels = get_settings().MAX_PHOTO_PIXELS
    return open_product_image(io.BytesIO(image.read()), max_pixels=max_pixels, target_px=THUMBNAIL_PX)


def _thumbnail(read: Callable[[], Image]) -> str:
    """Return a small JPEG as a data URI, or "" if it can't be read: the sheet leaves it out."""
    try:
        data = encode_jpeg(read(), longest_px=THUMBNAIL_PX)
    except (VisualSearchError, OSError):
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
