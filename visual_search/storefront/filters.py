"""The filters beside the results: what there is to choose from, and what is chosen."""

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
from visual_search.search.facets import Facets, count_facets, is_at_hand
from visual_search.storefront.addresses import address_of

if TYPE_CHECKING:
    from visual_search.filters import Field

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
