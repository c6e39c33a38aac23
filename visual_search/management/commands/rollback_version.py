"""Go back to the previously active index version."""

from __future__ import annotations

import argparse
from typing import Any

from visual_search.index import building
from visual_search.management.base import IndexCommand
from visual_search.management.progress import Progress


class Command(IndexCommand):
    help = (
        "Make the previously active version active again, at once. Products that changed since are indexed afterwards."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--catch-up", action="store_true", help="Bring it up to date first, in this process.")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["catch_up"]:
            with Progress(0, "Catching up") as bar:
                version = building.roll_back(progress=lambda result: bar.advance(), catches_up=True)
        else:
            version = building.roll_back()
        self.stdout.write(self.style.SUCCESS(f"Version {version.pk} ({version.checkpoint}) is active again."))
        if pending := building.count_pending(version):
            self.stdout.write(f"{pending} products changed since it was last active; the worker indexes them now.")
