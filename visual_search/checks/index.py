"""System checks of the index: whether it is worked on, and whether settings, catalogue and database fit it.

They query the database, so they run with `check --database default` and before migrations.
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

# Every searching process holds all of them: 50,000 take about 170 MB of memory and 5 s to fill (docs/stores.md).
EMBEDDED_IMAGES_MAX = 50_000


def check_index(app_configs: Any = None, databases: Iterable[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check the index. Runs with `check --database default` and before migrations."""
    try:
        catalog = get_catalog()
    except ConfigurationError:
        return []
    if databases is None or catalog.database not in databases:
        return []
    found = [*_unsupported_database(catalog.database), *_sqlite_options(catalog.database)]
    with contextlib.suppress(DatabaseError):  # not migrated yet
        found += [
            *_waiting_marks(),
            *_changed_filters(catalog),
            *_invalid_keys(catalog),
            *_large_embedded_store(catalog),
            *_other_settings(),
        ]
    return found


def _unsupported_database(database: str) -> Iterator[CheckMessage]:
    connection = connections[database]
    if not connection.features.supports_update_conflicts_with_target:
        yield Error(
            f"The index can't be stored in {connection.vendor}.",
            hint="Use PostgreSQL or SQLite.",
            id="visual_search.E034",
        )


def _invalid_keys(catalog: Catalog) -> Iterator[CheckMessage]:
    newest = IndexEntry.objects.using(catalog.database).exclude(state=IndexEntry.State.REMOVED).order_by("-pk").first()
    if newest is not None and not catalog.valid_keys([newest.key]):
        yield Error(
            f"The index holds the key {newest.key!r}, which is not a valid key of {catalog.model.__name__}.",
            hint="The index was made for another model than the catalogue's. Run `manage.py reset_index`.",
            id="visual_search.E035",
        )


def _other_settings() -> Iterator[CheckMessage]:
    """Warn if the settings differ from the active version: harmless, but a new index would follow the settings."""
    active = versions.find_active()
    if active is None or versions.why_outdated(active):
        return  # no index yet, or reported as the index's problem
    for key, value in (
        ("CHECKPOINT", active.checkpoint),
        ("GALLERY_PREPARATION", active.preparation.partition("/")[0]),
    ):
        if (named := getattr(conf.get_settings(), key)) != value:
            yield Warning(
                f'VISUAL_SEARCH["{key}"] is {named!r}; the active version {active.pk} was made with {value!r}.',
                hint=f"Set it to {value!r}, so that a new index would use it too, or run `manage.py rollback_version`.",
                id="visual_search.W037",
            )


def _sqlite_options(database: str) -> Iterator[CheckMessage]:
    connection = connections[database]
    options = connection.settings_dict.get("OPTIONS", {})
    if connection.vendor == "sqlite" and str(options.get("transaction_mode", "")).upper() != "IMMEDIATE":
        yield Warning(
            'Web and worker share SQLite without IMMEDIATE transactions: some will fail with "database is locked".',
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
            f"{now.marks} changes are waiting, the oldest for {status.format_duration(now.oldest_mark_seconds)}.",
            hint=f"Check that the worker is running: `{queue.worker_command()}`",
            id="visual_search.W032",
        )


def _changed_filters(catalog: Catalog) -> Iterator[CheckMessage]:
    newest = Embedding.objects.using(catalog.database).filter(vector__isnull=False).order_by("-written_at").first()
    if newest is not None and set(newest.payload) != set(catalog.filters):
        yield Warning(
            f"The catalogue declares the filters {sorted(catalog.filters)}, the index holds {sorted(newest.payload)}.",
            hint="The sweep corrects this gradually; `manage.py reindex_products --payload` does it now.",
            id="visual_search.W033",
        )


def _large_embedded_store(catalog: Catalog) -> Iterator[CheckMessage]:
    try:
        if import_string(conf.get_settings().STORE["BACKEND"]).is_shared:
            return
    except (ImportError, AttributeError, KeyError, TypeError):  # reported by check_settings
        return
    version = versions.find_active()
    rows = Embedding.objects.using(catalog.database).filter(version=version)
    # Look in the database index first, tombstones included: for a small shop this check costs nothing.
    if version is None or not rows.order_by("seq").values("seq")[EMBEDDED_IMAGES_MAX:].exists():
        return
    if (images := rows.filter(vector__isnull=False).count()) > EMBEDDED_IMAGES_MAX:
        yield Warning(
            f"The embedded store holds {images:,} images but is meant for up to {EMBEDDED_IMAGES_MAX:,}: each process "
            "keeps all of them in memory and fills its store when it starts.",
            hint='Run a Qdrant server and set STORE to {"BACKEND": "visual_search.stores.qdrant.QdrantStore", '
            '"OPTIONS": {"url": "http://…:6333"}}; the worker fills it without embedding again.',
            id="visual_search.W036",
        )
