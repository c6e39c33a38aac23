"""Photo, text or both in; visible products out, best first, one hit a product."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO

from visual_search import feed, versions
from visual_search.catalog import CatalogImage, get_catalog
from visual_search.components import encode_slot, encoder_for, get_encoder, store_for
from visual_search.conf import get_settings
from visual_search.exceptions import InvalidQuery
from visual_search.images import decode_photo
from visual_search.models import Embedding, IndexVersion
from visual_search.stores.base import Filters, Hit, VectorStore

if TYPE_CHECKING:
    import numpy as np
    from django.db.models import QuerySet
    from django.http import HttpRequest
    from numpy.typing import NDArray
    from PIL.Image import Image


POINTS_PER_PRODUCT = 3  # points asked for at first for each product wanted: several images, and some not visible
KEYS_PER_QUERY = 1000
MAX_KEY_LENGTH = 255  # what the index's tables hold
MAX_EXAMPLES = 20  # products to be like or unlike


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What is looked for.

    photos: decoded, see `read_photo`. like, unlike: keys of products whose main image it should, or should not,
    look like; they are left out of the results. The weights say how much each photo, text or product counts.
    score_threshold: cosine; None takes the index version's, then the setting's. limit, offset: products.
    """

    photos: Sequence[Image] = ()
    texts: Sequence[str] = ()
    like: Sequence[str] = ()
    unlike: Sequence[str] = ()
    photo_weight: float = 1.0
    text_weight: float = 1.0
    like_weight: float = 1.0
    unlike_weight: float = 0.5
    filters: Filters = field(default_factory=Filters)
    limit: int | None = None
    offset: int = 0
    score_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class ProductHit:
    """A product, how near it is (cosine), and which of its images matched best."""

    product: Any
    score: float
    image: CatalogImage | None


@dataclass(frozen=True, slots=True)
class SearchResults:
    """One page of hits. next_offset: where the next page begins, None at the end. timings_ms: by stage."""

    hits: list[ProductHit]
    next_offset: int | None
    timings_ms: Mapping[str, float]


def search(query: SearchQuery, *, request: HttpRequest | None = None) -> SearchResults:
    """Return the products that answer `query`, best first.

    Only what `visible_to(queryset())` lets this request see is returned, whatever the store holds.
    Raises InvalidQuery, IndexEmpty, IndexOutdated, StoreUnavailable.
    """
    query = checked(query)
    timer = Timer()
    with timer("database"):
        version = versions.get_active()
    with timer("database"):
        stored = stored_vectors(version, [*query.like, *query.unlike], request)
    with timer("encode"):
        vector = compose(query, version, stored)
    with timer("feed"):
        store = current_store(version)
    thresholds = (query.score_threshold, version.score_threshold, get_settings().SCORE_THRESHOLD)
    threshold = next((value for value in thresholds if value is not None), None)
    hits, has_more = find_visible(store, vector, query, threshold, request, timer)
    with timer("database"):
        shown = hydrate(hits, request)
    following = query.offset + len(hits)
    next_offset = following if has_more and following <= get_settings().MAX_OFFSET else None
    return SearchResults(shown, next_offset, timer.stages)


def current_store(version: IndexVersion) -> VectorStore:
    """Return the store, brought up to date if it is this process's own; workers feed a shared one."""
    store = store_for(version)
    if not store.is_shared:
        feed.catch_up(version, store)
    return store


def checked(query: SearchQuery) -> SearchQuery:
    """Return the query with its limit filled in. Raises InvalidQuery for what is outside the allowed."""
    settings = get_settings()
    limit = min(settings.DEFAULT_LIMIT, settings.MAX_LIMIT) if query.limit is None else query.limit
    if not (query.photos or query.texts or query.like):
        raise InvalidQuery("Send a photo, or say in words what you look for.", code="query_empty")
    if not 1 <= limit <= settings.MAX_LIMIT:
        raise InvalidQuery(f"limit must be from 1 to {settings.MAX_LIMIT}.")
    if not 0 <= query.offset <= settings.MAX_OFFSET:
        raise InvalidQuery(f"offset must be from 0 to {settings.MAX_OFFSET}.")
    if any(len(text) > settings.MAX_TEXT_LENGTH for text in query.texts):
        raise InvalidQuery(f"The text may have up to {settings.MAX_TEXT_LENGTH} characters.", code="text_too_long")
    if len({*query.like, *query.unlike}) > MAX_EXAMPLES:
        raise InvalidQuery(f"Name up to {MAX_EXAMPLES} products to be like or unlike.")
    if any(len(key) > MAX_KEY_LENGTH or "\0" in key for key in (*query.like, *query.unlike)):
        raise InvalidQuery("This is not the key of a product.", code="product_not_indexed")
    weights = (query.photo_weight, query.text_weight, query.like_weight, query.unlike_weight)
    if not all(math.isfinite(weight) and 0 <= weight <= 10 for weight in weights):
        raise InvalidQuery("Weights must be from 0 to 10.")
    if query.score_threshold is not None and not -1 <= query.score_threshold <= 1:
        raise InvalidQuery("score_threshold must be from -1 to 1.")
    return replace(query, limit=limit)


def compose(
    query: SearchQuery, version: IndexVersion, stored: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Return the one unit vector (dim,) that stands for the whole query.

    It is the sum of the unit vectors of photos, texts and liked products less those of the unliked, each times its
    weight, made unit length. Only photos and texts load the encoder.
    """
    import numpy as np

    total = np.zeros(version.dim, dtype=np.float32)
    if query.photos or query.texts:
        encoder = encoder_for(version)
        with encode_slot():
            if query.photos:
                total += query.photo_weight * encoder.embed_images(query.photos).sum(axis=0)
            if query.texts:
                total += query.text_weight * encoder.embed_texts(query.texts).sum(axis=0)
    for key in query.like:
        total += query.like_weight * stored[key]
    for key in query.unlike:
        total -= query.unlike_weight * stored[key]
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise InvalidQuery("The parts of this query cancel each other out.")
    return total / np.float32(length)


def stored_vectors(
    version: IndexVersion, keys: Sequence[str], request: HttpRequest | None
) -> dict[str, NDArray[np.float32]]:
    """Return the vector of each product's main image, from the database: no encoder is needed.

    Raises InvalidQuery for a product that is not indexed, or that this request may not see.
    """
    if not keys:
        return {}
    rows = Embedding.objects.using(get_catalog().database).filter(
        version=version, product_key__in=visible_keys(list(dict.fromkeys(keys)), request), vector__isnull=False
    )
    # Of a product whose main image could not be read, the first one that could.
    best = {row.product_key: row for row in rows.order_by("is_main", "-image_key")}
    if missing := [key for key in keys if key not in best]:
        raise InvalidQuery(f"There is no indexed product with the key {missing[0][:40]!r}.", code="product_not_indexed")
    vectors = feed.vectors_of(list(best.values()), version.dim)
    return dict(zip(best, vectors, strict=True))


def similar_products(product: Any, *, request: HttpRequest | None = None, limit: int = 8) -> SearchResults:
    """Return the products that look most like `product` (a row or its key), without it. Loads no encoder."""
    key = str(getattr(product, "pk", product))
    return search(SearchQuery(like=[key], limit=limit), request=request)


def find_visible(
    store: VectorStore,
    vector: NDArray[np.float32],
    query: SearchQuery,
    threshold: float | None,
    request: HttpRequest | None,
    timer: Timer,
) -> tuple[list[Hit], bool]:
    """Return the page's hits, one a product and visible to the request, and whether more follow.

    The store is asked for more than a page, and for more again, until enough visible products are found.
    """
    limit = query.limit or get_settings().DEFAULT_LIMIT
    wanted = query.offset + limit + 1
    fetch = wanted * POINTS_PER_PRODUCT
    known: dict[str, bool] = dict.fromkeys([*query.like, *query.unlike], False)  # examples are no answers
    while True:
        with timer("store"):
            points = store.query(vector, query.filters, limit=fetch, score_threshold=threshold)
        best = best_per_product(points)
        with timer("database"):
            fresh = [hit.product for hit in best if hit.product not in known]
            known |= dict.fromkeys(fresh, False) | dict.fromkeys(visible_keys(fresh, request), True)
        shown = [hit for hit in best if known[hit.product]]
        if len(shown) >= wanted or len(points) < fetch:
            return shown[query.offset : query.offset + limit], len(shown) >= wanted
        fetch *= 4


def best_per_product(points: Sequence[Hit]) -> list[Hit]:
    """Return the first, so the best, hit of each product; the order stays."""
    best: dict[str, Hit] = {}
    for hit in points:
        best.setdefault(hit.product, hit)
    return list(best.values())


def visible_products(keys: Sequence[str], request: HttpRequest | None) -> QuerySet[Any]:
    """Return the products among `keys` that may be shown to this request."""
    catalog = get_catalog()
    return catalog.visible_to(catalog.queryset(), request).filter(pk__in=catalog.valid_keys(keys))


def visible_keys(keys: Sequence[str], request: HttpRequest | None) -> set[str]:
    """Return the keys of the products that may be shown."""
    found: set[str] = set()
    for start in range(0, len(keys), KEYS_PER_QUERY):
        rows = visible_products(keys[start : start + KEYS_PER_QUERY], request)
        plain = rows.select_related(None).prefetch_related(None).order_by()
        found.update(str(key) for key in plain.values_list("pk", flat=True))
    return found


def hydrate(hits: Sequence[Hit], request: HttpRequest | None) -> list[ProductHit]:
    """Return the hits with their products, as the shop's queryset loads them; one that has just gone is left out."""
    catalog = get_catalog()
    products = {str(row.pk): row for row in visible_products([hit.product for hit in hits], request)}
    found = [(hit, products[hit.product]) for hit in hits if hit.product in products]
    return [
        ProductHit(product, hit.score, next((i for i in catalog.images_of(product) if i.key == hit.image), None))
        for hit, product in found
    ]


def read_photo(upload: bytes | BinaryIO) -> Image:
    """Return an uploaded photo upright, in RGB, small enough for the encoder.

    Raises PhotoRejected; IndexEmpty or IndexOutdated before the encoder would be loaded for nothing.
    """
    settings = get_settings()
    encoder = get_encoder(versions.get_active().checkpoint)
    return decode_photo(
        upload,
        max_bytes=settings.MAX_UPLOAD_BYTES,
        max_pixels=settings.MAX_PHOTO_PIXELS,
        target_px=encoder.input_size_px * 2,
    )


def warm_up() -> None:
    """Load the encoder and fill this process's store, so that the first shopper does not wait for it.

    Call it in each web worker after the fork, for gunicorn from `post_worker_init`. The health view says
    "ready" only afterwards.
    """
    version = versions.find_active()
    encoder = get_encoder(get_settings().CHECKPOINT if version is None else version.checkpoint)
    encoder.warm_up()
    if version is not None and not versions.why_outdated(version):
        current_store(version)


def why_not_ready() -> str:
    """Return why this process can't answer a search at once, or an empty string. Loads nothing."""
    version = versions.find_active()
    checkpoint = get_settings().CHECKPOINT if version is None else version.checkpoint
    if version is not None and (outdated := versions.why_outdated(version)):
        return outdated
    if not get_encoder(checkpoint).is_loaded:
        return "The encoder is not loaded yet; see warm_up()."
    if version is not None and store_for(version).position() is None:
        return "The store is not filled yet; see warm_up()."
    return ""


class Timer:
    """Sum up the milliseconds of each stage: `with timer("store"): …`."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stages[stage] = self.stages.get(stage, 0.0) + (time.perf_counter() - started) * 1000
