"""The address of a search: a URL of the search page with the whole state in its query string."""

from __future__ import annotations

from django.http import QueryDict
from django.urls import NoReverseMatch, reverse

from visual_search.catalog import get_catalog
from visual_search.conf import get_settings
from visual_search.exceptions import ConfigurationError
from visual_search.filters import parameter_names
from visual_search.web.parameters import IGNORED_FIELDS, SearchRequestSerializer

QUERY_PARAMETERS = ("text", "q", "token", "like")  # an address with any of these is a search


def read_parameters(data: QueryDict) -> QueryDict:
    """Return the known, non-empty search parameters. Newsletters and ads add others to a URL."""
    known = {*SearchRequestSerializer().fields, *parameter_names(get_catalog().filters)} - {"photo", *IGNORED_FIELDS}
    kept = QueryDict(mutable=True)
    for name in data:
        if name in known and (values := [value for value in data.getlist(name) if value.strip()]):
            kept.setlist(name, values)
    return kept


def replace_parameters(data: QueryDict, **values: str | None) -> QueryDict:
    """Return a copy of the parameters with these values set; None removes one."""
    copy = data.copy()
    for name, value in values.items():
        copy.pop(name, None)
        if value is not None:
            copy[name] = value
    return copy


def address_of(data: QueryDict, **values: str | None) -> str:
    """Return the address of the search page with these parameters and changes. Goes to the first page by default."""
    parameters = replace_parameters(data, **({"offset": None} | values))
    query = parameters.urlencode()
    return page_address("search") + (f"?{query}" if query else "")


def page_address(name: str) -> str:
    """Return the address of the search page (`search`) or of its results alone (`results`)."""
    try:
        return reverse(f"visual_search:{name}")
    except NoReverseMatch as error:
        fix = 'Add path("search-by-photo/", include("visual_search.urls")) to your URLs'
        raise ConfigurationError(f"The search page has no URL. {fix}.") from error


def page_size(data: QueryDict) -> int:
    limit = data.get("limit", "")
    return int(limit) if limit.isdecimal() else get_settings().DEFAULT_LIMIT
