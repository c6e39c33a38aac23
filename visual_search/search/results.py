"""Search: from a query to a page of visible products, best first, one hit per product."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from visual_search.catalog import CatalogImage, get_catalog
from visual_search.components import get_encoder, get_remover
from visual_search.conf import get_settings
from visual_search.exceptions import ConfigurationError
from visual_search.index import versions
from visual_search.models import IndexVersion
from visual_search.search import serving
from visual_search.search.query import (
    STAGES,
    PhotoReport,
    SearchQuery,
    Timer,
    embed_query,
    not_indexed_error,
    validate_query,
)
from visual_search.stores.base import Hit, VectorStore

if TYPE_CHECKING:
    from django.db.models import QuerySet
    from django.http import HttpRequest

    from visual_search.search.query import Vector

logger = logging.getLogger(__name__)

POINTS_PER_PRODUCT = 3  # first request, per product wanted: products have several images, and some are not visible
# The smallest request; if it is not enough, the next one is four times as large. An engine with an approximate index
# may return other points for a larger limit, so all pages of the first hundred products come from the same request.
POINTS_AT_FIRST = 320
KEYS_PER_QUERY = 10_000  # SQLite takes 32,766 parameters, PostgreSQL 65,535
BATCH_GROWTH = 8  # each look-up for a page that is not full yet reads so many times more keys than the one before
SIMILAR_LIMIT = 8  # one or two rows on a product page


@dataclass(frozen=True, slots=True)
class ProductHit:
    """A product, its score (cosine) and the image of it that matched best."""

    product: Any
    score: float
    image: CatalogImage | None


@dataclass(frozen=True, slots=True)
class SearchResults:
    """One page of hits.

    next_offset: where the next page begins; None on the last page. timings_ms: by stage. photos: one report per photo.
    is_nothing_close: there are products, but none reaches the threshold. Then `hits` is empty and `fallback` holds the
    nearest products, as many as the query asked for.
    """

    hits: list[ProductHit]
    next_offset: int | None
    timings_ms: Mapping[str, float]
    photos: list[PhotoReport] = field(default_factory=list)
    is_nothing_close: bool = False
    fallback: list[ProductHit] = field(default_factory=list)


def search(
    query: SearchQuery, *, request: HttpRequest | None = None, version: IndexVersion | None = None
) -> SearchResults:
    """Return the products that answer `query`, best first.

    version: an index version from `versions.get_version` to search instead of the serving one, for evaluations.
    Only products in `visible_to(queryset())` for this request are returned, whatever the store holds. Products with
    equal scores are ordered by key, so that no product is on two pages.
    Raises InvalidQuery, PhotoRejected, Busy, IndexEmpty, IndexFilling, IndexOutdated, StoreUnavailable.
    """
    query = validate_query(query)
    timer = Timer(*STAGES)
    loader = ProductLoader(query, request)
    with ExitStack() as held:
        with timer("database"):
            version, store = held.enter_context(serving.hold_version(version))
        vector, photos = embed_query(query, version, timer)
        with timer("feed"):
            serving.bring_up_to_date(version, store)
        threshold = threshold_of(query, version)
        hits, has_more = find_page(store, vector, query, loader, threshold, timer)
        fallback: list[ProductHit] = []
        is_nothing_close = False
        if not hits and query.offset == 0 and threshold is not None:
            nearest = replace(query, limit=query.fallback or 1)
            fallback, _ = find_page(store, vector, nearest, loader, None, timer)
            is_nothing_close = bool(fallback)
    following = query.offset + len(hits)
    return SearchResults(
        hits,
        following if has_more and following <= get_settings().MAX_OFFSET else None,
        timer.stages,
        photos,
        is_nothing_close,
        fallback[: query.fallback],
    )


def similar_products(product: Any, *, request: HttpRequest | None = None, limit: int = SIMILAR_LIMIT) -> SearchResults:
    """Return the products that look most like `product` (an instance or its key), without it. Loads no encoder."""
    key = str(getattr(product, "pk", product))
    return search(SearchQuery(like=[key], limit=limit), request=request)


def threshold_of(query: SearchQuery, version: IndexVersion) -> float | None:
    """Return the score that a product must reach, or None: from the query, else the version, else the setting.

    A version has a threshold for photos and one for texts, but none for mixed queries: their scores are on another
    scale, and a calibration with photos or texts says nothing about them.
    """
    calibrated = {"photo": version.photo_threshold, "text": version.text_threshold}.get(query.kind)
    candidates = (query.score_threshold, calibrated, get_settings().SCORE_THRESHOLD)
    return next((value for value in candidates if value is not None), None)


def find_page(
    store: VectorStore, vector: Vector, query: SearchQuery, loader: ProductLoader, threshold: float | None, timer: Timer
) -> tuple[list[ProductHit], bool]:
    """Return the page's hits, one per product and visible to the request, and whether more follow.

    Asks the store for more than a page, and repeatedly for more, until enough visible products are found.
    """
    limit = query.limit or get_settings().DEFAULT_LIMIT
    wanted = query.offset + limit + 1
    fetch = POINTS_AT_FIRST
    while fetch < wanted * POINTS_PER_PRODUCT:
        fetch *= 4
    while True:
        with timer("store"):
            points = store.query(vector, query.filters, limit=fetch, score_threshold=threshold)
            serving.check_filled(store)
        is_exhausted = len(points) < fetch
        best = best_per_product(points if is_exhausted else without_last_score(points), query.held_out)
        with timer("database"):
            shown = loader.first_visible(best, wanted)
        if len(shown) >= wanted or is_exhausted:
            break
        fetch *= 4
    with timer("database"):
        return loader.hydrate(shown[query.offset : query.offset + limit]), len(shown) >= wanted


def without_last_score(points: Sequence[Hit]) -> list[Hit]:
    """Return the hits above the lowest score: the limit may have cut off others with that score, in any order."""
    return [hit for hit in points if hit.score > points[-1].score]


def best_per_product(points: Iterable[Hit], held_out: Collection[tuple[str, str]] = ()) -> list[Hit]:
    """Return the best hit of each product, best first; equal scores are ordered by key.

    held_out: see SearchQuery.
    """
    if held_out:
        points = [hit for hit in points if (hit.product, hit.image) not in held_out]
    best: dict[str, Hit] = {}
    for hit in sorted(points, key=lambda hit: (-hit.score, hit.product, hit.image)):
        best.setdefault(hit.product, hit)
    return list(best.values())


class ProductLoader:
    """Load the products of one search from the database, each once, in as few queries as possible.

    On the first page whole rows are read at once. On later pages only the keys are read until it is known which
    products are shown.
    """

    def __init__(self, query: SearchQuery, request: HttpRequest | None) -> None:
        self.request = request
        self.examples = {*query.like, *query.unlike}
        self.reads_rows = query.offset == 0
        self.is_visible: dict[str, bool] = {}
        self.rows: dict[str, Any] = {}

    def first_visible(self, best: Sequence[Hit], wanted: int) -> list[Hit]:
        """Return the first `wanted` hits that are visible and not examples (`like`, `unlike`) of the query.

        Raises InvalidQuery for an example that this request may not see, as if it did not exist.
        """
        candidates = [hit for hit in best if hit.product not in self.examples]
        shown: list[Hit] = []
        start, size = 0, wanted
        while True:
            batch = candidates[start : start + size]
            self._load_visibility([*self.examples, *(hit.product for hit in batch)])
            if hidden := [key for key in self.examples if not self.is_visible[key]]:
                raise not_indexed_error(hidden[0])
            shown += [hit for hit in batch if self.is_visible[hit.product]]
            start += size
            if len(shown) >= wanted or start >= len(candidates):
                break
            size *= BATCH_GROWTH  # most are hidden from this request: ask for many at once
            self.reads_rows = False
        return shown[:wanted]

    def hydrate(self, hits: Sequence[Hit]) -> list[ProductHit]:
        """Return the hits with their products, as the shop's queryset loads them, without products just deleted."""
        self._read_rows([hit.product for hit in hits if hit.product not in self.rows])
        images_of = get_catalog().images_of
        return [
            ProductHit(row, hit.score, next((image for image in images_of(row) if image.key == hit.image), None))
            for hit in hits
            if (row := self.rows.get(hit.product)) is not None
        ]

    def _load_visibility(self, keys: Iterable[str]) -> None:
        new = [key for key in dict.fromkeys(keys) if key not in self.is_visible]
        self.is_visible |= dict.fromkeys(new, False)
        self.is_visible |= dict.fromkeys(self._read_rows(new) if self.reads_rows else self._read_keys(new), True)

    def _read_rows(self, keys: Sequence[str]) -> list[str]:
        found = [row for batch in key_batches(keys) for row in visible_products(batch, self.request)]
        self.rows |= {str(row.pk): row for row in found}
        return [str(row.pk) for row in found]

    def _read_keys(self, keys: Sequence[str]) -> list[str]:
        visible = (visible_products(batch, self.request) for batch in key_batches(keys))
        plain = (rows.select_related(None).prefetch_related(None).order_by() for rows in visible)
        return [str(key) for rows in plain for key in rows.values_list("pk", flat=True)]


def visible_products(keys: Sequence[str], request: HttpRequest | None) -> QuerySet[Any]:
    """Return the products among `keys` that this request may see."""
    catalog = get_catalog()
    return catalog.visible_to(catalog.queryset(), request).filter(pk__in=catalog.valid_keys(keys))


def key_batches(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    """Return the keys in batches that are small enough for one query."""
    return (keys[start : start + KEYS_PER_QUERY] for start in range(0, len(keys), KEYS_PER_QUERY))


def warm_up() -> None:
    """Load the encoder and fill this process's store, so that the first shopper does not have to wait.

    Call it in each web worker after the fork, with gunicorn in `post_worker_init`. The health view answers 200
    only afterwards.
    """
    if get_settings().QUERY_PREPARATION != "none":
        try:
            get_remover().warm_up()
        except ConfigurationError as error:  # searches use the unprepared photos and report it
            logger.error("%s", error)
    if (version := versions.find_active()) is None:
        get_encoder(get_settings().CHECKPOINT).warm_up()
    elif versions.why_outdated(version):
        get_encoder(version.checkpoint).warm_up()
    else:
        serving.warm_up(serving.serving_version())


def why_not_ready() -> str:
    """Return the reason why this process can't answer a search at once, or an empty string. Loads nothing."""
    active = versions.find_active()
    if active is not None and (outdated := versions.why_outdated(active)):
        return outdated
    version = serving.find_serving_version()
    checkpoint = get_settings().CHECKPOINT if version is None else version.checkpoint
    if not get_encoder(checkpoint).is_loaded:
        return "The encoder is not loaded yet; see warm_up()."
    if version is not None and not serving.is_warm(version):
        return "The store is not filled yet; see warm_up()."
    return ""
