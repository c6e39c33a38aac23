"""A search query and the unit vector that represents it.

The query vector is the sum of the unit vectors of the photos, texts and liked products, minus those of the unliked
products, each multiplied by its weight. The sum is then normalised to unit length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from visual_search.catalog import get_catalog
from visual_search.components import encode_slot, encoder_for, get_remover
from visual_search.conf import get_settings
from visual_search.exceptions import InvalidQuery
from visual_search.index import feed
from visual_search.models import Embedding, IndexVersion
from visual_search.search.photos import Photo, get_cached_embedding, set_cached_embedding
from visual_search.stores.base import Filters
from visual_search.vision.preparation import STRATEGIES, embed_prepared, preparation_id, prepare

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from visual_search.vision.encoder import TransformersEncoder

    Vector = NDArray[np.float32]

MAX_KEY_LENGTH = 255  # the length of the key columns in the index's tables
MAX_EXAMPLES = 20  # products to be like or unlike
STAGES = ("decode", "background", "encode", "store", "database")
TRANSIENT_FALLBACKS = {"background_slow", "background_failed"}  # the same photo may succeed next time


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What to search for.

    photos: see `read_photo` and `find_photo`. like, unlike: keys of products whose main image the results should, or
    should not, look like; these products are left out of the results. The weights apply to each photo, text or
    product. score_threshold: cosine; None uses the index version's threshold for this kind of query, then the setting.
    fallback: how many of the nearest products to return if none reaches the threshold. limit, offset: in products.
    preparation: a strategy for the photos; None uses QUERY_PREPARATION. held_out: images to leave out of the results,
    as (product key, image key): an evaluation that searches with a product's own image must not find that image.
    """

    photos: Sequence[Photo] = ()
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
    fallback: int = 0
    preparation: str | None = None
    held_out: frozenset[tuple[str, str]] = frozenset()

    @property
    def kind(self) -> str:
        """`photo`, `text` or `mixed`. A query with liked or unliked products is always mixed."""
        if self.like or self.unlike or (self.photos and self.texts):
            return "mixed"
        return "photo" if self.photos else "text"


@dataclass(frozen=True, slots=True)
class PhotoReport:
    """How a photo was prepared. preparation, fallback: see preparation.Prepared. is_cached: no encoder was needed."""

    preparation: str
    fallback: str = ""
    is_cached: bool = False


class Timer:
    """Add up the milliseconds of each stage: `with timer("store"): …`. stages: those to report even if they are 0."""

    def __init__(self, *stages: str) -> None:
        self.stages = dict.fromkeys(stages, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stages[stage] = self.stages.get(stage, 0.0) + (time.perf_counter() - started) * 1000


def validate_query(query: SearchQuery) -> SearchQuery:
    """Return the query with its limit filled in. Raises InvalidQuery for any value that is not allowed."""
    settings = get_settings()
    limit = min(settings.DEFAULT_LIMIT, settings.MAX_LIMIT) if query.limit is None else query.limit
    if not (query.photos or query.texts or query.like):
        raise InvalidQuery("Send a photo, or describe in words what you are looking for.", code="query_empty")
    if not 1 <= limit <= settings.MAX_LIMIT:
        raise InvalidQuery(f"limit must be from 1 to {settings.MAX_LIMIT}.")
    if not 0 <= query.offset <= settings.MAX_OFFSET:
        raise InvalidQuery(f"offset must be from 0 to {settings.MAX_OFFSET}.")
    if not 0 <= query.fallback <= settings.MAX_LIMIT:
        raise InvalidQuery(f"fallback must be from 0 to {settings.MAX_LIMIT}.")
    if len(query.photos) > settings.MAX_PHOTOS:
        raise InvalidQuery(f"Send at most {settings.MAX_PHOTOS} photos.", code="too_many_photos")
    if any(len(text) > settings.MAX_TEXT_LENGTH for text in query.texts):
        raise InvalidQuery(f"The text may have up to {settings.MAX_TEXT_LENGTH} characters.", code="text_too_long")
    if len({*query.like, *query.unlike}) > MAX_EXAMPLES:
        raise InvalidQuery(f"Name at most {MAX_EXAMPLES} products in like and unlike together.")
    if any(len(key) > MAX_KEY_LENGTH or "\0" in key for key in (*query.like, *query.unlike)):
        raise InvalidQuery("like and unlike take product keys.", code="product_not_indexed")
    weights = (query.photo_weight, query.text_weight, query.like_weight, query.unlike_weight)
    if not all(math.isfinite(weight) and 0 <= weight <= 10 for weight in weights):
        raise InvalidQuery("Weights must be from 0 to 10.")
    if query.preparation is not None and query.preparation not in STRATEGIES:
        raise InvalidQuery(f"preparation must be one of {', '.join(STRATEGIES)}.")
    if query.score_threshold is not None and not -1 <= query.score_threshold <= 1:
        raise InvalidQuery("score_threshold must be from -1 to 1.")
    return replace(query, limit=limit)


def embed_query(query: SearchQuery, version: IndexVersion, timer: Timer) -> tuple[Vector, list[PhotoReport]]:
    """Return the unit vector (dim,) for the whole query, and a report for each photo.

    Loads the encoder only for texts, and for photos whose embedding is not cached.
    Raises InvalidQuery, PhotoRejected, Busy, IndexOutdated.
    """
    import numpy as np

    with timer("database"):
        stored = stored_vectors(version, [*query.like, *query.unlike])
    total = np.zeros(version.dim, dtype=np.float32)
    reports: list[PhotoReport] = []
    for photo in query.photos:
        vector, report = photo_vector(photo, version, timer, preparation=query.preparation)
        total += query.photo_weight * vector
        reports.append(report)
    if query.texts:
        encoder = encoder_for(version)
        with _timed_encode_slot(timer), timer("encode"):
            total += query.text_weight * encoder.embed_texts(query.texts).sum(axis=0)
    for key in query.like:
        total += query.like_weight * stored[key]
    for key in query.unlike:
        total -= query.unlike_weight * stored[key]
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise InvalidQuery("The query vector is zero: its parts cancel each other out, or all weights are 0.")
    return total / np.float32(length), reports


def photo_vector(
    photo: Photo, version: IndexVersion, timer: Timer, *, preparation: str | None = None
) -> tuple[Vector, PhotoReport]:
    """Return a photo's unit vector (dim,) and its report. preparation: see SearchQuery."""
    strategy = preparation or get_settings().QUERY_PREPARATION
    prepared_as = preparation_id(strategy, get_settings().BACKGROUND_MODEL)
    name = f"{version.encoder_fingerprint}:{prepared_as}:{photo.digest}"
    if cached := get_cached_embedding(name, version.dim):
        vector, preparation, fallback = cached
        return vector, PhotoReport(preparation, fallback, is_cached=True)
    with timer("encode"):  # the first search loads the encoder
        encoder = encoder_for(version)
    # One slot covers decoding too: a hostile photo costs most while it is decoded.
    with _timed_encode_slot(timer):
        vector, report = _embed_photo(photo, encoder, strategy, timer)
    if report.fallback not in TRANSIENT_FALLBACKS:
        set_cached_embedding(name, vector, report.preparation, report.fallback)
    return vector, report


def _embed_photo(photo: Photo, encoder: TransformersEncoder, strategy: str, timer: Timer) -> tuple[Vector, PhotoReport]:
    with timer("decode"):
        image = photo.decode(encoder.input_size_px * 2)
    find_mask = partial(get_remover().find_mask, seconds=get_settings().BACKGROUND_SECONDS)
    with timer("background"):
        prepared = prepare(image, strategy, find_mask)
    with timer("encode"):
        vector: Vector = embed_prepared(encoder, [prepared])[0]
    return vector, PhotoReport(prepared.strategy, prepared.fallback)


@contextmanager
def _timed_encode_slot(timer: Timer) -> Iterator[None]:
    """Hold an encode slot; time the wait for it as the stage `wait`."""
    with ExitStack() as stack:
        with timer("wait"):
            stack.enter_context(encode_slot())
        yield


def stored_vectors(version: IndexVersion, keys: Sequence[str]) -> Mapping[str, Vector]:
    """Return the vector of each product's main image, read from the database without the encoder.

    Does not check whether the products are visible. Raises InvalidQuery for a product that is not indexed.
    """
    if not keys:
        return {}
    rows = Embedding.objects.using(get_catalog().database).filter(
        version=version, product_key__in=set(keys), vector__isnull=False
    )
    # If a product's main image could not be read, use its first readable image.
    best = {row.product_key: row for row in rows.order_by("is_main", "-image_key")}
    if missing := [key for key in keys if key not in best]:
        raise not_indexed_error(missing[0])
    vectors = feed.rows_to_vectors(list(best.values()), version.dim)
    return dict(zip(best, vectors, strict=True))


def not_indexed_error(key: str) -> InvalidQuery:
    return InvalidQuery(f"There is no indexed product with the key {key[:40]!r}.", code="product_not_indexed")
