"""A query in, visible products out, best first, one hit a product."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from visual_search.catalog import CatalogImage, get_catalog
from visual_search.components import get_encoder, get_remover
from visual_search.conf import get_settings
from visual_search.exceptions import ConfigurationError
from visual_search.index import versions
from visual_search.models import IndexVersion
from visual_search.search import serving
from visual_search.search.query import STAGES, PhotoReport, SearchQuery, Timer, checked, compose, not_indexed
from visual_search.stores.base import Hit, VectorStore

if TYPE_CHECKING:
    from django.db.models import QuerySet
    from django.http import HttpRequest

    from visual_search.search.query import Vector

logger = logging.getLogger(__name__)

POINTS_PER_PRODUCT = 3  # points asked for at first for each product wanted: several images, and some not visible
# Asked for at the least, and four times as many where that is not enough. An engine that does not compare with every
# vector may find other points the more it is asked for: pages of the first hundred products come from one question.
POINTS_AT_FIRST = 320
KEYS_PER_QUERY = 1000
SIMILAR_LIMIT = 8  # a row or two beside a product


@dataclass(frozen=True, slots=True)
class ProductHit:
    """A product, how near it is (cosine), and which of its images matched best."""

    product: Any
    score: float
    image: CatalogImage | None


@dataclass(frozen=True, slots=True)
class SearchResults:
    """One page of hits.

    next_offset: where the next page begins, None at the end. timings_ms: by stage. photos: what was done with each.
    is_nothing_close: products there are, but none passes the threshold; then `fallback` holds the nearest, as many as
    the query asked for, and `hits` none.
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

    version: another one than that which this process answers with, from `versions.get_version`: for measurements.
    Only what `visible_to(queryset())` lets this request see is returned, whatever the store holds. Products of equal
    score are in the order of their keys, so that no page repeats one.
    Raises InvalidQuery, PhotoRejected, Busy, IndexEmpty, IndexOutdated, StoreUnavailable.
    """
    query = checked(query)
    timer = Timer(*STAGES)
    with timer("database"):
        version = version or serving.serving_version()
    vector, photos = compose(query, version, timer)
    with timer("feed"):
        store = serving.current_store(version)
    shelf = Shelf(query, request)
    hits, has_more = find_page(store, vector, query, shelf, threshold_of(query, version), timer)
    fallback: list[ProductHit] = []
    is_nothing_close = False
    if not hits and query.offset == 0 and threshold_of(query, version) is not None:
        nearest = replace(query, limit=query.fallback or 1)
        fallback, _ = find_page(store, vector, nearest, shelf, None, timer)
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
    """Return the products that look most like `product` (a row or its key), without it. Loads no encoder."""
    key = str(getattr(product, "pk", product))
    return search(SearchQuery(like=[key], limit=limit), request=request)


def threshold_of(query: SearchQuery, version: IndexVersion) -> float | None:
    """Return the score that a product must reach, or None: the query's own, the version's, the setting's.

    A version has one for photos and one for texts. It has none for queries of several kinds or with examples: their
    scores are on another scale, and no photo that was calibrated with says anything about them.
    """
    calibrated = {"photo": version.photo_threshold, "text": version.text_threshold}.get(query.kind)
    wanted = (query.score_threshold, calibrated, get_settings().SCORE_THRESHOLD)
    return next((value for value in wanted if value is not None), None)


def find_page(
    store: VectorStore, vector: Vector, query: SearchQuery, shelf: Shelf, threshold: float | None, timer: Timer
) -> tuple[list[ProductHit], bool]:
    """Return the page's hits, one a product and visible to the request, and whether more follow.

    The store is asked for more than a page, and for more again, until enough visible products are found.
    """
    limit = query.limit or get_settings().DEFAULT_LIMIT
    wanted = query.offset + limit + 1
    fetch = POINTS_AT_FIRST
    while fetch < wanted * POINTS_PER_PRODUCT:
        fetch *= 4
    while True:
        with timer("store"):
            points = store.query(vector, query.filters, limit=fetch, score_threshold=threshold)
        is_end = len(points) < fetch
        best = best_per_product(points if is_end else without_last_score(points), query.held_out)
        with timer("database"):
            shown = shelf.first(best, wanted)
        if len(shown) >= wanted or is_end:
            break
        fetch *= 4
    with timer("database"):
        return shelf.hydrate(shown[query.offset : query.offset + limit]), len(shown) >= wanted


def without_last_score(points: Sequence[Hit]) -> list[Hit]:
    """Return the hits above the lowest score: the engine may have cut through equal ones, in any order."""
    return [hit for hit in points if hit.score > points[-1].score]


def best_per_product(points: Iterable[Hit], held_out: Collection[tuple[str, str]] = ()) -> list[Hit]:
    """Return the best hit of each product, best first; equal scores in the order of their keys.

    held_out: see SearchQuery.
    """
    if held_out:
        points = [hit for hit in points if (hit.product, hit.image) not in held_out]
    best: dict[str, Hit] = {}
    for hit in sorted(points, key=lambda hit: (-hit.score, hit.product, hit.image)):
        best.setdefault(hit.product, hit)
    return list(best.values())


class Shelf:
    """The products that one search came upon: each is looked up once, in as few queries as possible.

    On a first page whole rows are read at once. On later ones only the keys are, until it is known who is shown.
    """

    def __init__(self, query: SearchQuery, request: HttpRequest | None) -> None:
        self.request = request
        self.examples = {*query.like, *query.unlike}
        self.reads_rows = query.offset == 0
        self.is_visible: dict[str, bool] = {}
        self.rows: dict[str, Any] = {}

    def first(self, best: Sequence[Hit], wanted: int) -> list[Hit]:
        """Return the first `wanted` hits that may be shown; examples are no answers.

        Raises InvalidQuery for an example that this request may not see, as if it did not exist.
        """
        answers = [hit for hit in best if hit.product not in self.examples]
        shown: list[Hit] = []
        for start in range(0, max(1, len(answers)), wanted):
            some = answers[start : start + wanted]
            self._look_up([*self.examples, *(hit.product for hit in some)])
            if hidden := [key for key in self.examples if not self.is_visible[key]]:
                raise not_indexed(hidden[0])
            shown += [hit for hit in some if self.is_visible[hit.product]]
            if len(shown) >= wanted:
                break
        return shown[:wanted]

    def hydrate(self, hits: Sequence[Hit]) -> list[ProductHit]:
        """Return the hits with their products, as the shop's queryset loads them; one just gone is left out."""
        self._read_rows([hit.product for hit in hits if hit.product not in self.rows])
        images_of = get_catalog().images_of
        return [
            ProductHit(row, hit.score, next((image for image in images_of(row) if image.key == hit.image), None))
            for hit in hits
            if (row := self.rows.get(hit.product)) is not None
        ]

    def _look_up(self, keys: Iterable[str]) -> None:
        fresh = [key for key in dict.fromkeys(keys) if key not in self.is_visible]
        self.is_visible |= dict.fromkeys(fresh, False)
        self.is_visible |= dict.fromkeys(self._read_rows(fresh) if self.reads_rows else self._read_keys(fresh), True)

    def _read_rows(self, keys: Sequence[str]) -> list[str]:
        found = [row for some in slices(keys) for row in visible_products(some, self.request)]
        self.rows |= {str(row.pk): row for row in found}
        return [str(row.pk) for row in found]

    def _read_keys(self, keys: Sequence[str]) -> list[str]:
        visible = (visible_products(some, self.request) for some in slices(keys))
        plain = (rows.select_related(None).prefetch_related(None).order_by() for rows in visible)
        return [str(key) for rows in plain for key in rows.values_list("pk", flat=True)]


def visible_products(keys: Sequence[str], request: HttpRequest | None) -> QuerySet[Any]:
    """Return the products among `keys` that may be shown to this request."""
    catalog = get_catalog()
    return catalog.visible_to(catalog.queryset(), request).filter(pk__in=catalog.valid_keys(keys))


def slices(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    """Yield the keys in parts that one query takes."""
    return (keys[start : start + KEYS_PER_QUERY] for start in range(0, len(keys), KEYS_PER_QUERY))


def warm_up() -> None:
    """Load the encoder and fill this process's store, so that the first shopper does not wait for it.

    Call it in each web worker after the fork, for gunicorn from `post_worker_init`. The health view says
    "ready" only afterwards.
    """
    if get_settings().QUERY_PREPARATION != "none":
        try:
            get_remover().warm_up()
        except ConfigurationError as error:  # photos are searched with as they are, and each answer says so
            logger.error("%s", error)
    if (version := versions.find_active()) is None:
        get_encoder(get_settings().CHECKPOINT).warm_up()
    elif versions.why_outdated(version):
        get_encoder(version.checkpoint).warm_up()
    else:
        serving.warm_up(serving.serving_version())


def why_not_ready() -> str:
    """Return why this process can't answer a search at once, or an empty string. Loads nothing."""
    active = versions.find_active()
    if active is not None and (outdated := versions.why_outdated(active)):
        return outdated
    version = serving.find_serving()
    checkpoint = get_settings().CHECKPOINT if version is None else version.checkpoint
    if not get_encoder(checkpoint).is_loaded:
        return "The encoder is not loaded yet; see warm_up()."
    if version is not None and not serving.is_warm(version):
        return "The store is not filled yet; see warm_up()."
    return ""
