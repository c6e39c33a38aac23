"""Run labelled queries through the search that shoppers use, and keep what each of them came to."""

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
from visual_search.quality.labelled import Labelled, LabelledQuery
from visual_search.search import serving
from visual_search.search.photos import read_photo
from visual_search.search.query import SearchQuery
from visual_search.search.results import ProductHit, key_batches, search, visible_products
from visual_search.stores.base import as_shared

if TYPE_CHECKING:
    from django.db.models import QuerySet

DEPTH = 100  # products looked at for each query, as far as MAX_LIMIT allows; a right one beyond counts as not found
SHOWN = 20  # products kept of each query


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way of searching: an index version, and how photos are prepared."""

    version: IndexVersion
    strategy: str

    def __str__(self) -> str:
        return f"index version {self.version.pk} ({self.version.checkpoint}), photos prepared by {self.strategy!r}"


@dataclass(frozen=True, slots=True)
class Found:
    """A product that was found, and by which of its images."""

    product: str
    image: str
    score: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one query came to.

    found: the first SHOWN products. places: where the right ones stand, 1 for the first, as far as they were found.
    right_score, wrong_score: of the best right and the best wrong product. group: see `evaluate`. timings_ms: by stage.
    is_cached: no encoder ran. fallback: why a photo was not prepared.
    """

    query: LabelledQuery
    found: tuple[Found, ...]
    places: tuple[int, ...]
    right_score: float | None
    wrong_score: float | None
    group: str
    timings_ms: Mapping[str, float]
    is_cached: bool = False
    fallback: str = ""


def open_configuration(*, number: int | None = None, strategy: str | None = None) -> Configuration:
    """Return a configuration that is ready to search: encoder loaded, store filled.

    number: of an index version; the active one's if None. strategy: the setting's if None.
    Raises ConfigurationError, IndexEmpty, IndexOutdated, StoreUnavailable.
    """
    version = versions.get_active() if number is None else versions.get_version(number)
    strategy = strategy or get_settings().QUERY_PREPARATION
    if not indexed_in(version).exists():
        raise IndexEmpty(f"Index version {version.pk} holds no products yet. Run `manage.py build_version`.")
    encoder_for(version).warm_up()
    if strategy != "none":
        get_remover().warm_up()
    if shared := as_shared(store_for(version)):  # workers feed that of the active version alone
        feed.catch_up(version, shared, wait_seconds=building.WAIT_SECONDS)
    serving.current_store(version)
    return Configuration(version, strategy)


def evaluate(
    labelled: Labelled,
    configuration: Configuration,
    *,
    group_by: str | None = None,
    progress: Callable[[], object] = lambda: None,
) -> tuple[list[Outcome], list[str]]:
    """Return what each query came to, and a line for each that can't be used.

    group_by: a declared keyword filter; a query belongs to the group of its first right product.
    No score threshold is applied: a product is found or not, however far it is.
    Raises InvalidLabels if not one query is left.
    """
    queries, problems = _indexed_only(labelled.queries, configuration.version)
    groups = groups_of((query.products[0] for query in queries), group_by) if group_by else {}
    outcomes = []
    for query in queries:
        try:
            outcomes.append(ask(query, configuration, group=groups.get(query.products[0], "")))
        except (BadRequest, OSError) as error:
            problems.append(f"{query.name}: {error}")
        progress()
    if not outcomes:
        reasons = [*labelled.problems, *problems]
        raise InvalidLabels(f"No query is left to measure with. {reasons[0] if reasons else 'The file names none.'}")
    return outcomes, problems


def ask(query: LabelledQuery, configuration: Configuration, *, group: str = "") -> Outcome:
    """Return what one query came to. Raises BadRequest and OSError for a photo or text that can't be searched with."""
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
        found=tuple(map(_found, results.hits[:SHOWN])),
        places=tuple(place for place, right in enumerate(is_right, start=1) if right),
        right_score=next((score for score, right in zip(scores, is_right, strict=True) if right), None),
        wrong_score=next((score for score, right in zip(scores, is_right, strict=True) if not right), None),
        group=group,
        timings_ms=results.timings_ms,
        is_cached=photo.is_cached if photo else False,
        fallback=photo.fallback if photo else "",
    )


def groups_of(keys: Iterable[str], filter_name: str) -> dict[str, str]:
    """Return the value that each product has in a keyword filter; of several the first."""
    values = {key: get_catalog().payload(product)[filter_name] for key, product in products_of(keys).items()}
    first = {key: value[0] if isinstance(value, list) else value for key, value in values.items()}
    return {key: str(value) for key, value in first.items() if value is not None}


def default_group() -> str | None:
    """Return the name of the catalogue's first keyword filter, or None."""
    return next((name for name, field in get_catalog().filters.items() if isinstance(field, Keyword)), None)


def products_of(keys: Iterable[str]) -> dict[str, Any]:
    """Return the catalogue's products by their keys."""
    found = (product for batch in key_batches(list(dict.fromkeys(keys))) for product in visible_products(batch, None))
    return {str(product.pk): product for product in found}


def indexed_in(version: IndexVersion) -> QuerySet[IndexEntry]:
    """Return the entries of the products that can be found in a version."""
    found = [IndexEntry.State.INDEXED, IndexEntry.State.PARTIAL]
    return IndexEntry.objects.using(get_catalog().database).filter(version=version, state__in=found)


def _indexed_only(queries: Sequence[LabelledQuery], version: IndexVersion) -> tuple[list[LabelledQuery], list[str]]:
    """Return the queries without right products that the version lacks, and a line for each of those."""
    wanted = list(dict.fromkeys(key for query in queries for key in query.products))
    indexed = {
        key
        for batch in key_batches(wanted)
        for key in indexed_in(version).filter(key__in=batch).values_list("key", flat=True)
    }
    problems = [f"product {key} is not in index version {version.pk}" for key in wanted if key not in indexed]
    kept = [replace(query, products=tuple(key for key in query.products if key in indexed)) for query in queries]
    return [query for query in kept if query.products], problems


def _found(hit: ProductHit) -> Found:
    return Found(str(hit.product.pk), hit.image.key if hit.image else "", hit.score)
