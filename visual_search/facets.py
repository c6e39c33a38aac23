"""What shoppers may choose from: how many products have each value of a declared filter, and between which bounds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from visual_search import versions
from visual_search.catalog import get_catalog
from visual_search.components import store_for
from visual_search.filters import Number
from visual_search.search import current_store
from visual_search.stores.base import Filters, Range

MAX_VALUES = 50  # values of one filter; more are no choice but a search


@dataclass(frozen=True, slots=True)
class Facets:
    """values: of each keyword and boolean filter, with the number of products, most first. bounds: of each number."""

    values: dict[str, dict[str | bool, int]]
    bounds: dict[str, Range | None]


def count_facets(filters: Filters | None = None) -> Facets:
    """Return what there is to choose from, among the products that `filters` let through.

    Products are counted by their main image. What `visible_to` hides from one request is counted too: declare it as a
    filter where even that must not be known.
    Raises IndexEmpty, IndexOutdated, StoreUnavailable.
    """
    store = current_store(versions.get_active())
    products = replace(filters or Filters(), is_main=True)
    declared = get_catalog().filters.items()
    return Facets(
        {
            name: store.facet(name, products, limit=MAX_VALUES)
            for name, kind in declared
            if not isinstance(kind, Number)
        },
        {name: store.bounds(name, products) for name, kind in declared if isinstance(kind, Number)},
    )


def is_at_hand() -> bool:
    """Say whether facets can be counted without filling a store first."""
    version = versions.find_active()
    if version is None or versions.why_outdated(version):
        return False
    return store_for(version).position() is not None
