from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from example_shop.drawn.pictures import read_drawn
from example_shop.loading import Outcome, load_product
from example_shop.sources import Report, SourceError, SourceProduct, read_csv, read_folder
from example_shop.vendure import fetch_vendure, read_vendure

SAMPLE = "vendure"
DRAWN = "drawn"


class Command(BaseCommand):
    help = (
        "Load products and their images into the shop. It can be run again: products are identified by their id, "
        "and only differences from the source are written."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "source",
            help="A folder of images (one product each; subfolders are categories), a CSV file "
            "(id,name,category,brand,price,stock,images,description; images separated by | or ;), "
            f'"{SAMPLE}" for the sample catalogue of the npm package @vendure/create, '
            f'or "{DRAWN}" for a drawn catalogue that needs no download.',
        )
        parser.add_argument("--limit", type=positive_int, help="Load only the first N products.", metavar="N")

    def handle(self, *, source: str, limit: int | None, **options: Any) -> None:
        report = Report()
        try:
            products = list(islice(read_source(source, report), limit))
            check_unique_ids(products)
        except SourceError as error:
            raise CommandError(str(error)) from error
        outcomes = Counter(skipped=len(report.skipped))
        lines = report.notes + report.skipped
        for product in self.with_progress(products):
            try:
                outcome, problems = load_product(product)
            except ValidationError as error:
                outcomes["skipped"] += 1
                lines.append(f"{product.id}: {one_line_message(error)}")
                continue
            outcomes[outcome] += 1
            lines += [f"{product.id}: {problem}" for problem in problems]
        for line in lines:
            self.stderr.write(line, self.style.WARNING)
        counts = ", ".join(f"{outcomes[name]} {name}" for name in [*Outcome, "skipped"])
        self.stdout.write(self.style.SUCCESS(counts))

    def with_progress(self, products: list[SourceProduct]) -> Iterable[SourceProduct]:
        """Return `products`, with a progress bar in a terminal."""
        if not self.stderr.isatty():
            return products
        try:
            from tqdm import tqdm
        except ImportError:
            return products
        return tqdm(products, unit="product")


def read_source(source: str, report: Report) -> Iterator[SourceProduct]:
    """Return the products of `source`. Raises SourceError, here or while they are read."""
    if source == SAMPLE:
        return read_vendure(fetch_vendure(settings.STATE_DIR / "vendure"), report)
    if source == DRAWN:
        return read_drawn(settings.STATE_DIR / "drawn")
    path = Path(source)
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        return read_csv(path, report)
    raise SourceError(f"{source!r} is neither a folder nor a file, nor one of the names {SAMPLE!r} and {DRAWN!r}.")


def check_unique_ids(products: list[SourceProduct]) -> None:
    """Raise SourceError if two products have the same id: on each load the later would overwrite the earlier."""
    counts = Counter(product.id for product in products)
    if repeated := [f"{id!r} ({count} times)" for id, count in counts.items() if count > 1]:
        raise SourceError(f"Nothing was loaded: ids must be unique, but these are repeated: {', '.join(repeated)}.")


def one_line_message(error: ValidationError) -> str:
    return "; ".join(f"{field}: {' '.join(messages)}" for field, messages in error.message_dict.items())


def positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
