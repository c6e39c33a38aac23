"""Print the state of the index."""

from __future__ import annotations

import argparse
import json
from typing import Any

from visual_search.index.queue import worker_command
from visual_search.index.status import IndexStatus, failures, format_duration, read_status
from visual_search.management.base import IndexCommand

LATE_SECONDS = 120  # the worker sweeps each minute


class Command(IndexCommand):
    help = "Show how many products are indexed and searchable, and how many changes wait and since when."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print one JSON object, for monitoring.")

    def handle(self, *args: Any, **options: Any) -> None:
        found = read_status()
        if options["json"]:
            self.stdout.write(json.dumps(as_dict(found)))
            return
        for label, value in lines(found):
            self.stdout.write(f"{label:<12} {value}")
        for key, state, error in failures(found.version):
            self.stdout.write(f"  product {key} {state}: {error}")
        if found.problem:
            self.stderr.write(found.problem)


def as_dict(found: IndexStatus) -> dict[str, Any]:
    names = ("problem", "states", "marks", "oldest_mark_seconds", "in_work", "indexed", "searchable", "lag",
             "swept_seconds", "waiting_tasks")  # fmt: skip
    return {"checkpoint": found.version.checkpoint if found.version else None} | {n: getattr(found, n) for n in names}


def lines(found: IndexStatus) -> list[tuple[str, str]]:
    version = found.version
    states = ", ".join(f"{count} {state}" for state, count in found.states.items() if count) or "none"
    searchable = "all; each process brings its own store up to date before a query"
    if found.searchable is not None:
        searchable = f"{found.searchable} images"
    if found.lag:
        searchable += f", {found.lag} changes behind"
    return [
        (
            "checkpoint",
            f"{version.checkpoint} ({version.dim}-d, {version.fingerprint})" if version else "nothing indexed yet",
        ),
        ("products", states),
        ("indexed", f"{found.indexed} images"),
        ("searchable", searchable),
        ("waiting", _waiting(found)),
        ("worker", _worker(found)),
    ]


def _waiting(found: IndexStatus) -> str:
    if found.oldest_mark_seconds is None:
        return "nothing"
    changes = f"{found.marks} change{'s' * (found.marks != 1)}"
    return f"{changes}, the oldest for {format_duration(found.oldest_mark_seconds)}; {found.in_work} in work"


def _worker(found: IndexStatus) -> str:
    tasks = "" if found.waiting_tasks is None else f"; {found.waiting_tasks} tasks in the queue"
    if found.swept_seconds is None:
        return f"not seen yet (it sweeps within a minute of its start): start `{worker_command()}`{tasks}"
    late = " - is it running?" if found.swept_seconds > LATE_SECONDS else ""
    return f"swept {format_duration(found.swept_seconds)} ago{late}{tasks}"
