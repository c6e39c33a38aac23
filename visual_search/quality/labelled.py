"""Read labelled queries: photos or texts, and the products that each of them should find."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from visual_search.catalog import get_catalog
from visual_search.exceptions import InvalidLabels

EXPECTED_FILE = "a CSV file in UTF-8 with the columns `photo` or `text`, and `product_id`"


@dataclass(frozen=True, slots=True)
class LabelledQuery:
    """A photo, a text or both, and the keys of the products that are right answers.

    name: as in the file. held_out: images that are no answers, see SearchQuery. made_from: what `make_queries` made the
    query from, if it did.
    """

    photo: Path | None
    text: str | None
    products: tuple[str, ...]
    name: str = ""
    held_out: frozenset[tuple[str, str]] = frozenset()
    made_from: str = ""

    @property
    def kind(self) -> str:
        """`photo`, `text` or `mixed`."""
        return "mixed" if self.photo and self.text else "photo" if self.photo else "text"


@dataclass(frozen=True, slots=True)
class LabelledQueries:
    """The queries of a file, in its order, and a line for each part of the file that can't be used."""

    queries: list[LabelledQuery]
    problems: list[str]


def read_labelled(path: Path, *, split: str | None = None) -> LabelledQueries:
    """Read a CSV file in which each row names a photo (or text) and a product that it should find.

    Several rows of one photo are several right answers. Photo paths are relative to the file; a product_id is a value
    of the catalogue's `product_id_field`. split: read only rows with this value in the column `split`. `make_queries`
    writes the columns `made_from` and `held_out_image` (an image key of the row's product).
    Missing photos and products that the catalogue lacks are listed in `problems` and left out. Photos are not decoded
    here. Raises InvalidLabels if the file can't be read or has other columns.
    """
    rows = _rows_of_split(read_rows(path), split, path)
    rows_by_query: dict[tuple[str, str], list[dict[str, str]]] = {}
    problems = []
    for line, row in rows:
        query = (row.get("photo", ""), row.get("text", ""))
        if not any(query) or not row["product_id"]:
            problems.append(f"line {line}: a cell is empty; a photo or a text, and a product_id, are needed")
            continue
        rows_by_query.setdefault(query, []).append(row)
    keys = get_catalog().keys_of({row["product_id"] for same in rows_by_query.values() for row in same})
    queries = []
    for (photo, text), same in rows_by_query.items():
        name = " + ".join(filter(None, (photo, text)))
        unknown = dict.fromkeys(row["product_id"] for row in same if row["product_id"] not in keys)
        problems += [f"{name}: the catalogue has no product with the id {product_id!r}" for product_id in unknown]
        file = path.parent / photo if photo else None
        if file is not None and not file.is_file():
            problems.append(f"{name}: there is no such file in {str(path.parent)!r}")
        elif known := [(keys[row["product_id"]], row) for row in same if row["product_id"] in keys]:
            queries.append(_query(name, file, text or None, known))
    return LabelledQueries(queries, problems)


def read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the file's rows with their line numbers; cells are stripped. Raises InvalidLabels."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [(reader.line_num, _stripped(row)) for row in reader]
    except OSError as error:
        raise InvalidLabels(f"{str(path)!r} can't be read: {error.strerror}. Expected {EXPECTED_FILE}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidLabels(f"{str(path)!r} is not {EXPECTED_FILE}: {error}.") from error
    if "product_id" not in columns or not {"photo", "text"} & set(columns):
        found = f"has the columns {', '.join(map(repr, columns))}" if columns else "is empty"
        raise InvalidLabels(f"{str(path)!r} {found}; expected {EXPECTED_FILE}.")
    if not rows:
        raise InvalidLabels(f"{str(path)!r} has no rows below its header.")
    return rows


def evenly_sampled(queries: Sequence[LabelledQuery], limit: int | None) -> list[LabelledQuery]:
    """Return at most `limit` queries, spread evenly over the file: rows of one product often follow each other."""
    if not limit or limit >= len(queries):
        return list(queries)
    return [queries[place * len(queries) // limit] for place in range(limit)]


def _query(
    name: str, photo: Path | None, text: str | None, rows: Sequence[tuple[str, dict[str, str]]]
) -> LabelledQuery:
    return LabelledQuery(
        photo,
        text,
        tuple(dict.fromkeys(key for key, _ in rows)),
        name,
        held_out=frozenset((key, image) for key, row in rows if (image := row.get("held_out_image"))),
        made_from=rows[0][1].get("made_from", ""),
    )


def _stripped(row: dict[str, str | None]) -> dict[str, str]:
    return {name: value.strip() for name, value in row.items() if name is not None and isinstance(value, str)}


def _rows_of_split(
    rows: Iterable[tuple[int, dict[str, str]]], split: str | None, path: Path
) -> list[tuple[int, dict[str, str]]]:
    every = [(line, row | {"product_id": row.get("product_id", "")}) for line, row in rows]
    if split is None:
        return every
    chosen = [(line, row) for line, row in every if row.get("split") == split]
    if not chosen:
        known = sorted({row["split"] for _, row in every if row.get("split")})
        found = f"its splits are {', '.join(map(repr, known))}" if known else "it has no column `split`"
        raise InvalidLabels(f"{str(path)!r} has no rows of the split {split!r}; {found}.")
    return chosen
