"""Go back to the previously active index version."""

from __future__ import annotations

from typing import Any

from visual_search.index import building
from visual_search.management.base import IndexCommand
from visual_search.management.progress import Progress


class Command(IndexCommand):
    help = "Bring the previously active version up to date, and make it active again."

    def handle(self, *args: Any, **options: Any) -> None:
        with Progress(0, "Catching up") as bar:
            version = building.roll_back(progress=lambda result: bar.advance())
        self.stdout.write(self.style.SUCCESS(f"Version {version.pk} ({version.checkpoint}) is active again."))
