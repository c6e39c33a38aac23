"""Make another index version the one that searches use."""

from __future__ import annotations

import argparse
from typing import Any

from visual_search.index import building, versions
from visual_search.management.base import IndexCommand
from visual_search.management.progress import Progress


class Command(IndexCommand):
    help = "Catch a version up with the shop and make it the active one. No search fails meanwhile."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("version", type=int, help="Its number, as `list_versions` shows it.")

    def handle(self, *args: Any, **options: Any) -> None:
        version = versions.get_version(options["version"])
        with Progress(building.count_pending(version), "Catching up") as bar:
            before = building.switch(version, progress=lambda result: bar.advance())
        self.stdout.write(self.style.SUCCESS(f"Version {version.pk} ({version.checkpoint}) is active."))
        self.stdout.write(f"Back to version {before.pk} ({before.checkpoint}): `manage.py rollback_version`.")
