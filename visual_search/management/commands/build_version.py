"""Build another index version beside the active one."""

from __future__ import annotations

import argparse
from typing import Any

from visual_search.index import building
from visual_search.management.base import IndexCommand
from visual_search.management.progress import Progress
from visual_search.models import IndexEntry
from visual_search.vision.preparation import STRATEGIES


class Command(IndexCommand):
    help = "Embed every product with another checkpoint, in this process, while searches use the active version."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--checkpoint", help="Hub name or folder; by default the one in the settings.")
        parser.add_argument(
            "--preparation",
            choices=sorted(STRATEGIES),
            help="How product images are prepared; by default as in the settings.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        version = building.start_build(checkpoint=options["checkpoint"], preparation=options["preparation"])
        left = building.count_pending(version)
        self.stdout.write(f"Version {version.pk}: {version.checkpoint} ({version.dim}-d, {version.fingerprint})")
        with Progress(left, "Building") as bar:
            report = building.build(version, progress=lambda result: bar.advance())
        failed = version.entries.filter(state__in=[IndexEntry.State.FAILED, IndexEntry.State.PARTIAL])
        self.stdout.write(f"Built: {left} products processed, {report.embedded} images embedded.")
        for key, state, error in failed.order_by("key").values_list("key", "state", "error")[:20]:
            self.stderr.write(f"  product {key} {state}: {error}")
        self.stdout.write(f"To use it for searches, run `manage.py switch_version {version.pk}`.")
