"""Mark products to be indexed; with --wait, stay until they are."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError

from visual_search.catalog import get_catalog
from visual_search.index import drain, queue, status, versions
from visual_search.index.expansion import expand_related_marks
from visual_search.index.marks import mark_keys
from visual_search.index.relations import iter_key_slices
from visual_search.index.sweep import differing_products, orphaned_entries
from visual_search.management.base import IndexCommand
from visual_search.management.progress import Progress
from visual_search.models import IndexEntry, IndexMark

POLL_SECONDS = 0.5
STALLED_SECONDS = 15  # a drain was asked for and nobody took it: no worker is running
STUCK_SECONDS = 600  # it was taken, and nothing came of it


class Command(IndexCommand):
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
        parser.add_argument(
            "--force", action="store_true", help="Read and embed every image again, of all products if none are named."
        )
        parser.add_argument(
            "--wait", action="store_true", help="Wait until everything marked is indexed, with a progress bar."
        )
        parser.add_argument(
            "--here", action="store_true", help="Index everything marked in this process; no worker is needed."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        chosen = [name for name in ("all", "missing", "payload") if options[name]]
        if options["keys"] and chosen:
            raise CommandError(f"Give keys or --{chosen[0]}, not both.")
        options["all"] |= options["force"] and not options["keys"] and not chosen
        if not (options["keys"] or options["all"] or chosen or options["wait"] or options["here"]):
            raise CommandError("Say which products: KEY …, --all, --missing, --payload or --force.")
        kind = IndexMark.Kind.FORCED if options["force"] else IndexMark.Kind.CHANGED
        count = sum(mark_keys(keys, kind=kind) for keys in self.slices(options))
        self.stdout.write(f"{count} product{'s' * (count != 1)} marked.")
        if options["here"]:
            self.index_here()
        elif options["wait"]:
            self.wait_for_worker()
        if options["here"] or options["wait"]:
            self.report()

    def slices(self, options: dict[str, Any]) -> Iterator[list[str]]:
        """Yield the keys of the products that are meant, some at a time."""
        catalog = get_catalog()
        if options["keys"]:
            yield self.existing(options["keys"])
        elif options["payload"]:
            version = versions.get_active()
            yield from (keys for _, keys in differing_products(version, catalog.database))
            yield from (keys for _, keys in orphaned_entries(version, catalog.database))
        elif options["all"] or options["missing"]:
            entries = IndexEntry.objects.using(catalog.database).filter(version=versions.find_active())
            indexed = entries.filter(state=IndexEntry.State.INDEXED)
            for keys in iter_key_slices(catalog.queryset().using(catalog.database)):
                done = set(indexed.filter(key__in=keys).values_list("key", flat=True)) if options["missing"] else set()
                yield [key for key in keys if key not in done]

    def existing(self, keys: list[str]) -> list[str]:
        """Return the keys. Products that may not be indexed are among them, so that they leave the index."""
        catalog = get_catalog()
        try:
            chosen = catalog.model._base_manager.using(catalog.database).filter(pk__in=keys)
            found = {str(key) for key in chosen.values_list("pk", flat=True)}
        except (ValueError, TypeError, ValidationError) as error:
            raise CommandError(f"These are not keys of {catalog.model.__name__}: {', '.join(keys)}.") from error
        if unknown := [key for key in keys if key not in found]:
            raise CommandError(f"There is no {catalog.model.__name__} with the key {', '.join(unknown)}.")
        return keys

    def index_here(self) -> None:
        total = self.waiting()
        with Progress(total, "Indexing") as bar:
            drain.drain(seconds=float("inf"), progress=lambda result: bar.advance())

    def wait_for_worker(self) -> None:
        left = total = self.waiting()
        moved_at = time.monotonic()
        with Progress(total, "Indexing") as bar:
            while left:
                time.sleep(POLL_SECONDS)
                now = self.waiting()
                if now != left:
                    moved_at = time.monotonic()
                bar.advance(max(0, left - now))
                left = now
                self.check_worker(left, time.monotonic() - moved_at)

    def check_worker(self, left: int, still_seconds: float) -> None:
        """Raise CommandError if the worker said what is wrong, or if there seems to be none."""
        state = queue.read_queue_state()
        if state.drain_error:
            raise CommandError(f"The worker can't index: {state.drain_error}")
        # A request that was taken may mean a checkpoint that is being loaded, or even fetched.
        patience = STALLED_SECONDS if state.drain_requested_at else STUCK_SECONDS
        if left and still_seconds > patience:
            raise CommandError(
                f"{left} products wait and nothing works on them. Is the worker running? "
                f"`{queue.worker_command()}` Or index in this process with --here."
            )

    def waiting(self) -> int:
        database = get_catalog().database
        expand_related_marks(database)
        return IndexMark.objects.using(database).values("key").distinct().count()

    def report(self) -> None:
        states = status.read_status().states
        counted = ", ".join(f"{count} {state}" for state, count in states.items() if count)
        self.stdout.write(f"The whole index: {counted}." if counted else "Nothing is indexed.")
        for key, state, error in status.failures(versions.find_active()):
            self.stderr.write(f"  product {key} {state}: {error}")
