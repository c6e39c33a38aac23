"""The drain: index dirty products.

claim → read through the catalogue → plan what changed → decode in threads while the encoder embeds the
previous batch → finish. If a product can't be indexed, its entry holds the reason; the others continue.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from django.db import OperationalError

from visual_search.catalog import get_catalog
from visual_search.components import encoder_for, release_other_versions
from visual_search.conf import get_settings
from visual_search.exceptions import (
    ConfigurationError,
    Unavailable,
    VersionSuperseded,
)
from visual_search.index import claims, feed, versions
from visual_search.index.claims import Claim
from visual_search.index.embedding import embed_plans
from visual_search.index.expansion import expand_related_marks, related_labels
from visual_search.index.finish import DrainReport, Result, finish, finish_unchanged
from visual_search.index.plans import final_result, make_plans

if TYPE_CHECKING:
    from visual_search.vision.encoder import TransformersEncoder

logger = logging.getLogger(__name__)

FEED_SECONDS = 20.0  # of a shared store, after each claim; the next task continues
EXPAND_SECONDS = 1.0  # of each turn: directly saved products must not wait for a whole category
BULK_CLAIM = 256  # products in one claim while nothing has to be embedded
FINISH_SLICE = 128  # unchanged products finished in one transaction
CLAIM_BATCHES = 2  # a claim holds this many batches of products: while one is embedded, the next is decoded


def drain(*, seconds: float | None = None, progress: Callable[[Result], object] | None = None) -> DrainReport:
    """Index dirty products until none is left or the time is up.

    seconds: defaults to DRAIN_SECONDS. progress: called with each product's result after its commit.
    Raises CheckpointMissing, IndexOutdated or another ConfigurationError; marks of unfinished products stay.
    """
    database = get_catalog().database
    deadline = time.monotonic() + (get_settings().DRAIN_SECONDS if seconds is None else seconds)
    report = DrainReport()
    is_behind: bool | None = None  # the shared store, as far as known
    feed_seconds = FEED_SECONDS if math.isfinite(deadline) else math.inf
    limit = claim_size()
    while claims.has_work(database):
        expand_related_marks(database, seconds=EXPAND_SECONDS)
        version = versions.ensure_active()  # read for each claim: a switch may happen during the drain
        release_other_versions(version)
        encoder = encoder_for(version)
        # What a version has still to catch up with after a switch has no marks.
        claim = claims.claim(version, limit=limit) or claims.claim_pending(version, limit=claim_size())
        if claim is None:
            if related_labels(database) and time.monotonic() < deadline:
                continue
            break  # other workers have the rest
        embedded = report.embedded
        try:
            for result in index_claim(claim, encoder, report=report, database=database, deadline=deadline):
                report.add(result)
                if progress is not None:
                    progress(result)
        except VersionSuperseded as superseded:
            logger.info("%s", superseded)
            continue
        limit = min(4 * limit, BULK_CLAIM) if report.embedded == embedded else claim_size()
        is_behind = feed.feed_shared_store(version, seconds=feed_seconds)
        if time.monotonic() >= deadline:
            report.is_unfinished = claims.has_work(database)
            break
    if is_behind is None and (active := versions.find_active()) is not None:
        is_behind = feed.feed_shared_store(active, seconds=feed_seconds)
    report.is_unfinished |= bool(is_behind)
    return report


def claim_size() -> int:
    """Return how many products one claim takes."""
    return get_settings().BATCH_SIZE * CLAIM_BATCHES


def index_claim(
    claim: Claim, encoder: TransformersEncoder, *, report: DrainReport, database: str, deadline: float = math.inf
) -> Iterator[Result]:
    """Index the claimed products and yield each result after its commit. Past the deadline, release the rest."""
    try:
        plans = list(make_plans(claim, database=database))
        yield from _finish_unchanged(claim, [plan.result for plan in plans if plan.is_unchanged], database)
        to_embed = [plan for plan in plans if plan.jobs]
        if later := to_embed[claim_size() :]:  # of a large claim: other workers can embed them meanwhile
            claims.release(claim, database, keys=[plan.result.key for plan in later])
        plans = [plan for plan in plans if not (plan.jobs or plan.is_unchanged)] + to_embed[: claim_size()]
        keep_lease = partial(claims.renew, claim, database)
        for ready in embed_plans(plans, claim.version, encoder, report, before_batch=keep_lease):
            yield from finish(claim, [final_result(plan) for plan in ready], database=database)
            if time.monotonic() >= deadline:
                claims.release(claim, database)
                return
    except (ConfigurationError, Unavailable, OperationalError):  # OperationalError: a locked or lost database
        with suppress(OperationalError):  # the lease then expires
            claims.release(claim, database)
        raise
    except Exception as error:
        claims.abandon(claim, database, error=f"{type(error).__name__}: {error}")
        raise


def _finish_unchanged(claim: Claim, results: list[Result], database: str) -> Iterator[Result]:
    for start in range(0, len(results), FINISH_SLICE):
        done, left = finish_unchanged(claim, results[start : start + FINISH_SLICE], database=database)
        yield from done
        if left:
            yield from finish(claim, left, database=database)
