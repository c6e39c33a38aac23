"""Change index versions without downtime: build one beside the active one, switch to it, roll back, prune.

While a version is inactive, each drain sets the entries of the products it finishes to pending in that version
(finish.finish). `build` indexes the pending products. `switch` does so once more and then changes the active version
under the lock that finishing drains also take, so no change is lost in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from visual_search.catalog import get_catalog
from visual_search.components import encoder_for, gallery_preparation, get_encoder, store_for
from visual_search.conf import get_settings
from visual_search.exceptions import ConfigurationError, IndexEmpty, Unavailable
from visual_search.index import claims, drain, feed
from visual_search.index.finish import DrainReport, Result
from visual_search.index.queue import request_drain
from visual_search.index.relations import iter_key_slices
from visual_search.index.versions import find_active
from visual_search.models import Embedding, FeedState, IndexEntry, IndexVersion, get_singleton, index_fingerprint
from visual_search.stores.base import as_shared
from visual_search.vision.preparation import preparation_id

if TYPE_CHECKING:
    from django.db.models import QuerySet

logger = logging.getLogger(__name__)

POLL_SECONDS = 1  # between checks for products that another process has claimed
WAIT_SECONDS = 60  # for another process that is feeding the same store
ROWS_PER_DELETE = 1000
State = IndexVersion.State
Progress = Callable[[Result], object]


def start_build(*, checkpoint: str | None = None, preparation: str | None = None) -> IndexVersion:
    """Return the version to build, new or already started, with an entry for each product.

    checkpoint: hub name or folder. preparation: strategy for product images. Each defaults to its setting.
    Raises IndexEmpty if there is no version yet, ConfigurationError if the active version is made in the same way.
    """
    database = get_catalog().database
    active = find_active()
    if active is None:
        raise IndexEmpty("There is no index yet. Start the queue worker and run `manage.py reindex_products --all`.")
    settings = get_settings()
    name = checkpoint or settings.CHECKPOINT
    encoder = get_encoder(name)
    prepared = gallery_preparation() if preparation is None else preparation_id(preparation, settings.BACKGROUND_MODEL)
    fingerprint = index_fingerprint(encoder.fingerprint, prepared)
    if fingerprint == active.fingerprint:
        raise ConfigurationError(f"The active version {active.pk} already uses {name!r} with the same preparation.")
    with transaction.atomic(using=database):
        get_singleton(FeedState, database)
        FeedState.objects.using(database).select_for_update().get(pk=1)  # two concurrent builds share one version
        existing = IndexVersion.objects.using(database).filter(checkpoint=name, fingerprint=fingerprint).first()
        version = existing or IndexVersion.objects.using(database).create(
            checkpoint=name, fingerprint=fingerprint, dim=encoder.dim, state=State.BUILDING
        )
    for keys in iter_key_slices(get_catalog().queryset().using(database)):
        missing = [IndexEntry(version=version, key=key) for key in keys]
        IndexEntry.objects.using(database).bulk_create(missing, ignore_conflicts=True)
    return version


def build(version: IndexVersion, *, progress: Progress | None = None) -> DrainReport:
    """Index the version's pending products in this process until none is left. A killed build can be resumed.

    Several processes may build the same version; each waits for the products that another one has claimed.
    """
    database = get_catalog().database
    encoder = encoder_for(version)
    report = DrainReport()
    while True:
        claim = claims.claim_pending(version, limit=drain.claim_size())
        if claim is not None:
            for result in drain.index_claim(claim, encoder, report=report, database=database):
                report.add(result)
                if progress is not None:
                    progress(result)
        elif count_pending(version):
            time.sleep(POLL_SECONDS)
        else:
            return report


def count_pending(version: IndexVersion) -> int:
    """Return how many products are pending in the version."""
    entries = IndexEntry.objects.using(get_catalog().database)
    return entries.filter(version=version, state=IndexEntry.State.PENDING).count()


def switch(version: IndexVersion, *, progress: Progress | None = None, catches_up: bool = True) -> IndexVersion:
    """Activate the version and return the previously active one.

    catches_up: bring it up to date first; otherwise drains index afterwards what changed while it was not active.
    Each searching process moves to it once its encoder is loaded and its store is filled.
    Raises ConfigurationError if it is already active or was deleted, StoreUnavailable if a shared store can't be fed.
    """
    database = get_catalog().database
    if version.state == State.ACTIVE:
        raise ConfigurationError(f"Version {version.pk} is active already.")
    if catches_up:
        build(version, progress=progress)
    if shared := as_shared(store_for(version)):
        feed.catch_up(version, shared, wait_seconds=WAIT_SECONDS)
    with _lock_versions(database) as rows:
        active = next((row for row in rows.values() if row.state == State.ACTIVE), None)
        if active is None or active.pk == version.pk:
            raise ConfigurationError(f"Another switch happened meanwhile: version {active and active.pk} is active.")
        if version.pk not in rows or rows[version.pk].state == State.DELETING:
            raise ConfigurationError(f"Version {version.pk} was deleted meanwhile.")
        _set_state(active, State.RETIRED)
        _set_state(version, State.ACTIVE, activated_at=Now())
        request_drain(database)  # of the entries that are still pending
    if shared:
        feed.point_alias(version, shared)
    logger.info("Index version %s (%s) is now active; it replaces %s.", version.pk, version.checkpoint, active.pk)
    return active


def roll_back(*, progress: Progress | None = None, catches_up: bool = False) -> IndexVersion:
    """Switch to the previously active version at once and return it. Raises ConfigurationError if there is none.

    catches_up: see `switch`.
    """
    retired = IndexVersion.objects.using(get_catalog().database).filter(state=State.RETIRED)
    version = retired.order_by(F("activated_at").desc(nulls_last=True), "-pk").first()
    if version is None:
        raise ConfigurationError("There is no version to roll back to. `manage.py list_versions` lists all versions.")
    switch(version, progress=progress, catches_up=catches_up)
    return version


def prune(*, keep: int = 1, with_builds: bool = False) -> list[IndexVersion]:
    """Delete retired versions, except for the `keep` most recently active ones, and return those deleted.

    with_builds: also delete unfinished builds. The active version and those that the settings name always stay.
    A version is taken out of use first, so that nobody switches to it while it is deleted. What a killed prune left is
    deleted by the next one.
    """
    database = get_catalog().database
    wanted = get_settings().CHECKPOINT, gallery_preparation()
    with _lock_versions(database):
        versions = IndexVersion.objects.using(database)
        retired = versions.filter(state=State.RETIRED).order_by(F("activated_at").desc(nulls_last=True), "-pk")
        candidates = [*retired[keep:], *(versions.filter(state=State.BUILDING) if with_builds else [])]
        for version in candidates:
            if (version.checkpoint, version.preparation) != wanted:
                _set_state(version, State.DELETING)
    deleted = list(versions.filter(state=State.DELETING).order_by("pk"))
    for version in deleted:
        _delete(version, database)
    return deleted


@contextmanager
def _lock_versions(database: str) -> Iterator[dict[int, IndexVersion]]:
    """Lock the versions in a transaction, under the lock that finishing drains take too. Gives them by key."""
    get_singleton(FeedState, database)
    with transaction.atomic(using=database):
        FeedState.objects.using(database).select_for_update().get(pk=1)
        yield {row.pk: row for row in IndexVersion.objects.using(database).select_for_update().order_by("pk")}


def _delete(version: IndexVersion, database: str) -> None:
    store = store_for(version)
    try:
        store.drop()
    except Unavailable as error:
        logger.warning("The store of version %s could not be deleted: %s", version.pk, error)
    for model in (Embedding, IndexEntry):
        _delete_in_slices(model.objects.using(database).filter(version=version))
    # A drain that finishes now may add pending entries: it sees the deletion, or this DELETE removes them.
    with _lock_versions(database):
        IndexVersion.objects.using(database).filter(pk=version.pk).delete()


def _delete_in_slices(rows: QuerySet[Any]) -> None:
    """Delete the rows in slices: a single DELETE of a million rows would hold a lock for minutes."""
    while keys := list(rows.values_list("pk", flat=True)[:ROWS_PER_DELETE]):
        rows.filter(pk__in=keys).delete()


def _set_state(version: IndexVersion, state: str, **values: object) -> None:
    version.state = state
    IndexVersion.objects.using(version._state.db).filter(pk=version.pk).update(state=state, **values)
