"""Delete old index versions."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import CommandError

from visual_search.index import building
from visual_search.management.base import IndexCommand


class Command(IndexCommand):
    help = "Delete retired index versions, except the most recently active ones. The active version always stays."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--keep", type=int, default=1, help="Retired versions to keep for a rollback (%(default)d)."
        )
        parser.add_argument("--builds", action="store_true", help="Delete unfinished builds, too.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["keep"] < 0:
            raise CommandError("--keep must be 0 or more.")
        deleted = building.prune(keep=options["keep"], with_builds=options["builds"])
        for version in deleted:
            self.stdout.write(f"Deleted version {version.pk} ({version.checkpoint}).")
        if not deleted:
            self.stdout.write("Nothing to delete.")
