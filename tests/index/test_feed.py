"""Feed stores with points: in the order of seq, from any position, after any loss."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.drawings import photo_bytes
from visual_search.catalog import get_catalog
from visual_search.components import store_for
from visual_search.exceptions import StoreUnavailable
from visual_search.index import feed, queue, sweep
from visual_search.index.verify import verify
from visual_search.index.versions import get_active
from visual_search.models import Embedding, FeedState
from visual_search.search import SearchQuery, read_photo, search
from visual_search.stores.base import Position

pytestmark = pytest.mark.django_db

MEMORY = {"BACKEND": "visual_search.stores.qdrant.QdrantStore", "OPTIONS": {"location": ":memory:"}}
UNREACHABLE = {"BACKEND": "visual_search.stores.qdrant.QdrantStore", "OPTIONS": {"url": "http://127.0.0.1:1"}}


@pytest.fixture
def shop(make_product: Any, index: Any) -> Any:
    products = [make_product(1, images=2), make_product(2)]
    index.drain()
    return products


def catch_up() -> int:
    version = get_active()
    return feed.catch_up(version, store_for(version))


def stored() -> dict[str, int]:
    return dict(store_for(get_active()).scroll())


def table() -> dict[str, int]:
    rows = Embedding.objects.filter(vector__isnull=False)
    return {str(pk): seq for pk, seq in rows.values_list("id", "seq")}


def test_first_feed__fills_and_the_second_does_nothing(shop: Any, django_assert_num_queries: Any) -> None:
    assert catch_up() == 3
    assert stored() == table()
    version = get_active()
    with django_assert_num_queries(1):
        assert feed.catch_up(version, store_for(version)) == 0


def test_change__is_fed_alone(shop: Any, index: Any) -> None:
    catch_up()
    shop[1].price = "3.00"
    shop[1].save()
    index.drain()
    assert catch_up() == 1
    assert stored() == table()


def test_feed_in_pages__is_complete(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PAGE", 1)
    assert catch_up() == 3
    assert stored() == table()


@pytest.mark.parametrize("case", ["epoch", "ahead", "pruned"])
def test_store_of_another_history__is_emptied_and_filled_again(shop: Any, index: Any, case: str) -> None:
    catch_up()
    store, state = store_for(get_active()), FeedState.objects.get()
    if case == "epoch":
        FeedState.objects.update(epoch=uuid.uuid4())
    elif case == "ahead":  # the database was restored from a backup
        store.set_position(Position(str(state.epoch), state.last_seq + 10))
    else:
        store.set_position(Position(str(state.epoch), 0))
        FeedState.objects.update(pruned_through=1)
    Embedding.objects.filter(product_key=str(shop[0].pk)).delete()
    assert catch_up() == 1
    assert stored() == table()


def test_shared_store__is_fed_by_the_drain_and_not_by_searches(
    make_product: Any, index: Any, settings: Any, django_assert_num_queries: Any
) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"STORE": MEMORY}
    product = make_product(1, images=2)
    index.drain()
    assert stored() == table()
    query = SearchQuery(photos=[read_photo(photo_bytes(seed=101))])
    with django_assert_num_queries(3):  # version with the feed's state, products, images
        assert [hit.product for hit in search(query).hits] == [product]
    product.delete()
    index.drain()
    assert stored() == {}
    assert verify().differences == []


def test_store_that_does_not_answer__stops_searches_but_not_the_index(
    make_product: Any, index: Any, settings: Any
) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"STORE": UNREACHABLE}
    make_product(1)
    assert index.drain().indexed == 1
    with pytest.raises(StoreUnavailable):
        search(SearchQuery(texts=["a"]))
    assert [difference.kind for difference in verify().differences] == ["store"]
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"STORE": MEMORY}  # the store is available again, but empty
    sweep.sweep()
    assert verify().differences == []
    assert len(search(SearchQuery(texts=["a"])).hits) == 1


def test_point__has_the_data_of_its_row(shop: Any) -> None:
    row = Embedding.objects.get(product_key=str(shop[1].pk))
    catch_up()
    (point,) = store_for(get_active()).retrieve([str(row.pk)])
    assert (point.product, point.image, point.is_main, point.seq) == (row.product_key, row.image_key, True, row.seq)
    assert dict(point.payload) == get_catalog().payload(shop[1])


def test_private_store_that_starts_over__has_no_position_before_it_is_full(
    shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PAGE", 1)
    store = store_for(get_active())
    positions = []
    upsert = store.upsert
    monkeypatch.setattr(store, "upsert", lambda points: (positions.append(store.position()), upsert(points)))
    catch_up()
    assert positions == [None, None, None]
    assert store.position() is not None


def test_feed_that_was_interrupted__starts_over_and_leaves_no_deleted_point(
    shop: Any, index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_for(get_active())
    with monkeypatch.context() as patch:
        patch.setattr(store, "set_position", lambda position: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            catch_up()
    shop[1].delete()
    index.drain()
    catch_up()
    assert stored() == table()


def test_edge_store_that_breaks__is_filled_again_by_the_next_query(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    catch_up()
    store = store_for(get_active())
    store._private.shard.close()
    with pytest.raises(StoreUnavailable):
        search(SearchQuery(texts=["a"]))
    assert len(search(SearchQuery(texts=["a"])).hits) == 2


def test_edge_store_that_lost_a_point__is_filled_again_by_the_next_query(shop: Any) -> None:
    import qdrant_edge

    catch_up()
    store = store_for(get_active())
    store._private.shard.update(qdrant_edge.UpdateOperation.delete_points([0]))
    with pytest.raises(StoreUnavailable, match="2 points, but 3 were written"):
        search(SearchQuery(texts=["a"]))
    with queue.run_inline():
        assert len(search(SearchQuery(texts=["a"])).hits) == 2
    assert stored() == table()


def test_filling__logs_its_progress(
    shop: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(feed, "PAGE", 1)
    monkeypatch.setattr(feed, "PROGRESS_SECONDS", 0)
    with caplog.at_level("INFO", logger="visual_search.index.feed"):
        catch_up()
    messages = [record.getMessage() for record in caplog.records]
    assert "2 of 3 rows" in messages[1]
    assert messages[-1].startswith("Fed 3 rows")
