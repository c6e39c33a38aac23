"""What shoppers may choose from: how many products have each value of a declared filter, and between which bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from visual_search.catalog import get_catalog
from visual_search.components import store_for
from visual_search.filters import Number
from visual_search.search import serving
from visual_search.search.query import Timer
from visual_search.stores.base import Filters, Range

MAX_VALUES = 50  # values of one filter; more are no choice but a search


@dataclass(frozen=True, slots=True)
class Facets:
    """values: of each keyword and boolean filter, with the number of products, most first. bounds: of each number."""

    values: dict[str, dict[str | bool, int]]
    bounds: dict[str, Range | None]
    timings_ms: Mapping[str, float]


def count_facets(filters: Filters | None = None, *, with_alternatives: bool = False) -> Facets:
    """Return what there is to choose from, among the products that `filters` let through.

    with_alternatives: count each filter's values as if that filter alone were not set: what it may be changed to.
    Products are counted by their main image. What `visible_to` hides from one request is counted too: declare it as a
    filter where even that must not be known.
    Raises IndexEmpty, IndexOutdated, StoreUnavailable.
    """
    timer = Timer("database", "store")
    with timer("database"):
        version = serving.serving_version()
    with timer("feed"):
        store = serving.current_store(version)
    products = replace(filters or Filters(), is_main=True)
    values: dict[str, dict[str | bool, int]] = {}
    bounds: dict[str, Range | None] = {}
    with timer("store"):
        for name, declared in get_catalog().filters.items():
            among = without(products, name) if with_alternatives else products
            if isinstance(declared, Number):
                bounds[name] = store.bounds(name, among)
            else:
                values[name] = store.facet(name, among, limit=MAX_VALUES)
    return Facets(values, bounds, timer.stages)


def without(filters: Filters, name: str) -> Filters:
    """Return the filters but one."""
    any_of = {key: value for key, value in filters.any_of.items() if key != name}
    ranges = {key: value for key, value in filters.ranges.items() if key != name}
    return replace(filters, any_of=any_of, ranges=ranges)


def is_at_hand() -> bool:
    """Say whether facets can be counted without filling a store first."""
    version = serving.find_serving()
    return version is not None and store_for(version).position() is not None
