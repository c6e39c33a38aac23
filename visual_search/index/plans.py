"""Plan the work for each claimed product: compare its stored embeddings with the catalogue."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.db.models.functions import Now

from visual_search.catalog import CatalogImage, get_catalog
from visual_search.index.claims import Claim, ClaimedProduct
from visual_search.index.finish import Result
from visual_search.models import Embedding, IndexEntry, IndexVersion, point_id

if TYPE_CHECKING:
    from visual_search.stores.base import PayloadValue

    Content = tuple[dict[str, PayloadValue], list[CatalogImage], str]  # payload, images, digest

logger = logging.getLogger(__name__)

UNREADABLE = "unreadable"  # content digest while the catalogue raises; the sweep notices when that changes
State = IndexEntry.State


@dataclass(slots=True)
class ImageJob:
    """An image that a plan must read, and embed if its bytes changed."""

    plan: Plan
    image: CatalogImage
    row: Embedding
    is_forced: bool
    is_read: bool = False


@dataclass(slots=True)
class Plan:
    """The work for one product and its result so far."""

    result: Result
    payload: dict[str, PayloadValue] = field(default_factory=dict)
    usable_images: int = 0
    jobs: list[ImageJob] = field(default_factory=list)
    is_unchanged: bool = False


def make_plans(claim: Claim, *, database: str) -> Iterator[Plan]:
    """Yield one plan per claimed product: what differs from what is indexed. Embeddings are read only if it does."""
    catalog = get_catalog()
    known = catalog.queryset().using(database).filter(pk__in=catalog.valid_keys(claim.products))
    products = {str(product.pk): product for product in known}
    contents: dict[str, Content] = {}
    for claimed in claim.products.values():
        if (product := products.get(claimed.key)) is None:
            continue
        try:
            payload, images = catalog.payload(product), catalog.images_of(product)
            digest = product_digest(payload, images)
        except Exception as error:  # the shop's code: one product's error must not stop the others
            logger.exception("Product %s can't be read through the catalogue", claimed.key)
            reason = f"{type(error).__name__}: {error}"
            yield Plan(Result(claimed.key, State.FAILED, UNREADABLE, errors=[reason], is_transient=True))
            continue
        if digest == claimed.indexed_digest and not claimed.is_forced:
            yield Plan(Result(claimed.key, State.INDEXED, digest), is_unchanged=True)
        else:
            contents[claimed.key] = payload, images, digest
    gone = claim.products.keys() - products.keys()
    stored: dict[str, list[Embedding]] = {}
    if keys := [*contents, *gone]:
        for row in Embedding.objects.using(database).filter(version=claim.version, product_key__in=keys):
            stored.setdefault(row.product_key, []).append(row)
    for key, content in contents.items():
        yield make_plan(content, claim.products[key], claim.version, stored.get(key, []))
    for key in gone:
        rows = stored.get(key, [])
        tombstones = [make_tombstone(row) for row in rows if row.vector]
        yield Plan(Result(key, State.REMOVED, rows=tombstones, leaves_nothing=not rows))


def make_plan(content: Content, claimed: ClaimedProduct, version: IndexVersion, rows: list[Embedding]) -> Plan:
    """Return the plan of one product: rows to rewrite or turn into tombstones, images to read."""
    payload, images, digest = content
    plan = Plan(Result(claimed.key, State.INDEXED, digest), payload)
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
            plan.usable_images += 1
            if row.payload != payload or row.is_main != image.is_main:
                plan.result.rows.append(refresh_row(row, image, payload))
    plan.result.rows += [make_tombstone(row) for row in by_image.values() if row.vector]
    if not images:
        plan.result.errors, plan.result.may_retry = ["The product has no image."], False
    return plan


def product_digest(payload: dict[str, PayloadValue], images: Iterable[CatalogImage]) -> str:
    """Return the digest of a product's payload and image identities; if it differs, the product must be indexed."""
    content = [payload, [(image.key, image.identity, image.is_main) for image in images]]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def refresh_row(row: Embedding, image: CatalogImage, payload: dict[str, PayloadValue]) -> Embedding:
    """Update the row with the image's current data and return it."""
    row.image_identity, row.is_main, row.payload, row.written_at = image.identity, image.is_main, payload, Now()
    return row


def make_tombstone(row: Embedding) -> Embedding:
    """Turn the row into a tombstone and return it."""
    row.vector, row.written_at = None, Now()
    return row


def final_result(plan: Plan) -> Result:
    """Return the plan's result with its final state."""
    result = plan.result
    if result.errors and result.state == State.INDEXED:
        result.state = State.PARTIAL if plan.usable_images else State.FAILED
    return result
