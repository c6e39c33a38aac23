"""Compare the index with the shop and list every difference. Exit with 1 if there is one."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from typing import Any

from visual_search.index.verify import Verification, verify
from visual_search.management.base import IndexCommand

SHOWN = 50  # differences printed; --json has them all


class Command(IndexCommand):
    help = "Compute from the shop's rows what the index should hold, and compare it with entries, embeddings and store."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--deep", action="store_true", help="Also hash every image, and embed 20 of them again.")
        parser.add_argument("--json", action="store_true", help="Print one JSON object with every difference.")

    def handle(self, *args: Any, **options: Any) -> None:
        report = verify(is_deep=options["deep"])
        if options["json"]:
            self.stdout.write(json.dumps(report.as_dict()))
        else:
            self.print_report(report)
        if report.differences:
            sys.exit(1)

    def print_report(self, report: Verification) -> None:
        for difference in report.differences[:SHOWN]:
            image = f" image {difference.image}" if difference.image else ""
            self.stdout.write(f"{difference.kind:<18} product {difference.product}{image}: {difference.detail}")
        if len(report.differences) > SHOWN:
            self.stdout.write(f"… and {len(report.differences) - SHOWN} more; --json has them all.")
        counted = ", ".join(f"{count} {kind}" for kind, count in Counter(d.kind for d in report.differences).items())
        self.stdout.write(
            f"{report.products} products, {report.images} embeddings, {report.points} points in the store: "
            + (f"{len(report.differences)} differences ({counted})." if report.differences else "no differences.")
        )
        if report.unreadable:
            self.stdout.write(
                f"{report.unreadable} products are not indexed, or only partly; `index_status` shows why."
            )
