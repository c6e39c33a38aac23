"""Run labelled queries through the search that shoppers use, and keep the outcome of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from visual_search.catalog import get_catalog
from visual_search.components import encoder_for, get_remover, store_for
from visual_search.conf import get_settings
from visual_search.exceptions import BadRequest, IndexEmpty, InvalidLabels
from visual_search.filters import Keyword
from visual_search.index import building, feed, versions
from visual_search.models import IndexEntry, IndexVersion
from visual_search.quality.labelled import LabelledQueries, LabelledQuery
from visual_search.search.photos import read_photo
from visual_search.search.query import SearchQuery
from visual_search.search.results import ProductHit, key_batches, search, visible_products

if TYPE_CHECKING:
    from django.db.models import QuerySet

DEPTH = 100  # products requested for each query, if MAX_LIMIT allows; a right one beyond counts as not found
PRODUCTS_KEPT = 20  # of each query, in its outcome


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way of searching: an index version and a preparation strategy for photos."""

    version: IndexVersion
    strategy: str

    def __str__(self) -> str:
        return f"index version {self.version.pk} ({self.version.checkpoint}), photos prepared by {self.strategy!r}"


@dataclass(frozen=True, slots=True)
class FoundProduct:
    """A product that was found, and the image that matched."""

    product: str
    image: str
    score: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one query.

    found: the first PRODUCTS_KEPT products. places: the ranks of the right products that were found, 1 for the first.
    right_score, wrong_score: of the best right and the best wrong product. group: see `evaluate`. timings_ms: by stage.
    is_cached: whether the embedding came from the cache. fallback: why a photo was not prepared.
    """

    query: LabelledQuery
    found: tuple[FoundProduct, ...]
    places: tuple[int, ...]
    right_score: float | None
    wrong_score: float | None
    group: str
    timings_ms: Mapping[str, float]
    is_cached: bool = False
    fallback: str = ""


def open_configuration(*, number: int | None = None, strategy: str | None = None) -> Configuration:
    """Load the encoder, fill the store, and return a configuration that is ready to search.

    number: of the index version; None for the active one. strategy: None for the one in the settings.
    Raises ConfigurationError, IndexEmpty, IndexOutdated, StoreUnavailable.
    """
    version = versions.get_active() if number is None else versions.get_version(number)
    strategy = strategy or get_settings().QUERY_PREPARATION
    if not indexed_entries(version).exists():
        raise IndexEmpty(f"Index version {version.pk} holds no products yet. Run `manage.py build_version`.")
    encoder_for(version).warm_up()
    if strategy != "none":
        get_remover().warm_up()
    # Workers feed only the active version's shared store.
    feed.catch_up(version, store_for(version), wait_seconds=building.WAIT_SECONDS)
    return Configuration(version, strategy)


def evaluate(
    labelled: LabelledQueries,
    configuration: Configuration,
    *,
    group_by: str | None = None,
    progress: Callable[[], object] = lambda: None,
) -> tuple[list[Outcome], list[str]]:
    """Return the outcome of each query, and a line for each query or product that can't be used.

    group_by: a declared keyword filter; a query belongs to the group of its first right product.
    No score threshold is applied.
    Raises InvalidLabels if no query is left.
    """
    queries, problems = _indexed_only(labelled.queries, configuration.version)
    groups = group_values((query.products[0] for query in queries), group_by) if group_by else {}
    outcomes = []
    for query in queries:
        try:
            outcomes.append(run_query(query, configuration, group=groups.get(query.products[0], "")))
        except (BadRequest, OSError) as error:
            problems.append(f"{query.name}: {error}")
        progress()
    if not outcomes:
        reasons = [*labelled.problems, *problems]
        raise InvalidLabels(f"No query is left to measure with. {reasons[0] if reasons else 'The file has none.'}")
    return outcomes, problems


def run_query(query: LabelledQuery, configuration: Configuration, *, group: str = "") -> Outcome:
    """Return the outcome of one query. Raises BadRequest or OSError for a photo or text that can't be used."""
    results = search(
        SearchQuery(
            photos=[read_photo(query.photo.read_bytes())] if query.photo else (),
            texts=[query.text] if query.text else (),
            limit=min(DEPTH, get_settings().MAX_LIMIT),
            score_threshold=-1.0,
            preparation=configuration.strategy,
            held_out=query.held_out,
        ),
        version=configuration.version,
    )
    keys = [str(hit.product.pk) for hit in results.hits]
    is_right = [key in query.products for key in keys]
    scores = [hit.score for hit in results.hits]
    photo = results.photos[0] if results.photos else None
    return Outcome(
        query=query,
        found=tuple(map(_found_product, results.hits[:PRODUCTS_KEPT])),
        places=tuple(place for place, right in enumerate(is_right, start=1) if right),
        right_score=next((score for score, right in zip(scores, is_right, strict=True) if right), None),
        wrong_score=next((score for score, right in zip(scores, is_right, strict=True) if not right), None),
        group=group,
        timings_ms=results.timings_ms,
        is_cached=photo.is_cached if photo else False,
        fallback=photo.fallback if photo else "",
    )


def group_values(keys: Iterable[str], filter_name: str) -> dict[str, str]:
    """Return each product's value of a keyword filter, by the product's key; of several values the first."""
    values = {key: get_catalog().payload(product)[filter_name] for key, product in products_of(keys).items()}
    first = {key: value[0] if isinstance(value, list) else value for key, value in values.items()}
    return {key: str(value) for key, value in first.items() if value is not None}


def default_group() -> str | None:
    """Return the name of the catalogue's first keyword filter, or None."""
    return next((name for name, field in get_catalog().filters.items() if isinstance(field, Keyword)), None)


def products_of(keys: Iterable[str]) -> dict[str, Any]:
    """Return the catalogue's products by their keys."""
    batches = key_batches(list(dict.fromkeys(keys)))
    return {str(product.pk): product for batch in batches for product in visible_products(batch, None)}


def indexed_entries(version: IndexVersion) -> QuerySet[IndexEntry]:
    """Return the entries of the products that a version has indexed, wholly or in part."""
    states = [IndexEntry.State.INDEXED, IndexEntry.State.PARTIAL]
    return IndexEntry.objects.using(get_catalog().database).filter(version=version, state__in=states)


def _indexed_only(queries: Sequence[LabelledQuery], version: IndexVersion) -> tuple[list[LabelledQuery], list[str]]:
    """Drop right products that the version lacks; return the queries left, and a line for each product dropped."""
    wanted = list(dict.fromkeys(key for query in queries for key in query.products))
    indexed = {
        key
        for batch in key_batches(wanted)
        for key in indexed_entries(version).filter(key__in=batch).values_list("key", flat=True)
    }
    problems = [f"product {key} is not in index version {version.pk}" for key in wanted if key not in indexed]
    kept = [replace(query, products=tuple(key for key in query.products if key in indexed)) for query in queries]
    return [query for query in kept if query.products], problems


def _found_product(hit: ProductHit) -> FoundProduct:
    return FoundProduct(str(hit.product.pk), hit.image.key if hit.image else "", hit.score)
