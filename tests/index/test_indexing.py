"""Index with real weights: products are saved, drained, changed, broken and removed."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.files.base import ContentFile
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_q.models import OrmQ

from example_shop.models import Category, Product, ProductImage
from tests.drawings import photo_bytes
from visual_search import components, tasks
from visual_search.catalog import CatalogImage, get_catalog
from visual_search.components import encoder_for, store_for
from visual_search.exceptions import CheckpointMissing, Unavailable
from visual_search.index import claims, drain, feed, finish, queue, signals, sweep, versions
from visual_search.index.expansion import expand_related_marks
from visual_search.index.marks import mark_dirty
from visual_search.index.verify import verify
from visual_search.models import Embedding, FeedState, IndexEntry, IndexMark, IndexVersion

pytestmark = pytest.mark.django_db

State = IndexEntry.State


def entry(product: Product) -> IndexEntry:
    return IndexEntry.objects.get(key=str(product.pk))


def vectors(product: Product) -> dict[str, bytes]:
    rows = Embedding.objects.filter(product_key=str(product.pk), vector__isnull=False)
    return {row.image_key: bytes(row.vector) for row in rows}


def put_file(image: ProductImage, data: bytes) -> None:
    """Overwrite the stored file under the same name."""
    Path(image.image.path).write_bytes(data)


def test_new_products__are_indexed_with_every_image(make_product: Any, index: Any) -> None:
    products = [make_product(1, images=3), make_product(2)]
    report = index.drain()
    assert report.counts() == {"indexed": 2, "partial": 0, "failed": 0, "removed": 0, "embedded": 4}
    assert [entry(product).state for product in products] == [State.INDEXED, State.INDEXED]
    assert len(vectors(products[0])) == 3
    assert Embedding.objects.filter(product_key=str(products[0].pk), is_main=True).count() == 1
    assert not IndexMark.objects.exists()
    assert verify(is_deep=True).differences == []


def test_embedding__is_the_encoders_unit_vector(make_product: Any, index: Any) -> None:
    product = make_product(1)
    index.drain()
    row = Embedding.objects.get()
    version = versions.get_active()
    from visual_search.vision.images import open_product_image

    pixels = open_product_image(product.images.get().image.file, max_pixels=10**8)
    expected = encoder_for(version).embed_images([pixels])[0]
    assert feed.rows_to_vectors([row], version.dim)[0] @ expected > 0.999
    assert row.digest
    assert row.payload == {"category": "shoes", "brand": "acme", "price": 10.0, "in_stock": True}


def test_price_change__rewrites_the_payload_and_embeds_nothing(make_product: Any, index: Any) -> None:
    product = make_product(1, images=2)
    index.drain()
    before, seq = vectors(product), FeedState.objects.get().last_seq
    product.price = "12.50"
    product.save()
    report = index.drain()
    assert report.embedded == 0
    assert vectors(product) == before
    assert {row.payload["price"] for row in Embedding.objects.all()} == {12.5}
    assert FeedState.objects.get().last_seq == seq + 2


def test_save_without_a_change__writes_no_row(make_product: Any, index: Any) -> None:
    product = make_product(1)
    index.drain()
    seq = FeedState.objects.get().last_seq
    product.save()
    index.drain()
    assert FeedState.objects.get().last_seq == seq
    assert entry(product).state == State.INDEXED


def test_new_picture__replaces_the_vector(make_product: Any, index: Any) -> None:
    product = make_product(1)
    index.drain()
    before = vectors(product)
    image = product.images.get()
    image.image = ContentFile(photo_bytes(seed=77), name="new.jpg")
    image.save()
    assert index.drain().embedded == 1
    assert vectors(product).keys() == before.keys()
    assert vectors(product) != before


def test_same_bytes_under_another_name__are_not_embedded_again(make_product: Any, index: Any) -> None:
    product = make_product(1)
    index.drain()
    image = product.images.get()
    image.image = ContentFile(image.image.read(), name="renamed.jpg")
    image.save()
    assert index.drain().embedded == 0
    assert Embedding.objects.get().image_identity == image.image.name
    assert verify().differences == []


def test_overwritten_file__is_seen_when_forced(make_product: Any, index: Any) -> None:
    product = make_product(1)
    index.drain()
    before = vectors(product)
    put_file(product.images.get(), photo_bytes(seed=78))
    assert [d.kind for d in verify(is_deep=True).differences if d.kind == "image"] == ["image"]
    product.save()
    assert index.drain().embedded == 0
    mark_dirty(Product.objects.all(), kind=IndexMark.Kind.FORCED)
    assert index.drain().embedded == 1
    assert vectors(product) != before


def test_new_main_image__moves_the_flag_and_embeds_nothing(make_product: Any, index: Any) -> None:
    product = make_product(1, images=2)
    index.drain()
    first, second = product.images.all()
    first.position = 9
    first.save()
    assert index.drain().embedded == 0
    assert Embedding.objects.get(is_main=True).image_key == str(second.pk)


def test_image_moved_to_another_product__follows_it(make_product: Any, index: Any) -> None:
    one, two = make_product(1, images=2), make_product(2)
    index.drain()
    image = one.images.last()
    image.product = two
    image.save()
    index.drain()
    assert (len(vectors(one)), len(vectors(two))) == (1, 2)
    assert verify().differences == []


def test_category_renamed__reaches_every_payload(make_product: Any, index: Any) -> None:
    make_product(1)
    make_product(2)
    index.drain()
    category = Category.objects.get(slug="shoes")
    category.slug = "boots"
    category.save()
    assert index.drain().embedded == 0
    assert {row.payload["category"] for row in Embedding.objects.all()} == {"boots"}


@pytest.mark.parametrize("way", ["delete", "unpublish"])
def test_product_gone__leaves_tombstones_and_no_point(make_product: Any, index: Any, way: str) -> None:
    product, other = make_product(1, images=2), make_product(2)
    index.drain()
    version = versions.get_active()
    feed.catch_up(version, store_for(version))
    key = str(product.pk)
    if way == "delete":
        product.delete()
    else:
        product.is_published = False
        product.save()
    assert index.drain().removed == 1
    assert IndexEntry.objects.get(key=key).state == State.REMOVED
    assert list(Embedding.objects.filter(product_key=key).values_list("vector", flat=True)) == [None, None]
    feed.catch_up(version, store_for(version))
    assert [point.product for point in store_for(version).retrieve([str(r.id) for r in Embedding.objects.all()])] == [
        str(other.pk)
    ]
    assert verify().differences == []


def test_published_again__comes_back(make_product: Any, index: Any) -> None:
    product = make_product(1)
    for is_published in (True, False, True):
        product.is_published = is_published
        product.save()
        index.drain()
    assert entry(product).state == State.INDEXED
    assert verify().differences == []


def test_broken_image__is_partial_with_the_reason_and_others_go_on(make_product: Any, index: Any) -> None:
    broken, fine, hopeless = make_product(1, images=2), make_product(2), make_product(3)
    put_file(broken.images.last(), b"this is not an image")
    Path(hopeless.images.get().image.path).unlink()
    report = index.drain()
    assert (report.indexed, report.partial, report.failed) == (1, 1, 1)
    assert entry(broken).state == State.PARTIAL
    assert "1-1" in entry(broken).error
    assert entry(hopeless).state == State.FAILED
    assert "missing" in entry(hopeless).error
    assert entry(fine).state == State.INDEXED
    assert verify().differences == []
    assert verify().unreadable == 2


def test_broken_image__is_tried_again_with_growing_waits_then_left(make_product: Any, index: Any) -> None:
    product = make_product(1)
    data = product.images.get().image.read()
    put_file(product.images.get(), b"")
    index.drain()
    waits = []
    for _ in range(2):
        found = entry(product)
        waits.append((found.attempts, round((found.next_attempt_at - timezone.now()).total_seconds(), -1)))
        IndexEntry.objects.update(next_attempt_at=timezone.now() - datetime.timedelta(seconds=1))
        assert index.sweep()["retried"] == 1
    assert waits == [(1, 30), (2, 120)]
    assert entry(product).next_attempt_at is None
    assert index.sweep()["retried"] == 0
    assert index.sweep()["found"] == 0
    put_file(product.images.get(), data)
    product.save()
    index.drain()
    assert entry(product).state == State.INDEXED
    assert entry(product).attempts == 0


def test_image_that_broke__is_not_found_any_more(make_product: Any, index: Any) -> None:
    product = make_product(1)
    index.drain()
    image = product.images.get()
    image.image = ContentFile(b"broken", name="broken.jpg")
    image.save()
    index.drain()
    assert entry(product).state == State.FAILED
    assert vectors(product) == {}


def test_product_without_images__fails_once_with_the_reason(make_product: Any, index: Any) -> None:
    product = make_product(1, images=0)
    index.drain()
    assert entry(product).state == State.FAILED
    assert entry(product).error == "The product has no image."
    assert entry(product).next_attempt_at is None
    assert verify().differences == []


def test_bulk_changes_without_signals__are_found_by_the_sweep(make_product: Any, index: Any) -> None:
    changed, unpublished, gone = make_product(1), make_product(2), make_product(3)
    index.drain()
    Product.objects.filter(pk=changed.pk).update(price="99.00")
    Product.objects.filter(pk=unpublished.pk).update(is_published=False)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM example_shop_productimage WHERE product_id = %s", [gone.pk])
        cursor.execute("DELETE FROM example_shop_product WHERE id = %s", [gone.pk])
    fresh = Product(sku="n", slug="n", name="New", category=Category.objects.get(), price="1.00")
    Product.objects.bulk_create([fresh])
    assert {d.kind for d in verify().differences} >= {"content", "orphaned", "missing"}
    assert index.sweep()["found"] == 4
    assert verify().differences == []
    assert index.sweep()["found"] == 0


def test_sweep__goes_on_where_the_last_one_ended(make_product: Any, index: Any, settings: Any) -> None:
    for seed in range(3):
        make_product(seed + 1, images=0)
    index.drain()
    Product.objects.update(price="99.00")
    sweep.SLICE, slice_before = 1, sweep.SLICE
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"SWEEP_SECONDS": 1e-9}
    try:
        assert [index.sweep()["found"] for _ in range(3)] == [1, 1, 1]
    finally:
        sweep.SLICE = slice_before


def test_tombstones__are_pruned_after_their_time_and_entries_with_them(make_product: Any, index: Any) -> None:
    product = make_product(1)
    index.drain()
    product.delete()
    index.drain()
    assert index.sweep()["pruned"] == 0
    Embedding.objects.update(written_at=timezone.now() - datetime.timedelta(days=8))
    assert index.sweep()["pruned"] == 1
    assert not Embedding.objects.exists()
    assert not IndexEntry.objects.exists()
    assert FeedState.objects.get().pruned_through == 2


def test_worker_that_dies__costs_an_attempt_and_comes_back_alone(make_product: Any, index: Any) -> None:
    products = [make_product(1), make_product(2), make_product(3)]
    version = versions.ensure_active()
    dead = claims.claim(version, limit=10)
    assert dead is not None
    assert len(dead.products) == 3
    assert claims.claim(version, limit=10) is None  # leased
    IndexEntry.objects.update(lease_until=timezone.now() - datetime.timedelta(seconds=1))
    newcomer = make_product(4)
    again = claims.claim(version, limit=10)
    assert again is not None
    assert set(again.products) == {str(newcomer.pk)}  # products that killed no worker come first
    alone = claims.claim(version, limit=10)
    assert alone is not None
    assert len(alone.products) == 1
    assert next(iter(alone.products.values())).attempts == 2
    assert set(alone.products) <= {str(product.pk) for product in products}


def test_more_dead_claims_than_a_claim_takes__still_let_the_others_first(make_product: Any, index: Any) -> None:
    for seed in (1, 2, 3):
        make_product(seed)
    version = versions.ensure_active()
    assert claims.claim(version, limit=3) is not None
    end_leases()
    newcomer = make_product(4)
    claim = claims.claim(version, limit=2)
    assert claim is not None
    assert set(claim.products) == {str(newcomer.pk)}


def test_product_that_kills_every_worker__is_given_up(make_product: Any, index: Any) -> None:
    product = make_product(1)
    version = versions.ensure_active()
    for _ in range(3):
        assert claims.claim(version, limit=10) is not None
        IndexEntry.objects.update(lease_until=timezone.now() - datetime.timedelta(seconds=1))
    assert claims.claim(version, limit=10) is None
    assert entry(product).state == State.FAILED
    assert "died without reporting an error (3 times" in entry(product).error
    assert index.sweep()["found"] == 0  # no endless loop
    product.save()
    index.drain()
    assert entry(product).state == State.INDEXED


def test_lease_lost__the_slow_workers_result_is_dropped(make_product: Any, index: Any) -> None:
    product = make_product(1)
    version = versions.ensure_active()
    slow = claims.claim(version, limit=10)
    assert slow is not None
    IndexEntry.objects.update(lease_until=timezone.now() - datetime.timedelta(seconds=1))
    index.drain()
    late = finish.Result(str(product.pk), State.REMOVED)
    assert finish.finish(slow, [late], database="default") == []
    assert entry(product).state == State.INDEXED


def test_save_during_the_embedding__leaves_its_mark(make_product: Any, index: Any) -> None:
    product = make_product(1)
    version = versions.ensure_active()
    claim = claims.claim(version, limit=10)
    assert claim is not None
    product.price = "77.00"
    product.save()
    list(drain.index_claim(claim, encoder_for(version), report=finish.DrainReport(), database="default"))
    assert IndexMark.objects.filter(model_label="example_shop.product").count() == 1
    index.drain()
    assert Embedding.objects.get().payload["price"] == 77.0


def test_shop_code_that_raises__fails_that_product_alone(
    make_product: Any, index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = make_product(1, name="bad"), make_product(2)
    from example_shop.catalog import ProductCatalog

    class FailingProperty:
        def __get__(self, product: Any, owner: Any = None) -> bool:
            if product is not None and product.name == "bad":
                raise ZeroDivisionError("by the shop")
            return True

    monkeypatch.setattr(Product, "in_stock", FailingProperty())
    assert ProductCatalog.model is Product
    index.drain()
    assert entry(bad).state == State.FAILED
    assert "by the shop" in entry(bad).error
    assert entry(good).state == State.INDEXED


def test_missing_checkpoint__fails_the_drain_and_loses_nothing(make_product: Any, index: Any, settings: Any) -> None:
    make_product(1)
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": "/nowhere/at/all"}
    with pytest.raises(CheckpointMissing):
        drain.drain()
    assert IndexMark.objects.exists()
    assert not IndexVersion.objects.exists()


def test_seq__grows_with_each_write_and_is_never_reused(make_product: Any, index: Any) -> None:
    product = make_product(1, images=2)
    index.drain()
    first = list(Embedding.objects.order_by("seq").values_list("seq", flat=True))
    assert first == [1, 2]
    product.price = "2.00"
    product.save()
    index.drain()
    assert sorted(Embedding.objects.values_list("seq", flat=True)) == [3, 4]


def test_drain__runs_a_constant_number_of_queries_a_claim(make_product: Any, index: Any) -> None:
    def queries(count: int, start: int) -> int:
        for seed in range(start, start + count):
            make_product(seed)
        with CaptureQueriesContext(connection) as captured:
            index.drain()
        return len(captured)

    queries(1, 1)  # the version is made
    few, many = queries(2, 10), queries(20, 100)
    assert many <= few + 2


def test_vectors_of_float16_rows__are_unit_length() -> None:
    row = Embedding(vector=np.array([3, 4, 0, 0], dtype="<f2").tobytes())
    assert np.allclose(feed.rows_to_vectors([row], 4), [[0.6, 0.8, 0, 0]])


def end_leases() -> None:
    IndexEntry.objects.update(lease_until=timezone.now() - datetime.timedelta(seconds=1))


def kill_three_workers(product: Product) -> None:
    for _ in range(3):
        assert claims.claim(versions.ensure_active(), limit=10) is not None
        end_leases()


def test_indexed_product_that_kills_every_worker__stays_given_up(make_product: Any, index: Any) -> None:
    product = make_product(1)
    index.drain()
    product.price = "5.00"
    product.save()
    kill_three_workers(product)
    assert claims.claim(versions.ensure_active(), limit=10) is None
    assert [index.sweep()["found"] for _ in range(2)] == [0, 0]


def test_change_during_the_last_deadly_attempt__is_tried(make_product: Any, index: Any) -> None:
    product = make_product(1)
    kill_three_workers(product)
    product.save()
    index.drain()
    assert entry(product).state == State.INDEXED


def test_forced_while_the_storage_is_down__keeps_the_good_vector(
    make_product: Any, index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = make_product(1)
    index.drain()
    before = vectors(product)
    mark_dirty(Product.objects.all(), kind=IndexMark.Kind.FORCED)
    path = Path(product.images.get().image.path)
    path.rename(path.with_suffix(".away"))
    index.drain()
    assert vectors(product) == before
    assert entry(product).state == State.PARTIAL
    path.with_suffix(".away").rename(path)
    IndexEntry.objects.update(next_attempt_at=timezone.now() - datetime.timedelta(seconds=1))
    index.sweep()
    assert entry(product).state == State.INDEXED
    assert Embedding.objects.get().digest


def test_storage_that_is_down_for_long__is_asked_again_each_hour(make_product: Any, index: Any) -> None:
    product = make_product(1)
    path = Path(product.images.get().image.path)
    path.rename(path.with_suffix(".away"))
    index.drain()
    for _ in range(6):
        IndexEntry.objects.update(next_attempt_at=timezone.now() - datetime.timedelta(seconds=1))
        assert index.sweep()["retried"] == 1
    wait = entry(product).next_attempt_at - timezone.now()
    assert 3500 < wait.total_seconds() <= 3600
    path.with_suffix(".away").rename(path)
    IndexEntry.objects.update(next_attempt_at=timezone.now() - datetime.timedelta(seconds=1))
    index.sweep()
    assert entry(product).state == State.INDEXED


def test_encoder_that_fails_on_everything__costs_no_attempt(
    make_product: Any, index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = [make_product(1), make_product(2)]
    encoder = encoder_for(versions.ensure_active())

    class Broken:
        input_size_px = encoder.input_size_px

        def embed_images(self, images: Any) -> Any:
            raise RuntimeError("CUDA error: device-side assert")

    expand_related_marks("default")
    claim = claims.claim(versions.ensure_active(), limit=10)
    assert claim is not None
    with pytest.raises(Unavailable, match="device-side assert"):
        list(drain.index_claim(claim, Broken(), report=finish.DrainReport(), database="default"))
    assert {entry(product).attempts for product in products} == {0}
    index.drain()
    assert {entry(product).state for product in products} == {State.INDEXED}


def test_shop_code_that_works_again__is_found_by_the_sweep(
    make_product: Any, index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = make_product(1)
    with monkeypatch.context() as patch:
        patch.setattr(Product, "in_stock", property(lambda self: 1 / 0))
        index.drain()
        assert entry(product).state == State.FAILED
        assert index.sweep()["found"] == 0
    assert index.sweep()["found"] == 1
    assert entry(product).state == State.INDEXED


def test_drain_past_its_time__has_committed_a_batch_and_gives_the_rest_back(
    make_product: Any, index: Any, settings: Any
) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"BATCH_SIZE": 2}
    for seed in range(1, 5):
        make_product(seed)
    report = drain.drain(seconds=0)
    assert (report.indexed, report.is_unfinished) == (2, True)
    assert not IndexEntry.objects.exclude(claim_token=None).exists()
    assert set(IndexEntry.objects.values_list("state", "attempts")) == {(State.INDEXED, 0), (State.PENDING, 0)}


def test_row_of_another_database__is_not_marked(make_product: Any) -> None:
    product = make_product(1)
    IndexMark.objects.all().delete()
    signals.post_save.send(sender=Product, instance=product, created=False, raw=False, using="archive")
    assert not IndexMark.objects.exists()


def test_keys_that_are_invalid_for_the_model__are_skipped() -> None:
    assert get_catalog().valid_keys(["1", "x", "22"]) == ["1", "22"]


def rename_table(old: str, new: str) -> None:
    with connection.cursor() as cursor:  # a new one each time: django-q2 closes the connection after an error
        cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")


@pytest.mark.django_db(transaction=True)
def test_broker_that_does_not_answer__fails_no_save_and_the_sweep_requests_a_drain(
    make_product: Any, starter_folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rename_table("django_q_ormq", "django_q_away")
    try:
        product = make_product(1)
    finally:
        rename_table("django_q_away", "django_q_ormq")
    assert "django_q_ormq" in caplog.text
    assert product.pk
    assert IndexMark.objects.exists()
    queue.record_drain_start()  # as if two seconds had passed
    assert not OrmQ.objects.exists()
    tasks.sweep()
    assert OrmQ.objects.count() == 1
    drain.drain()
    assert entry(product).state == State.INDEXED
    components.close_stores()


# A storage that hangs


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[set[str]]:
    """Names of files that the storage never gives; the threads end with the test."""
    names: set[str] = set()
    released = threading.Event()
    read = CatalogImage.read

    def read_or_hang(self: CatalogImage) -> bytes:
        if any(name in self.name for name in names):
            released.wait(30)
        return read(self)

    monkeypatch.setattr(CatalogImage, "read", read_or_hang)
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"READ_SECONDS": 0.5}
    yield names
    released.set()


def test_storage_that_hangs_on_everything__costs_no_attempt_and_not_the_task(
    make_product: Any, index: Any, hanging: set[str]
) -> None:
    products = [make_product(seed) for seed in range(6)]
    hanging.add("jpg")
    started = time.monotonic()
    with pytest.raises(Unavailable, match="does not answer"):
        index.drain()
    assert time.monotonic() - started < 15
    assert set(IndexEntry.objects.values_list("attempts", "claim_token")) == {(0, None)}
    hanging.clear()
    index.drain()
    assert {entry(product).state for product in products} == {State.INDEXED}


def test_file_that_hangs__leaves_the_others_and_is_tried_again(
    make_product: Any, index: Any, hanging: set[str]
) -> None:
    products = [make_product(seed) for seed in range(6)]
    hanging.add("3-0")
    index.drain()
    assert [entry(product).state for product in products].count(State.INDEXED) == 5
    failed = entry(products[3])
    assert "did not answer within 0.5 s" in failed.error
    assert failed.next_attempt_at is not None


def test_product_that_was_given_up__is_tried_again_a_day_later(make_product: Any, index: Any) -> None:
    product = make_product(1)
    version = versions.ensure_active()
    for _ in range(3):
        assert claims.claim(version, limit=10) is not None
        end_leases()
    assert claims.claim(version, limit=10) is None
    assert index.sweep()["retried"] == 0
    IndexEntry.objects.update(next_attempt_at=timezone.now() - datetime.timedelta(seconds=1))
    assert index.sweep()["retried"] == 1
    assert entry(product).state == State.INDEXED
