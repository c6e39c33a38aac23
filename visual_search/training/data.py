"""Gather the training data: labelled photos, the catalogue's pictures and its captions."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from visual_search.catalog import Catalog, get_catalog
from visual_search.conf import get_settings
from visual_search.exceptions import ConfigurationError, ImageUnreadable, PhotoRejected
from visual_search.index.embedding import PRODUCT_IMAGE_PIXELS
from visual_search.training.batches import Example
from visual_search.vision.images import decode_photo, encode_jpeg, open_product_image

if TYPE_CHECKING:
    from visual_search.quality.labelled import LabelledQueries, LabelledQuery

GALLERY_MAX = 2_000  # products read, those with photos first; the table before and after searches among them
PHOTOS_MAX = 20_000  # kept in memory as small JPEGs, about 0.6 GB
JPEG_SCALE = 1.5  # of the model's input size: a crop of half the picture still has enough pixels


@dataclass(slots=True)
class TrainingData:
    """All photos, pictures and captions, before the products are split.

    pictures: of each product, the main one first; every product here has one. captions: of some products or of
    none. photos: of products that have pictures. report_photos: never trained on. problems: a line for each item that
    was left out. notes: a line for each limit that was applied.
    """

    pictures: dict[str, list[Example]] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    photos: list[Example] = field(default_factory=list)
    report_photos: list[Example] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def learnable(self) -> set[str]:
        """Return the products that can be trained on: those with photos, or all if there are no photos."""
        return {photo.product for photo in self.photos} or set(self.pictures)


def gather(
    photos: LabelledQueries | None, report_photos: LabelledQueries | None = None, *, input_size_px: int, seed: int
) -> TrainingData:
    """Read photos and pictures as small JPEGs; list what can't be read in `problems` and leave it out.

    photos: to train on; None if the shop has none. report_photos: only for the table before and after.
    Raises ConfigurationError if none of the photos, or no picture of the catalogue, can be used.
    """
    data = TrainingData()
    longest = round(JPEG_SCALE * input_size_px)
    files = [labelled for labelled in (photos, report_photos) if labelled is not None]
    wanted = {key for labelled in files for query in labelled.queries for key in query.products}
    _read_catalog(data, wanted, longest, seed=seed)
    if not data.pictures:
        raise ConfigurationError("No product of the catalogue has a picture that can be read.")
    for labelled in files:
        data.problems += labelled.problems
    if photos is not None:
        if (count := len(photos.queries)) > PHOTOS_MAX:
            data.notes.append(f"Of {count} photos, {PHOTOS_MAX} are used, drawn at random.")
        data.photos = _read_photos(data, _sample(photos.queries, seed), longest)
        if not data.photos:
            first = f" The first problem: {data.problems[0]}." if data.problems else ""
            raise ConfigurationError(f"None of the photos can be used.{first}")
    if report_photos is not None:
        data.report_photos = _read_photos(data, report_photos.queries, longest)
    return data


def has_captions(catalog: Catalog) -> bool:
    """Return whether the catalogue describes its products in words."""
    return bool(catalog.text) or type(catalog).caption is not Catalog.caption


def usable_captions(captions: dict[str, str]) -> tuple[dict[str, str], str]:
    """Return the captions that can be trained on; if there are none, also the reason, otherwise ""."""
    if not captions:
        return {}, "The catalogue has no text (Catalog.text): the training uses pictures only."
    if len(set(captions.values())) < 2:
        (caption,) = set(captions.values())
        return {}, f"All products have the same caption, {caption[:60]!r}: the training uses pictures only."
    return captions, ""


def _read_catalog(data: TrainingData, wanted: set[str], longest: int, *, seed: int) -> None:
    catalog = get_catalog()
    products = catalog.queryset().using(catalog.database)
    keys = [str(key) for key in products.order_by("pk").values_list("pk", flat=True)]
    chosen = set(keys) & wanted
    if len(keys) > GALLERY_MAX:
        import numpy as np

        others = [key for key in keys if key not in chosen]
        free = max(0, GALLERY_MAX - len(chosen))
        chosen |= {others[at] for at in np.random.default_rng(seed).permutation(len(others))[:free]}
        data.notes.append(f"Of {len(keys)} products, {len(chosen)} are read: those with photos, and others at random.")
    else:
        chosen = set(keys)
    is_captioned = has_captions(catalog)
    for start in range(0, len(keys), 500):
        batch = [key for key in keys[start : start + 500] if key in chosen]
        for product in products.filter(pk__in=batch):
            _read_product(data, catalog, product, longest, is_captioned=is_captioned)


def _read_product(data: TrainingData, catalog: Catalog, product: Any, longest: int, *, is_captioned: bool) -> None:
    key = str(product.pk)
    examples = []
    for image in catalog.images_of(product):
        try:
            opened = open_product_image(io.BytesIO(image.read()), max_pixels=PRODUCT_IMAGE_PIXELS, target_px=longest)
        except (ImageUnreadable, OSError) as error:
            data.problems.append(f"product {key}, {image.name}: {error}")
        else:
            examples.append(Example(key, encode_jpeg(opened, longest_px=longest)))
    if examples:
        data.pictures[key] = examples
        if is_captioned and (caption := catalog.caption(product).strip()):
            data.captions[key] = caption


def _read_photos(data: TrainingData, queries: Iterable[LabelledQuery], longest: int) -> list[Example]:
    settings = get_settings()
    examples = []
    for query in queries:
        known = [key for key in query.products if key in data.pictures]
        if query.photo is None:
            continue
        if not known:
            data.problems.append(f"{query.photo}: product {', '.join(query.products)} has no picture that can be read")
            continue
        try:
            image = decode_photo(
                query.photo.read_bytes(),
                max_bytes=settings.MAX_UPLOAD_BYTES,
                max_pixels=settings.MAX_PHOTO_PIXELS,
                target_px=longest,
            )
        except OSError as error:
            data.problems.append(f"{query.photo}: {error.strerror}")
        except PhotoRejected as error:
            data.problems.append(f"{query.photo}: {error}")
        else:
            jpeg = encode_jpeg(image, longest_px=longest)
            examples += [Example(key, jpeg) for key in known]
    return examples


def _sample(photos: Sequence[LabelledQuery], seed: int) -> Sequence[LabelledQuery]:
    if len(photos) <= PHOTOS_MAX:
        return photos
    import numpy as np

    return [photos[at] for at in sorted(np.random.default_rng(seed).permutation(len(photos))[:PHOTOS_MAX])]
