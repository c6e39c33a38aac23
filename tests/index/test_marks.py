"""Mark changes in the shop: what is marked, how often, and when a drain is requested."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.core.files.base import ContentFile
from django.db import connection, transaction
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_delete, pre_save

from example_shop.models import Brand, Category, Product, ProductImage
from tests.drawings import photo_bytes
from tests.gadgets.models import Gadget, GadgetProxy, Line, Maker, Phone, Tag, Variant
from visual_search.index import claims, expansion, signals, versions
from visual_search.index import marks as marks_module
from visual_search.index.expansion import expand_related_marks
from visual_search.index.marks import mark, mark_dirty
from visual_search.index.queue import enqueue_drain
from visual_search.models import IndexMark


def marks() -> set[tuple[str, str]]:
    return set(IndexMark.objects.values_list("model_label", "key"))


def product_keys() -> set[str]:
    """Return the keys of the dirty products."""
    expand_related_marks("default")
    return set(IndexMark.objects.values_list("key", flat=True))


@pytest.fixture
def shop(make_product: Any) -> Any:
    """Three products without marks."""
    products = [make_product(1), make_product(2, brand=""), make_product(3, category="hats")]
    IndexMark.objects.all().delete()
    transaction.get_connection().run_on_commit.clear()
    return products


@pytest.fixture
def gadgets(settings: Any, db: Any) -> Any:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CATALOG": "tests.gadgets.catalog.GadgetCatalog"}
    line = Line.objects.create(name="L", maker=Maker.objects.create(name="M"))
    found = [Gadget.objects.create(name=name, line=line) for name in "ab"]
    IndexMark.objects.all().delete()
    return found


def test_save__writes_one_insert_and_nothing_else(shop: Any, django_assert_num_queries: Any) -> None:
    product = shop[0]
    with transaction.atomic():
        shop[1].save()  # the first mark of a transaction is written in a savepoint
        with django_assert_num_queries(2) as executed:
            product.save(force_update=True)
        statements = [query["sql"] for query in executed.captured_queries]
        assert statements[0].startswith("UPDATE")
        assert statements[1].startswith('INSERT INTO "visual_search_indexmark"')


def test_thousand_saves_in_one_transaction__ask_for_one_drain(
    shop: Any, django_capture_on_commit_callbacks: Any
) -> None:
    capture = django_capture_on_commit_callbacks
    with capture() as callbacks, transaction.atomic():
        for _ in range(1000):
            shop[0].save()
    assert callbacks == [enqueue_drain]
    assert IndexMark.objects.count() == 1000


def test_rolled_back_savepoint__discards_its_mark_and_its_request(shop: Any) -> None:
    connection = transaction.get_connection()
    with transaction.atomic():
        with transaction.atomic():
            shop[0].save()
            transaction.set_rollback(True)
        assert not marks()
        assert enqueue_drain not in [callback for _, callback, *_ in connection.run_on_commit]
        shop[1].save()
        assert enqueue_drain in [callback for _, callback, *_ in connection.run_on_commit]


def test_delete__marks_the_product(shop: Any) -> None:
    key = str(shop[0].pk)
    shop[0].delete()
    assert ("example_shop.product", key) in marks()


def test_image_added__marks_its_product_and_no_other_row(shop: Any) -> None:
    ProductImage.objects.create(product=shop[0], image=ContentFile(photo_bytes(), name="x.jpg"))
    assert marks() == {("example_shop.product", str(shop[0].pk))}


def test_image_moved__marks_both_products(shop: Any) -> None:
    image = shop[0].images.get()
    image.product = shop[1]
    image.save()
    assert marks() == {("example_shop.product", str(shop[0].pk)), ("example_shop.product", str(shop[1].pk))}


def test_image_saved_without_its_product_field__needs_no_query_for_the_old_one(
    shop: Any, django_assert_num_queries: Any
) -> None:
    image = shop[0].images.get()
    with transaction.atomic():
        shop[1].save()  # the first mark of a transaction is written in a savepoint
        with django_assert_num_queries(2):
            image.save(update_fields=["position"])


def test_image_deleted__marks_its_product(shop: Any) -> None:
    shop[0].images.get().delete()
    assert marks() == {("example_shop.product", str(shop[0].pk))}


def test_category_saved__is_one_mark_that_expands_to_its_products(shop: Any) -> None:
    Category.objects.get(slug="shoes").save()
    assert {label for label, _ in marks()} == {"example_shop.category"}
    assert len(marks()) == 1
    assert product_keys() == {str(shop[0].pk), str(shop[1].pk)}


def test_brand_deleted__marks_the_products_that_lose_it(shop: Any) -> None:
    Brand.objects.get(slug="acme").delete()
    assert product_keys() == {str(shop[0].pk), str(shop[2].pk)}


def test_raw_save_of_a_fixture__marks(shop: Any) -> None:
    shop[0].save_base(raw=True)
    assert marks() == {("example_shop.product", str(shop[0].pk))}


def test_mark_dirty__writes_one_statement_per_slice(shop: Any, django_assert_num_queries: Any) -> None:
    Product.objects.update(price="5.00")
    with transaction.atomic(), django_assert_num_queries(3) as executed:  # page of keys, insert, empty page
        assert mark_dirty(Product.objects.all()) == 3
    assert sum("INSERT" in query["sql"] for query in executed.captured_queries) == 1


def test_unwatched_models__keep_their_fast_deletes(db: Any) -> None:
    assert not pre_delete.has_listeners(Session)
    assert pre_delete.has_listeners(Category)


@pytest.mark.parametrize("model", [Gadget, GadgetProxy])
def test_proxy_saved__marks_the_product(gadgets: Any, model: Any) -> None:
    model.objects.get(pk=gadgets[0].pk).save()
    assert marks() == {("gadgets.gadget", str(gadgets[0].pk))}


def test_multi_table_child_saved__marks_the_parents_key(gadgets: Any) -> None:
    phone = Phone.objects.create(name="p")
    assert marks() == {("gadgets.gadget", str(phone.pk))}


def test_row_two_relations_away__marks_every_product_behind_it(gadgets: Any) -> None:
    Maker.objects.get().save()
    assert product_keys() == {str(gadget.pk) for gadget in gadgets}


def test_row_two_relations_away_deleted__marks_every_product_behind_it(gadgets: Any) -> None:
    Maker.objects.get().delete()
    assert product_keys() == {str(gadget.pk) for gadget in gadgets}


def test_reverse_relation_without_a_related_name__is_watched(gadgets: Any) -> None:
    variant = Variant.objects.create(gadget=gadgets[0], colour="red")
    assert product_keys() == {str(gadgets[0].pk)}
    IndexMark.objects.all().delete()
    variant.gadget = gadgets[1]
    variant.save()
    assert product_keys() == {str(gadget.pk) for gadget in gadgets}


@pytest.mark.parametrize(
    "change", ["add", "remove", "clear", "set", "reverse_add", "reverse_clear", "tag_delete", "tag_save"]
)
def test_many_to_many_change__marks_the_product(gadgets: Any, change: str) -> None:
    tag = Tag.objects.create(name="t")
    if change not in ("add", "reverse_add"):
        gadgets[0].tags.add(tag)
    IndexMark.objects.all().delete()
    {
        "add": lambda: gadgets[0].tags.add(tag),
        "remove": lambda: gadgets[0].tags.remove(tag),
        "clear": lambda: gadgets[0].tags.clear(),
        "set": lambda: gadgets[0].tags.set([]),
        "reverse_add": lambda: tag.gadget_set.add(gadgets[0]),
        "reverse_clear": lambda: tag.gadget_set.clear(),
        "tag_delete": tag.delete,
        "tag_save": tag.save,
    }[change]()
    assert product_keys() == {str(gadgets[0].pk)}


# Nothing of the search raises into the shop's code


def test_signals_sent_by_hand__raise_nothing_and_mark(shop: Any) -> None:
    product = shop[0]
    image = product.images.get()
    for signal in (pre_save, post_save, pre_delete, post_delete):
        signal.send(Product, instance=product)
        signal.send(ProductImage, instance=image)
        signal.send(Category, instance=product.category)
    m2m_changed.send(Product, instance=product)
    assert ("example_shop.product", str(product.pk)) in marks()


@pytest.mark.parametrize("is_atomic", [True, False], ids=["in a transaction", "in autocommit"])
def test_table_of_marks_that_is_gone__stops_no_save_and_poisons_no_transaction(
    shop: Any, is_atomic: bool, caplog: pytest.LogCaptureFixture
) -> None:
    product = shop[0]
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE visual_search_indexmark RENAME TO elsewhere")
    try:
        product.name = "saved"
        if is_atomic:
            with transaction.atomic():
                product.save()
                product.refresh_from_db()  # the transaction still works
        else:
            product.save()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE elsewhere RENAME TO visual_search_indexmark")
    product.refresh_from_db()
    assert product.name == "saved"
    assert "the sweep will find it" in caplog.text


def test_save_before_the_first_migration__is_passed_over(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks_module, "_databases_with_tables", set())
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE visual_search_indexmark RENAME TO elsewhere")
    shop[0].save()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE elsewhere RENAME TO visual_search_indexmark")
    assert not marks()
    shop[0].save()
    assert marks() == {("example_shop.product", str(shop[0].pk))}


def test_catalogue_that_raises__stops_no_save(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "get_catalog", lambda: 1 / 0)
    shop[0].save()
    shop[0].images.get().delete()
    assert not marks()


@pytest.mark.parametrize("key", ["k" * 300, "nul\0"])
def test_key_that_no_table_holds__is_logged_and_passed_over(
    db: Any, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert mark([("example_shop.product", key), ("example_shop.product", "1")], using="default") == 1
    assert marks() == {("example_shop.product", "1")}
    assert "can't be indexed" in caplog.text


# Related rows with many products


def test_related_row_saved_many_times__is_expanded_once(shop: Any) -> None:
    for _ in range(5):
        shop[0].category.save()
    assert expand_related_marks("default") == 2
    assert expand_related_marks("default") == 0
    assert IndexMark.objects.count() == 2


def test_expansion_that_is_killed__continues_where_it_ended(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expansion, "SLICE", 1)
    shop[0].category.save()
    assert expand_related_marks("default", seconds=0) == 1  # one slice, then the time is over
    cursor = IndexMark.objects.get(model_label="example_shop.category").expanded_through
    assert cursor == str(min(shop[0].pk, shop[1].pk))
    assert expand_related_marks("default") == 1
    assert not IndexMark.objects.exclude(model_label="example_shop.product").exists()


def test_slice_that_another_worker_took__is_not_marked_twice(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expansion, "SLICE", 1)
    shop[0].category.save()
    mark_row = IndexMark.objects.get()
    assert expansion._expand_slice(mark_row, "default") == 1
    assert expansion._expand_slice(mark_row, "default") == 0  # read before the other worker moved the cursor
    assert IndexMark.objects.filter(model_label="example_shop.product").count() == 1


def test_row_saved_again_while_it_is_expanded__marks_products_that_were_claimed_meanwhile(
    shop: Any, index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.drain()
    version = versions.ensure_active()
    shop[0].category.save()
    assert expand_related_marks("default") == 2
    claim = claims.claim(version, limit=10)
    assert claim is not None  # may have read the products before the next save
    shop[0].category.save()
    assert expand_related_marks("default") == 2


def test_cursor_of_another_type_of_key__begins_anew(shop: Any) -> None:
    shop[0].category.save()
    IndexMark.objects.update(expanded_through="no number")
    assert expand_related_marks("default") == 2


def test_product_saved_during_a_bulk_change__is_claimed_next(shop: Any, index: Any, make_product: Any) -> None:
    index.drain()
    IndexMark.objects.bulk_create(
        IndexMark(model_label="example_shop.product", key=str(key), is_bulk=True) for key in range(1000, 1500)
    )
    newcomer = make_product(9)
    claim = claims.claim(versions.ensure_active(), limit=8)
    assert claim is not None
    assert str(newcomer.pk) in claim.products
    assert len(claim.products) == 8


def test_steady_saves__leave_a_quarter_of_each_claim_to_a_bulk_change(shop: Any, index: Any) -> None:
    index.drain()
    label = "example_shop.product"
    IndexMark.objects.bulk_create(IndexMark(model_label=label, key=f"b{n}", is_bulk=True) for n in range(50))
    IndexMark.objects.bulk_create(IndexMark(model_label=label, key=f"d{n}") for n in range(50))
    claim = claims.claim(versions.ensure_active(), limit=8)
    assert claim is not None
    assert sorted(key[0] for key in claim.products) == ["b"] * 2 + ["d"] * 6
