"""Properties of queries: arithmetic, paging, ties, thresholds, the cache of embeddings, bad input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from django.core.cache import cache
from hypothesis import HealthCheck, given, settings, strategies

from example_shop.models import Product
from tests.drawings import photo_bytes
from visual_search import components
from visual_search.catalog import get_catalog
from visual_search.exceptions import BadRequest, InvalidFilter, InvalidQuery
from visual_search.filters import parse_filters
from visual_search.index.feed import read_feed_state
from visual_search.index.versions import get_active
from visual_search.models import Embedding, FeedState, point_id
from visual_search.search import SearchQuery, read_photo, search
from visual_search.search import query as query_module
from visual_search.search.photos import Photo
from visual_search.search.query import Timer, embed_query

pytestmark = pytest.mark.django_db

# All examples of a test share one shop, because none of them changes it.
shared = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def shop(make_product: Any, index: Any) -> list[Product]:
    """Twelve products; six of them have the same picture, so their scores are equal."""
    products = [make_product(seed, images=seed % 2 + 1, category=["shoes", "hats"][seed % 2]) for seed in range(6)]
    index.drain()
    version, state = get_active(), read_feed_state()
    picture = Embedding.objects.get(product_key=str(products[0].pk))
    seq = state.last_seq
    for twin in range(6):
        product = make_product(100 + twin, images=0)
        key = str(product.pk)
        for image in range(4):
            seq += 1
            copy = Embedding(
                id=point_id(version.pk, key, str(image)), version=version, product_key=key, image_key=str(image),
                image_identity="", digest="", is_main=not image, vector=picture.vector, payload=picture.payload,
                seq=seq,
            )  # fmt: skip
            copy.save()
        products.append(product)
    FeedState.objects.update(last_seq=seq)
    return products


@pytest.fixture
def photo() -> Photo:
    return read_photo(photo_bytes(seed=0))


def pages(query: SearchQuery, limit: int) -> Iterator[list[str]]:
    offset: int | None = 0
    while offset is not None:
        results = search(SearchQuery(photos=query.photos, texts=query.texts, limit=limit, offset=offset))
        yield [str(hit.product.pk) for hit in results.hits]
        offset = results.next_offset


@shared
@given(limit=strategies.integers(1, 13))
def test_pages_of_any_size__show_every_product_once_although_scores_are_equal(
    shop: list[Product], photo: Photo, limit: int
) -> None:
    shown = [key for page in pages(SearchQuery(photos=[photo]), limit) for key in page]
    assert len(shown) == len(set(shown)) == len(shop)
    whole = [str(hit.product.pk) for hit in search(SearchQuery(photos=[photo], limit=100)).hits]
    assert shown == whole


@shared
@given(hidden=strategies.sets(strategies.integers(0, 11)), limit=strategies.integers(1, 13))
def test_pages__are_full_whatever_is_hidden(shop: list[Product], photo: Photo, hidden: set[int], limit: int) -> None:
    keys = [shop[place].pk for place in hidden]
    Product.objects.update(is_published=True)
    Product.objects.filter(pk__in=keys).update(is_published=False)
    found = list(pages(SearchQuery(photos=[photo]), limit))
    assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
    assert {key for page in found for key in page} == {str(product.pk) for product in shop} - set(map(str, keys))


weights = strategies.floats(0, 10, allow_nan=False)


@shared
@given(photo_weight=weights, text_weight=weights, like_weight=weights, unlike_weight=weights)
def test_query_vector__is_the_documented_sum(
    shop: list[Product], photo: Photo, photo_weight: float, text_weight: float, like_weight: float, unlike_weight: float
) -> None:
    version = get_active()
    encoder = components.encoder_for(version)
    like, unlike = str(shop[1].pk), str(shop[2].pk)
    stored = query_module.stored_vectors(version, [like, unlike])
    query = SearchQuery(
        photos=[photo], texts=["red"], like=[like], unlike=[unlike], photo_weight=photo_weight, text_weight=text_weight,
        like_weight=like_weight, unlike_weight=unlike_weight,
    )  # fmt: skip
    wanted = (
        photo_weight * encoder.embed_images([photo.decode(encoder.input_size_px * 2)])[0]
        + text_weight * encoder.embed_texts(["red"])[0]
        + like_weight * stored[like]
        - unlike_weight * stored[unlike]
    )
    length = np.linalg.norm(wanted)
    if length < 1e-4:
        return  # the vector is zero; the exact limit is not part of the contract
    vector, _ = embed_query(query, version, Timer())
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(vector, wanted / length, atol=5e-3)


anything = strategies.text(max_size=20) | strategies.sampled_from(
    ["\0", "x" * 10_000, "‮שלום", "👟" * 3000, "nan", "-1", "1e400", "true", "hats", "10.5", "٣"]
)


@given(
    values=strategies.dictionaries(
        strategies.sampled_from(["category", "brand", "min_price", "max_price", "in_stock", "price", "min_", "_main"])
        | anything,
        strategies.lists(anything, max_size=4),
        max_size=4,
    )
)
@settings(deadline=None, max_examples=300)
def test_any_filter__is_parsed_or_rejected(values: dict[str, list[str]]) -> None:
    try:
        filters = parse_filters(get_catalog().filters, values)
    except InvalidFilter:
        return
    assert set(filters.any_of) | set(filters.ranges) <= set(get_catalog().filters)


@shared
@given(
    query=strategies.builds(
        SearchQuery,
        texts=strategies.lists(anything, max_size=2),
        like=strategies.lists(anything, max_size=2),
        unlike=strategies.lists(anything, max_size=2),
        text_weight=strategies.floats(),
        limit=strategies.none() | strategies.integers(),
        offset=strategies.integers(),
        fallback=strategies.integers(),
        score_threshold=strategies.none() | strategies.floats(),
    )
)
def test_any_query__is_answered_or_rejected(shop: list[Product], query: SearchQuery) -> None:
    try:
        results = search(query)
    except BadRequest:
        return
    assert len(results.hits) <= (query.limit or 24)


# Nothing close


def test_nothing_above_the_threshold__is_reported_with_the_nearest_as_fallback(
    shop: list[Product], photo: Photo
) -> None:
    far = SearchQuery(texts=["a cathedral"], score_threshold=0.99)
    results = search(far)
    assert (results.hits, results.is_nothing_close, results.fallback, results.next_offset) == ([], True, [], None)
    named = search(SearchQuery(texts=["a cathedral"], score_threshold=0.99, fallback=3))
    assert (named.hits, named.is_nothing_close, len(named.fallback)) == ([], True, 3)
    plain = search(SearchQuery(texts=["a cathedral"], limit=3))
    assert [hit.product for hit in named.fallback] == [hit.product for hit in plain.hits]
    close = search(SearchQuery(photos=[photo], score_threshold=0.9, fallback=3))
    assert (close.is_nothing_close, close.fallback) == (False, [])


def test_no_product_that_fits_the_filters__is_not_called_nothing_close(shop: list[Product], photo: Photo) -> None:
    filters = parse_filters(get_catalog().filters, {"category": ["none"]})
    results = search(SearchQuery(photos=[photo], filters=filters, score_threshold=0.9, fallback=3))
    assert (results.hits, results.is_nothing_close, results.fallback) == ([], False, [])


def test_page_behind_the_end__is_empty_not_far(shop: list[Product], photo: Photo) -> None:
    results = search(SearchQuery(photos=[photo], score_threshold=0.9, offset=500, fallback=3))
    assert (results.hits, results.is_nothing_close, results.fallback) == ([], False, [])


# The cache


def test_repeated_photo__needs_no_encoder(
    shop: list[Product], photo: Photo, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    first = search(SearchQuery(photos=[photo]))
    with monkeypatch.context() as patch:
        patch.setattr(query_module, "encoder_for", lambda version: 1 / 0)
        again = search(SearchQuery(photos=[read_photo(photo.data)]))
        with pytest.raises(ZeroDivisionError):  # another crop has another digest
            search(SearchQuery(photos=[read_photo(photo.data, crop=(0, 0, 1, 0.5))]))
    assert [report.is_cached for report in (*first.photos, *again.photos)] == [False, True]
    assert [hit.product for hit in again.hits] == [hit.product for hit in first.hits]
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"EMBEDDING_CACHE_SECONDS": 0}
    assert not search(SearchQuery(photos=[photo])).photos[0].is_cached


def test_embedding_of_another_checkpoint__is_not_used(shop: list[Product], photo: Photo) -> None:
    search(SearchQuery(photos=[photo]))
    version = get_active()
    version.fingerprint = "0" * 16
    version.save()
    with pytest.raises(Exception, match="fingerprint"):
        search(SearchQuery(photos=[photo]))


def test_cache_entry_of_the_wrong_length__is_not_used(shop: list[Product], photo: Photo) -> None:
    search(SearchQuery(photos=[photo]))
    (name,) = [key for key in cache._cache if "embedding" in key]
    cache.set(name.removeprefix(":1:"), (b"\0" * 8, "none", ""))
    assert not search(SearchQuery(photos=[photo])).photos[0].is_cached


def test_cache_that_does_not_answer__costs_only_the_encoding(
    shop: list[Product], photo: Photo, settings: Any, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    backend = "django.core.cache.backends.filebased.FileBasedCache"
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": tmp_path / "file" / "below"}}
    assert search(SearchQuery(photos=[photo])).hits
    assert "cache does not" in caplog.text


def test_too_many_photos__are_rejected(shop: list[Product], photo: Photo) -> None:
    with pytest.raises(InvalidQuery) as caught:
        search(SearchQuery(photos=[photo] * 5))
    assert caught.value.code == "too_many_photos"
