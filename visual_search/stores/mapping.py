"""Convert points and filters to and from Qdrant's types, for the embedded engine and the server's client.

Both engines use the same class names (Filter, FieldCondition, MatchAny, MatchValue), so the functions take the
engine's module as an argument and import none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from visual_search.exceptions import DimensionMismatch
from visual_search.stores.base import FieldKind, Filters, Hit, Point, check_vectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Our own payload keys start with an underscore. Declared filters keep their own names.
PRODUCT, IMAGE, MAIN, SEQ = "_product", "_image", "_main", "_seq"
HIT_KEYS = [PRODUCT, IMAGE]

# Each kind's index type: a member of both engines' PayloadSchemaType, in lower case.
INDEX_TYPES: dict[FieldKind, str] = {"keyword": "keyword", "number": "float", "boolean": "bool"}


def payload_indexes(fields: Mapping[str, FieldKind]) -> dict[str, str]:
    """Return the index type of every payload key used in filters."""
    return {MAIN: INDEX_TYPES["boolean"], **{name: INDEX_TYPES[kind] for name, kind in fields.items()}}


def checked_rows(points: Sequence[Point], dim: int) -> NDArray[np.float32]:
    """Return the points' vectors as one checked array. Raises DimensionMismatch or InvalidVector."""
    import numpy as np

    for point in points:
        if np.shape(point.vector) != (dim,):
            raise DimensionMismatch(
                f"Point {point.id} has a vector of shape {np.shape(point.vector)}; the store holds ({dim},)."
            )
    return check_vectors(np.stack([point.vector for point in points]), dim)


def to_payload(point: Point) -> dict[str, Any]:
    return {
        **point.payload,
        PRODUCT: point.product,
        IMAGE: point.image,
        MAIN: point.is_main,
        SEQ: point.seq,
    }


def to_point(record: Any, *, id: str | None = None) -> Point:
    """Convert a record with payload and vector to a Point. id: overrides the record's id."""
    import numpy as np

    payload = dict(record.payload)
    return Point(
        id=str(record.id) if id is None else id,
        vector=np.asarray(record.vector, dtype=np.float32),
        product=payload.pop(PRODUCT),
        image=payload.pop(IMAGE),
        is_main=payload.pop(MAIN),
        seq=payload.pop(SEQ),
        payload=payload,
    )


def to_hit(scored: Any) -> Hit:
    """Convert a scored point whose payload has HIT_KEYS to a Hit."""
    payload = scored.payload
    return Hit(str(scored.id), scored.score, payload[PRODUCT], payload[IMAGE])


def to_engine_filter(filters: Filters | None, models: Any, range_class: Any, boolean: Callable[[bool], Any]) -> Any:
    """Return the engine's Filter, or None without conditions.

    models: the engine's module. boolean: converts a bool to a value that the engine accepts as a boolean.
    """
    if not filters:
        return None

    def is_value(name: str, value: bool) -> Any:
        return models.FieldCondition(key=name, match=models.MatchValue(value=boolean(value)))

    must: list[Any] = []
    for name, values in filters.any_of.items():
        booleans = [value for value in values if isinstance(value, bool)]
        if booleans:  # MatchAny does not accept booleans
            must.append(models.Filter(should=[is_value(name, value) for value in booleans]))
        else:
            must.append(models.FieldCondition(key=name, match=models.MatchAny(any=list(values))))
    for name, interval in filters.ranges.items():
        closed = range_class(gte=interval.minimum, lte=interval.maximum)
        must.append(models.FieldCondition(key=name, range=closed))
    if filters.is_main is not None:
        must.append(is_value(MAIN, filters.is_main))
    return models.Filter(must=must)


def exclusive_threshold(score_threshold: float | None) -> float | None:
    """Return the next lower float32: engines omit scores equal to the threshold, stores must not."""
    if score_threshold is None:
        return None
    import numpy as np

    return float(np.nextafter(np.float32(score_threshold), np.float32(-np.inf)))
