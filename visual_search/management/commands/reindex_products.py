"""Mark products to be indexed; with --wait, wait until they are."""

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
STALLED_SECONDS = 15  # a drain was requested and no worker started it: none is running
STUCK_SECONDS = 600  # a drain was started and indexed nothing


class Command(IndexCommand):
    help = "Mark products as changed, so that the queue worker indexes them."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("keys", nargs="*", metavar="KEY", help="Primary keys of products.")
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--all", action="store_true", help="Every product; unchanged images are not embedded again.")
        which.add_argument("--missing", action="store_true", help="Products that are not indexed, or only partly.")
        which.add_argument(
            "--payload", action="store_true", help="Products whose filters or images differ from the index."
        )
        parser.add_argument(
            "--force",
            action="store_true",
            help="Read and embed every image again; of all products if none are selected.",
        )
        parser.add_argument(
            "--wait", action="store_true", help="Wait until every marked product is indexed, with a progress bar."
        )
        parser.add_argument(
            "--here", action="store_true", help="Index every marked product in this process; no worker is needed."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        chosen = [name for name in ("all", "missing", "payload") if options[name]]
        if options["keys"] and chosen:
            raise CommandError(f"Give keys or --{chosen[0]}, not both.")
        options["all"] |= options["force"] and not options["keys"] and not chosen
        if not (options["keys"] or options["all"] or chosen or options["wait"] or options["here"]):
            raise CommandError("Select products with KEY …, --all, --missing, --payload or --force.")
        kind = IndexMark.Kind.FORCED if options["force"] else IndexMark.Kind.CHANGED
        count = sum(mark_keys(keys, kind=kind) for keys in self.key_batches(options))
        self.stdout.write(f"{count} product{'s' * (count != 1)} marked.")
        if options["here"]:
            self.index_here()
        elif options["wait"]:
            self.wait_for_worker()
        if options["here"] or options["wait"]:
            self.report()

    def key_batches(self, options: dict[str, Any]) -> Iterator[list[str]]:
        """Yield the keys of the selected products in batches."""
        catalog = get_catalog()
        if options["keys"]:
            yield self.checked_keys(options["keys"])
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

    def checked_keys(self, keys: list[str]) -> list[str]:
        """Return the keys. Raises CommandError if a product does not exist.

        Products outside the catalogue's queryset are allowed, so that they leave the index.
        """
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
        total = self.count_waiting()
        with Progress(total, "Indexing") as bar:
            drain.drain(seconds=float("inf"), progress=lambda result: bar.advance())

    def wait_for_worker(self) -> None:
        left = total = self.count_waiting()
        changed_at = time.monotonic()
        with Progress(total, "Indexing") as bar:
            while left:
                time.sleep(POLL_SECONDS)
                now = self.count_waiting()
                if now != left:
                    changed_at = time.monotonic()
                bar.advance(max(0, left - now))
                left = now
                self.check_worker(left, time.monotonic() - changed_at)

    def check_worker(self, left: int, unchanged_seconds: float) -> None:
        """Raise CommandError if the worker reported an error, or if none seems to be running."""
        state = queue.read_queue_state()
        if state.drain_error:
            raise CommandError(f"The worker can't index: {state.drain_error}")
        # Once a drain has started, the worker may be loading or even downloading a checkpoint.
        patience = STALLED_SECONDS if state.drain_requested_at else STUCK_SECONDS
        if left and unchanged_seconds > patience:
            raise CommandError(
                f"{left} products wait, and no progress was made. Is the worker running? Start it with "
                f"`{queue.worker_command()}`, or index in this process with --here."
            )

    def count_waiting(self) -> int:
        database = get_catalog().database
        expand_related_marks(database)
        return IndexMark.objects.using(database).values("key").distinct().count()

    def report(self) -> None:
        states = status.read_status().states
        counted = ", ".join(f"{count} {state}" for state, count in states.items() if count)
        self.stdout.write(f"The whole index: {counted}." if counted else "Nothing is indexed.")
        for key, state, error in status.failures(versions.find_active()):
            self.stderr.write(f"  product {key} {state}: {error}")
