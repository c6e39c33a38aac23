"""Verify the index: recompute it from the shop's rows and compare the result with what is stored."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from visual_search.catalog import Catalog, CatalogImage, get_catalog
from visual_search.components import embed_gallery, encoder_for, store_for
from visual_search.exceptions import ImageUnreadable, Unavailable
from visual_search.index import feed, leases, repair
from visual_search.index.claims import leased_entries
from visual_search.index.embedding import PRODUCT_IMAGE_PIXELS
from visual_search.index.plans import product_digest
from visual_search.index.sweep import orphaned_entries
from visual_search.index.versions import get_active
from visual_search.models import Embedding, IndexEntry, IndexMark, IndexVersion, model_label
from visual_search.stores.base import VectorStore
from visual_search.vision.images import content_digest, open_product_image

SLICE = 500  # products compared at once
WAITING_MAX = 10_000  # marks that are followed through a verification
LOOKS = 4  # at what differs, while a shop is at work
LOOK_SECONDS = 1.0
COMPARE_SECONDS = 600.0  # for a whole comparison of a shared store, where one is due
DEEP_SAMPLE = 20  # images that --deep embeds again
SAME_IMAGE_COSINE = 0.999  # half precision and other batch sizes stay above it

EmbeddedImage = tuple[CatalogImage, Embedding]


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between shop, tables and store. kind: a stable identifier; detail: a text for people."""

    kind: str
    product: str
    detail: str
    image: str = ""


@dataclass(slots=True)
class Verification:
    """What was counted and the differences found. unreadable: products whose entry says partial or failed."""

    products: int = 0
    images: int = 0
    points: int = 0
    unreadable: int = 0
    differences: list[Difference] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(*, is_deep: bool = False) -> Verification:
    """Compare shop, tables and store. is_deep: also hash every image and embed a sample again.

    Products with unreadable images are counted as `unreadable` and are no difference: their entries hold the reason.
    """
    database = get_catalog().database
    version = get_active()
    report = Verification()
    marked = IndexMark.objects.using(database).order_by("pk").values_list("pk", "model_label", "key")
    waiting = list(marked[:WAITING_MAX])
    found: list[Difference] = []
    deep: list[Difference] = []
    sample = Sample(DEEP_SAMPLE)
    for product, entry, rows in _products(version, database):
        report.products += 1
        embedded: list[EmbeddedImage] = []
        found += _compare_product(get_catalog(), product, entry, rows, report, embedded)
        report.images += len(embedded)
        if is_deep:
            deep += _compare_bytes(embedded)
            sample.add(embedded)
    for _, keys in orphaned_entries(version, database):
        found += [Difference("orphaned", key, "indexed, but not in the catalogue") for key in keys]
    found += _compare_removed(version, database)
    points = dict(_compare_store(version, database, report))
    if is_deep:
        deep += _compare_vectors(version, sample.chosen)
    report.differences += _still_waiting(waiting, database)
    report.differences += _lasting(found, points, deep, version, database)
    return report


def _still_waiting(marks: list[tuple[int, str, str]], database: str) -> list[Difference]:
    """Return the marks that were there from the beginning to the end of the comparison."""
    left: set[int] = set()
    for start in range(0, len(marks), SLICE):
        keys = [pk for pk, _, _ in marks[start : start + SLICE]]
        left |= set(IndexMark.objects.using(database).filter(pk__in=keys).values_list("pk", flat=True))
    names = dict.fromkeys((label, key) for pk, label, key in marks if pk in left)
    return [Difference("waiting", key, f"{label} is marked, but not drained") for label, key in names]


def _lasting(
    found: list[Difference], points: dict[str, Difference], deep: list[Difference], version: IndexVersion, database: str
) -> Iterator[Difference]:
    """Yield the differences that stay: a shop at work changes rows while they are compared.

    Products and points that differ are compared again, until nothing is under way or LOOKS are over. A product that
    is marked or claimed is not wrong: a worker is about to index it.
    """
    changing = _in_progress(version, database)
    for look in range(LOOKS):
        before = {*found, *points.values()}
        if not before or (look and not changing):
            break
        time.sleep(LOOK_SECONDS if look else 0)
        found = list(_compare_again({one.product for one in found}, version, database))
        points = dict(_compare_points_again(points, version, database))
        changing = _in_progress(version, database)
    yield from (one for one in (*found, *points.values(), *deep) if one.product not in changing)


def _in_progress(version: IndexVersion, database: str) -> set[str]:
    """Return the products that are marked or claimed."""
    marks = IndexMark.objects.using(database).filter(model_label=model_label(get_catalog().model))
    return {*marks.values_list("key", flat=True), *leased_entries(version, database).values_list("key", flat=True)}


def _compare_again(keys: set[str], version: IndexVersion, database: str) -> Iterator[Difference]:
    catalog, ordered = get_catalog(), sorted(keys)
    for start in range(0, len(ordered), SLICE):
        batch = ordered[start : start + SLICE]
        products = list(catalog.queryset().using(database).filter(pk__in=catalog.valid_keys(batch)))
        for product, entry, rows in _with_index(products, version, database):
            yield from _compare_product(catalog, product, entry, rows, Verification(), [])
        missing = set(batch) - {str(product.pk) for product in products}
        entries = IndexEntry.objects.using(database).filter(version=version, key__in=missing)
        for key in entries.exclude(state=IndexEntry.State.REMOVED).values_list("key", flat=True):
            yield Difference("orphaned", key, "indexed, but not in the catalogue")
        yield from _compare_removed(version, database, keys=batch)


def _compare_points_again(
    points: dict[str, Difference], version: IndexVersion, database: str
) -> Iterator[tuple[str, Difference]]:
    if not points:
        return
    store, ids = store_for(version), [point for point in points if point]
    try:
        _bring_up_to_date(version, store)
        for start in range(0, len(ids), SLICE):
            batch = ids[start : start + SLICE]
            stored = {point.id: point.seq for point in store.retrieve(batch)}
            rows = Embedding.objects.using(database).filter(pk__in=batch, vector__isnull=False)
            wanted = {str(pk): seq for pk, seq in rows.values_list("pk", "seq")}
            yield from ((point, points[point]) for point in batch if stored.get(point) != wanted.get(point))
    except Unavailable as error:
        yield "", Difference("store", "", f"the store does not answer: {error}")


def _bring_up_to_date(version: IndexVersion, store: VectorStore) -> None:
    """Feed the store, and finish a comparison of a shared one that must be done (repair.py)."""
    feed.catch_up(version, store, wait_seconds=2 * leases.LEASE_SECONDS)
    deadline = time.monotonic() + COMPARE_SECONDS
    while store.is_shared and leases.get_row(version).must_compare and time.monotonic() < deadline:
        repair.repair_shared_store(version)
        time.sleep(0.1)  # another process may hold the lease


class Sample:
    """A uniform random sample of a stream. Source: Vitter 1985, algorithm R."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self.chosen: list[EmbeddedImage] = []
        self._random = random.Random()  # noqa: S311

    def add(self, items: list[EmbeddedImage]) -> None:
        for item in items:
            self.seen += 1
            if len(self.chosen) < self.size:
                self.chosen.append(item)
            elif (position := self._random.randrange(self.seen)) < self.size:
                self.chosen[position] = item


def _products(version: IndexVersion, database: str) -> Iterator[tuple[Any, IndexEntry | None, list[Embedding]]]:
    products = get_catalog().queryset().using(database).order_by("pk")
    last: Any = None
    while page := list((products if last is None else products.filter(pk__gt=last))[:SLICE]):
        last = page[-1].pk
        yield from _with_index(page, version, database)


def _with_index(
    page: list[Any], version: IndexVersion, database: str
) -> Iterator[tuple[Any, IndexEntry | None, list[Embedding]]]:
    """Yield each product with its entry and its embeddings."""
    if page:
        keys = [str(product.pk) for product in page]
        entries = {row.key: row for row in IndexEntry.objects.using(database).filter(version=version, key__in=keys)}
        rows: dict[str, list[Embedding]] = {}
        for row in Embedding.objects.using(database).filter(version=version, product_key__in=keys):
            rows.setdefault(row.product_key, []).append(row)
        for product, key in zip(page, keys, strict=True):
            yield product, entries.get(key), rows.get(key, [])


def _compare_product(
    catalog: Catalog,
    product: Any,
    entry: IndexEntry | None,
    rows: list[Embedding],
    report: Verification,
    embedded: list[EmbeddedImage],
) -> Iterator[Difference]:
    key = str(product.pk)
    if entry is None:
        yield Difference("missing", key, "in the catalogue, but never indexed")
        return
    if entry.state in (IndexEntry.State.PARTIAL, IndexEntry.State.FAILED):
        report.unreadable += 1
    elif entry.state != IndexEntry.State.INDEXED:
        yield Difference("state", key, f"the entry's state is {entry.state!r}")
    try:
        payload, images = catalog.payload(product), catalog.images_of(product)
    except Exception as error:  # the shop's code
        if entry.state != IndexEntry.State.FAILED:
            yield Difference("catalogue", key, f"can't be read through the catalogue: {error}")
        return
    if entry.content_digest != product_digest(payload, images):
        yield Difference("content", key, "payload or images changed since it was indexed")
    rows_by_image = {row.image_key: row for row in rows if row.vector is not None}
    for image in images:
        row = rows_by_image.pop(image.key, None)
        if row is None:
            if entry.state == IndexEntry.State.INDEXED:
                yield Difference("embedding_missing", key, "not embedded", image.key)
            continue
        embedded.append((image, row))
        if row.image_identity != image.identity:
            yield Difference("image", key, f"embedded {row.image_identity!r}, now {image.identity!r}", image.key)
        if row.payload != payload or row.is_main != image.is_main:
            yield Difference("payload", key, f"stored {row.payload!r}, expected {payload!r}", image.key)
    for image_key in rows_by_image:
        yield Difference("embedding_extra", key, "embedded, but the product has no such image", image_key)


def _compare_removed(version: IndexVersion, database: str, *, keys: list[str] | None = None) -> Iterator[Difference]:
    rows = Embedding.objects.using(database).filter(version=version, vector__isnull=False)
    gone = IndexEntry.objects.using(database).filter(version=version, state=IndexEntry.State.REMOVED)
    if keys is not None:
        gone = gone.filter(key__in=keys)
    for key in rows.filter(product_key__in=gone.values("key")).values_list("product_key", flat=True).distinct():
        yield Difference("embedding_extra", key, "the product was removed, but its embedding was not")


def _compare_store(version: IndexVersion, database: str, report: Verification) -> Iterator[tuple[str, Difference]]:
    """Yield the id of each point that differs, and how."""
    rows = Embedding.objects.using(database).filter(version=version, vector__isnull=False)
    wanted = {str(pk): (seq, key) for pk, seq, key in rows.values_list("id", "seq", "product_key").iterator()}
    store = store_for(version)
    try:
        _bring_up_to_date(version, store)
        found = dict(store.scroll())
    except Unavailable as error:
        yield "", Difference("store", "", f"the store does not answer: {error}")
        return
    report.points = len(found)
    for point, (seq, key) in wanted.items():
        if point not in found:
            yield point, Difference("point_missing", key, f"point {point} is not in the store")
        elif found[point] != seq:
            yield point, Difference("point_stale", key, f"point {point} has seq {found[point]}, the table has {seq}")
    for point in found.keys() - wanted.keys():
        yield point, Difference("point_extra", "", f"point {point} is in the store but not in the table")


def _compare_bytes(embedded: list[EmbeddedImage]) -> Iterator[Difference]:
    for image, row in embedded:
        try:
            digest = content_digest(image.read())
        except Exception as error:  # each storage raises its own client's errors
            yield Difference("image", row.product_key, f"can no longer be read: {error}", image.key)
            continue
        if digest != row.digest:
            yield Difference("image", row.product_key, "different bytes under the same name", image.key)


def _compare_vectors(version: IndexVersion, sample: list[EmbeddedImage]) -> Iterator[Difference]:
    encoder = encoder_for(version)
    target_px = encoder.input_size_px * 2
    for image, row in sample:
        try:
            pixels = open_product_image(io.BytesIO(image.read()), max_pixels=PRODUCT_IMAGE_PIXELS, target_px=target_px)
        except (ImageUnreadable, OSError):
            continue  # reported by _compare_bytes
        cosine = float(embed_gallery(version, encoder, [pixels])[0] @ feed.rows_to_vectors([row], version.dim)[0])
        if cosine < SAME_IMAGE_COSINE:
            yield Difference("vector", row.product_key, f"embedded again: cosine {cosine:.4f}", image.key)
