"""The sweep: each step for itself, within its time, from where the last one ended; and what is thrown away."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from django_q.models import OrmQ

from example_shop.models import Product
from visual_search import tasks
from visual_search.catalog import get_catalog
from visual_search.index import claims, expansion, marks, queue, sweep, versions
from visual_search.models import Embedding, FeedState, IndexEntry, IndexMark, IndexVersion, QueueState, point_id

pytestmark = pytest.mark.django_db
LABEL = "example_shop.product"


@pytest.fixture
def shop(make_product: Callable[..., Any], index: Any) -> list[Product]:
    """Three indexed products, nothing dirty."""
    products = [make_product(seed) for seed in (1, 2, 3)]
    index.drain()
    return products


def test_step_that_raises__does_not_stop_the_others(
    shop: list[Product], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    IndexEntry.objects.update(next_attempt_at=timezone.now() - datetime.timedelta(minutes=1))

    def broken(self: Any) -> Any:
        raise RuntimeError("the shop's queryset")

    monkeypatch.setattr(type(get_catalog()), "queryset", broken)
    report = sweep.sweep()
    assert (report["retried"], report["failed"]) == (3, 1)
    assert "the shop's queryset" in caplog.text
    assert QueueState.objects.get().swept_at is not None


def test_orphans__are_found_although_a_round_of_the_products_takes_long(
    shop: list[Product], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "SLICE", 1)
    Product.objects.filter(pk=shop[2].pk).update(is_published=False)
    version = versions.get_active()
    found = 0
    for _ in range(3):  # each with the time for one slice of either kind
        found += sweep.mark_differences(version, "default", seconds=0)
    assert found == 1
    assert IndexMark.objects.get().key == str(shop[2].pk)


def test_place_of_another_type_of_key__begins_anew(shop: list[Product]) -> None:
    QueueState.objects.update_or_create(pk=1, defaults={"swept_product": "5d6a7c0e-8b0f-5c52-9f0e-3f6a0c5a1f5e"})
    Product.objects.filter(pk=shop[0].pk).update(price="99.00")
    assert sweep.sweep()["failed"] == 0
    assert IndexMark.objects.get().key == str(shop[0].pk)


def test_reset_index__forgets_where_the_sweep_was(shop: list[Product]) -> None:
    QueueState.objects.update_or_create(pk=1, defaults={"swept_product": "2", "swept_entry": 5})
    versions.reset_index()
    assert QueueState.objects.values_list("swept_product", "swept_entry").get() == ("", 0)


def test_sweeps_that_were_missed__are_not_made_up_for(shop: list[Product]) -> None:
    assert tasks.sweep()
    assert tasks.sweep() == {}
    QueueState.objects.update(swept_at=timezone.now() + datetime.timedelta(hours=1))  # the clock was set back
    assert tasks.sweep()


# What is thrown away


def bury(version: IndexVersion, count: int) -> None:
    """Leave tombstones and removed entries of products that were deleted long ago."""
    state = FeedState.objects.get()
    Embedding.objects.bulk_create(
        Embedding(
            id=point_id(version.pk, f"gone{n}", "1"), version=version, product_key=f"gone{n}", image_key="1",
            is_main=True, vector=None, seq=state.last_seq + n + 1,
        )
        for n in range(count)
    )  # fmt: skip
    Embedding.objects.filter(vector=None).update(written_at=timezone.now() - datetime.timedelta(days=30))
    FeedState.objects.update(last_seq=state.last_seq + count)
    IndexEntry.objects.bulk_create(
        IndexEntry(version=version, key=f"gone{n}", state=IndexEntry.State.REMOVED, indexed_at=timezone.now())
        for n in range(count)
    )


def test_prune__goes_slice_by_slice_and_keeps_what_is_marked(
    shop: list[Product], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PRUNE_SLICE", 4)
    version = versions.get_active()
    bury(version, 10)
    IndexMark.objects.create(model_label=LABEL, key="gone0")
    seqs = list(Embedding.objects.filter(vector=None).order_by("seq").values_list("seq", flat=True))
    assert sweep.prune_tombstones("default", seconds=0) == 4
    assert FeedState.objects.get().pruned_through >= seqs[3]
    assert sweep.prune_tombstones("default") == 6
    assert FeedState.objects.get().pruned_through == seqs[-1]
    removed = IndexEntry.objects.filter(state=IndexEntry.State.REMOVED)
    assert list(removed.values_list("key", flat=True)) == ["gone0"]
    assert Embedding.objects.filter(vector__isnull=False).count() == 3


def test_removed_product_that_was_never_embedded__leaves_no_entry(shop: list[Product], index: Any) -> None:
    IndexMark.objects.create(model_label=LABEL, key="12345")
    index.drain()
    assert not IndexEntry.objects.filter(key="12345").exists()


def test_tombstone_whose_image_came_back__is_kept(shop: list[Product]) -> None:
    version = versions.get_active()
    bury(version, 2)
    vector = Embedding.objects.filter(vector__isnull=False)[0].vector
    revived = Embedding.objects.filter(product_key="gone0")
    revived.update(vector=vector)
    sweep.prune_tombstones("default")
    assert revived.exists()


# Requests


@pytest.fixture
def queued(shop: list[Product]) -> Iterator[None]:
    """Requests go to the real queue, where nobody takes them."""
    queue._runs_inline = False
    yield
    queue._runs_inline = True


def waiting_drains() -> int:
    return OrmQ.objects.count()


def test_backlog__does_not_pile_up_drains(queued: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "REQUEST_SECONDS", 0)
    for _ in range(10):  # saves, while the one worker drains
        queue.enqueue_drain()
    assert waiting_drains() == queue.WAITING_MAX


def test_request_of_a_clock_that_was_set_back__blocks_no_other(queued: None) -> None:
    QueueState.objects.update_or_create(
        pk=1, defaults={"drain_requested_at": timezone.now() + datetime.timedelta(hours=1)}
    )
    queue.enqueue_drain()
    assert waiting_drains() == 1


def test_claims_of_a_clock_that_was_set_back__are_free(shop: list[Product], index: Any) -> None:
    shop[0].save()
    IndexEntry.objects.update(claim_token=uuid.uuid4(), lease_until=timezone.now() + datetime.timedelta(hours=1))
    index.drain()
    assert not IndexMark.objects.exists()


# Plans of the queries that run each minute or at each claim, over tables of some size


@pytest.fixture
def large_tables(shop: list[Product]) -> IndexVersion:
    version = versions.get_active()
    IndexEntry.objects.bulk_create(
        (IndexEntry(version=version, key=f"k{n}", state=IndexEntry.State.INDEXED) for n in range(20_000)),
        batch_size=2000,
    )
    IndexMark.objects.bulk_create(
        (IndexMark(model_label=LABEL, key=f"k{n}", is_bulk=True) for n in range(20_000)), batch_size=2000
    )
    state = FeedState.objects.get()
    Embedding.objects.bulk_create(
        (
            Embedding(
                id=uuid.uuid4(), version=version, product_key=f"k{n}", image_key="1", is_main=True, vector=b"0" * 64,
                seq=state.last_seq + n + 1,
            )
            for n in range(20_000)
        ),
        batch_size=2000,
    )  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    return version


def test_minutely_queries_and_claims__scan_no_whole_table(large_tables: IndexVersion) -> None:
    statements: list[tuple[str, Any]] = []

    def record(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        statements.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(record):
        sweep.prune_tombstones("default")
        sweep.mark_due_retries(large_tables, "default")
        claims.has_work("default")
        claim = claims.claim(large_tables, limit=64)
        expansion.related_labels("default")
        marks.unmarked(["k1", "k2"])
    assert claim is not None
    for sql, params in statements:
        if sql.startswith("SELECT"):
            assert whole_scans(sql, params) == [], sql


def whole_scans(sql: str, params: Any) -> list[str]:
    """Return the steps of the query's plan that read one of the large tables without an index."""
    large = ("visual_search_indexentry", "visual_search_indexmark", "visual_search_embedding")
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
            steps = [row[3] for row in cursor.fetchall() if row[3].startswith("SCAN") and "INDEX" not in row[3]]
        else:
            # Of 20,000 rows PostgreSQL may rather read all: what counts is that an index fits.
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute(f"EXPLAIN {sql}", params)
            steps = [row[0] for row in cursor.fetchall() if "Seq Scan" in row[0]]
    # "Is there any row?" and "the first rows by primary key" end with the first rows.
    is_any = "WHERE" not in sql and sql.endswith("LIMIT 1")
    if is_any or 'ORDER BY "visual_search_indexmark"."id" ASC LIMIT' in sql:
        return []
    return [step for step in steps if any(name in step for name in large)]
