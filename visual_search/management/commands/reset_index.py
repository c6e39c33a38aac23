"""Delete the index and start over, for a change of checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import CommandError

from visual_search.catalog import get_catalog
from visual_search.conf import get_settings
from visual_search.index.marks import mark_dirty
from visual_search.index.versions import reset_index
from visual_search.management.base import IndexCommand


class Command(IndexCommand):
    help = "Delete the whole index and mark every product. Searches find nothing until the worker has indexed them."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--yes", action="store_true", help="Do not ask for confirmation.")

    def handle(self, *args: Any, **options: Any) -> None:
        checkpoint = get_settings().CHECKPOINT
        if not options["yes"]:
            answer = input(
                f"Delete the index and rebuild it with {checkpoint!r}? Searches find nothing meanwhile. [y/N] "
            )
            if answer.strip().lower() not in ("y", "yes"):
                raise CommandError("Nothing was changed.")
        reset_index()
        count = mark_dirty(get_catalog().queryset())
        self.stdout.write(f"The index is empty; {count} products marked for {checkpoint!r}.")
