"""Print the index versions."""

from __future__ import annotations

import argparse
import json
from typing import Any

from django.db.models import Count, Q

from visual_search.index.versions import all_versions
from visual_search.management.base import IndexCommand
from visual_search.models import IndexEntry

State = IndexEntry.State


class Command(IndexCommand):
    help = "Show the index versions, the products in each, and how far inactive versions lag behind."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print a list of JSON objects.")

    def handle(self, *args: Any, **options: Any) -> None:
        rows = [as_dict(version) for version in _versions_with_counts()]
        if options["json"]:
            self.stdout.write(json.dumps(rows))
            return
        if not rows:
            self.stdout.write("There is no index version yet.")
        for row in rows:
            lag = "up to date" if not row["pending"] else f"{row['pending']} products behind"
            failed = f", {row['failed']} failed" if row["failed"] else ""
            self.stdout.write(
                f"{row['version']:>3}  {row['state']:<9} {row['indexed']} products{failed}, {lag}   "
                f"{row['checkpoint']} ({row['dim']}-d, {row['fingerprint']})"
            )


def _versions_with_counts() -> Any:
    """Return the versions, annotated with their products by state.

    The active version's lag is not among them: it consists of marks, not of pending entries.
    """
    states = {
        "indexed": Count("entries", filter=Q(entries__state__in=[State.INDEXED, State.PARTIAL])),
        "failed": Count("entries", filter=Q(entries__state=State.FAILED)),
        "pending": Count("entries", filter=Q(entries__state=State.PENDING)),
    }
    return all_versions().annotate(**states).order_by("pk")


def as_dict(version: Any) -> dict[str, Any]:
    names = (
        "checkpoint", "preparation", "dim", "fingerprint", "state", "photo_threshold", "text_threshold",
        "indexed", "failed", "pending",
    )  # fmt: skip
    times = {name: getattr(version, name) for name in ("created_at", "activated_at")}
    return (
        {"version": version.pk}
        | {name: getattr(version, name) for name in names}
        | {name: value and value.isoformat() for name, value in times.items()}
    )
