"""What a search feeds of its own process's store: little, and the rest in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from visual_search import components
from visual_search.exceptions import IndexFilling, StoreUnavailable
from visual_search.index import feed, queue, versions
from visual_search.models import Embedding, FeedState, IndexVersion, point_id
from visual_search.search import SearchQuery, results, search, serving
from visual_search.search.query import STAGES, Timer

pytestmark = pytest.mark.django_db


@pytest.fixture
def version(make_product: Callable[..., Any], index: Any) -> Iterator[IndexVersion]:
    """An index of three products, served; later searches are those of a web process."""
    for seed in range(3):
        make_product(seed)
    index.drain()
    assert len(search(SearchQuery(texts=["a"])).hits) == 3
    queue._runs_inline = False
    yield versions.get_active()
    queue._runs_inline = True


def add_rows(version: IndexVersion, count: int) -> None:
    """Commit embeddings, as a bulk change does."""
    template = Embedding.objects.filter(vector__isnull=False)[0]
    state = FeedState.objects.get()
    Embedding.objects.bulk_create(
        Embedding(
            id=point_id(version.pk, f"new{n}", "1"), version=version, product_key=f"new{n}", image_key="1",
            is_main=True, vector=template.vector, payload=template.payload, seq=state.last_seq + n + 1,
        )
        for n in range(count)
    )  # fmt: skip
    FeedState.objects.update(last_seq=state.last_seq + count)


def test_few_changed_rows__are_fed_by_the_search_itself(version: IndexVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_refresh_in_thread", lambda version: pytest.fail("no thread is needed"))
    add_rows(version, 20)
    search(SearchQuery(texts=["a"]))
    assert components.store_for(version).count() == 23


def test_many_changed_rows__are_fed_a_page_by_the_search_and_the_rest_by_a_thread(
    version: IndexVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "FEED_SECONDS", 0)
    left: list[int] = []
    monkeypatch.setattr(serving, "_refresh_in_thread", lambda version: (left.append(version.pk), serving.Refresh())[1])
    add_rows(version, 5 * feed.SMALL_PAGE)
    assert len(search(SearchQuery(texts=["a"])).hits) == 3
    assert components.store_for(version).count() == 3 + feed.SMALL_PAGE
    assert left == [version.pk]


def test_store_that_must_start_over__answers_until_the_new_one_is_full(
    version: IndexVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = components.store_for(version)
    versions.reset_feed()
    with components.hold_store(version) as held:
        refresh(version, monkeypatch)
        assert held is old
        assert old.count() == 3  # still there for the search that holds it
        assert components.store_for(version) is not old
    assert old.position() is None
    assert components.store_for(version).count() == 3


def refresh(version: IndexVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what the thread runs, on this thread's connection."""

    class Kept:
        def close_all(self) -> None:
            pass

    monkeypatch.setattr(serving, "connections", Kept())
    serving._refresh(version, serving.Refresh())


def test_store_that_was_never_filled__is_waited_for_and_then_said_to_be_filling(
    version: IndexVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    components.close_stores()
    monkeypatch.setattr(serving, "FILL_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(serving, "_refresh_in_thread", lambda version: serving.Refresh())
    with pytest.raises(IndexFilling) as error:
        search(SearchQuery(texts=["a"]))
    assert error.value.code == "index_filling"


def test_store_that_can_not_be_filled__raises_why(version: IndexVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    components.close_stores()
    failed = serving.Refresh(error=StoreUnavailable("the disk is full"))
    failed.is_over.set()
    monkeypatch.setattr(serving, "_refresh_in_thread", lambda version: failed)
    with pytest.raises(StoreUnavailable, match="disk is full"):
        search(SearchQuery(texts=["a"]))


def test_refreshing_thread__fills_the_store(
    transactional_db: Any, make_product: Callable[..., Any], index: Any
) -> None:
    make_product(1)
    index.drain()
    components.close_stores()
    version = versions.get_active()
    refresh = serving._refresh_in_thread(version)
    assert refresh.is_over.wait(20)
    assert refresh.error is None
    assert components.store_for(version).count() == 1


def test_twenty_thousand_hidden_points__cost_at_most_twelve_queries(
    version: IndexVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = 20_000
    points = [results.Hit(str(n), 1 - n / 10**6, f"{10**6 + n}", "1") for n in range(hidden)]
    store = components.store_for(version)
    monkeypatch.setattr(store, "query", lambda *args, limit, **options: points[:limit])
    query = SearchQuery(texts=["a"], limit=24)
    loader = results.ProductLoader(query, None)
    with CaptureQueriesContext(connection) as captured:
        hits, has_more = results.find_page(store, None, query, loader, None, Timer(*STAGES))  # type: ignore[arg-type]
    assert (hits, has_more) == ([], False)
    assert len(captured) <= 12
