"""The contract of all stores, compared with a plain numpy store; then tests for each store."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import ROOT
from tests.conftest import skip_or_fail
from tests.qdrant_server import FakeQdrant
from tests.reference_store import ReferenceStore, is_match, values_of
from visual_search.exceptions import ConfigurationError, DimensionMismatch, InvalidVector, StoreUnavailable
from visual_search.stores import shard
from visual_search.stores.base import FieldKind, Filters, Hit, Point, Position, Range, VectorStore
from visual_search.stores.edge import EdgeStore, engine_errors
from visual_search.stores.qdrant import QdrantStore

SERVER_URL = os.environ.get("QDRANT_URL")
DIM = 16
FIELDS: dict[str, FieldKind] = {
    "category": "keyword",
    "tags": "keyword",
    "price": "number",
    "sizes": "number",
    "on_sale": "boolean",
}
EVERYTHING = Filters()

MakeStore = Callable[..., VectorStore]


def unit_vectors(count: int, *, dim: int = DIM, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_point(number: int, vector: np.ndarray, *, seq: int | None = None, **payload: Any) -> Point:
    return Point(
        id=str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))),
        vector=vector,
        product=f"product-{number // 3}",
        image=f"image-{number}",
        is_main=number % 3 == 0,
        seq=number + 1 if seq is None else seq,
        payload=payload,
    )


def make_points(count: int) -> list[Point]:
    """Return points with one, several, no and None values, and values that aren't ASCII."""
    return [
        make_point(
            number,
            vector,
            category=["shoes", "hüte", "帽子", None][number % 4],
            tags=[["red", "wool"], ["blue"], [], ["red"], "blue"][number % 5],
            price=None if number % 7 == 6 else number / 10,
            sizes=[[38.0, 40.0], [41.5], 44.0][number % 3],
            **({"on_sale": [True, False, None][number % 3]} if number % 11 else {}),
        )
        for number, vector in enumerate(unit_vectors(count))
    ]


@pytest.fixture(
    params=[
        "reference",
        "edge",
        "edge-by-codes",
        "qdrant-memory",
        "qdrant-http",
        *(["qdrant-server"] if SERVER_URL else []),
    ]
)
def make_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeStore]:
    if request.param == "edge-by-codes":  # as for more than 5,000 points
        monkeypatch.setattr(shard, "EXACT_UP_TO", 0)
        monkeypatch.setattr(shard, "POINTS_PER_CANDIDATE", 1)
    made: list[VectorStore] = []
    server = FakeQdrant() if request.param == "qdrant-http" else None

    def make(**changes: Any) -> VectorStore:
        options = {"name": f"test-{uuid.uuid4().hex}", "dim": DIM, "fields": FIELDS, **changes}
        match request.param:
            case "reference":
                store: VectorStore = ReferenceStore(**options)
            case "edge" | "edge-by-codes":
                store = EdgeStore(folder=tmp_path, **options)
            case "qdrant-memory":
                store = QdrantStore(location=":memory:", **options)
            case "qdrant-http" if server is not None:
                store = QdrantStore(url=server.url, timeout=30, **options)
            case _:
                store = QdrantStore(url=SERVER_URL, api_key=os.environ.get("QDRANT_API_KEY"), timeout=30, **options)
        made.append(store)
        return store

    yield make
    for store in made:
        if request.param == "qdrant-server":
            drop_collection(store)
        store.close()
    if server is not None:
        server.close()


@pytest.fixture
def store(make_store: MakeStore) -> VectorStore:
    store = make_store()
    store.ensure()
    return store


@pytest.fixture
def filled(store: VectorStore) -> VectorStore:
    store.upsert(make_points(90))
    return store


@pytest.fixture
def reference() -> ReferenceStore:
    reference = ReferenceStore(name="reference", dim=DIM, fields=FIELDS)
    reference.upsert(make_points(90))
    return reference


def drop_collection(store: VectorStore) -> None:
    from qdrant_client import QdrantClient

    client = QdrantClient(url=SERVER_URL, api_key=os.environ.get("QDRANT_API_KEY"))
    client.delete_collection(store.name)
    client.close()


def assert_same_hits(found: list[Hit], wanted: list[Hit]) -> None:
    assert [(hit.id, hit.product, hit.image) for hit in found] == [(hit.id, hit.product, hit.image) for hit in wanted]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted], abs=1e-3)


def assert_same_point(found: Point, wanted: Point) -> None:
    for name in ("id", "product", "image", "is_main", "seq", "payload"):
        assert getattr(found, name) == getattr(wanted, name)
    assert found.vector.dtype == np.float32
    np.testing.assert_allclose(found.vector, wanted.vector, atol=1e-6)


# Writing


def test_upsert__is_searchable_on_return(store: VectorStore) -> None:
    point = make_points(1)[0]
    store.upsert([point])
    assert [hit.id for hit in store.query(point.vector, EVERYTHING, limit=5)] == [point.id]


def test_upsert__replaces_vector_and_whole_payload(store: VectorStore) -> None:
    before, after = unit_vectors(2)
    store.upsert([make_point(1, before, seq=1, category="shoes", price=5.0)])
    changed = make_point(1, after, seq=2, category="hats")
    store.upsert([changed])
    assert store.count() == 1
    assert_same_point(store.retrieve([changed.id])[0], changed)
    assert store.count(Filters(ranges={"price": Range(0, 10)})) == 0


def test_upsert__of_nothing_is_no_error(store: VectorStore) -> None:
    store.upsert([])
    assert store.count() == 0


def test_upsert__goes_beyond_one_batch(store: VectorStore) -> None:
    points = [make_point(number, vector, price=number) for number, vector in enumerate(unit_vectors(2500))]
    store.upsert(points)
    assert store.count() == 2500
    assert store.query(points[2499].vector, EVERYTHING, limit=1)[0].id == points[2499].id
    assert dict(store.scroll()) == {point.id: point.seq for point in points}
    assert len(list(store.scroll(batch=7))) == 2500


def test_upsert__of_large_payloads_goes_beyond_one_request(store: VectorStore) -> None:
    points = [make_point(number, vector, note="x" * 400_000) for number, vector in enumerate(unit_vectors(30))]
    store.upsert(points)
    assert store.count() == 30


def invalid_vectors() -> dict[str, np.ndarray]:
    good = unit_vectors(1)[0]
    has_nan = good.copy()
    has_nan[3] = np.nan
    return {"nan": has_nan, "zero": np.zeros_like(good), "twice as long": good * 2}


@pytest.mark.parametrize("kind", list(invalid_vectors()))
def test_upsert__with_an_invalid_vector_writes_nothing(store: VectorStore, kind: str) -> None:
    with pytest.raises(InvalidVector):
        store.upsert([make_point(1, unit_vectors(1)[0]), make_point(2, invalid_vectors()[kind])])
    assert store.count() == 0


@pytest.mark.parametrize("kind", list(invalid_vectors()))
def test_query__with_an_invalid_vector_is_rejected(filled: VectorStore, kind: str) -> None:
    with pytest.raises(InvalidVector):
        filled.query(invalid_vectors()[kind], EVERYTHING, limit=1)
    with pytest.raises(InvalidVector):
        filled.query_batch(invalid_vectors()[kind][None], EVERYTHING, limit=1)


def test_another_dimension__is_rejected(filled: VectorStore) -> None:
    longer = unit_vectors(1, dim=DIM + 1)
    with pytest.raises(DimensionMismatch):
        filled.upsert([make_point(1, unit_vectors(1)[0]), make_point(2, longer[0])])
    with pytest.raises(DimensionMismatch):
        filled.query(longer[0], EVERYTHING, limit=1)
    with pytest.raises(DimensionMismatch):
        filled.query_batch(longer, EVERYTHING, limit=1)


def test_delete__removes_known_ids_and_ignores_unknown_ones(filled: VectorStore) -> None:
    points = make_points(90)
    filled.delete([points[0].id, str(uuid.uuid4()), points[1].id])
    assert filled.count() == 88
    assert filled.retrieve([points[0].id, points[1].id]) == []
    filled.delete([])
    assert filled.count() == 88


def test_delete__lets_an_id_come_back(filled: VectorStore) -> None:
    point = make_points(1)[0]
    filled.delete([point.id])
    filled.upsert([point])
    assert_same_point(filled.retrieve([point.id])[0], point)


# Searching

FILTERS = {
    "none": EVERYTHING,
    "one keyword": Filters(any_of={"category": ("shoes",)}),
    "several keywords": Filters(any_of={"category": ("shoes", "帽子", "unknown")}),
    "not ascii": Filters(any_of={"category": ("hüte",)}),
    "unknown keyword": Filters(any_of={"category": ("unknown",)}),
    "no keyword": Filters(any_of={"category": ()}),
    "one of many values": Filters(any_of={"tags": ("wool",)}),
    "several of many values": Filters(any_of={"tags": ("wool", "blue")}),
    "true": Filters(any_of={"on_sale": (True,)}),
    "false": Filters(any_of={"on_sale": (False,)}),
    "true or false": Filters(any_of={"on_sale": (True, False)}),
    "no boolean": Filters(any_of={"on_sale": ()}),
    "closed range": Filters(ranges={"price": Range(1.1, 2.3)}),
    "a single number": Filters(ranges={"price": Range(0.3, 0.3)}),
    "at least": Filters(ranges={"price": Range(minimum=5.0)}),
    "at most": Filters(ranges={"price": Range(maximum=0.0)}),
    "any number": Filters(ranges={"price": Range()}),
    "range the wrong way round": Filters(ranges={"price": Range(3, 2)}),
    "range of many values": Filters(ranges={"sizes": Range(39, 41)}),
    "main": Filters(is_main=True),
    "not main": Filters(is_main=False),
    "all at once": Filters(
        any_of={"category": ("shoes", "hüte"), "tags": ("red", "blue"), "on_sale": (True,)},
        ranges={"price": Range(0, 8), "sizes": Range(38, 44)},
        is_main=True,
    ),
}


@pytest.mark.parametrize("name", list(FILTERS))
def test_query__with_filters_answers_like_the_reference(
    filled: VectorStore, reference: ReferenceStore, name: str
) -> None:
    for vector in unit_vectors(3, seed=1):
        wanted = reference.query(vector, FILTERS[name], limit=100)
        assert_same_hits(filled.query(vector, FILTERS[name], limit=100), wanted)
    assert filled.count(FILTERS[name]) == len(wanted)


def test_filters__in_this_suite_match_some_points_and_not_others() -> None:
    matching = {name: sum(is_match(point, filters) for point in make_points(90)) for name, filters in FILTERS.items()}
    empty = {name for name, count in matching.items() if not count}
    assert empty == {"unknown keyword", "no keyword", "no boolean", "range the wrong way round"}
    assert {name for name, count in matching.items() if count == 90} == {"none"}


@pytest.mark.parametrize("limit", [0, 1, 7, 1000])
def test_query__returns_at_most_the_limit(filled: VectorStore, reference: ReferenceStore, limit: int) -> None:
    vector = unit_vectors(1, seed=2)[0]
    assert_same_hits(filled.query(vector, EVERYTHING, limit=limit), reference.query(vector, EVERYTHING, limit=limit))


def test_query__of_an_empty_store_finds_nothing(store: VectorStore) -> None:
    assert store.query(unit_vectors(1)[0], EVERYTHING, limit=5) == []


def test_score_threshold__keeps_scores_equal_to_it(filled: VectorStore) -> None:
    vector = unit_vectors(1, seed=3)[0]
    hits = filled.query(vector, EVERYTHING, limit=10)
    again = filled.query(vector, EVERYTHING, limit=10, score_threshold=hits[4].score)
    assert_same_hits(again, hits[:5])


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.25, 0.999])
def test_score_threshold__leaves_out_lower_scores(
    filled: VectorStore, reference: ReferenceStore, threshold: float
) -> None:
    vector = unit_vectors(1, seed=3)[0]
    wanted = reference.query(vector, EVERYTHING, limit=100, score_threshold=threshold)
    assert_same_hits(filled.query(vector, EVERYTHING, limit=100, score_threshold=threshold), wanted)


def test_query_batch__answers_row_by_row(filled: VectorStore, reference: ReferenceStore) -> None:
    vectors = unit_vectors(5, seed=4)
    found = filled.query_batch(vectors, FILTERS["several keywords"], limit=4)
    wanted = reference.query_batch(vectors, FILTERS["several keywords"], limit=4)
    assert len(found) == 5
    for found_hits, wanted_hits in zip(found, wanted, strict=True):
        assert_same_hits(found_hits, wanted_hits)


def test_query_batch__of_no_rows_or_no_limit_is_empty(filled: VectorStore) -> None:
    assert filled.query_batch(np.empty((0, DIM), dtype=np.float32), EVERYTHING, limit=4) == []
    assert filled.query_batch(unit_vectors(2), EVERYTHING, limit=0) == [[], []]


def test_query__from_several_threads_answers_each(filled: VectorStore, reference: ReferenceStore) -> None:
    vectors = unit_vectors(8, seed=5)
    answers: dict[int, list[Hit]] = {}

    def ask(number: int) -> None:
        for _ in range(10):
            answers[number] = filled.query(vectors[number], EVERYTHING, limit=3)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    for number, vector in enumerate(vectors):
        assert_same_hits(answers[number], reference.query(vector, EVERYTHING, limit=3))


# Reading


def test_retrieve__returns_whole_points_and_skips_unknown_ids(filled: VectorStore) -> None:
    wanted = {point.id: point for point in make_points(90)[:12]}
    found = filled.retrieve([*wanted, str(uuid.uuid4())])
    assert {point.id for point in found} == set(wanted)
    for point in found:
        assert_same_point(point, wanted[point.id])
    assert filled.retrieve([]) == []


@pytest.mark.parametrize("batch", [1, 45, 90, 1000])
def test_scroll__yields_every_point_once(filled: VectorStore, batch: int) -> None:
    assert sorted(filled.scroll(batch=batch)) == sorted((point.id, point.seq) for point in make_points(90))


def test_scroll__of_an_empty_store_yields_nothing(store: VectorStore) -> None:
    assert list(store.scroll()) == []


@pytest.mark.parametrize("field", ["category", "tags", "on_sale"])
@pytest.mark.parametrize("name", ["none", "closed range", "several of many values", "main", "no keyword"])
def test_facet__counts_the_points_of_each_value(filled: VectorStore, field: str, name: str) -> None:
    wanted: dict[Any, int] = {}
    for point in make_points(90):
        if is_match(point, FILTERS[name]):
            for value in set(values_of(point, field)):
                wanted[value] = wanted.get(value, 0) + 1
    found = filled.facet(field, FILTERS[name])
    assert found == wanted
    assert [type(value) for value in found] == [bool if field == "on_sale" else str] * len(found)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_facet__returns_the_most_frequent_values_up_to_the_limit(store: VectorStore) -> None:
    values = ["rare", "common", "usual", "common", "usual", "common"]
    store.upsert([make_point(n, v, category=values[n]) for n, v in enumerate(unit_vectors(6))])
    assert store.facet("category", EVERYTHING, limit=2) == {"common": 3, "usual": 2}


def test_facet_and_bounds__are_exact_after_points_were_rewritten_and_deleted(make_store: MakeStore) -> None:
    store = make_store()
    store.ensure()
    assert_exact_after_rewrites(store, ids=400)


def assert_exact_after_rewrites(store: VectorStore, *, ids: int, between: Callable[[], object] = lambda: None) -> None:
    """Write half of the ids eight times and delete some of them. Call `between` after each round."""
    kept: dict[str, Point] = {}
    dice = np.random.default_rng(0)
    for seq in range(8):
        numbers = dice.permutation(ids)[: ids // 2]
        points = [
            make_point(
                int(number), vector, seq=seq + 1, category=f"c{dice.integers(5)}", price=float(dice.integers(100)),
                on_sale=bool(dice.integers(2)), tags=[f"t{dice.integers(4)}", f"t{dice.integers(4)}"],
            )
            for number, vector in zip(numbers, unit_vectors(ids // 2, seed=seq), strict=True)
        ]  # fmt: skip
        store.upsert(points)
        kept |= {point.id: point for point in points}
        deleted = [point.id for point in points[: ids // 10]]
        store.delete(deleted)
        for point_id in deleted:
            del kept[point_id]
        between()
    for filters in (EVERYTHING, Filters(is_main=True), Filters(ranges={"price": Range(20, 60)}, is_main=True)):
        matching = [point for point in kept.values() if is_match(point, filters)]
        for field in ("category", "tags", "on_sale"):
            counts = Counter(value for point in matching for value in set(values_of(point, field)))
            assert store.facet(field, filters) == counts
        prices = [point.payload["price"] for point in matching]
        assert store.bounds("price", filters) == Range(min(prices), max(prices))


@pytest.mark.parametrize("field", ["price", "sizes"])
@pytest.mark.parametrize("name", FILTERS)
def test_bounds__are_the_lowest_and_the_highest_value(filled: VectorStore, field: str, name: str) -> None:
    values = [value for point in make_points(90) if is_match(point, FILTERS[name]) for value in values_of(point, field)]
    assert filled.bounds(field, FILTERS[name]) == (Range(min(values), max(values)) if values else None)


def test_health__names_the_engine_and_counts_points(filled: VectorStore) -> None:
    health = filled.health()
    assert health["engine"]
    assert health["points"] == 90


# Lifecycle


def test_making_a_store__opens_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    make_store()
    assert list(tmp_path.iterdir()) == []


def test_ensure__again_changes_nothing(filled: VectorStore) -> None:
    filled.set_position(Position("a", 90))
    filled.ensure()
    assert filled.count() == 90
    assert filled.position() == Position("a", 90)


def test_position__is_none_until_set_and_then_the_last_one(store: VectorStore) -> None:
    assert store.position() is None
    store.set_position(Position("first", 2**40))
    assert store.position() == Position("first", 2**40)
    store.set_position(Position("second", 3))
    assert store.position() == Position("second", 3)


def test_reset__empties_the_store_and_forgets_its_position(filled: VectorStore) -> None:
    filled.set_position(Position("a", 90))
    filled.reset()
    assert filled.position() is None
    assert filled.count() == 0
    filled.upsert(make_points(3))
    assert filled.facet("category", EVERYTHING) == {"shoes": 1, "hüte": 1, "帽子": 1}


def test_reset__makes_a_store_that_was_never_opened(make_store: MakeStore) -> None:
    store = make_store()
    store.reset()
    assert store.count() == 0


def test_close__lets_the_store_be_opened_again_with_a_true_position(filled: VectorStore) -> None:
    filled.set_position(Position("a", 90))
    filled.close()
    filled.close()
    filled.ensure()
    assert (filled.position(), filled.count()) in [(None, 0), (Position("a", 90), 90)]
    filled.upsert(make_points(2))
    assert filled.query(make_points(2)[1].vector, EVERYTHING, limit=1)[0].id == make_points(2)[1].id


def test_stores_of_two_names__share_nothing(make_store: MakeStore) -> None:
    first, second = make_store(), make_store()
    first.ensure()
    second.ensure()
    first.upsert(make_points(4))
    first.set_position(Position("a", 4))
    assert second.count() == 0
    assert second.position() is None


# The embedded engine


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[EdgeStore]:
    store = EdgeStore(name="shop", dim=DIM, fields=FIELDS, folder=tmp_path)
    yield store
    store.close()


def run_python(script: str, *arguments: str, timeout: float = 60) -> str:
    """Run the script in a new interpreter, so that the timeout kills a hanging fork."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


EDGE_PROCESS = """
import os, sys, time
from tests.stores.test_stores import DIM, EVERYTHING, FIELDS, EdgeStore, Position, make_points, unit_vectors
store = EdgeStore(name="shop", dim=DIM, fields=FIELDS, folder=sys.argv[1])
points = make_points(90)
store.upsert(points)
store.set_position(Position("a", 90))
def best(): return [hit.id for hit in store.query(points[5].vector, EVERYTHING, limit=1)]
assert best() == [points[5].id]
"""


@pytest.mark.parametrize("hook", ["with Python's fork hook", "with the pid alone"])
def test_edge__in_a_forked_child_is_its_own_and_empty(tmp_path: Path, hook: str) -> None:
    without_hook = "import visual_search.stores.edge as m; m._stores.clear()" if "pid" in hook else ""
    script = f"""
{EDGE_PROCESS}
{without_hook}
child = os.fork()
if not child:
    assert store.position() is None
    assert store.count() == 0 and best() == []
    store.upsert(points[:3])
    store.set_position(Position("a", 3))
    assert store.count() == 3
    store.reset()
    store.close()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert store.position() == Position("a", 90) and store.count() == 90 and best() == [points[5].id]
store.delete([points[5].id])
store.upsert(points)
assert store.count() == 90
print("parent unharmed")
"""
    assert run_python(script, str(tmp_path)) == "parent unharmed"
    assert list(tmp_path.iterdir()) == []


def test_edge__in_a_forked_child_that_never_uses_it_leaves_the_parents_files_alone(tmp_path: Path) -> None:
    script = f"""
{EDGE_PROCESS}
import hashlib, pathlib
def files(): return {{
    path: hashlib.md5(path.read_bytes()).hexdigest()
    for path in pathlib.Path(sys.argv[1]).rglob("*") if path.is_file()
}}
before = files()
child = os.fork()
if not child:
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert files() == before
assert best() == [points[5].id]
"""
    run_python(script, str(tmp_path))


def test_edge__clears_away_the_folder_of_a_killed_process_but_not_of_a_living_one(
    tmp_path: Path, edge: EdgeStore
) -> None:
    script = (
        f"{EDGE_PROCESS}\nif not os.fork(): time.sleep(60)\nprint(store.health()['folder'], flush=True)\ntime.sleep(60)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        for _ in range(2)
    ]
    try:
        killed, living = (Path(process.stdout.readline().decode().strip()) for process in processes)
        processes[0].kill()  # its forked child stays alive
        processes[0].wait()
        assert killed.exists()
        edge.ensure()
        assert not killed.exists()
        assert living.exists()
    finally:
        for process in processes:
            os.killpg(process.pid, 9)
            process.wait()
            process.stdout.close()


def test_edge__in_two_processes_side_by_side_shares_nothing(tmp_path: Path, edge: EdgeStore) -> None:
    edge.upsert(make_points(4))
    run_python(EDGE_PROCESS, str(tmp_path))
    assert edge.count() == 4


def test_edge__removes_its_folder_on_close_and_reset(tmp_path: Path, edge: EdgeStore) -> None:
    edge.upsert(make_points(4))
    edge.reset()
    assert len(list(tmp_path.iterdir())) == 1
    edge.close()
    assert list(tmp_path.iterdir()) == []


def test_edge__removes_its_folder_at_exit_and_when_collected(tmp_path: Path) -> None:
    run_python(EDGE_PROCESS, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    store = EdgeStore(name="shop", dim=DIM, fields=FIELDS, folder=tmp_path)
    store.ensure()
    del store
    assert list(tmp_path.iterdir()) == []


def test_edge__opened_by_several_threads_at_once_makes_one_shard(tmp_path: Path, edge: EdgeStore) -> None:
    barrier = threading.Barrier(6)

    def write(number: int) -> None:
        barrier.wait(timeout=30)
        edge.upsert([make_points(6)[number]])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert edge.count() == 6
    assert len(list(tmp_path.iterdir())) == 1


def test_edge__with_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = EdgeStore(name="shop", dim=DIM, fields=FIELDS, folder=tmp_path / "file" / "below")
    with pytest.raises(StoreUnavailable, match="below"):
        store.ensure()
    assert store.position() is None


def test_edge__with_a_dimension_the_engine_rejects_is_unavailable_and_leaves_nothing(tmp_path: Path) -> None:
    store = EdgeStore(name="shop", dim=0, fields=FIELDS, folder=tmp_path)
    with pytest.raises(StoreUnavailable, match="dimension"):
        store.ensure()
    assert list(tmp_path.iterdir()) == []


def test_edge__translates_an_error_of_the_engine(edge: EdgeStore) -> None:
    with pytest.raises(StoreUnavailable, match="'shop'.*no-field"):
        edge.bounds("no-field", EVERYTHING)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 100 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", disk], capture_output=True, check=False)
    if done.returncode:
        skip_or_fail("mount", "this user may not mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_edge__says_that_the_disk_is_full_before_the_kernel_ends_the_process(small_disk: Path) -> None:
    store = EdgeStore(name="shop", dim=512, fields=FIELDS, folder=small_disk)
    vectors = unit_vectors(1000, dim=512)

    def fill(numbers: range) -> None:
        for start in numbers[::1000]:
            points = [make_point(start + at, vector, category="x" * 100) for at, vector in enumerate(vectors)]
            store.upsert(points)

    with pytest.raises(StoreUnavailable, match=r"MB are free.*folder"):
        fill(range(0, 100_000))
    assert store.count() > 0
    store.query(vectors[0], EVERYTHING, limit=3)
    store.reset()
    fill(range(0, 1000))  # there is space again
    assert store.count() == 1000
    store.close()


def test_engine_errors__translates_a_panic_of_the_engine(tmp_path: Path) -> None:
    import qdrant_edge

    config = qdrant_edge.EdgeConfig(
        vectors=qdrant_edge.EdgeVectorParams(size=DIM, distance=qdrant_edge.Distance.Cosine)
    )
    qdrant_edge.EdgeShard.create(str(tmp_path / "shard"), config).close()
    for status in tmp_path.glob("shard/segments/*/vector_storage/vectors/status.dat"):
        status.write_bytes(b"x")
    with pytest.raises(StoreUnavailable, match="PanicException"), engine_errors("load a damaged shard"):
        qdrant_edge.EdgeShard.load(str(tmp_path / "shard"))


def clustered_points(count: int, *, dim: int) -> list[Point]:
    centres = unit_vectors(count // 10, dim=dim, seed=1)
    rows = (
        unit_vectors(count, dim=dim, seed=2) * 0.5 + centres[np.random.default_rng(3).integers(count // 10, size=count)]
    )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return [make_point(number, row, category=f"c{number % 3}") for number, row in enumerate(rows)]


def test_edge__by_codes_finds_what_the_reference_finds(tmp_path: Path) -> None:
    options: dict[str, Any] = {"name": "shop", "dim": 64, "fields": FIELDS}
    edge, reference = EdgeStore(folder=tmp_path, **options), ReferenceStore(**options)
    points = clustered_points(shard.EXACT_UP_TO + 1000, dim=64)
    for store in (edge, reference):
        store.upsert(points)
        store.upsert([make_point(n, point.vector, category="c1") for n, point in enumerate(points[:500])])
        store.delete([point.id for point in points[500:600]])
    found = []
    for filters in (EVERYTHING, Filters(any_of={"category": ("c1",)})):
        for limit in (1, 10, 60):
            for point in points[::200]:
                wanted = {hit.id for hit in reference.query(point.vector, filters, limit=limit)}
                hits = edge.query(point.vector, filters, limit=limit)
                found.append(len(wanted & {hit.id for hit in hits}) / limit)
                assert hits[0].score == pytest.approx(
                    float(point.vector @ edge.retrieve([hits[0].id])[0].vector), abs=1e-4
                )
    assert np.mean(found) >= 0.99
    edge.close()


def test_edge__keeps_one_segment_however_often_points_are_rewritten(edge: EdgeStore) -> None:
    assert_exact_after_rewrites(edge, ids=2000)
    assert edge.health()["segments"] == 1


def test_edge__would_count_exactly_in_several_segments_too(edge: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import qdrant_edge as engine

    config = engine.EdgeConfig(
        vectors=engine.EdgeVectorParams(size=DIM, distance=engine.Distance.Cosine),
        quantization_config=shard._config(DIM).quantization_config,
        optimizers=engine.EdgeOptimizersConfig(indexing_threshold=10),  # KB; few points become a new segment
        wal_enabled=False,
    )
    monkeypatch.setattr(shard, "_config", lambda dim: config)
    segments = []

    def optimize() -> None:
        edge._private.shard.optimize()
        segments.append(edge.health()["segments"])

    assert_exact_after_rewrites(edge, ids=1000, between=optimize)
    assert max(segments) > 1


def test_edge__frees_the_space_of_replaced_payloads(edge: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "REWRITES_PER_FLUSH", 500)
    points = [make_point(n, vector, note="x" * 4000) for n, vector in enumerate(unit_vectors(500))]
    edge.upsert(points)
    folder = Path(edge.health()["folder"])
    sizes = []
    for _ in range(8):
        edge.upsert(points)
        sizes.append(sum(path.stat().st_blocks * 512 for path in folder.rglob("*")))
    assert sizes[-1] < sizes[0] * 1.5  # each round writes 2 MB


# Damage


@pytest.fixture
def fed(edge: EdgeStore) -> EdgeStore:
    edge.upsert(make_points(90))
    edge.set_position(Position("a", 90))
    return edge


def delete_in_the_engine(store: EdgeStore, *numbers: int) -> None:
    import qdrant_edge

    store._private.shard.update(qdrant_edge.UpdateOperation.delete_points(list(numbers)))


def swap_in_the_engine(store: EdgeStore) -> None:
    import qdrant_edge

    delete_in_the_engine(store, 3)
    other = qdrant_edge.Point(1000, unit_vectors(1)[0].tolist(), {})
    store._private.shard.update(qdrant_edge.UpdateOperation.upsert_points([other]))


def overwrite_vectors(store: EdgeStore) -> None:
    """Write zeros in place: the engine maps the files, and truncating one would kill the process (SIGBUS)."""
    files = list(Path(store.health()["folder"]).rglob("vector_storage/vectors/chunk_*.mmap"))
    assert files
    for path in files:
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))


def cause_engine_error(store: EdgeStore) -> None:
    with pytest.raises(StoreUnavailable, match="no-field"):
        store.bounds("no-field", EVERYTHING)


def assert_closed_and_fillable(store: EdgeStore, tmp_path: Path) -> None:
    assert store.position() is None
    assert list(tmp_path.iterdir()) == []
    store.upsert(make_points(90))
    store.set_position(Position("a", 90))
    assert store.query(make_points(90)[7].vector, EVERYTHING, limit=1)[0].id == make_points(90)[7].id


def test_edge__that_lost_a_point_is_noticed_by_the_next_query(fed: EdgeStore, tmp_path: Path) -> None:
    delete_in_the_engine(fed, 5)
    with pytest.raises(StoreUnavailable, match="89 points, but 90 were written"):
        fed.query(unit_vectors(1)[0], EVERYTHING, limit=3)
    assert_closed_and_fillable(fed, tmp_path)


@pytest.mark.parametrize("damage", [swap_in_the_engine, overwrite_vectors])
def test_edge__damaged_while_it_was_filled_gets_no_position(
    edge: EdgeStore, tmp_path: Path, damage: Callable[[EdgeStore], None]
) -> None:
    edge.upsert(make_points(90))
    damage(edge)
    with pytest.raises(StoreUnavailable, match="ids of its points|finds itself"):
        edge.set_position(Position("a", 90))
    assert_closed_and_fillable(edge, tmp_path)


@pytest.mark.parametrize("damage", [swap_in_the_engine, overwrite_vectors])
def test_edge__damaged_is_noticed_after_an_error(
    fed: EdgeStore, tmp_path: Path, damage: Callable[[EdgeStore], None]
) -> None:
    damage(fed)
    assert fed.position() is not None
    cause_engine_error(fed)
    assert_closed_and_fillable(fed, tmp_path)


def test_edge__whose_vectors_were_overwritten_is_noticed_by_the_next_feed(fed: EdgeStore, tmp_path: Path) -> None:
    overwrite_vectors(fed)
    fed.delete([make_points(90)[89].id])  # the probe point
    with pytest.raises(StoreUnavailable, match="finds itself"):
        fed.set_position(Position("a", 91))
    assert_closed_and_fillable(fed, tmp_path)


def test_edge__that_is_undamaged_survives_a_rejected_request(fed: EdgeStore) -> None:
    cause_engine_error(fed)
    assert fed.position() == Position("a", 90)
    assert fed.count() == 90


def test_edge__written_and_queried_by_threads_at_once_is_not_reported_as_damaged(edge: EdgeStore) -> None:
    points, errors, is_over = make_points(300), list[Exception](), threading.Event()
    edge.upsert(points[:100])

    def ask() -> None:
        while not is_over.is_set():
            try:
                edge.query(points[0].vector, EVERYTHING, limit=500)
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        edge.upsert(points[100:])
        edge.delete([point.id for point in points[100:]])
        edge.set_position(Position("a", 1))
    is_over.set()
    for thread in threads:
        thread.join(timeout=30)
    assert errors == []
    assert edge.count() == 100


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_engine_errors__lets_the_process_be_stopped(signal: type[BaseException]) -> None:
    with pytest.raises(signal), engine_errors("wait"):
        raise signal


# The server


def test_qdrant__without_a_url_says_what_is_missing() -> None:
    with pytest.raises(ConfigurationError, match="url"):
        QdrantStore(name="shop", dim=DIM, fields=FIELDS)


@pytest.mark.parametrize("prefer_grpc", [False, True])
@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_qdrant__that_does_not_answer_is_unavailable_soon(prefer_grpc: bool) -> None:
    store = QdrantStore(
        name="shop",
        dim=DIM,
        fields=FIELDS,
        url="http://user:password@127.0.0.1:1",
        api_key="secret-key\n",
        timeout=2,
        prefer_grpc=prefer_grpc,
    )
    vectors = unit_vectors(2)
    filters = FILTERS["all at once"]
    calls: list[Callable[[], Any]] = [
        store.ensure,
        store.reset,
        lambda: store.upsert(make_points(1)),
        lambda: store.delete([make_points(1)[0].id]),
        lambda: store.query(vectors[0], filters, limit=1, score_threshold=0.2),
        lambda: store.query_batch(vectors, filters, limit=1),
        lambda: store.retrieve([make_points(1)[0].id]),
        lambda: list(store.scroll()),
        lambda: store.count(filters),
        lambda: store.facet("category", filters),
        store.health,
        store.position,
        lambda: store.set_position(Position("a", 1)),
    ]
    started = time.monotonic()
    for call in calls:
        with pytest.raises(StoreUnavailable, match=r"http://127\.0\.0\.1:1: .*([Rr]efused|UNAVAILABLE)") as caught:
            call()
        assert "secret-key" not in str(caught.value)
        assert "password" not in str(caught.value)
    store.close()
    assert time.monotonic() - started < 20


@pytest.fixture
def client() -> Any:
    from qdrant_client import QdrantClient

    return QdrantClient(":memory:")


def test_qdrant__with_a_collection_of_another_dimension_says_what_to_do(client: Any) -> None:
    QdrantStore(name="shop", dim=DIM, fields=FIELDS, client=client).ensure()
    with pytest.raises(DimensionMismatch, match=r"16-dimensional.*17 dimensions.*reset_index"):
        QdrantStore(name="shop", dim=DIM + 1, fields=FIELDS, client=client).ensure()


def test_qdrant__keeps_points_and_position_for_the_next_process(client: Any) -> None:
    first = QdrantStore(name="shop", dim=DIM, fields=FIELDS, client=client)
    first.ensure()
    first.upsert(make_points(5))
    first.set_position(Position("a", 5))
    first.close()
    second = QdrantStore(name="shop", dim=DIM, fields=FIELDS, client=client)
    assert second.position() == Position("a", 5)
    second.ensure()
    assert second.count() == 5


def test_qdrant__whose_collection_was_lost_has_no_position_and_is_unavailable(client: Any) -> None:
    store = QdrantStore(name="shop", dim=DIM, fields=FIELDS, client=client)
    store.ensure()
    store.upsert(make_points(5))
    store.set_position(Position("a", 5))
    client.delete_collection("shop")
    assert store.position() is None
    with pytest.raises(StoreUnavailable, match="'shop'"):
        store.query(unit_vectors(1)[0], EVERYTHING, limit=1)
    store.reset()
    assert store.count() == 0


def test_qdrant__keeps_a_point_that_is_newer_than_what_a_paused_writer_brings(client: Any) -> None:
    store = QdrantStore(name="shop", dim=DIM, fields=FIELDS, client=client)
    store.ensure()
    old, new = unit_vectors(2)
    store.upsert([make_point(1, new, seq=9, category="new")])
    store.upsert([make_point(1, old, seq=3, category="old"), make_point(2, old, seq=4)])
    assert store.retrieve([make_point(1, old).id])[0].payload == {"category": "new"}
    assert store.count() == 2
    store.upsert([make_point(1, old, seq=9, category="repaired")])
    assert store.retrieve([make_point(1, old).id])[0].payload == {"category": "repaired"}


def test_qdrant__in_a_forked_child_builds_its_own_client() -> None:
    script = """
        import os, sys
        from tests.stores.test_stores import DIM, FIELDS, QdrantStore, make_points
        store = QdrantStore(name="shop", dim=DIM, fields=FIELDS, location=":memory:")
        store.ensure()
        store.upsert(make_points(3))
        child = os.fork()
        if not child:
            assert store.position() is None
            store.ensure()
            assert store.count() == 0
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert store.count() == 3
    """
    run_python(script)


@pytest.mark.skipif(
    not SERVER_URL, reason="needs a Qdrant server, like the contract suite's last parameter: QDRANT_URL is not set"
)
def test_qdrant__adds_missing_payload_indexes_to_an_existing_collection() -> None:
    from qdrant_client import QdrantClient

    name = f"test-{uuid.uuid4().hex}"
    store = QdrantStore(name=name, dim=DIM, fields={"category": "keyword"}, url=SERVER_URL, timeout=30)
    client = QdrantClient(url=SERVER_URL)
    try:
        store.ensure()
        store.upsert(make_points(9))
        QdrantStore(name=name, dim=DIM, fields=FIELDS, url=SERVER_URL, timeout=30).ensure()
        assert set(client.get_collection(name).payload_schema) == {*FIELDS, "_main", "_seq"}
        assert store.count() == 9
    finally:
        client.delete_collection(name)
        store.close()


# Importing


@pytest.mark.parametrize("module", ["edge", "qdrant"])
def test_import__of_a_store_module_imports_no_engine(module: str) -> None:
    script = f"""
        import sys
        import visual_search.stores.{module}
        print(sorted(set(sys.modules) & {{"qdrant_edge", "qdrant_client", "numpy", "grpc", "httpx"}}))
    """
    assert run_python(script) == "[]"


@pytest.mark.parametrize(
    ("module", "package", "store"),
    [
        ("edge", "qdrant_edge", "EdgeStore(name='a', dim=4, fields={})"),
        ("qdrant", "qdrant_client", "QdrantStore(name='a', dim=4, fields={}, url='http://127.0.0.1:1')"),
    ],
)
def test_ensure__without_the_engines_package_names_the_extra(module: str, package: str, store: str) -> None:
    script = f"""
        import sys
        sys.modules[{package!r}] = None  # simulates a missing package
        from visual_search.exceptions import ConfigurationError
        from visual_search.stores.{module} import *
        try:
            {store}.ensure()
        except ConfigurationError as error:
            print(error)
    """
    assert f'pip install "django-visual-search[{module}]"' in run_python(script)
