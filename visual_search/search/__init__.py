"""From a query to a page of visible products."""

from visual_search.search.photos import read_photo
from visual_search.search.query import SearchQuery
from visual_search.search.results import ProductHit, SearchResults, search, similar_products, warm_up

__all__ = ["ProductHit", "SearchQuery", "SearchResults", "read_photo", "search", "similar_products", "warm_up"]
