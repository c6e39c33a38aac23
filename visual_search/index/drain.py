"""The drain: dirty products in, embeddings out.

claim → read through the catalogue → plan what changed → decode in threads while the encoder embeds the
batch before → finish. A product that can't be indexed says why in its entry; the others go on.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import OperationalError
from django.db.models.functions import Now

from visual_search.catalog import Catalog, CatalogImage, get_catalog
from visual_search.components import embed_gallery, encoder_for, keep_only
from visual_search.conf import get_settings
from visual_search.exceptions import (
    ConfigurationError,
    ImageUnavailable,
    ImageUnreadable,
    Unavailable,
    VersionSuperseded,
)
from visual_search.index import claims, feed, versions
from visual_search.index.claims import Claim, ClaimedProduct, Result
from visual_search.models import Embedding, IndexEntry, IndexMark, IndexVersion, point_id
from visual_search.vision.images import content_digest, open_product_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from visual_search.stores.base import PayloadValue
    from visual_search.vision.encoder import TransformersEncoder

logger = logging.getLogger(__name__)

DECODE_THREADS = min(4, os.cpu_count() or 1)
CLAIM_BATCHES = 2  # batches' worth of products in one claim: while one is embedded the next is decoded
State = IndexEntry.State


@dataclass(slots=True)
class DrainReport:
    """What one drain did. embedded: images; is_unfinished: dirty products are left that could be worked on."""

    indexed: int = 0
    partial: int = 0
    failed: int = 0
    removed: int = 0
    embedded: int = 0
    is_unfinished: bool = False

    def add(self, result: Result) -> None:
        setattr(self, result.state, getattr(self, result.state) + 1)

    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("indexed", "partial", "failed", "removed", "embedded")}


@dataclass(slots=True)
class ImageJob:
    """An image that must be read, and perhaps embedded, for a plan."""

    plan: Plan
    image: CatalogImage
    row: Embedding
    is_forced: bool


@dataclass(slots=True)
class Plan:
    """What must be done for one product, and what came of it so far."""

    result: Result
    payload: dict[str, PayloadValue] = field(default_factory=dict)
    good_images: int = 0
    jobs: list[ImageJob] = field(default_factory=list)


def drain(*, seconds: float | None = None, progress: Callable[[Result], object] | None = None) -> DrainReport:
    """Index dirty products until none is left or the time is over.

    seconds: DRAIN_SECONDS if None. progress: called with each product's result after its commit.
    Raises CheckpointMissing, IndexOutdated or another ConfigurationError before anything is lost.
    """
    database = get_catalog().database
    deadline = time.monotonic() + (get_settings().DRAIN_SECONDS if seconds is None else seconds)
    report = DrainReport()
    claims.expand_related_marks(database)
    if not IndexMark.objects.using(database).exists():
        return report
    while True:
        version = versions.ensure_active()  # each time: it may be switched while we work
        keep_only(version)
        encoder = encoder_for(version)
        claim = claims.claim(version, limit=claim_size())
        if claim is None:
            break
        try:
            for result in index_claim(claim, encoder, report=report, database=database, deadline=deadline):
                report.add(result)
                if progress is not None:
                    progress(result)
        except VersionSuperseded as superseded:
            logger.info("%s", superseded)
            continue
        feed.feed_shared_store(version)
        if time.monotonic() >= deadline:
            report.is_unfinished = IndexMark.objects.using(database).exists()
            break
        claims.expand_related_marks(database)
    return report


def claim_size() -> int:
    """Return how many products are claimed at once."""
    return get_settings().BATCH_SIZE * CLAIM_BATCHES


def index_claim(
    claim: Claim, encoder: TransformersEncoder, *, report: DrainReport, database: str, deadline: float = math.inf
) -> Iterator[Result]:
    """Index the claimed products and yield each result after its commit; past the deadline, give the rest back."""
    try:
        plans = list(make_plans(claim, database=database))
        keep_lease = partial(claims.renew, claim, database)
        for ready in embed_plans(plans, claim.version, encoder, report, before_batch=keep_lease):
            yield from claims.finish(claim, [conclude(plan) for plan in ready], database=database)
            if time.monotonic() >= deadline:
                claims.release(claim, database)
                return
    except (ConfigurationError, Unavailable, OperationalError):  # the last one: a locked or lost database
        with suppress(OperationalError):  # then the lease ends by itself
            claims.release(claim, database)
        raise
    except Exception as error:
        claims.abandon(claim, database, error=f"{type(error).__name__}: {error}")
        raise


# What has to be done


def make_plans(claim: Claim, *, database: str) -> Iterator[Plan]:
    """Compare the claimed products with their stored embeddings; one plan a product."""
    catalog = get_catalog()
    keys = list(claim.products)
    known = catalog.queryset().using(database).filter(pk__in=catalog.valid_keys(keys))
    products = {str(product.pk): product for product in known}
    stored: dict[str, list[Embedding]] = {}
    for row in Embedding.objects.using(database).filter(version=claim.version, product_key__in=keys):
        stored.setdefault(row.product_key, []).append(row)
    for claimed in claim.products.values():
        product, rows = products.get(claimed.key), stored.get(claimed.key, [])
        if product is None:
            yield Plan(Result(claimed.key, State.REMOVED, rows=[_tombstone(row) for row in rows if row.vector]))
            continue
        try:
            yield make_plan(catalog, product, claimed, claim.version, rows)
        except Exception as error:  # the shop's own code: one product's trouble must not stop the others
            logger.exception("Product %s can't be read through the catalogue", claimed.key)
            reason = f"{type(error).__name__}: {error}"
            yield Plan(Result(claimed.key, State.FAILED, UNREADABLE, errors=[reason], is_transient=True))


def make_plan(
    catalog: Catalog, product: Any, claimed: ClaimedProduct, version: IndexVersion, rows: list[Embedding]
) -> Plan:
    """Return what changed of one product: rows to rewrite or bury, images to read."""
    payload, images = catalog.payload(product), catalog.images_of(product)
    plan = Plan(Result(claimed.key, State.INDEXED, digest_of(payload, images)), payload)
    by_image = {row.image_key: row for row in rows}
    for image in images:
        row = by_image.pop(image.key, None)
        is_same = row is not None and row.vector is not None and row.image_identity == image.identity
        is_fresh = is_same and row is not None and row.digest
        if row is None or not is_fresh or claimed.is_forced:
            row = row or Embedding(id=point_id(version.pk, claimed.key, image.key), version=version)
            row.product_key, row.image_key = claimed.key, image.key
            plan.jobs.append(ImageJob(plan, image, row, claimed.is_forced))
        else:
            plan.good_images += 1
            if row.payload != payload or row.is_main != image.is_main:
                plan.result.rows.append(_rewritten(row, image, payload))
    plan.result.rows += [_tombstone(row) for row in by_image.values() if row.vector]
    if not images:
        plan.result.errors, plan.result.may_retry = ["The product has no image."], False
    return plan


def digest_of(payload: dict[str, PayloadValue], images: Iterable[CatalogImage]) -> str:
    """Return what tells whether the index must hear of a product: its payload and its images' identities."""
    content = [payload, [(image.key, image.identity, image.is_main) for image in images]]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _rewritten(row: Embedding, image: CatalogImage, payload: dict[str, PayloadValue]) -> Embedding:
    row.image_identity, row.is_main, row.payload, row.written_at = image.identity, image.is_main, payload, Now()
    return row


def _tombstone(row: Embedding) -> Embedding:
    row.vector, row.written_at = None, Now()
    return row


def conclude(plan: Plan) -> Result:
    """Return the plan's result, its state said."""
    result = plan.result
    if result.errors and result.state == State.INDEXED:
        result.state = State.PARTIAL if plan.good_images else State.FAILED
    return result


# Reading and embedding


def embed_plans(
    plans: list[Plan],
    version: IndexVersion,
    encoder: TransformersEncoder,
    report: DrainReport,
    *,
    before_batch: Callable[[], None],
) -> Iterator[list[Plan]]:
    """Read the images that changed, embed those whose bytes did, and yield the plans as they are complete."""
    jobs = [job for plan in plans for job in plan.jobs]
    if at_once := [plan for plan in plans if not plan.jobs]:
        yield at_once
    if not jobs:
        return
    target_px = encoder.input_size_px * 2
    with ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="visual_search-decode") as pool:
        for batch in _read_ahead(pool, jobs, size=get_settings().BATCH_SIZE, target_px=target_px):
            before_batch()
            _embed_batch(batch, version, encoder, report)
            done = [job.plan for job, _ in batch if job is job.plan.jobs[-1]]
            if done:
                yield done


def _read_ahead(
    pool: ThreadPoolExecutor, jobs: list[ImageJob], *, size: int, target_px: int
) -> Iterator[list[tuple[ImageJob, Future[tuple[Image | None, str]]]]]:
    """Yield batches of images being read; the next batch is read while the caller works on this one."""
    ahead: list[tuple[ImageJob, Future[tuple[Image | None, str]]]] = []
    for start in range(0, len(jobs), size):
        batch = [(job, pool.submit(read_image, job, target_px=target_px)) for job in jobs[start : start + size]]
        if ahead:
            yield ahead
        ahead = batch
    yield ahead


def read_image(job: ImageJob, *, target_px: int) -> tuple[Image | None, str]:
    """Return the decoded image and the digest of its bytes; no image where the bytes are the embedded ones.

    Raises ImageUnreadable with a reason for the shop's staff, ImageUnavailable if the storage failed.
    """
    try:
        data = job.image.read()
    except FileNotFoundError as error:
        raise ImageUnavailable("the file is missing from the storage") from error
    except Exception as error:  # each storage raises errors of its own client
        raise ImageUnavailable(f"the storage failed: {type(error).__name__}: {error}") from error
    digest = content_digest(data)
    if job.row.vector and job.row.digest == digest and not job.is_forced:
        return None, digest
    return open_product_image(io.BytesIO(data), max_pixels=PRODUCT_IMAGE_PIXELS, target_px=target_px), digest


PRODUCT_IMAGE_PIXELS = 100_000_000  # the shop's own files: 4 threads hold 5 GB at the worst
UNREADABLE = "unreadable"  # the content digest while the catalogue raises: the sweep sees when it no longer does


def _embed_batch(
    batch: list[tuple[ImageJob, Future[tuple[Image | None, str]]]],
    version: IndexVersion,
    encoder: TransformersEncoder,
    report: DrainReport,
) -> None:
    ready: list[tuple[ImageJob, Image, str]] = []
    for job, reading in batch:
        try:
            image, digest = reading.result()
        except ImageUnreadable as error:
            _give_up_image(job, str(error), is_transient=isinstance(error, ImageUnavailable))
            continue
        except Exception as error:  # one image's trouble must not stop the others
            logger.exception("Image %s of product %s could not be read", job.image.name, job.plan.result.key)
            _give_up_image(job, f"{type(error).__name__}: {error}", is_transient=False)
            continue
        if image is None:
            _accept(job, None, digest)
        else:
            ready.append((job, image, digest))
    vectors = _embed_or_isolate(version, encoder, [image for _, image, _ in ready])
    if len(ready) > 1 and all(isinstance(vector, Exception) for vector in vectors):
        raise Unavailable(f"The encoder fails on every image: {vectors[0]}", code="encoder_failed")
    for (job, _, digest), vector in zip(ready, vectors, strict=True):
        if isinstance(vector, Exception):
            reason = f"the encoder failed: {type(vector).__name__}: {vector}"
            _give_up_image(job, reason, is_transient=True)
        else:
            _accept(job, vector, digest)
            report.embedded += 1


def _embed_or_isolate(version: IndexVersion, encoder: TransformersEncoder, images: list[Image]) -> list[Any]:
    """Return a float16 vector or an exception per image; a batch that fails is tried image by image."""
    if not images:
        return []
    try:
        return [as_bytes(vector) for vector in embed_gallery(version, encoder, images)]
    except ConfigurationError:
        raise
    except Exception as error:
        logger.exception("A batch of %d images could not be embedded", len(images))
        if len(images) == 1:
            return [error]
        return [result for image in images for result in _embed_or_isolate(version, encoder, [image])]


def as_bytes(vector: Any) -> bytes:
    """Return a vector as the Embedding table holds it: float16, little-endian."""
    return bytes(vector.astype("<f2").tobytes())


def _accept(job: ImageJob, vector: bytes | None, digest: str) -> None:
    job.row.digest = digest
    if vector is not None:
        job.row.vector = vector
    job.plan.good_images += 1
    job.plan.result.rows.append(_rewritten(job.row, job.image, job.plan.payload))


def _give_up_image(job: ImageJob, reason: str, *, is_transient: bool) -> None:
    result = job.plan.result
    result.errors.append(f"{job.image.name}: {reason}")
    result.is_transient |= is_transient
    if not job.row.vector:
        return
    if job.row.image_identity == job.image.identity:
        # It was to be read again and can't be now: the vector still stands for it. No digest: read it next time.
        job.row.digest = ""
        job.plan.good_images += 1
        result.rows.append(_rewritten(job.row, job.image, job.plan.payload))
    else:
        result.rows.append(_tombstone(job.row))  # the picture that it stands for is gone from the product
