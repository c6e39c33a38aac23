"""System checks of the index itself: does anybody work on it, and do settings, catalogue and database suit it?

They ask the database, so they run with `check --database default` and before migrations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from django.core.checks import CheckMessage, Error, Warning
from django.db import DatabaseError, connections
from django.utils.module_loading import import_string

from visual_search import conf
from visual_search.catalog import Catalog, get_catalog
from visual_search.exceptions import ConfigurationError
from visual_search.index import queue, status, versions
from visual_search.models import Embedding, IndexEntry

# fmt: skip
# Every searching process holds them all: at 50,000 about 170 MB of memory and 5 s to fill it (docs/stores.md).
EMBEDDED_IMAGES_MAX = 50_000


def check_index(app_configs: Any = None, databases: Iterable[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """The index itself: does anybody work on it? Runs with `check --database default` and before migrations."""
    try:
        catalog = get_catalog()
    except ConfigurationError:
        return []
    if databases is None or catalog.database not in databases:
        return []
    found = [*_unsuited_database(catalog.database), *_sqlite_options(catalog.database)]
    with contextlib.suppress(DatabaseError):  # not migrated yet
        found += [
            *_waiting_marks(),
            *_changed_filters(catalog),
            *_foreign_keys(catalog),
            *_large_embedded_store(catalog),
            *_other_version(),
        ]
    return found


def _unsuited_database(database: str) -> Iterator[CheckMessage]:
    connection = connections[database]
    if not connection.features.supports_update_conflicts_with_target:
        yield Error(
            f"The index can't be written to {connection.vendor}.",
            hint="Use PostgreSQL or SQLite.",
            id="visual_search.E034",
        )


def _foreign_keys(catalog: Catalog) -> Iterator[CheckMessage]:
    newest = IndexEntry.objects.using(catalog.database).exclude(state=IndexEntry.State.REMOVED).order_by("-pk").first()
    if newest is not None and not catalog.valid_keys([newest.key]):
        yield Error(
            f"The index holds the key {newest.key!r}, which {catalog.model.__name__} can't have.",
            hint="The catalogue's model is another than the index was made for: `manage.py reset_index`.",
            id="visual_search.E035",
        )


def _other_version() -> Iterator[CheckMessage]:
    """After a switch: harmless, but a new index would be made as the settings say."""
    active = versions.find_active()
    if active is None or versions.why_outdated(active):
        return  # nothing yet, or told as the index's problem
    for key, value in (
        ("CHECKPOINT", active.checkpoint),
        ("GALLERY_PREPARATION", active.preparation.partition("/")[0]),
    ):
        if (named := getattr(conf.get_settings(), key)) != value:
            yield Warning(
                f'VISUAL_SEARCH["{key}"] is {named!r}; version {active.pk}, which is active, is made with {value!r}.',
                hint=f"Set it to {value!r}, so that a new index would be made alike; or `manage.py rollback_version`.",
                id="visual_search.W037",
            )


def _sqlite_options(database: str) -> Iterator[CheckMessage]:
    connection = connections[database]
    options = connection.settings_dict.get("OPTIONS", {})
    if connection.vendor == "sqlite" and str(options.get("transaction_mode", "")).upper() != "IMMEDIATE":
        yield Warning(
            "SQLite is shared by web and worker without IMMEDIATE transactions: one will fail as locked.",
            hint='OPTIONS: "transaction_mode": "IMMEDIATE", "timeout": 20, "init_command": "PRAGMA journal_mode=WAL;"',
            id="visual_search.W030",
        )


def _waiting_marks() -> Iterator[CheckMessage]:
    now = status.read_status()
    limit = conf.get_settings().MARK_AGE_SECONDS
    if now.problem:
        yield Warning(now.problem, id="visual_search.W031")
    if now.oldest_mark_seconds is not None and now.oldest_mark_seconds > limit and not now.in_work:
        yield Warning(
            f"{now.marks} changes wait to be indexed, the oldest for {status.duration(now.oldest_mark_seconds)}.",
            hint=f"Is the worker running? `{queue.worker_command()}`",
            id="visual_search.W032",
        )


def _changed_filters(catalog: Catalog) -> Iterator[CheckMessage]:
    newest = Embedding.objects.using(catalog.database).filter(vector__isnull=False).order_by("-written_at").first()
    if newest is not None and set(newest.payload) != set(catalog.filters):
        yield Warning(
            f"The catalogue declares the filters {sorted(catalog.filters)}, the index holds {sorted(newest.payload)}.",
            hint="The sweep corrects this bit by bit; `manage.py reindex_products --payload` does it now.",
            id="visual_search.W033",
        )


def _large_embedded_store(catalog: Catalog) -> Iterator[CheckMessage]:
    try:
        if import_string(conf.get_settings().STORE["BACKEND"]).is_shared:
            return
    except (ImportError, AttributeError, KeyError, TypeError):  # check_settings says so
        return
    version = versions.find_active()
    rows = Embedding.objects.using(catalog.database).filter(version=version)
    # First in the index alone, tombstones among them: a small shop pays nothing for this check.
    if version is None or not rows.order_by("seq").values("seq")[EMBEDDED_IMAGES_MAX:].exists():
        return
    if (images := rows.filter(vector__isnull=False).count()) > EMBEDDED_IMAGES_MAX:
        yield Warning(
            f"{images:,} images are searched by a store inside each process, which is meant for up to "
            f"{EMBEDDED_IMAGES_MAX:,}: each process holds all of them and fills itself when it starts.",
            hint='Run a Qdrant server and set STORE to {"BACKEND": "visual_search.stores.qdrant.QdrantStore", '
            '"OPTIONS": {"url": "http://…:6333"}}; the worker fills it without embedding anything again.',
            id="visual_search.W036",
        )
