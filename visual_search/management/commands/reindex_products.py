"""Mark products to be indexed; with --wait, stay until they are."""

from __future__ import annotations

import argparse
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db.models import QuerySet

from visual_search import claims, indexing, queue, status, versions
from visual_search.catalog import get_catalog
from visual_search.exceptions import VisualSearchError
from visual_search.management.progress import Progress
from visual_search.marks import mark_dirty
from visual_search.models import IndexEntry, IndexMark
from visual_search.sweeping import differing_products, orphaned_entries

POLL_SECONDS = 0.5
STALLED_SECONDS = 15  # without any progress and with nothing in work: no worker is running


class Command(BaseCommand):
    help = "Mark products as changed, so that the queue worker indexes them."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("keys", nargs="*", metavar="KEY", help="Primary keys of products.")
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--all", action="store_true", help="Every product; images that are unchanged are not embedded."
        )
        which.add_argument("--missing", action="store_true", help="Products that are not, or not wholly, indexed.")
        which.add_argument(
            "--payload", action="store_true", help="Products whose filters or images differ from the index."
        )
        parser.add_argument("--force", action="store_true", help="Read and embed every image again.")
        parser.add_argument("--wait", action="store_true", help="Wait until they are indexed, with a progress bar.")
        parser.add_argument("--here", action="store_true", help="Index in this process; no worker is needed.")

    def handle(self, *args: Any, **options: Any) -> None:
        if not (options["keys"] or options["all"] or options["missing"] or options["payload"]):
            raise CommandError("Say which products: KEY …, --all, --missing or --payload.")
        if options["keys"] and (options["all"] or options["missing"] or options["payload"]):
            raise CommandError("Give keys or one of --all, --missing, --payload, not both.")
        kind = IndexMark.Kind.FORCED if options["force"] else IndexMark.Kind.CHANGED
        try:
            count = (
                mark_dirty(self.products(options), kind=kind) if not options["payload"] else self.mark_differing(kind)
            )
            self.stdout.write(f"{count} products marked.")
            if options["here"]:
                self.index_here()
            elif options["wait"]:
                self.wait_for_worker()
        except VisualSearchError as error:
            raise CommandError(str(error)) from error
        if options["here"] or options["wait"]:
            self.report()

    def products(self, options: dict[str, Any]) -> QuerySet[Any]:
        catalog = get_catalog()
        products = catalog.queryset().using(catalog.database)
        if options["keys"]:
            try:
                chosen = catalog.model._base_manager.using(catalog.database).filter(pk__in=options["keys"])
                found = {str(key) for key in chosen.values_list("pk", flat=True)}
            except (ValueError, TypeError) as error:
                raise CommandError(f"These are not keys of {catalog.model.__name__}: {error}") from error
            if unknown := [key for key in options["keys"] if key not in found]:
                raise CommandError(f"There is no {catalog.model.__name__} with the key {', '.join(unknown)}.")
            return chosen
        if options["missing"]:
            done = IndexEntry.objects.using(catalog.database).filter(
                version=versions.find_active(), state=IndexEntry.State.INDEXED
            )
            done_keys = set(done.values_list("key", flat=True))
            missing = [key for key in products.values_list("pk", flat=True) if str(key) not in done_keys]
            return products.filter(pk__in=missing)
        return products

    def mark_differing(self, kind: str) -> int:
        catalog, version = get_catalog(), versions.get_active()
        slices = [*differing_products(version, catalog.database), *orphaned_entries(version, catalog.database)]
        keys = [key for _, some in slices for key in some]
        return mark_dirty(catalog.model._base_manager.filter(pk__in=keys), kind=kind)

    def index_here(self) -> None:
        total = self.waiting()
        with Progress(total, "Indexing") as bar:
            indexing.drain(seconds=float("inf"), progress=lambda result: bar.advance())

    def wait_for_worker(self) -> None:
        left = total = self.waiting()
        moved_at = time.monotonic()
        with Progress(total, "Indexing") as bar:
            while left:
                time.sleep(POLL_SECONDS)
                now = self.waiting()
                if now != left or self.in_work():
                    moved_at = time.monotonic()
                bar.advance(max(0, left - now))
                left = now
                if time.monotonic() - moved_at > STALLED_SECONDS:
                    raise CommandError(self.why_stalled(left))

    def why_stalled(self, left: int) -> str:
        worker = f"Is the worker running? `{queue.worker_command()}`"
        return f"{left} products wait and nothing works on them. {worker} Or index in this process with --here."

    def waiting(self) -> int:
        database = get_catalog().database
        claims.expand_related_marks(database)
        return IndexMark.objects.using(database).values("key").distinct().count()

    def in_work(self) -> bool:
        return bool(status.read_status().in_work)

    def report(self) -> None:
        states = status.read_status().states
        self.stdout.write(
            ", ".join(f"{count} {state}" for state, count in states.items() if count) or "Nothing indexed."
        )
        broken = IndexEntry.objects.using(get_catalog().database).filter(
            state__in=[IndexEntry.State.FAILED, IndexEntry.State.PARTIAL], version=versions.find_active()
        )
        for entry in broken.order_by("key")[:20]:
            self.stderr.write(f"  {entry.key} {entry.state}: {entry.error}")
