"""Look up index versions and create the first one. building.py builds and switches the others."""

from __future__ import annotations

import logging
import uuid

from django.db import IntegrityError, transaction
from django.db.models import QuerySet, Subquery
from django.db.models.functions import Now

from visual_search.catalog import get_catalog
from visual_search.components import close_stores, gallery_preparation, get_encoder, store_for
from visual_search.conf import get_settings
from visual_search.exceptions import ConfigurationError, IndexEmpty, IndexOutdated, Unavailable
from visual_search.models import (
    Embedding,
    FeedState,
    IndexEntry,
    IndexMark,
    IndexVersion,
    QueueState,
    get_singleton,
    index_fingerprint,
)
from visual_search.stores.base import as_shared

logger = logging.getLogger(__name__)


def all_versions() -> QuerySet[IndexVersion]:
    """Return the versions that are not being deleted, each with `feed_epoch` and `feed_seq`.

    A search needs one query to learn which version to use and whether its store is up to date.
    """
    database = get_catalog().database
    state = FeedState.objects.using(database).filter(pk=1)
    return (
        IndexVersion.objects.using(database)
        .exclude(state=IndexVersion.State.DELETING)
        .annotate(feed_epoch=Subquery(state.values("epoch")), feed_seq=Subquery(state.values("last_seq")))
    )


def find_active() -> IndexVersion | None:
    """Return the active version, or None before the first drain."""
    return all_versions().filter(state=IndexVersion.State.ACTIVE).first()


def get_version(number: int) -> IndexVersion:
    """Return the version with that number, active or not. Raises ConfigurationError, which lists the existing ones."""
    known = {version.pk: version for version in all_versions()}
    if number not in known:
        existing = f"there are {', '.join(map(str, sorted(known)))}" if known else "there is none yet"
        raise ConfigurationError(f"There is no index version {number}; {existing}: see `manage.py list_versions`.")
    return known[number]


def get_active() -> IndexVersion:
    """Return the active version.

    Raises IndexEmpty before the first drain, IndexOutdated while no version has the checkpoint and preparation that
    the settings name.
    """
    version = find_active()
    if version is None:
        raise IndexEmpty("Nothing is indexed yet. Start the queue worker and run `manage.py reindex_products --all`.")
    if outdated := why_outdated(version):
        raise IndexOutdated(outdated)
    return version


def why_outdated(active: IndexVersion) -> str:
    """Return what to do if no version has the checkpoint and preparation that the settings name, otherwise "".

    The settings name those of the first version; afterwards the active row decides. It is no error if they name an
    existing version that is not active.
    """
    wanted = get_settings().CHECKPOINT, gallery_preparation()
    if wanted == (active.checkpoint, active.preparation):
        return ""
    others = all_versions().filter(checkpoint=wanted[0])
    if any(other.preparation == wanted[1] for other in others):
        return ""
    return (
        f"The index was made with {_describe(active.checkpoint, active.preparation)}; VISUAL_SEARCH names "
        f"{_describe(*wanted)}. Run `manage.py build_version` and then `manage.py switch_version`, or set CHECKPOINT "
        "and GALLERY_PREPARATION back; `manage.py reset_index` starts over."
    )


def _describe(checkpoint: str, preparation: str) -> str:
    return repr(checkpoint) if preparation == "none" else f"{checkpoint!r} with images prepared by {preparation!r}"


def ensure_active() -> IndexVersion:
    """Return the active version. Create the first one from the settings' checkpoint, which is loaded for that."""
    if find_active() is not None:
        return get_active()
    checkpoint = get_settings().CHECKPOINT
    encoder = get_encoder(checkpoint)
    database = get_catalog().database
    try:
        with transaction.atomic(using=database):
            return IndexVersion.objects.using(database).create(
                checkpoint=checkpoint,
                fingerprint=index_fingerprint(encoder.fingerprint, gallery_preparation()),
                dim=encoder.dim,
                state=IndexVersion.State.ACTIVE,
                activated_at=Now(),
            )
    except IntegrityError:  # another worker created it first
        return get_active()


def reset_feed() -> None:
    """Start a new epoch: every store is emptied and fed from the table again, without the encoder."""
    database = get_catalog().database
    get_singleton(FeedState, database)
    FeedState.objects.using(database).filter(pk=1).update(epoch=uuid.uuid4())


def reset_index() -> None:
    """Delete the whole index: the tables, and the collections of a shared store."""
    database = get_catalog().database
    for version in IndexVersion.objects.using(database):
        if store := as_shared(store_for(version)):
            try:
                store.drop()
            except Unavailable as error:  # its collection remains, under a name that is never used again
                logger.warning("The store could not be dropped: %s", error)
    with transaction.atomic(using=database):
        for model in (IndexMark, Embedding, IndexEntry, IndexVersion, FeedState):
            model.objects.using(database).all().delete()
        # The key of products may have another type at the next sweep.
        QueueState.objects.using(database).update(swept_product="", swept_entry=0)
        get_singleton(FeedState, database)  # a new epoch
    close_stores()
