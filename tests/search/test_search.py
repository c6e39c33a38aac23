"""Search through the real parts: photo, text, filters, visibility, paging."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser

from example_shop.catalog import ProductCatalog
from example_shop.models import Product
from tests.drawings import photo_bytes
from visual_search.catalog import get_catalog
from visual_search.components import encode_slot, store_for
from visual_search.exceptions import Busy, IndexEmpty, IndexOutdated, InvalidFilter, InvalidQuery, PhotoRejected
from visual_search.filters import parse_filters
from visual_search.index.marks import mark_dirty
from visual_search.index.versions import get_active, reset_index
from visual_search.models import Embedding, FeedState, IndexMark
from visual_search.search import SearchQuery, read_photo, search, similar_products, warm_up
from visual_search.search import query as query_module
from visual_search.search.facets import count_facets
from visual_search.search.results import why_not_ready
from visual_search.stores.base import Filters, Range

pytestmark = pytest.mark.django_db


def photo_of(seed: int, position: int = 0) -> Any:
    return read_photo(photo_bytes(seed=seed * 100 + position))


def found(query: SearchQuery, **options: Any) -> list[str]:
    return [hit.product.name for hit in search(query, **options).hits]


@pytest.fixture
def shop(make_product: Any, index: Any) -> Any:
    products = [
        make_product(1, images=3, price="10.00"),
        make_product(2, category="hats", price="20.00", brand=""),
        make_product(3, category="hats", price="30.00", stock=0),
        make_product(4, category="bags", price="40.00", brand="zenith"),
    ]
    index.drain()
    return products


def test_photo_of_a_product__finds_it_first_with_the_image_that_matched(shop: Any) -> None:
    results = search(SearchQuery(photos=[photo_of(1, 2)]))
    assert [results.hits[0].product.name, len(results.hits)] == ["Product 1", 4]
    assert results.hits[0].image.file.name == shop[0].images.all()[2].image.name
    assert results.hits[0].score > 0.95
    scores = [hit.score for hit in results.hits]
    assert scores == sorted(scores, reverse=True)


def test_search__runs_two_queries_besides_the_shops_prefetch(shop: Any, django_assert_num_queries: Any) -> None:
    query = SearchQuery(photos=[photo_of(1)])
    search(query)
    with django_assert_num_queries(3):  # version with the feed's state, products, their images
        search(query)
    with django_assert_num_queries(4):  # later pages read the keys first
        search(replace(query, offset=1))


def test_similar__runs_four_queries(shop: Any, django_assert_num_queries: Any) -> None:
    similar_products(shop[0])
    with django_assert_num_queries(4):  # version with the feed's state, the product's embedding, products, their images
        assert len(similar_products(shop[0]).hits) == 3


def test_text__finds_something(shop: Any) -> None:
    results = search(SearchQuery(texts=["a red shoe"]))
    assert len(results.hits) == 4
    assert set(results.timings_ms) == {"decode", "background", "wait", "encode", "feed", "store", "database"}


def test_weights__move_the_result_between_photo_and_text(shop: Any) -> None:
    photo, text = photo_of(1), "a plant"
    by_photo = search(SearchQuery(photos=[photo])).hits
    with_nothing_of_the_text = search(SearchQuery(photos=[photo], texts=[text], text_weight=0)).hits
    assert [h.score for h in by_photo] == pytest.approx([h.score for h in with_nothing_of_the_text], abs=1e-4)
    by_text = search(SearchQuery(texts=[text])).hits
    with_nothing_of_the_photo = search(SearchQuery(photos=[photo], texts=[text], photo_weight=0)).hits
    assert [h.score for h in by_text] == pytest.approx([h.score for h in with_nothing_of_the_photo], abs=1e-4)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"category": ["hats"]}, {2, 3}),
        ({"category": ["hats", "bags"]}, {2, 3, 4}),
        ({"brand": ["zenith"]}, {4}),
        ({"min_price": ["20"], "max_price": ["30.00"]}, {2, 3}),
        ({"in_stock": ["true"]}, {1, 2, 4}),
        ({"in_stock": ["no"], "category": ["hats"]}, {3}),
        ({"category": ["nothing"]}, set()),
        ({"category": [""], "max_price": [" "]}, {1, 2, 3, 4}),
    ],
)
def test_filters__let_through_what_they_say(shop: Any, values: Any, expected: Any) -> None:
    filters = parse_filters(get_catalog().filters, values)
    names = found(SearchQuery(photos=[photo_of(1)], filters=filters))
    assert set(names) == {f"Product {number}" for number in expected}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"colour": ["red"]}, "category, brand, min_price, max_price, in_stock"),
        ({"price": ["10"]}, "min_price"),
        ({"min_price": ["cheap"]}, "number"),
        ({"min_price": ["nan"]}, "number"),
        ({"min_price": ["1e999"]}, "number"),
        ({"max_price": ["Infinity"]}, "number"),
        ({"min_price": ["30"], "max_price": ["20"]}, "above"),
        ({"in_stock": ["maybe"]}, "true or false"),
        ({"category": ["x" * 10_000]}, "200 characters"),
        ({"category": ["a\0b"]}, "characters"),
        ({"category": [str(n) for n in range(51)]}, "50 values"),
    ],
)
def test_bad_filter__is_an_error_that_names_what_is_allowed(values: Any, words: str) -> None:
    with pytest.raises(InvalidFilter, match=words):
        parse_filters(get_catalog().filters, values)


def test_parsed_filters__are_plain_conditions() -> None:
    declared = get_catalog().filters
    parsed = parse_filters(declared, {"category": ["a", "b", "a"], "min_price": ["1.5"], "in_stock": ["YES"]})
    assert parsed == Filters(any_of={"category": ("a", "b"), "in_stock": (True,)}, ranges={"price": Range(1.5, None)})


def test_paging__shows_each_product_once(shop: Any) -> None:
    photo = photo_of(2)
    everything = found(SearchQuery(photos=[photo]))
    pages, offset = [], 0
    while offset is not None:
        results = search(SearchQuery(photos=[photo], limit=1, offset=offset))
        pages += [hit.product.name for hit in results.hits]
        offset = results.next_offset
    assert pages == everything
    assert len(set(pages)) == 4


def test_threshold__leaves_out_what_is_farther(shop: Any, settings: Any) -> None:
    query = SearchQuery(photos=[photo_of(1)], score_threshold=0.95)
    assert found(query) == ["Product 1"]
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"SCORE_THRESHOLD": 0.95}
    assert found(SearchQuery(photos=[photo_of(1)])) == ["Product 1"]
    assert len(found(SearchQuery(photos=[photo_of(1)], score_threshold=-1))) == 4


def test_unpublished_by_update__is_not_shown_before_any_drain(shop: Any) -> None:
    Product.objects.filter(name="Product 1").update(is_published=False)
    assert "Product 1" not in found(SearchQuery(photos=[photo_of(1)]))


def test_deleted__is_not_shown_before_any_drain(shop: Any) -> None:
    shop[0].delete()
    assert "Product 1" not in found(SearchQuery(photos=[photo_of(1)]))


def test_visible_to__is_applied_to_every_search_and_fills_the_page(
    shop: Any, rf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_bags_for_guests(self: Any, queryset: Any, request: Any) -> Any:
        is_guest = request is not None and isinstance(request.user, AnonymousUser)
        return queryset.filter(category__slug="bags") if is_guest else queryset

    monkeypatch.setattr(ProductCatalog, "visible_to", only_bags_for_guests)
    request = rf.get("/")
    request.user = AnonymousUser()
    query = SearchQuery(photos=[photo_of(1)], limit=1)
    assert found(query, request=request) == ["Product 4"]
    assert search(query, request=request).next_offset is None
    assert found(query) == ["Product 1"]


def test_change__is_searchable_after_the_drain(shop: Any, index: Any) -> None:
    filters = Filters(ranges={"price": Range(None, 15)})
    assert found(SearchQuery(photos=[photo_of(2)], filters=filters)) == ["Product 1"]
    shop[1].price = "5.00"
    shop[1].save()
    index.drain()
    assert found(SearchQuery(photos=[photo_of(2)], filters=filters)) == ["Product 2", "Product 1"]


def test_nothing_indexed__is_an_error(index: Any) -> None:
    with pytest.raises(IndexEmpty, match="reindex_products"):
        search(SearchQuery(texts=["a"]))


def test_other_checkpoint_in_the_settings__is_rejected_with_the_command(shop: Any, settings: Any) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": "openai/clip-vit-base-patch32"}
    with pytest.raises(IndexOutdated, match="reset_index"):
        search(SearchQuery(texts=["a"]))


def test_other_weights_under_the_same_name__are_rejected(shop: Any) -> None:
    version = get_active()
    version.fingerprint = "another"
    version.save()
    with pytest.raises(IndexOutdated, match="another"):
        search(SearchQuery(texts=["a"]))


def test_reset__empties_the_store_too(shop: Any, index: Any) -> None:
    warm_up()
    epoch = FeedState.objects.get().epoch
    reset_index()
    assert FeedState.objects.get().epoch != epoch
    shop[3].save()
    index.drain()
    assert found(SearchQuery(photos=[photo_of(4)])) == ["Product 4"]


def test_why_not_ready__until_the_process_is_warm(shop: Any) -> None:
    store_for(get_active()).close()
    assert "not filled" in why_not_ready()
    warm_up()
    assert why_not_ready() == ""


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (SearchQuery(), "query_empty"),
        (SearchQuery(texts=["a"], limit=10**9), "invalid_query"),
        (SearchQuery(texts=["a"], limit=0), "invalid_query"),
        (SearchQuery(texts=["a"], offset=-1), "invalid_query"),
        (SearchQuery(texts=["a"], offset=10**9), "invalid_query"),
        (SearchQuery(texts=["a" * 501]), "text_too_long"),
        (SearchQuery(texts=["a"], text_weight=float("nan")), "invalid_query"),
        (SearchQuery(texts=["a"], text_weight=0, photo_weight=0), "invalid_query"),
        (SearchQuery(texts=["a"], text_weight=-1), "invalid_query"),
        (SearchQuery(texts=["a"], text_weight=0), "invalid_query"),
        (SearchQuery(texts=["a"], score_threshold=7), "invalid_query"),
    ],
)
def test_bad_query__is_rejected(shop: Any, query: SearchQuery, code: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        search(query)
    assert caught.value.code == code


@pytest.mark.parametrize("text", ["\0", "שלום", "👟" * 100, " ", "a\u202eb"])
def test_odd_texts__are_searched_with(shop: Any, text: str) -> None:
    assert len(found(SearchQuery(texts=[text]))) == 4


def test_file_that_is_no_photo__is_rejected(shop: Any) -> None:
    with pytest.raises(PhotoRejected):
        search(SearchQuery(photos=[read_photo(b"no picture")]))


def test_similar_products__are_those_of_its_own_photo_without_it(shop: Any) -> None:
    by_photo = found(SearchQuery(photos=[photo_of(2)]))
    similar = [hit.product.name for hit in similar_products(shop[1]).hits]
    assert by_photo[0] == "Product 2"
    assert similar == by_photo[1:]
    assert [hit.product.name for hit in similar_products(str(shop[1].pk), limit=1).hits] == similar[:1]


def test_similar_products__load_no_encoder(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_module, "encoder_for", lambda version: 1 / 0)
    assert len(similar_products(shop[0]).hits) == 3


def test_product_whose_main_image_is_broken__is_compared_by_another(shop: Any, index: Any) -> None:
    main = shop[0].images.all()[0]
    main.image.storage.open(main.image.name, "wb").close()
    mark_dirty(Product.objects.filter(pk=shop[0].pk), kind=IndexMark.Kind.FORCED)
    index.drain()
    Embedding.objects.filter(image_key=str(main.pk)).update(vector=None)
    assert len(similar_products(shop[0]).hits) == 3


def test_like_and_unlike__move_the_results_and_are_left_out_of_them(shop: Any) -> None:
    one, two = str(shop[0].pk), str(shop[1].pk)
    plain = {hit.product.name: hit.score for hit in search(SearchQuery(photos=[photo_of(3)])).hits}
    query = SearchQuery(photos=[photo_of(3)], like=[one], unlike=[two])
    moved = search(query)
    assert {hit.product.name for hit in moved.hits} == {"Product 3", "Product 4"}
    assert moved.hits[0].score < plain["Product 3"]
    same = search(SearchQuery(photos=[photo_of(3)], like=[one], like_weight=0))
    assert same.hits[0].score == pytest.approx(plain["Product 3"], abs=1e-4)


@pytest.mark.parametrize("key", ["999999", "x", "", "a\0b", "9" * 300])
def test_similar_to_an_unknown_product__is_rejected(shop: Any, key: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        similar_products(key)
    assert caught.value.code == "product_not_indexed"


def test_similar_to_a_hidden_product__is_rejected_like_an_unknown_one(shop: Any) -> None:
    Product.objects.filter(pk=shop[0].pk).update(is_published=False)
    with pytest.raises(InvalidQuery, match="no indexed product"):
        similar_products(shop[0])


@pytest.mark.parametrize(
    "filters", [Filters(), Filters(any_of={"category": ("hats",)}), Filters(ranges={"price": Range(15, 35)})]
)
def test_facets__count_products_as_the_rows_do(shop: Any, filters: Filters) -> None:
    wanted: dict[str, dict[Any, int]] = {"category": {}, "brand": {}, "in_stock": {}}
    for product in shop:
        payload = get_catalog().payload(product)
        price = filters.ranges.get("price", Range(0, 1000))
        if payload["category"] in filters.any_of.get("category", (payload["category"],)) and (
            price.minimum <= payload["price"] <= price.maximum
        ):
            for name, counts in wanted.items():
                if payload[name] is not None:
                    counts[payload[name]] = counts.get(payload[name], 0) + 1
    price = filters.ranges.get("price", Range(0, 1000))
    inside = [
        float(product.price)
        for product in shop
        if product.category.slug in filters.any_of.get("category", (product.category.slug,))
        and price.minimum <= float(product.price) <= price.maximum
    ]
    counted = count_facets(filters)
    assert counted.values == wanted
    assert counted.bounds == {"price": Range(min(inside), max(inside))}


def test_query_beyond_the_encode_concurrency__waits_then_raises_busy(shop: Any, settings: Any) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"ENCODE_CONCURRENCY": 1, "ENCODE_WAIT_SECONDS": 0.05}
    with encode_slot():
        with pytest.raises(Busy):
            search(SearchQuery(texts=["a"]))
        assert len(similar_products(shop[0]).hits) == 3
    assert len(search(SearchQuery(texts=["a"])).hits) == 4
