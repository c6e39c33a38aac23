"""Read changed images, decode them in threads and embed them in batches, for the drain's plans."""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from visual_search.components import embed_gallery
from visual_search.conf import get_settings
from visual_search.exceptions import ConfigurationError, ImageUnavailable, ImageUnreadable, Unavailable
from visual_search.index.finish import DrainReport
from visual_search.index.plans import ImageJob, Plan, make_tombstone, refresh_row
from visual_search.index.reading import ReadingThreads
from visual_search.models import IndexVersion
from visual_search.vision.images import content_digest, open_product_image

if TYPE_CHECKING:
    from PIL.Image import Image

    ReadImage = tuple[Image | None, str]
    Reading = tuple[ImageJob, Future[ReadImage]]

    from visual_search.vision.encoder import TransformersEncoder

logger = logging.getLogger(__name__)

FINISH_SLICE = 64  # products without an image to read that are committed at once
DECODE_THREADS = min(4, os.cpu_count() or 1)
PRODUCT_IMAGE_PIXELS = 100_000_000  # the shop's own files; 4 threads hold at most 5 GB


class StorageHangs(ImageUnavailable):
    """The storage did not give a file in time."""


def embed_plans(
    plans: list[Plan],
    version: IndexVersion,
    encoder: TransformersEncoder,
    report: DrainReport,
    *,
    before_batch: Callable[[], None],
) -> Iterator[list[Plan]]:
    """Read changed images, embed those whose bytes changed, and yield plans as they are completed."""
    jobs = [job for plan in plans for job in plan.jobs]
    without_jobs = [plan for plan in plans if not plan.jobs]
    for start in range(0, len(without_jobs), FINISH_SLICE):
        yield without_jobs[start : start + FINISH_SLICE]
    if not jobs:
        return
    target_px = encoder.input_size_px * 2
    threads: ReadingThreads[ReadImage]
    with ReadingThreads(DECODE_THREADS) as threads:
        for batch in _read_ahead(threads, jobs, size=get_settings().BATCH_SIZE, target_px=target_px):
            before_batch()
            _embed_batch(batch, threads, version, encoder, report)
            done = [job.plan for job, _ in batch if job is job.plan.jobs[-1]]
            if done:
                yield done


def _read_ahead(
    threads: ReadingThreads[ReadImage], jobs: list[ImageJob], *, size: int, target_px: int
) -> Iterator[list[Reading]]:
    """Yield batches of images being read; the next batch is read while the caller processes this one."""
    previous: list[Reading] = []
    for start in range(0, len(jobs), size):
        batch = [
            (job, threads.submit(partial(read_image, job, target_px=target_px))) for job in jobs[start : start + size]
        ]
        if previous:
            yield previous
        previous = batch
    yield previous


def read_image(job: ImageJob, *, target_px: int) -> ReadImage:
    """Return the decoded image and the digest of its bytes. The image is None if the bytes are already embedded.

    Raises ImageUnreadable with a reason for the shop's staff, ImageUnavailable if the storage failed.
    """
    try:
        data = job.image.read()
    except FileNotFoundError as error:
        raise ImageUnavailable("the file is missing from the storage") from error
    except Exception as error:  # each storage raises errors of its own client
        raise ImageUnavailable(f"the storage failed: {type(error).__name__}: {error}") from error
    job.is_read = True
    digest = content_digest(data)
    if job.row.vector and job.row.digest == digest and not job.is_forced:
        return None, digest
    return open_product_image(io.BytesIO(data), max_pixels=PRODUCT_IMAGE_PIXELS, target_px=target_px), digest


def _result_of(job: ImageJob, reading: Future[ReadImage], deadline: float) -> ReadImage:
    """Return the image, waiting for its file until the deadline. Raises what `read_image` raises."""
    try:
        return reading.result(timeout=max(0.0, deadline - time.monotonic()))
    except TimeoutError as error:
        if job.is_read:  # decoding takes a time of its own, which the limit of pixels bounds
            return reading.result()
        seconds = get_settings().READ_SECONDS
        raise StorageHangs(f"the storage did not answer within {seconds:g} s") from error


def _embed_batch(
    batch: list[Reading],
    threads: ReadingThreads[ReadImage],
    version: IndexVersion,
    encoder: TransformersEncoder,
    report: DrainReport,
) -> None:
    ready: list[tuple[ImageJob, Image, str]] = []
    deadline = time.monotonic() + get_settings().READ_SECONDS
    hanging = 0
    for job, reading in batch:
        try:
            image, digest = _result_of(job, reading, deadline)
        except ImageUnreadable as error:
            if isinstance(error, StorageHangs):
                hanging += 1
                threads.add_thread()
            _record_failure(job, str(error), is_transient=isinstance(error, ImageUnavailable))
            continue
        except Exception as error:  # one image's error must not stop the others
            logger.exception("Image %s of product %s could not be read", job.image.name, job.plan.result.key)
            _record_failure(job, f"{type(error).__name__}: {error}", is_transient=False)
            continue
        if image is None:
            _record_success(job, None, digest)
        else:
            ready.append((job, image, digest))
    if hanging == len(batch) > 1:  # no product is to blame; its attempt is given back
        raise Unavailable("The storage of the product images does not answer.", code="storage_unavailable")
    vectors = _embed_or_isolate(version, encoder, [image for _, image, _ in ready])
    if len(ready) > 1 and all(isinstance(vector, Exception) for vector in vectors):
        raise Unavailable(f"The encoder fails on every image: {vectors[0]}", code="encoder_failed")
    for (job, _, digest), vector in zip(ready, vectors, strict=True):
        if isinstance(vector, Exception):
            reason = f"the encoder failed: {type(vector).__name__}: {vector}"
            _record_failure(job, reason, is_transient=True)
        else:
            _record_success(job, vector, digest)
            report.embedded += 1


def _embed_or_isolate(version: IndexVersion, encoder: TransformersEncoder, images: list[Image]) -> list[Any]:
    """Return a float16 vector or an exception per image. If the batch fails, try each image alone."""
    if not images:
        return []
    try:
        return [vector_to_bytes(vector) for vector in embed_gallery(version, encoder, images)]
    except ConfigurationError:
        raise
    except Exception as error:
        logger.exception("A batch of %d images could not be embedded", len(images))
        if len(images) == 1:
            return [error]
        return [result for image in images for result in _embed_or_isolate(version, encoder, [image])]


def vector_to_bytes(vector: Any) -> bytes:
    """Return a vector's bytes as the Embedding table stores them: float16, little-endian."""
    return bytes(vector.astype("<f2").tobytes())


def _record_success(job: ImageJob, vector: bytes | None, digest: str) -> None:
    job.row.digest = digest
    if vector is not None:
        job.row.vector = vector
    job.plan.usable_images += 1
    job.plan.result.rows.append(refresh_row(job.row, job.image, job.plan.payload))


def _record_failure(job: ImageJob, reason: str, *, is_transient: bool) -> None:
    result = job.plan.result
    result.errors.append(f"{job.image.name}: {reason}")
    result.is_transient |= is_transient
    if not job.row.vector:
        return
    if job.row.image_identity == job.image.identity:
        # The image is unchanged but can't be read again now: keep its vector. An empty digest has it read next time.
        job.row.digest = ""
        job.plan.usable_images += 1
        result.rows.append(refresh_row(job.row, job.image, job.plan.payload))
    else:
        result.rows.append(make_tombstone(job.row))  # the vector belongs to an image that the product no longer has
