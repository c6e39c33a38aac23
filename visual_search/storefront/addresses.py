"""The address of a search: all of its state, in the query string of the search page."""

from __future__ import annotations

from django.http import QueryDict
from django.urls import NoReverseMatch, reverse

from visual_search.catalog import get_catalog
from visual_search.conf import get_settings
from visual_search.exceptions import ConfigurationError
from visual_search.filters import parameter_names
from visual_search.web.parameters import IGNORED, SearchRequestSerializer

QUESTIONS = ("text", "q", "token", "like")  # any of them makes a search of an address


def read_parameters(data: QueryDict) -> QueryDict:
    """Return what a search understands and says something: newsletters and ads add more than that to an address."""
    known = {*SearchRequestSerializer().fields, *parameter_names(get_catalog().filters)} - {"photo", *IGNORED}
    kept = QueryDict(mutable=True)
    for name in data:
        if name in known and (values := [value for value in data.getlist(name) if value.strip()]):
            kept.setlist(name, values)
    return kept


def changed(data: QueryDict, **values: str | None) -> QueryDict:
    """Return the parameters with some set, or, where None, left out."""
    copy = data.copy()
    for name, value in values.items():
        copy.pop(name, None)
        if value is not None:
            copy[name] = value
    return copy


def address_of(data: QueryDict, **values: str | None) -> str:
    """Return the address of the search page with these parameters, some of them changed."""
    parameters = changed(data, **({"offset": None} | values))
    query = parameters.urlencode()
    return page_address("search") + (f"?{query}" if query else "")


def page_address(name: str) -> str:
    """Return the address of the search page (`search`) or of its results alone (`results`)."""
    try:
        return reverse(f"visual_search:{name}")
    except NoReverseMatch as error:
        missing = 'Add path("search-by-photo/", include("visual_search.urls")) to your URLs'
        raise ConfigurationError(f"The search page has no address. {missing}.") from error


def page_size(data: QueryDict) -> int:
    given = data.get("limit", "")
    return int(given) if given.isdecimal() else get_settings().DEFAULT_LIMIT
