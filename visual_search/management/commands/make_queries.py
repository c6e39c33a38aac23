"""Make queries from the shop's own images, if there are no labelled photos."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from visual_search.catalog import get_catalog
from visual_search.management.base import IndexCommand
from visual_search.management.progress import Progress
from visual_search.quality.queries import make_queries


class Command(IndexCommand):
    help = "Make queries.csv from the catalogue's images: held-out second images and phone-like variants."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", metavar="OUT_FOLDER", type=Path, help="A new or empty folder.")
        parser.add_argument("--limit", type=int, metavar="N", help="Use only the first N products.")
        parser.add_argument("--seed", type=int, default=0, help="Another seed makes other variants.")

    def handle(self, *args: Any, **options: Any) -> None:
        folder, limit = options["folder"], options["limit"]
        total = get_catalog().queryset().count()
        with Progress(min(total, limit or total), "Making queries") as bar:
            made = make_queries(folder, limit=limit, seed=options["seed"], progress=bar.advance)
        for made_from, count in made.counts.items():
            self.stdout.write(f"{count:>6}  {made_from}")
        for problem in made.problems[:20]:
            self.stderr.write(f"  {problem}")
        self.stdout.write("These queries replace photos of customers; every report based on them says so.")
        self.stdout.write(f"Next: `manage.py evaluate_search {folder / 'queries.csv'}`.")
