"""Declared filters: read a product's values into the payload, and parse a request's values into conditions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.exceptions import ObjectDoesNotExist

from visual_search.exceptions import InvalidFilter
from visual_search.stores.base import FieldKind, Filters, PayloadValue, Range

if TYPE_CHECKING:
    from django.db.models import Model

MAX_VALUE_LENGTH = 200  # characters of one filter value; longer ones are likely attacks
MAX_VALUES = 50  # values of one filter in one request
TRUE, FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


@dataclass(frozen=True, slots=True)
class Field:
    """A filter that shoppers may use. path: dotted, from the product; a step may lead to many rows."""

    path: str
    kind: ClassVar[FieldKind]

    def read(self, product: Model) -> PayloadValue:
        """Return the product's value for the payload, or None if it has none."""
        values = (self.to_payload(value) for value in follow_path(product, self.path.split(".")) if value is not None)
        unique = list(dict.fromkeys(value for value in values if value is not None))
        # Sorted: the database may return related rows in any order, and the index would see a change each time.
        return sorted(unique) if len(unique) > 1 else (unique[0] if unique else None)  # type: ignore[return-value]

    def to_payload(self, value: Any) -> str | float | bool | None:
        """Return one value for the payload; None leaves it out."""
        raise NotImplementedError


class Keyword(Field):
    """Exact values, such as a slug. A request may give several; a product matches any of them."""

    kind = "keyword"

    def to_payload(self, value: Any) -> str:
        return str(value)


class Number(Field):
    """A number. Requests use min_<name> and max_<name>. Decimals become floats."""

    kind = "number"

    def to_payload(self, value: Any) -> float | None:
        number = float(value)
        return number if math.isfinite(number) else None  # engines reject NaN and infinity


class Boolean(Field):
    """True or false."""

    kind = "boolean"

    def to_payload(self, value: Any) -> bool:
        return bool(value)


def follow_path(row: Any, steps: list[str]) -> Iterable[Any]:
    """Yield the values at the end of a path of attributes, methods without arguments and relations."""
    if row is None:
        return
    if not steps:
        yield row
        return
    try:
        value: Any = getattr(row, steps[0])
    except ObjectDoesNotExist:  # a one-to-one relation without its other side
        return
    if hasattr(value, "all"):
        for related in value.all():
            yield from follow_path(related, steps[1:])
    else:
        yield from follow_path(value() if callable(value) else value, steps[1:])


def parse_filters(declared: Mapping[str, Field], values: Mapping[str, list[str]]) -> Filters:
    """Return the conditions of a request.

    values: request parameters with all their values, without the reserved ones. Empty values, as HTML forms send
    them, mean "any". Raises InvalidFilter, which names what is allowed.
    """
    any_of: dict[str, tuple[str | bool, ...]] = {}
    bounds: dict[str, dict[str, float]] = {}
    for key, raw in values.items():
        given = [value for value in raw if value.strip()]
        if not given:
            continue
        side, _, rest = key.partition("_")
        if side in ("min", "max") and isinstance(declared.get(rest), Number):
            bounds.setdefault(rest, {})[side] = _parse_number(key, given)
        elif isinstance(declared.get(key), Keyword):
            any_of[key] = _parse_keywords(key, given)
        elif isinstance(declared.get(key), Boolean):
            any_of[key] = tuple(dict.fromkeys(_parse_boolean(key, value) for value in given))
        else:
            raise InvalidFilter(f"There is no filter {_shorten(key)}. Filters: {', '.join(parameter_names(declared))}.")
    ranges = {name: Range(sides.get("min"), sides.get("max")) for name, sides in bounds.items()}
    for name, wanted in ranges.items():
        if wanted.minimum is not None and wanted.maximum is not None and wanted.minimum > wanted.maximum:
            raise InvalidFilter(f"min_{name} is above max_{name}.")
    return Filters(any_of=any_of, ranges=ranges)


def parameter_names(declared: Mapping[str, Field]) -> list[str]:
    """Return the request parameters of the declared filters, in the order of declaration."""
    names: list[str] = []
    for name, field in declared.items():
        names += [f"min_{name}", f"max_{name}"] if isinstance(field, Number) else [name]
    return names


def _parse_keywords(key: str, given: list[str]) -> tuple[str, ...]:
    if len(given) > MAX_VALUES or any(len(value) > MAX_VALUE_LENGTH or "\0" in value for value in given):
        raise InvalidFilter(f"{key} takes up to {MAX_VALUES} values of up to {MAX_VALUE_LENGTH} characters.")
    return tuple(dict.fromkeys(given))


def _parse_number(key: str, given: list[str]) -> float:
    try:
        number = float(Decimal(given[-1].strip()))
    except (ArithmeticError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidFilter(f"{key} must be a number such as 12.50, not {_shorten(given[-1])}.")
    return number


def _parse_boolean(key: str, value: str) -> bool:
    word = value.strip().lower()
    if word not in TRUE | FALSE:
        raise InvalidFilter(f"{key} must be true or false, not {_shorten(value)}.")
    return word in TRUE


def _shorten(value: str) -> str:
    return repr(value if len(value) <= 40 else value[:40] + "…")
