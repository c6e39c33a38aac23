"""Facets: the number of products for each value of a declared filter, and the bounds of the number filters."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from visual_search.catalog import get_catalog
from visual_search.components import store_for
from visual_search.filters import Number
from visual_search.search import serving
from visual_search.search.query import Timer
from visual_search.stores.base import Filters, Range

MAX_VALUES = 50  # of one filter; a longer list is too long to choose from


@dataclass(frozen=True, slots=True)
class Facets:
    """Facet counts.

    values: product counts by value for each keyword and boolean filter, largest first. bounds: for each number filter.
    """

    values: dict[str, dict[str | bool, int]]
    bounds: dict[str, Range | None]
    timings_ms: Mapping[str, float]


def count_facets(filters: Filters | None = None, *, with_alternatives: bool = False) -> Facets:
    """Count the facets of the products that match `filters`.

    with_alternatives: ignore each filter while counting its own values, to show what it could be changed to.
    Each product is counted by its main image. Products that `visible_to` hides from a request are counted too: declare
    a filter for them if even their number must stay hidden.
    Raises IndexEmpty, IndexFilling, IndexOutdated, StoreUnavailable.
    """
    timer = Timer("database", "store")
    products = replace(filters or Filters(), is_main=True)
    values: dict[str, dict[str | bool, int]] = {}
    bounds: dict[str, Range | None] = {}
    with ExitStack() as held:
        with timer("database"):
            version, store = held.enter_context(serving.hold_version())
        with timer("feed"):
            serving.bring_up_to_date(version, store)
        with timer("store"):
            for name, declared in get_catalog().filters.items():
                counted = without_filter(products, name) if with_alternatives else products
                if isinstance(declared, Number):
                    bounds[name] = store.bounds(name, counted)
                else:
                    values[name] = store.facet(name, counted, limit=MAX_VALUES)
        serving.check_filled(store)
    return Facets(values, bounds, timer.stages)


def without_filter(filters: Filters, name: str) -> Filters:
    """Return the filters without the one called `name`."""
    any_of = {key: value for key, value in filters.any_of.items() if key != name}
    ranges = {key: value for key, value in filters.ranges.items() if key != name}
    return replace(filters, any_of=any_of, ranges=ranges)


def are_facets_ready() -> bool:
    """Return whether facets can be counted without filling a store first."""
    version = serving.find_serving_version()
    return version is not None and store_for(version).position() is not None
