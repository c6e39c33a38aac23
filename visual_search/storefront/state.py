"""What the storefront's templates show: the form, its filters, what was found. Its state is its address.

Every parameter of a search stands in the query string of the search page: reloading, going back and sharing work with
and without JavaScript. A photo stands there by its token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.http import QueryDict
from django.urls import NoReverseMatch, reverse
from django.utils.formats import number_format
from django.utils.translation import gettext, ngettext

from visual_search.api.serializers import IGNORED, SearchRequestSerializer
from visual_search.catalog import get_catalog
from visual_search.conf import get_settings
from visual_search.exceptions import ConfigurationError, InvalidFilter, VisualSearchError
from visual_search.filters import Boolean, Number, parameter_names, parse_filters
from visual_search.search.facets import Facets, count_facets, is_at_hand
from visual_search.search.query import MAX_EXAMPLES
from visual_search.search.results import visible_products
from visual_search.web import messages

if TYPE_CHECKING:
    from django.http import HttpRequest

    from visual_search.catalog import CatalogImage
    from visual_search.filters import Field
    from visual_search.search.results import ProductHit, SearchResults

QUESTIONS = ("text", "q", "token", "like")  # any of them makes a search of an address
CHOICES_SHOWN = 12  # of one filter; the others stand behind a "more"


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of a filter. count: products that have it, None where that is not known."""

    value: str
    label: str
    count: int | None
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class FilterGroup:
    """One declared filter as fields of the form. sides: of a number, its two ends as (parameter, value, bound).

    is_boolean: its choice is called like itself.
    """

    name: str
    label: str
    choices: list[Choice] = field(default_factory=list)
    sides: list[tuple[str, str, float | None]] = field(default_factory=list)
    is_boolean: bool = False

    @property
    def first_choices(self) -> list[Choice]:
        """The chosen ones and the most common, in their order."""
        shown = {choice.value for choice in self.choices[:CHOICES_SHOWN]}
        return [choice for choice in self.choices if choice.is_chosen or choice.value in shown]

    @property
    def more_choices(self) -> list[Choice]:
        return [choice for choice in self.choices[CHOICES_SHOWN:] if not choice.is_chosen]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A filter that is set, and the address without it."""

    label: str
    address: str


@dataclass(slots=True)
class Storefront:
    """All that the widget shows. data: the parameters of the search, known and not empty.

    hits: as `card` makes them. error: {"code", "detail"}.
    """

    data: QueryDict
    groups: list[FilterGroup] = field(default_factory=list)
    chosen: list[Chosen] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    hits: list[dict[str, Any]] = field(default_factory=list)
    is_nothing_close: bool = False
    was_searched: bool = False
    next: str = ""
    previous: str = ""
    error: Mapping[str, str] | None = None

    @property
    def text(self) -> str:
        return str(self.data.get("text") or self.data.get("q", ""))

    @property
    def token(self) -> str:
        return str(self.data.get("token", ""))

    @property
    def crop(self) -> str:
        return str(self.data.get("crop", ""))

    @property
    def like(self) -> list[str]:
        return self.data.getlist("like")

    @property
    def address(self) -> str:
        """The address that shows the same again."""
        return address_of(self.data)

    @property
    def address_without_filters(self) -> str:
        return address_of(self.data, **dict.fromkeys(parameter_names(get_catalog().filters)))

    @property
    def announcement(self) -> str:
        """What a screen reader says when the results are there."""
        if not self.hits:
            return gettext("No products found.")
        if self.is_nothing_close:
            return gettext("Nothing close was found. The nearest products are shown.")
        return ngettext("%(count)s product found.", "%(count)s products found.", len(self.hits)) % {
            "count": len(self.hits)
        }

    def refuse(self, code: str) -> None:
        """Show the sentence for an error; what was entered stays, but not a photo that is gone."""
        self.error = {"code": code, "detail": messages.sentence(code)}
        if code == "photo_expired":
            self.data = changed(self.data, token=None, crop=None)

    def show(self, results: SearchResults) -> None:
        """Show what was found."""
        self.was_searched = True
        self.is_nothing_close = results.is_nothing_close
        self.hits = [card(hit) for hit in results.hits or results.fallback]
        offset, limit = int(self.data.get("offset") or 0), page_size(self.data)
        if results.next_offset is not None:
            self.next = address_of(self.data, offset=str(results.next_offset))
        if offset:
            self.previous = address_of(self.data, offset=str(max(0, offset - limit)) if offset > limit else None)

    def complete(self, request: HttpRequest) -> None:
        """Fill in what stands around the results: the filters, and the products that others should be like."""
        self.groups = filter_groups(self.data)
        self.chosen = list(chosen_filters(self.data, self.groups))
        if keys := [key for key in self.like if "\0" not in key][:MAX_EXAMPLES]:
            rows = {str(row.pk): row for row in visible_products(keys, request)}
            self.examples = [product_card(rows[key]) for key in keys if key in rows]


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


def card(hit: ProductHit) -> dict[str, Any]:
    """Return a hit as `_hit.html` shows it."""
    return product_card(hit.product, hit.image)


def product_card(product: Any, image: CatalogImage | None = None) -> dict[str, Any]:
    """Return a product as `_hit.html` shows it, with this image of it or its main one."""
    catalog = get_catalog()
    image = image or next(iter(catalog.images_of(product)), None)
    return {
        "product": product,
        "title": catalog.title(product),
        "subtitle": catalog.subtitle(product),
        "url": catalog.url(product),
        "image": image.file if image else None,
        "image_url": catalog.thumbnail(image.file) if image else "",
    }


def filter_groups(data: QueryDict) -> list[FilterGroup]:
    """Return the filters that there is something to choose of, with what was chosen."""
    facets = known_facets(data)
    groups = []
    for name, declared in get_catalog().filters.items():
        if isinstance(declared, Number):
            group = number_group(name, data, facets)
        else:
            group = choice_group(name, declared, data, facets)
        if group.choices or group.sides:
            groups.append(group)
    return groups


def known_facets(data: QueryDict) -> Facets:
    """Return the filters' values to choose from; nothing before this process has its store."""
    nothing = Facets({}, {}, {})
    declared = get_catalog().filters
    given = {name: data.getlist(name) for name in parameter_names(declared) if name in data}
    try:
        return count_facets(parse_filters(declared, given), with_alternatives=True) if is_at_hand() else nothing
    except InvalidFilter:
        return count_facets()
    except VisualSearchError:
        return nothing


def number_group(name: str, data: QueryDict, facets: Facets) -> FilterGroup:
    bounds = facets.bounds.get(name)
    low, high = f"min_{name}", f"max_{name}"
    sides = [
        (low, data.get(low, ""), bounds.minimum if bounds else None),
        (high, data.get(high, ""), bounds.maximum if bounds else None),
    ]
    is_choice = bounds is None or bounds.minimum != bounds.maximum or low in data or high in data
    return FilterGroup(name, get_catalog().filter_label(name), sides=sides if is_choice else [])


def choice_group(name: str, declared: Field, data: QueryDict, facets: Facets) -> FilterGroup:
    catalog = get_catalog()
    counts = {text_of(value): count for value, count in facets.values.get(name, {}).items()}
    chosen = data.getlist(name)
    values = [*counts, *(value for value in dict.fromkeys(chosen) if value not in counts)]
    label = catalog.filter_label(name)
    if isinstance(declared, Boolean):
        # What shoppers look for is what is true of a product; the opposite stands there where an address asks for it.
        values = [value for value in values if value == "true" or value in chosen]
        labels: Mapping[str, str] = {"true": label, "false": gettext("not: %(label)s") % {"label": label}}
    else:
        labels = catalog.value_labels(name, values) if values else {}
    choices = [Choice(value, labels.get(value, value), counts.get(value), value in chosen) for value in values]
    return FilterGroup(name, label, choices, is_boolean=isinstance(declared, Boolean))


def text_of(value: object) -> str:
    """Return a filter's value as an address has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def chosen_filters(data: QueryDict, groups: list[FilterGroup]) -> list[Chosen]:
    """Return what is set, each with the address without it."""
    chosen = []
    for group in groups:
        for choice in group.choices:
            if choice.is_chosen:
                others = data.copy()
                others.setlist(group.name, [value for value in data.getlist(group.name) if value != choice.value])
                chosen.append(Chosen(choice.label, address_of(others)))
        words = (gettext("%(label)s from %(value)s"), gettext("%(label)s up to %(value)s"))
        for (name, value, _), sentence in zip(group.sides, words, strict=False):
            if value:
                label = sentence % {"label": group.label, "value": localized(value)}
                chosen.append(Chosen(label, address_of(data, **{name: None})))
    return chosen


def localized(value: str) -> str:
    """Return a number that was typed as this language writes it; anything else as it is."""
    try:
        return number_format(float(value) if "." in value else int(value))
    except ValueError:
        return value
