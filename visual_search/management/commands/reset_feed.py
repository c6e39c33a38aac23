"""Fill all stores again, after a database restore."""

from __future__ import annotations

from typing import Any

from visual_search.index.versions import reset_feed
from visual_search.management.base import IndexCommand


class Command(IndexCommand):
    help = "Make every store fill itself again from the database, without the encoder. Run it after a database restore."

    def handle(self, *args: Any, **options: Any) -> None:
        reset_feed()
        self.stdout.write(
            "Each process fills its own store before its next query; the worker fills a shared one within a minute."
        )
