"""What must be done for each claimed product: its stored embeddings compared with what the catalogue says now."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.db.models.functions import Now

from visual_search.catalog import Catalog, CatalogImage, get_catalog
from visual_search.index.claims import Claim, ClaimedProduct
from visual_search.index.finish import Result
from visual_search.models import Embedding, IndexEntry, IndexVersion, point_id

if TYPE_CHECKING:
    from visual_search.stores.base import PayloadValue

logger = logging.getLogger(__name__)

UNREADABLE = "unreadable"  # the content digest while the catalogue raises: the sweep sees when it no longer does
State = IndexEntry.State


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
            yield Plan(Result(claimed.key, State.REMOVED, rows=[tombstone(row) for row in rows if row.vector]))
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
                plan.result.rows.append(rewritten(row, image, payload))
    plan.result.rows += [tombstone(row) for row in by_image.values() if row.vector]
    if not images:
        plan.result.errors, plan.result.may_retry = ["The product has no image."], False
    return plan


def digest_of(payload: dict[str, PayloadValue], images: Iterable[CatalogImage]) -> str:
    """Return what tells whether the index must hear of a product: its payload and its images' identities."""
    content = [payload, [(image.key, image.identity, image.is_main) for image in images]]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def rewritten(row: Embedding, image: CatalogImage, payload: dict[str, PayloadValue]) -> Embedding:
    row.image_identity, row.is_main, row.payload, row.written_at = image.identity, image.is_main, payload, Now()
    return row


def tombstone(row: Embedding) -> Embedding:
    row.vector, row.written_at = None, Now()
    return row


def conclude(plan: Plan) -> Result:
    """Return the plan's result, its state said."""
    result = plan.result
    if result.errors and result.state == State.INDEXED:
        result.state = State.PARTIAL if plan.good_images else State.FAILED
    return result
