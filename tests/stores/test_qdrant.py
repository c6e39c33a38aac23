"""QdrantStore over HTTP: its requests, and its behaviour when the server fails. Its contract: test_stores.py."""

from __future__ import annotations

import inspect
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from django.test import Client

from tests import ROOT
from tests.qdrant_server import FakeQdrant
from tests.stores.test_stores import DIM, EVERYTHING, FIELDS, make_point, make_points, unit_vectors
from visual_search import components
from visual_search.exceptions import ConfigurationError, DimensionMismatch, StoreUnavailable
from visual_search.index import feed
from visual_search.index.verify import verify
from visual_search.models import Embedding
from visual_search.stores import tuning
from visual_search.stores.base import Filters, Position
from visual_search.stores.qdrant import BYTES_PER_REQUEST, QdrantStore

INDEXES = {
    "_main": "bool", "_seq": "integer", "category": "keyword", "tags": "keyword", "price": "float", "sizes": "float",
    "on_sale": "bool",
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[FakeQdrant]:
    server = FakeQdrant()
    yield server
    server.close()


def make_store(server: FakeQdrant, **options: Any) -> QdrantStore:
    return QdrantStore(
        name="shop", fields=FIELDS, url=server.url, **{"dim": DIM, "timeout": 1, "backoff_seconds": 0.01} | options
    )


def times(count: int, status: int) -> Callable[[], int | None]:
    """Return a fault that answers the next `count` requests with `status`."""
    left = iter([status] * count)
    return lambda: next(left, None)


# Requests


def test_collection__is_made_with_the_options_and_indexed_before_the_first_point(server: FakeQdrant) -> None:
    store = make_store(
        server,
        hnsw={"m": 32},
        optimizers={"indexing_threshold": 10_000},
        cluster={"shard_number": 3, "replication_factor": 2, "write_consistency_factor": 1},
    )
    store.ensure()
    store.upsert(make_points(3))
    (made,) = server.asked("PUT", "/collections/shop")
    assert made["vectors"] == {"size": DIM, "distance": "Cosine", "on_disk": True}
    assert made["quantization_config"]["scalar"] == {"type": "int8", "quantile": 0.99, "always_ram": True}
    assert made["hnsw_config"] == {"m": 32, "ef_construct": 128}
    assert made["optimizers_config"] == {"indexing_threshold": 10_000}
    assert (made["shard_number"], made["replication_factor"], made["write_consistency_factor"]) == (3, 2, 1)
    assert server.indexes["shop"] == INDEXES
    paths = [path for _, path, _ in server.requests]
    assert len(paths) - paths[::-1].index("/collections/shop/index") <= paths.index("/collections/shop/points")
    assert store.health()["missing_indexes"] == []


def test_query__rescores_oversampled_candidates(server: FakeQdrant) -> None:
    store = make_store(server, search={"hnsw_ef": 256}, max_limit=50)
    store.ensure()
    store.query(unit_vectors(1)[0], EVERYTHING, limit=1000)
    store.query_batch(unit_vectors(101), Filters(is_main=True), limit=5)
    (asked,) = server.asked("POST", "/points/query")
    assert asked["params"]["hnsw_ef"] == 256
    assert asked["params"]["quantization"]["rescore"] is True
    assert asked["params"]["quantization"]["oversampling"] == 2.0
    assert asked["limit"] == 50
    batches = server.asked("POST", "/points/query/batch")
    assert [len(batch["searches"]) for batch in batches] == [100, 1]
    assert batches[0]["searches"][0]["params"] == asked["params"]


def test_quantization__can_be_left_out(server: FakeQdrant) -> None:
    store = make_store(server, quantization=False)
    store.ensure()
    store.query(unit_vectors(1)[0], EVERYTHING, limit=1)
    assert "quantization_config" not in server.asked("PUT", "/collections/shop")[0]
    assert "quantization" not in server.asked("POST", "/points/query")[0]["params"]


def test_changed_options__are_brought_to_an_existing_collection_once(
    server: FakeQdrant, caplog: pytest.LogCaptureFixture
) -> None:
    make_store(server).ensure()
    assert server.asked("PATCH", "/shop") == []
    for _ in range(2):
        make_store(server, hnsw={"m": 32}, quantization=False, cluster={"shard_number": 2}).ensure()
    (changed,) = server.asked("PATCH", "/shop")
    assert changed["hnsw_config"]["m"] == 32
    assert changed["quantization_config"] == "Disabled"
    assert "keeps its shards" in caplog.text


def test_payload_indexes__that_are_missing_or_of_another_type_are_repaired(server: FakeQdrant) -> None:
    store = make_store(server)
    store.ensure()
    del server.indexes["shop"]["category"]
    server.indexes["shop"]["price"] = "keyword"
    assert store.health()["missing_indexes"] == ["category", "price"]
    store.ensure()
    assert server.indexes["shop"] == INDEXES
    assert any(method == "DELETE" and path.endswith("/index/price") for method, path, _ in server.requests)


def test_requests__stay_below_the_limit_and_carry_the_condition(server: FakeQdrant) -> None:
    store = make_store(server, dim=2048, write_timeout=30)
    store.ensure()
    points = [make_point(n, row, note="é" * 500) for n, row in enumerate(unit_vectors(300, dim=2048))]
    store.upsert(points)
    store.delete_up_to([point.id for point in points], seq=7)
    assert max(server.sizes) < BYTES_PER_REQUEST
    for batch in server.asked("PUT", "/points"):
        newest = max(point["payload"]["_seq"] for point in batch["points"])
        assert batch["update_filter"]["must"][0]["range"]["lte"] == newest
    assert store.count() == 293


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hnsw": {"ef_contruct": 1}}, "'hnsw' has no key 'ef_contruct'. Did you mean 'ef_construct'?"),
        ({"cluster": 3}, "'cluster' is 3; expected a dict"),
        ({"timeout": 0.5}, "'timeout' is 0.5; expected whole seconds"),
    ],
)
def test_wrong_option__is_named_when_the_store_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message.replace("?", r"\?")):
        QdrantStore(name="shop", dim=DIM, fields={}, url="http://127.0.0.1:1", **options)


def test_documents__name_every_option() -> None:
    text = (ROOT / "docs" / "qdrant.md").read_text()
    options = set(inspect.signature(QdrantStore).parameters) - {"name", "dim", "fields", "location", "client"}
    assert options >= set(tuning.DEFAULTS)
    for name in options:
        assert f"| `{name}` |" in text
    for values in tuning.DEFAULTS.values():
        for key, value in values.items():
            assert (f'"{key}": {json.dumps(value)}' in text.replace("True", "true")) if value else (f"`{key}`" in text)


# Faults


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_transient_error__is_retried(server: FakeQdrant, status: int) -> None:
    store = make_store(server, retries=2)
    store.ensure()
    server.fault = times(2, status)
    assert store.count() == 0
    server.fault = times(2, status)
    store.upsert(make_points(1))
    assert store.count() == 1


def test_waits_between_attempts__grow(server: FakeQdrant) -> None:
    store = make_store(server, retries=3, backoff_seconds=0.1, timeout=5)
    moments: list[float] = []
    server.fault = lambda: moments.append(time.monotonic()) or 500  # type: ignore[func-returns-value]
    with pytest.raises(StoreUnavailable, match=r"500.*server's log and disk"):
        store.count()
    waits = np.diff(moments)
    assert len(moments) == 4
    assert waits[0] >= 0.1
    assert waits[1] >= 0.2
    assert waits[2] >= 0.4


def test_retry_after__is_respected(server: FakeQdrant) -> None:
    store = make_store(server, retries=1, timeout=5)
    store.ensure()
    server.headers = {"Retry-After": "1"}
    server.fault = times(1, 429)
    started = time.monotonic()
    assert store.count() == 0
    assert time.monotonic() - started >= 1
    server.fault = times(9, 429)
    with pytest.raises(StoreUnavailable, match="limits requests"):
        store.count()


@pytest.mark.parametrize("status", [400, 404, 409, 422])
def test_permanent_error__is_not_retried(server: FakeQdrant, status: int) -> None:
    store = make_store(server)
    server.fault = lambda: status
    with pytest.raises(StoreUnavailable, match=str(status)):
        store.count()
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_rejected_key__is_reported_and_not_shown(server: FakeQdrant, status: int) -> None:
    store = make_store(server, api_key="secret-key\n")
    server.fault = lambda: status
    with pytest.raises(StoreUnavailable, match="rejects the key: check the store's option 'api_key'") as caught:
        store.ensure()
    assert "secret-key" not in str(caught.value)
    assert len(server.requests) == 1


def test_hanging_server__keeps_a_shopper_waiting_for_one_time_out_only(server: FakeQdrant) -> None:
    store = make_store(server, retries=3, write_timeout=1)
    store.ensure()
    hang = threading.Event()
    server.fault = lambda: None if hang.wait(20) else None
    asked = len(server.requests)
    started = time.monotonic()
    try:
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            store.query(unit_vectors(1)[0], EVERYTHING, limit=1)
        assert time.monotonic() - started < 2.5
        assert len(server.requests) == asked + 1
        with pytest.raises(StoreUnavailable, match="raise the store's 'timeout' or 'write_timeout'"):
            store.upsert(make_points(1))
        assert len(server.requests) == asked + 5
    finally:
        hang.set()


def test_refused_connection__says_what_to_check(server: FakeQdrant) -> None:
    store = make_store(server)
    server.close()
    with pytest.raises(StoreUnavailable, match="Is the server running, and is the store's 'url' right"):
        store.position()


def test_collection_of_another_dimension__is_rejected_with_the_command(server: FakeQdrant) -> None:
    make_store(server).ensure()
    with pytest.raises(DimensionMismatch, match=r"16-dimensional.*17 dimensions.*reset_index"):
        make_store(server, dim=DIM + 1).ensure()


def test_server_that_keeps_no_metadata__is_too_old(server: FakeQdrant) -> None:
    answer = server._collection

    def without_metadata(method: str, name: str, body: Any) -> Any:
        return answer(method, name, {**body, "metadata": None} if body else body)

    server._collection = without_metadata  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"Use Qdrant 1\.16 or newer"):
            make_store(server).ensure()
    with pytest.raises(StoreUnavailable, match=r"Use Qdrant 1\.16 or newer"):
        make_store(server).reset()


def test_write_that_was_accepted_but_not_applied__raises(server: FakeQdrant) -> None:
    store = make_store(server)
    store.ensure()
    server._points = lambda *args: {"operation_id": 1, "status": "wait_timeout"}  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable, match="'write_timeout'"):
        store.upsert(make_points(1))


def test_alias__moves_in_one_request(server: FakeQdrant) -> None:
    first, second = make_store(server), QdrantStore(name="shop_2", dim=DIM, fields={}, url=server.url)
    for store in (first, second):
        store.ensure()
        store.point_alias("outside")
        store.point_alias("outside")
    made, moved = server.asked("POST", "/collections/aliases")
    assert [list(action) for action in made["actions"]] == [["create_alias"]]
    assert [list(action) for action in moved["actions"]] == [["delete_alias"], ["create_alias"]]
    assert server.engine.get_aliases().aliases[0].collection_name == "shop_2"


def test_grpc__takes_every_request(server: FakeQdrant) -> None:
    """No server answers, but the requests are built: anything without a gRPC form would fail before the call."""
    store = make_store(server, prefer_grpc=True, grpc_port=1, retries=0)
    collection, changes = store._collection, store.tuning.update_arguments()
    calls: list[Callable[[], Any]] = [
        collection._create,
        collection.drop,
        lambda: collection.set_position(Position("a", 1)),
        lambda: collection._create_index("price", "float", replaces=False),
        lambda: collection.write("change", lambda client: client.update_collection("shop", **changes)),
        lambda: store.delete_up_to([make_points(1)[0].id], seq=7),
        lambda: store.scroll_slice(make_points(1)[0].id, limit=3),
        lambda: store.query_batch(unit_vectors(1), Filters(is_main=True), limit=3),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="UNAVAILABLE"):
            call()
    assert server.requests == []


# The whole index


@pytest.fixture
def shop(server: FakeQdrant, index: Any, make_product: Any, settings: Any) -> Iterator[Any]:
    backend = "visual_search.stores.qdrant.QdrantStore"
    options = {"url": server.url, "timeout": 1, "write_timeout": 1, "backoff_seconds": 0.01}
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"STORE": {"BACKEND": backend, "OPTIONS": options}}
    product = make_product(1)
    index.drain()
    yield product
    components.close_stores()


@pytest.mark.django_db
@pytest.mark.parametrize("fault", ["error", "hang", "key"])
def test_server_that_fails__stops_searches_alone_and_is_fed_when_it_is_back(
    server: FakeQdrant, shop: Any, make_product: Any, index: Any, fault: str, client: Client
) -> None:
    hang = threading.Event()
    server.fault = {"error": lambda: 500, "key": lambda: 403, "hang": lambda: None if hang.wait(20) else None}[fault]
    answer = client.get("/api/visual-search/v1/search/", {"q": "a shoe"})
    assert answer.status_code == 503
    assert answer.json()["code"] == "store_unavailable"
    assert int(answer["Retry-After"]) > 0
    make_product(2)
    shop.price = "3.00"
    shop.save()
    report = index.drain()
    assert (report.indexed, report.embedded, report.failed) == (2, 1, 0)
    server.fault = None
    hang.set()
    index.sweep()
    assert Embedding.objects.count() == 2
    assert verify().differences == []
    assert client.get("/api/visual-search/v1/search/", {"q": "a shoe"}).status_code == 200


@pytest.mark.django_db
def test_server_that_comes_back_empty__is_filled_without_the_encoder(
    server: FakeQdrant, shop: Any, index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for collection in server.engine.get_collections().collections:
        server.engine.delete_collection(collection.name)
    monkeypatch.setattr("visual_search.vision.encoder.TransformersEncoder.embed_images", None)
    index.sweep()
    assert verify().differences == []
    assert components.store_for(_version()).count() == 1


@pytest.mark.django_db
def test_server_that_fails_between_pages__is_fed_from_there(
    server: FakeQdrant, shop: Any, make_product: Any, index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PAGE", 1)
    for seed in (2, 3, 4):
        make_product(seed)
    writes = iter([None, None, *[500] * 3])
    last = len(server.requests)

    def fail() -> int | None:
        is_write = any(path.endswith("/points") and method == "PUT" for method, path, _ in server.requests[last:][-1:])
        return next(writes, None) if is_write else None

    server.fault = fail
    index.drain()
    position = components.store_for(_version()).position()
    assert position is not None
    assert position.seq == 3
    index.sweep()
    assert components.store_for(_version()).position() == Position(position.epoch, 4)
    assert verify().differences == []


def _version() -> Any:
    from visual_search.index.versions import get_active

    return get_active()
