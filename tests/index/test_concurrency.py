"""Concurrent workers, saves and readers on a real PostgreSQL (see test_postgres.py)."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from example_shop.models import Brand, Category, Product
from tests.qdrant_server import FakeQdrant
from tests.reference_store import ReferenceStore
from tests.tiny_checkpoints import tiny_clip
from visual_search import tasks
from visual_search.catalog import get_catalog
from visual_search.components import encoder_for
from visual_search.exceptions import ConfigurationError
from visual_search.index import building, claims, drain, expansion, feed, versions
from visual_search.index.embedding import embed_plans
from visual_search.index.expansion import expand_related_marks
from visual_search.index.finish import DrainReport, Result, finish
from visual_search.index.plans import make_plans
from visual_search.index.verify import verify
from visual_search.models import Embedding, FeedState, IndexEntry, IndexMark, IndexVersion
from visual_search.stores.qdrant import QdrantStore

pytestmark = pytest.mark.django_db(transaction=True)

State = IndexEntry.State


@pytest.fixture(autouse=True)
def _no_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster runs here: requests go to the real queue, and the tests start drains themselves."""
    assert connection.vendor == "postgresql"


@pytest.fixture
def version(starter_folder: Any, db: Any) -> Any:
    from visual_search import components

    components.close_stores()
    yield versions.ensure_active()
    components.close_stores()


def run_together(*works: Callable[[], Any]) -> list[Any]:
    """Run functions in threads that start together, each with its own connection."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        try:
            barrier.wait(10)
            return work()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(120) for future in [pool.submit(run, work) for work in works]]


def claim_everything(version: Any) -> list[str]:
    keys: list[str] = []
    while claim := claims.claim(version, limit=3):
        keys += claim.products
        time.sleep(0.002)
    return keys


def test_two_workers__never_claim_the_same_product(make_product: Any, version: Any) -> None:
    products = {str(make_product(seed, images=0).pk) for seed in range(40)}
    one, two = run_together(lambda: claim_everything(version), lambda: claim_everything(version))
    assert sorted(one + two) == sorted(products)
    assert one
    assert two


def test_two_drains__index_everything_once(make_product: Any, version: Any) -> None:
    for seed in range(12):
        make_product(seed)
    expand_related_marks("default")
    reports = run_together(drain.drain, drain.drain)
    assert sum(report.embedded for report in reports) == 12
    assert not IndexMark.objects.exists()
    assert verify().differences == []


def test_uncommitted_save__is_not_drained_before_its_commit(make_product: Any, version: Any) -> None:
    product = make_product(1)
    drain.drain()
    saved, drained = threading.Event(), threading.Event()

    def save() -> None:
        with transaction.atomic():
            product.price = "55.00"
            product.save()
            saved.set()
            assert drained.wait(30)

    def drain_meanwhile() -> int:
        assert saved.wait(30)
        report = drain.drain()
        drained.set()
        return report.indexed

    assert run_together(save, drain_meanwhile)[1] == 0
    drain.drain()
    assert Embedding.objects.get().payload["price"] == 55.0


def test_save_during_the_embedding__wins_in_the_end(make_product: Any, version: Any) -> None:
    product = make_product(1)
    expand_related_marks("default")
    claim = claims.claim(version, limit=10)
    assert claim is not None
    plans = list(make_plans(claim, database="default"))

    def save() -> None:
        product.price = "66.00"
        product.save()

    run_together(save)
    encoder = encoder_for(version)
    list(embed_plans(plans, version, encoder, DrainReport(), before_batch=lambda: None))
    assert len(finish(claim, [plan.result for plan in plans], database="default")) == 1
    assert Embedding.objects.get().payload["price"] == 10.0
    assert IndexMark.objects.count() == 1
    drain.drain()
    assert Embedding.objects.get().payload["price"] == 66.0
    assert verify().differences == []


def test_deleted_and_created_again_with_the_same_key__ends_indexed(make_product: Any, version: Any) -> None:
    product = make_product(1)
    key = product.pk
    drain.drain()
    product.delete()
    expand_related_marks("default")
    claim = claims.claim(version, limit=10)
    assert claim is not None
    plans = list(make_plans(claim, database="default"))  # sees it deleted
    run_together(lambda: make_product(1, id=key))
    finish(claim, [plan.result for plan in plans], database="default")
    assert IndexEntry.objects.get(key=str(key)).state == State.REMOVED
    drain.drain()
    assert IndexEntry.objects.get(key=str(key)).state == State.INDEXED
    assert Embedding.objects.filter(product_key=str(key), vector__isnull=False).count() == 1
    assert verify().differences == []


def test_lease_lost__the_slow_worker_writes_nothing(make_product: Any, version: Any) -> None:
    product = make_product(1)
    expand_related_marks("default")
    slow = claims.claim(version, limit=10)
    assert slow is not None
    plans = list(make_plans(slow, database="default"))
    IndexEntry.objects.update(lease_until=timezone.now() - datetime.timedelta(seconds=1))
    product.price = "88.00"
    product.save()
    run_together(drain.drain)
    seq = FeedState.objects.get().last_seq
    assert finish(slow, [plan.result for plan in plans], database="default") == []
    assert FeedState.objects.get().last_seq == seq
    assert Embedding.objects.get().payload["price"] == 88.0
    assert verify().differences == []


def test_savers_and_drains_at_once__neither_deadlock_nor_lose_a_change(make_product: Any, version: Any) -> None:
    one, two = make_product(1), make_product(2)
    brand, category = Brand.objects.get(), Category.objects.get()

    def save(*rows: Any) -> None:
        for number in range(20):
            with transaction.atomic():
                for row in rows:
                    row.name = f"name {number}"
                    row.save()

    run_together(lambda: save(brand, one), lambda: save(two, category), lambda: [tasks.drain() for _ in range(5)])
    drain.drain()
    assert verify().differences == []


def test_seq__follows_the_order_of_commits(make_product: Any, version: Any) -> None:
    """Readers that read by seq never miss a row, however finishing transactions overlap."""
    products = [make_product(seed, images=1) for seed in range(6)]
    drain.drain()
    store = ReferenceStore(name="reader", dim=version.dim, fields=get_catalog().field_kinds())
    done = threading.Event()

    def change(mine: list[Product]) -> None:
        for round_ in range(15):
            for product in mine:
                Product.objects.filter(pk=product.pk).update(price=round_ + 1)
                product.refresh_from_db()
                product.save()
            drain.drain()

    def read() -> None:
        while not done.is_set():
            feed.catch_up(version, store)

    def write() -> None:
        try:
            run_together(*(lambda mine=products[i::3]: change(mine) for i in range(3)))
        finally:
            done.set()

    run_together(read, write)
    drain.drain()
    feed.catch_up(version, store)
    table = dict(Embedding.objects.values_list("id", "seq"))
    assert dict(store.scroll()) == {str(pk): seq for pk, seq in table.items()}
    assert {point.payload["price"] for point in store.retrieve([str(pk) for pk in table])} == {15.0}


def test_second_worker__finds_the_products_that_the_first_left(version: Any) -> None:
    keys = [str(number) for number in range(200)]
    IndexMark.objects.bulk_create([IndexMark(model_label="example_shop.product", key=key) for key in keys])
    IndexEntry.objects.bulk_create([IndexEntry(version=version, key=key) for key in keys])
    with transaction.atomic():
        assert len(claims._claimable_dirty_entries(version, "default", 64)) == 64
        (other,) = run_together(lambda: claims.claim(version, limit=64))
    assert other is not None
    assert len(other.products) == 64


def test_error_text_with_nul__does_not_stop_the_drain(make_product: Any, version: Any) -> None:
    product = make_product(1)
    expand_related_marks("default")
    claim = claims.claim(version, limit=10)
    assert claim is not None
    result = Result(str(product.pk), State.FAILED, errors=["a\0b"])
    assert finish(claim, [result], database="default") == [result]
    assert IndexEntry.objects.get().error == "ab"


@pytest.fixture
def other(tmp_path: Any) -> str:
    return str(tiny_clip(tmp_path / "clip"))


def test_two_switches_at_once__one_succeeds_and_the_other_raises(make_product: Any, version: Any, other: str) -> None:
    for seed in range(4):
        make_product(seed)
    drain.drain()
    second = building.start_build(checkpoint=other)
    building.build(second)

    def switch() -> str:
        try:
            building.switch(IndexVersion.objects.get(pk=second.pk))
        except ConfigurationError as error:
            return str(error)
        return "switched"

    outcomes = run_together(switch, switch)
    assert sorted(outcome == "switched" for outcome in outcomes) == [False, True], outcomes
    assert [row.pk for row in IndexVersion.objects.filter(state=IndexVersion.State.ACTIVE)] == [second.pk]


def test_drains_saves_builds_and_switches_at_once__lose_no_change(make_product: Any, version: Any, other: str) -> None:
    products = [make_product(seed, images=1) for seed in range(12)]
    drain.drain()
    done = threading.Event()

    def save() -> int:
        price = 0
        while not done.is_set():
            price += 1
            for product in products:
                product.price = price
                product.save()
        return price

    def keep_draining() -> None:
        while not done.is_set():
            drain.drain(seconds=5)

    def switch() -> None:
        second = building.start_build(checkpoint=other)
        building.build(second)
        building.switch(second)
        for _ in range(5):
            building.roll_back()
        done.set()

    price, *_ = run_together(save, keep_draining, keep_draining, switch)
    assert price > 1
    drain.drain()
    assert verify().differences == []
    building.roll_back()
    drain.drain()
    assert verify().differences == []
    prices = {row.payload["price"] for row in Embedding.objects.filter(vector__isnull=False)}
    assert prices == {float(price)}


def test_versions_that_are_pruned_while_drains_finish__break_no_drain(make_product: Any, version: Any) -> None:
    products = [make_product(seed, images=1) for seed in range(6)]
    drain.drain()
    done = threading.Event()

    def keep_draining() -> None:
        while not done.is_set():
            for product in products:
                product.save()
            drain.drain(seconds=5)

    def prune() -> None:
        for _ in range(40):
            IndexVersion.objects.create(checkpoint="old", fingerprint="old", dim=8, state=IndexVersion.State.RETIRED)
            time.sleep(0.02)
            building.prune(keep=0)
        done.set()

    run_together(keep_draining, prune)  # raises what a drain raises
    assert list(IndexVersion.objects.all()) == [version]
    assert IndexEntry.objects.exclude(version=version).count() == 0
    drain.drain()
    assert verify().differences == []


def test_two_feeders_of_a_shared_store__keep_apart_and_miss_nothing(
    version: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.index.test_shared_feed import position_of, stored, table, write
    from visual_search.components import store_for

    monkeypatch.setattr(feed, "PAGE", 7)
    server = FakeQdrant()
    backend = "visual_search.stores.qdrant.QdrantStore"
    options = {"url": server.url, "timeout": 30}
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"STORE": {"BACKEND": backend, "OPTIONS": options}}
    dim = version.dim

    drops: list[str] = []
    for call in ("reset", "drop"):
        monkeypatch.setattr(QdrantStore, call, lambda self, call=call: drops.append(call))
    write(version, *map(str, range(40)), dim=dim)
    feed.feed_shared_store(version)
    done = threading.Event()

    def wait_like_verify_index() -> None:
        """Wait for the lease and feed, with what was read before the wait (verify_index, switch_version)."""
        while not done.is_set():
            feed.catch_up(version, store_for(version), wait_seconds=20)

    def save_all() -> None:
        try:
            run_together(lambda: save(1), lambda: save(2), lambda: save(3))
        finally:
            done.set()

    def save(worker: int) -> None:
        for turn in range(15):
            keys = [str((worker * 7 + turn * step) % 40) for step in (1, 2, 3)]
            with transaction.atomic():
                write(version, *dict.fromkeys(keys), is_gone=turn % 4 == 3, dim=dim)
            feed.feed_shared_store(version)  # as a drain does; the other one may have the lease

    try:
        run_together(save_all, wait_like_verify_index)
        assert drops == []  # the live collection was never emptied
        assert stored(version) == table(version)
        assert position_of(version) == FeedState.objects.get().last_seq
    finally:
        server.close()
        store_for(version).close()


def test_workers_that_expand_the_same_category__mark_each_product_once(
    make_product: Any, version: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "SLICE", 3)
    products = [make_product(seed, images=0) for seed in range(30)]
    IndexMark.objects.all().delete()
    products[0].category.save()
    marked = run_together(*[lambda: expand_related_marks("default")] * 3)
    assert sum(marked) == 30
    assert sorted(IndexMark.objects.values_list("key", flat=True)) == sorted(str(product.pk) for product in products)


def test_prune_beside_rollbacks__never_deletes_what_is_active(make_product: Any, version: Any) -> None:
    make_product(1)
    drain.drain()
    IndexVersion.objects.create(
        checkpoint=version.checkpoint, fingerprint="other", dim=version.dim, state=IndexVersion.State.RETIRED
    )
    done = threading.Event()

    def roll_back() -> None:
        for _ in range(30):
            try:
                building.roll_back()
            except ConfigurationError:  # the other version is being deleted, or another rollback was faster
                number = IndexVersion.objects.count() + 100
                IndexVersion.objects.create(
                    checkpoint="other", fingerprint=str(number), dim=8, state=IndexVersion.State.RETIRED
                )
        done.set()

    def prune() -> None:
        while not done.is_set():
            building.prune(keep=0)
            assert IndexVersion.objects.filter(state=IndexVersion.State.ACTIVE).count() == 1

    run_together(roll_back, prune)
    active = versions.find_active()
    assert active is not None
    assert Embedding.objects.filter(version=version).exists() or active.pk != version.pk
