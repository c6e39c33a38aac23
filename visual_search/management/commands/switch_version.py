"""Switch searches to another index version."""

from __future__ import annotations

import argparse
from typing import Any

from visual_search.index import building, versions
from visual_search.management.base import IndexCommand
from visual_search.management.progress import Progress


class Command(IndexCommand):
    help = "Bring a version up to date and make it active. Searches go on meanwhile."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("version", type=int, help="The version's number, as shown by `list_versions`.")

    def handle(self, *args: Any, **options: Any) -> None:
        version = versions.get_version(options["version"])
        with Progress(building.count_pending(version), "Catching up") as bar:
            before = building.switch(version, progress=lambda result: bar.advance())
        self.stdout.write(self.style.SUCCESS(f"Version {version.pk} ({version.checkpoint}) is active."))
        self.stdout.write(f"To go back to version {before.pk} ({before.checkpoint}), run `manage.py rollback_version`.")
