"""Index versions without downtime: build one beside the active one, switch to it, roll back, prune.

While a version is not active, each drain says which of its products fell behind (claims.finish sets their entries to
pending). `build` works those off; `switch` does so once more and then moves the active row, under the lock that
finishing drains take too, so that no change falls between the two.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
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
from visual_search.index.marks import mark_keys
from visual_search.index.relations import in_slices
from visual_search.index.versions import find_active
from visual_search.models import Embedding, FeedState, IndexEntry, IndexVersion, first_row, index_fingerprint
from visual_search.stores.base import as_shared
from visual_search.vision.preparation import preparation_id

if TYPE_CHECKING:
    from django.db.models import QuerySet

logger = logging.getLogger(__name__)

POLL_SECONDS = 1  # between looks at products that another process has claimed
WAIT_SECONDS = 60  # for another process that feeds the same store
ROWS_PER_DELETE = 1000
State = IndexVersion.State
Progress = Callable[[Result], object]


def start_build(*, checkpoint: str | None = None, preparation: str | None = None) -> IndexVersion:
    """Return the version to build, new or begun before, with an entry for each product.

    checkpoint: hub name or folder; the setting's if None. preparation: a strategy for product images; the setting's
    if None. Raises IndexEmpty before the first version, ConfigurationError if it is the active one already.
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
        raise ConfigurationError(f"Version {active.pk}, which is active, is made with {name!r} in just this way.")
    with transaction.atomic(using=database):
        first_row(FeedState, database)
        FeedState.objects.using(database).select_for_update().get(pk=1)  # two builds at once make one version
        known = IndexVersion.objects.using(database).filter(checkpoint=name, fingerprint=fingerprint).first()
        version = known or IndexVersion.objects.using(database).create(
            checkpoint=name, fingerprint=fingerprint, dim=encoder.dim, state=State.BUILDING
        )
    for keys in in_slices(get_catalog().queryset().using(database)):
        missing = [IndexEntry(version=version, key=key) for key in keys]
        IndexEntry.objects.using(database).bulk_create(missing, ignore_conflicts=True)
    return version


def build(version: IndexVersion, *, progress: Progress | None = None) -> DrainReport:
    """Embed what the version lacks, in this process, until nothing is pending. May be killed and called again.

    Several processes may build one version; what another one has claimed is waited for.
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
        elif pending(version):
            time.sleep(POLL_SECONDS)
        else:
            return report


def pending(version: IndexVersion) -> int:
    """Return how many products the version has still to catch up with."""
    entries = IndexEntry.objects.using(get_catalog().database)
    return entries.filter(version=version, state=IndexEntry.State.PENDING).count()


def switch(version: IndexVersion, *, progress: Progress | None = None) -> IndexVersion:
    """Catch the version up, make it the active one, and return the one that was.

    Searching processes take it over one by one, each when its encoder is loaded and its store filled.
    Raises ConfigurationError if it is active already or gone, StoreUnavailable if a shared store can't be fed.
    """
    database = get_catalog().database
    if version.state == State.ACTIVE:
        raise ConfigurationError(f"Version {version.pk} is active already.")
    build(version, progress=progress)
    if shared := as_shared(store_for(version)):
        feed.catch_up(version, shared, wait_seconds=WAIT_SECONDS)
    with transaction.atomic(using=database):
        first_row(FeedState, database)
        FeedState.objects.using(database).select_for_update().get(pk=1)
        rows = {row.pk: row for row in IndexVersion.objects.using(database).select_for_update().order_by("pk")}
        active = next((row for row in rows.values() if row.state == State.ACTIVE), None)
        if active is None or version.pk not in rows or active.pk == version.pk:
            raise ConfigurationError(f"Somebody else has switched meanwhile: version {active and active.pk} is active.")
        _set_state(active, State.RETIRED)
        _set_state(version, State.ACTIVE, activated_at=Now())
        # What fell behind since the build is the drain's from now on.
        late = IndexEntry.objects.using(database).filter(version=version, state=IndexEntry.State.PENDING)
        mark_keys(list(late.values_list("key", flat=True)))
    if shared:
        feed.point_alias(version, shared)
    logger.info("Index version %s (%s) is active; it was %s.", version.pk, version.checkpoint, active.pk)
    return active


def roll_back(*, progress: Progress | None = None) -> IndexVersion:
    """Switch to the version that was active before, and return it. Raises ConfigurationError if there is none."""
    retired = IndexVersion.objects.using(get_catalog().database).filter(state=State.RETIRED)
    version = retired.order_by(F("activated_at").desc(nulls_last=True), "-pk").first()
    if version is None:
        raise ConfigurationError("There is no version to go back to: `manage.py list_versions` shows all.")
    switch(version, progress=progress)
    return version


def prune(*, keep: int = 1, with_builds: bool = False) -> list[IndexVersion]:
    """Delete all but the `keep` versions that were active last, and return those deleted.

    with_builds: unfinished builds too. Never the active one, nor one that the settings name.
    """
    database = get_catalog().database
    versions = IndexVersion.objects.using(database)
    retired = versions.filter(state=State.RETIRED).order_by(F("activated_at").desc(nulls_last=True), "-pk")
    doomed = [*retired[keep:], *(versions.filter(state=State.BUILDING) if with_builds else [])]
    wanted = get_settings().CHECKPOINT, gallery_preparation()
    deleted = [version for version in doomed if (version.checkpoint, version.preparation) != wanted]
    for version in deleted:
        _delete(version, database)
    return deleted


def _delete(version: IndexVersion, database: str) -> None:
    store = store_for(version)
    try:
        store.drop()
    except Unavailable as error:
        logger.warning("The store of version %s could not be deleted: %s", version.pk, error)
    for model in (Embedding, IndexEntry):
        _delete_in_slices(model.objects.using(database).filter(version=version))
    with transaction.atomic(using=database):
        first_row(FeedState, database)
        # A drain that finishes just now makes entries of it pending: it sees that the version is gone, or we see them.
        FeedState.objects.using(database).select_for_update().get(pk=1)
        IndexVersion.objects.using(database).filter(pk=version.pk).delete()


def _delete_in_slices(rows: QuerySet[Any]) -> None:
    """Delete rows; one DELETE of a million would hold a lock for minutes."""
    while keys := list(rows.values_list("pk", flat=True)[:ROWS_PER_DELETE]):
        rows.filter(pk__in=keys).delete()


def _set_state(version: IndexVersion, state: str, **values: object) -> None:
    version.state = state
    IndexVersion.objects.using(version._state.db).filter(pk=version.pk).update(state=state, **values)
