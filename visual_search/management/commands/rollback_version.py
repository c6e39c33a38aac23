"""Go back to the index version that was active before."""

from __future__ import annotations

from typing import Any

from visual_search.index import building
from visual_search.management.base import IndexCommand
from visual_search.management.progress import Progress


class Command(IndexCommand):
    help = "Catch the version that was active before up with the shop, and make it the active one again."

    def handle(self, *args: Any, **options: Any) -> None:
        with Progress(0, "Catching up") as bar:
            version = building.roll_back(progress=lambda result: bar.advance())
        self.stdout.write(self.style.SUCCESS(f"Version {version.pk} ({version.checkpoint}) is active again."))
