"""verify_index on a shop that is at work: what changes meanwhile is no difference, what is wrong stays one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from example_shop.models import Product
from visual_search.index import feed, verify, versions
from visual_search.models import Embedding, IndexEntry, IndexMark

pytestmark = pytest.mark.django_db


@pytest.fixture
def shop(make_product: Callable[..., Any], index: Any, monkeypatch: pytest.MonkeyPatch) -> list[Product]:
    monkeypatch.setattr(verify, "LOOK_SECONDS", 0)
    products = [make_product(seed) for seed in (1, 2, 3)]
    index.drain()
    return products


def during(monkeypatch: pytest.MonkeyPatch, name: str, work: Callable[[], object]) -> None:
    """Do something once, just before a step of the verification."""
    step = getattr(verify, name)

    def work_and_step(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(verify, name, step)
        work()
        return step(*args, **options)

    monkeypatch.setattr(verify, name, work_and_step)


@pytest.mark.parametrize("step", ["_products", "_compare_removed", "_compare_store", "_bring_up_to_date"])
@pytest.mark.parametrize("is_drained", [True, False], ids=["drained", "still marked"])
def test_saves_during_the_run__are_no_differences(
    shop: list[Product], index: Any, make_product: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, step: str,
    is_drained: bool,
) -> None:  # fmt: skip
    def change() -> None:
        Product.objects.get(pk=shop[0].pk).delete()
        product = Product.objects.get(pk=shop[1].pk)
        product.price = "77.00"
        product.save()
        make_product(9)
        if is_drained:
            index.drain()

    during(monkeypatch, step, change)
    assert verify.verify().differences == []


def test_mark_that_waits_all_the_time__is_reported(shop: list[Product]) -> None:
    shop[0].save()
    (difference,) = verify.verify().differences
    assert (difference.kind, difference.product) == ("waiting", str(shop[0].pk))


@pytest.mark.parametrize("is_busy", [False, True])
def test_what_is_wrong__stays_wrong_beside_the_changes_of_others(
    shop: list[Product], is_busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Product.objects.filter(pk=shop[0].pk).update(price="77.00")
    IndexEntry.objects.filter(key=str(shop[1].pk)).delete()
    if is_busy:
        during(monkeypatch, "_compare_store", lambda: shop[2].save())
    found = {(one.kind, one.product) for one in verify.verify().differences}
    assert found == {
        ("content", str(shop[0].pk)),
        ("payload", str(shop[0].pk)),
        ("missing", str(shop[1].pk)),
    }


def test_points_that_are_wrong__are_reported(shop: list[Product]) -> None:
    version = versions.get_active()
    store = verify.store_for(version)
    feed.catch_up(version, store)
    row = Embedding.objects.get(product_key=str(shop[0].pk))
    store.delete([str(row.pk)])
    extra = Embedding(id="5d6a7c0e-8b0f-5c52-9f0e-3f6a0c5a1f5e", vector=row.vector, seq=9)
    store.upsert(feed.rows_to_points([extra], version.dim))
    found = {(one.kind, one.product) for one in verify.verify().differences}
    assert found == {("point_missing", str(shop[0].pk)), ("point_extra", "")}
    assert not IndexMark.objects.exists()
