"""What shoppers may choose from: how many products have each value of a declared filter."""

from __future__ import annotations

from dataclasses import replace

from visual_search import versions
from visual_search.catalog import get_catalog
from visual_search.components import store_for
from visual_search.filters import Number
from visual_search.search import current_store
from visual_search.stores.base import Filters

MAX_VALUES = 50  # values of one filter; more are no choice but a search


def count_facets(filters: Filters | None = None) -> dict[str, dict[str | bool, int]]:
    """Return, for each keyword and boolean filter, its values with the number of products, most first.

    Products are counted by their main image, among those that `filters` let through. What `visible_to` hides from
    one request is counted too: declare it as a filter where even that must not be known.
    Raises IndexEmpty, IndexOutdated, StoreUnavailable.
    """
    store = current_store(versions.get_active())
    products = replace(filters or Filters(), is_main=True)
    names = [name for name, field in get_catalog().filters.items() if not isinstance(field, Number)]
    return {name: store.facet(name, products, limit=MAX_VALUES) for name in names}


def is_at_hand() -> bool:
    """Say whether facets can be counted without filling a store first."""
    version = versions.find_active()
    if version is None or versions.why_outdated(version):
        return False
    return store_for(version).position() is not None
