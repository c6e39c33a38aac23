"""Read a catalogue: turn a folder of images or a CSV file into SourceProducts."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal, DecimalException
from html.parser import HTMLParser
from pathlib import Path

IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
COLUMNS = {  # column name: field
    "id": "id",
    "product_id": "id",
    "name": "name",
    "category": "category",
    "brand": "brand",
    "price": "price",
    "stock": "stock",
    "images": "images",
    "image": "images",
    "description": "description",
}
ID_MAX_LENGTH = 64  # characters of Product.sku


class SourceError(Exception):
    """The source as a whole cannot be read. The message says what to do."""


class RowError(ValueError):
    """One row cannot be read; the others can."""


@dataclass(frozen=True, slots=True)
class SourceProduct:
    """A product as its source describes it. None: the source has no value, so the shop's value stays."""

    id: str
    name: str
    category: str | None = None
    brand: str | None = None
    price: Decimal | None = None
    images: tuple[Path, ...] | None = None
    description: str | None = None
    stock: int | None = None


@dataclass(slots=True)
class Report:
    """What a reader left out, a line each. notes: harmless; skipped: products that were not read."""

    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def read_folder(folder: Path) -> Iterator[SourceProduct]:
    """Yield one product per image in `folder`, in order of path; an image's parent folder is its category.

    Raises SourceError if there is no image.
    """
    found = False
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        is_shown = not any(part.startswith((".", "__MACOSX")) for part in inside.parts)
        if is_shown and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            found = True
            category = title_from(inside.parent.name) or None
            yield SourceProduct(short_id(inside.as_posix()), title_from(path.stem), category, images=(path,))
    if not found:
        raise SourceError(
            f"{str(folder)!r} holds no image. Images are files that end in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )


def read_csv(path: Path, report: Report) -> Iterator[SourceProduct]:
    """Yield the products of a CSV file; image paths are relative to it.

    report: receives the ignored columns and the invalid rows.
    Raises SourceError if the file is not UTF-8 CSV or has none of the columns id, name and images.
    """
    rows = read_rows(path)
    names = [name.strip().lower() for name in next(rows, [])]
    fields = [COLUMNS.get(name) for name in names]
    fields = [name if name not in fields[:at] else None for at, name in enumerate(fields)]
    if not {"id", "name", "images"} & set(fields):
        raise SourceError(
            f"{str(path)!r} has the columns {', '.join(names) or '(none)'}; "
            f"at least one of id, name and images is needed. Columns: {', '.join(COLUMNS)}."
        )
    if ignored := [name for name, known in zip(names, fields, strict=True) if known is None]:
        report.notes.append(f"Columns ignored: {', '.join(ignored)}.")
    for number, cells in enumerate(rows, start=2):
        if not any(cell.strip() for cell in cells):
            continue
        try:
            if len(cells) > len(fields):
                raise RowError(f"{len(cells)} cells for {len(fields)} columns; is a comma not inside quotes?")
            row = {name: cell for name, cell in zip(fields, cells, strict=False) if name}
            yield product_from_row(row, path.parent)
        except RowError as error:
            report.skipped.append(f"Row {number}: {error}")


def read_rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a CSV file. The separator is the comma, semicolon or tab most frequent in its first line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first_line = file.readline()
            file.seek(0)
            yield from csv.reader(file, delimiter=max(",;\t", key=first_line.count))
    except UnicodeDecodeError as error:
        raise SourceError(f"{str(path)!r} is not text in UTF-8 ({error.reason}). Save it as CSV UTF-8.") from error
    except (OSError, csv.Error) as error:
        raise SourceError(f"{str(path)!r} cannot be read as CSV: {error}") from error


def product_from_row(row: dict[str, str], folder: Path) -> SourceProduct:
    """Return the product of one row. row: cells by field name; fields without a column are missing."""
    images = None
    if "images" in row:
        images = tuple(folder / name.strip() for name in re.split(r"[|;]", row["images"]) if name.strip())
    id, name = one_line(row.get("id", "")), one_line(row.get("name", ""))
    stem = title_from(images[0].stem) if images else ""
    if not (id or name or stem):
        raise RowError("it has neither id, name nor image.")
    return SourceProduct(
        id=short_id(id or name or stem),
        name=name or stem or id,
        category=one_line(row["category"]) if "category" in row else None,
        brand=one_line(row["brand"]) if "brand" in row else None,
        price=parse_price(row.get("price", "")),
        images=images,
        description=plain_text(row["description"]) if "description" in row else None,
        stock=parse_stock(row.get("stock", "")),
    )


def parse_price(cell: str) -> Decimal | None:
    if not cell.strip():
        return None
    try:
        price = Decimal(cell.strip())
    except DecimalException:
        price = Decimal("NaN")
    if not price.is_finite() or price < 0:
        raise RowError(f"price {cell.strip()!r} is not a number such as 12.50.")
    return price


def parse_stock(cell: str) -> int | None:
    if not cell.strip():
        return None
    if not re.fullmatch(r"[0-9]{1,9}", cell.strip()):
        raise RowError(f"stock {cell.strip()!r} is not a whole number such as 12.")
    return int(cell)


def one_line(text: str) -> str:
    return " ".join(text.replace("\0", " ").split())


def title_from(file_name: str) -> str:
    """Return a title made from a file name: "red-Boot_2" becomes "Red Boot 2"."""
    words = one_line(re.sub(r"[-_]+", " ", file_name))
    return words[:1].upper() + words[1:]


def short_id(text: str) -> str:
    """Return `text`, or its start and a hash if it is too long for Product.sku."""
    if len(text) <= ID_MAX_LENGTH:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{text[: ID_MAX_LENGTH - len(digest) - 1]}-{digest}"


def plain_text(html: str) -> str:
    """Return `html` without its tags, one line per paragraph."""
    parser = _TextParser()
    parser.feed(html)
    parser.close()
    lines = (one_line(line) for line in "".join(parser.parts).splitlines())
    return "\n".join(line for line in lines if line)


class _TextParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.is_code = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.is_code = tag in ("script", "style")
        if tag in ("br", "p", "div", "li", "tr", "h1", "h2", "h3", "h4"):
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.is_code = False
        if tag in ("p", "div", "ul", "ol", "table", "h1", "h2", "h3", "h4"):
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.is_code:
            self.parts.append(data)
