"""The filters beside the results: the available choices and the chosen ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.http import QueryDict
from django.utils.formats import number_format
from django.utils.translation import gettext

from visual_search.catalog import get_catalog
from visual_search.exceptions import InvalidFilter, VisualSearchError
from visual_search.filters import Boolean, Number, parameter_names, parse_filters
from visual_search.search.facets import Facets, are_facets_ready, count_facets
from visual_search.storefront.addresses import address_of

if TYPE_CHECKING:
    from visual_search.filters import Field

CHOICES_SHOWN = 12  # of one filter; the others are behind "Show all"


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of a filter. count: products that have it; None if that is unknown."""

    value: str
    label: str
    count: int | None
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class FilterGroup:
    """One declared filter as form fields. sides: the two ends of a number, as (parameter, value, bound).

    is_boolean: its choice `true` has the label of the filter itself.
    """

    name: str
    label: str
    choices: list[Choice] = field(default_factory=list)
    sides: list[tuple[str, str, float | None]] = field(default_factory=list)
    is_boolean: bool = False

    @property
    def first_choices(self) -> list[Choice]:
        """The chosen and the most common choices, in their order."""
        shown = {choice.value for choice in self.choices[:CHOICES_SHOWN]}
        return [choice for choice in self.choices if choice.is_chosen or choice.value in shown]

    @property
    def more_choices(self) -> list[Choice]:
        return [choice for choice in self.choices[CHOICES_SHOWN:] if not choice.is_chosen]


@dataclass(frozen=True, slots=True)
class ChosenFilter:
    """A filter that is set. address: the search without it."""

    label: str
    address: str


def filter_groups(data: QueryDict) -> list[FilterGroup]:
    """Return the filters that offer a choice, with the chosen values."""
    facets = available_facets(data)
    groups = []
    for name, declared in get_catalog().filters.items():
        if isinstance(declared, Number):
            group = number_group(name, data, facets)
        else:
            group = choice_group(name, declared, data, facets)
        if group.choices or group.sides:
            groups.append(group)
    return groups


def available_facets(data: QueryDict) -> Facets:
    """Return the values to choose from; nothing if this process has not filled its store."""
    no_facets = Facets({}, {}, {})
    declared = get_catalog().filters
    given = {name: data.getlist(name) for name in parameter_names(declared) if name in data}
    try:
        filters = parse_filters(declared, given)
    except InvalidFilter:  # the page reports it beside all there is to choose from
        filters = None
    try:
        return count_facets(filters, with_alternatives=filters is not None) if are_facets_ready() else no_facets
    except VisualSearchError:
        return no_facets


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
    counts = {parameter_text(value): count for value, count in facets.values.get(name, {}).items()}
    chosen = data.getlist(name)
    values = [*counts, *(value for value in dict.fromkeys(chosen) if value not in counts)]
    label = catalog.filter_label(name)
    if isinstance(declared, Boolean):
        # Shoppers filter by what is true of a product; `false` is shown only if the address sets it.
        values = [value for value in values if value == "true" or value in chosen]
        labels: Mapping[str, str] = {"true": label, "false": gettext("not: %(label)s") % {"label": label}}
    else:
        labels = catalog.value_labels(name, values) if values else {}
    choices = [Choice(value, labels.get(value, value), counts.get(value), value in chosen) for value in values]
    return FilterGroup(name, label, choices, is_boolean=isinstance(declared, Boolean))


def parameter_text(value: object) -> str:
    """Return a filter's value as it is written in a query string."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def chosen_filters(data: QueryDict, groups: list[FilterGroup]) -> list[ChosenFilter]:
    """Return the filters that are set, each with the address of the search without it."""
    chosen = []
    for group in groups:
        for choice in group.choices:
            if choice.is_chosen:
                others = data.copy()
                others.setlist(group.name, [value for value in data.getlist(group.name) if value != choice.value])
                chosen.append(ChosenFilter(choice.label, address_of(others)))
        words = (gettext("%(label)s from %(value)s"), gettext("%(label)s up to %(value)s"))
        for (name, value, _), sentence in zip(group.sides, words, strict=False):
            if value:
                label = sentence % {"label": group.label, "value": localized_number(value)}
                chosen.append(ChosenFilter(label, address_of(data, **{name: None})))
    return chosen


def localized_number(value: str) -> str:
    """Return a typed number in the format of the active language; anything else unchanged."""
    try:
        return number_format(float(value) if "." in value else int(value))
    except ValueError:
        return value
