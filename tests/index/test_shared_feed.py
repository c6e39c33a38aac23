"""Feed a shared store: one feeder at a time, and a correct result after pauses, kills, losses and restores."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone
from qdrant_client import QdrantClient

from tests import ROOT
from tests.qdrant_server import FakeQdrant
from visual_search import components
from visual_search.exceptions import LeaseLost, VersionSuperseded
from visual_search.index import feed, finish, leases, repair, sweep, versions
from visual_search.models import Embedding, FeedLease, FeedState, IndexVersion, point_id
from visual_search.stores.base import Point, Position
from visual_search.stores.qdrant import QdrantStore

pytestmark = pytest.mark.django_db

DIM = 8


class PausingStore(QdrantStore):
    """Run `meanwhile` once during a call: what other processes do while this one is paused."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.meanwhile: dict[str, Callable[[], object]] = {}

    def _pause(self, call: str) -> None:
        if work := self.meanwhile.pop(call, None):
            work()

    def upsert(self, points: Sequence[Point]) -> None:
        self._pause("upsert")
        super().upsert(points)

    def delete_up_to(self, ids: Sequence[str], *, seq: int) -> None:
        self._pause("delete")
        super().delete_up_to(ids, seq=seq)

    def reset(self) -> None:
        self._pause("reset")
        super().reset()

    def set_position(self, position: Position) -> None:
        self._pause("set_position")
        super().set_position(position)


@pytest.fixture
def client() -> QdrantClient:
    return QdrantClient(":memory:")


@pytest.fixture
def version(db: Any, client: QdrantClient, settings: Any) -> Iterator[IndexVersion]:
    backend = {"BACKEND": "visual_search.stores.qdrant.QdrantStore", "OPTIONS": {"client": client}}
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"STORE": backend, "COLLECTION": "shop"}
    components.close_stores()
    yield IndexVersion.objects.create(checkpoint="a", fingerprint="f", dim=DIM, state=IndexVersion.State.ACTIVE)
    components.close_stores()


@pytest.fixture
def store(version: IndexVersion, client: QdrantClient) -> PausingStore:
    """The store of another process for the same collection."""
    return PausingStore(name=f"shop_v{version.pk}", dim=DIM, fields={}, client=client)


def write(version: IndexVersion, *keys: str, is_gone: bool = False, dim: int = DIM) -> None:
    """Commit embeddings or tombstones as a drain does."""
    vectors = np.random.default_rng(len(keys)).normal(size=(len(keys), dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [
        Embedding(
            id=point_id(version.pk, key, "1"),
            version=version,
            product_key=key,
            image_key="1",
            is_main=True,
            vector=None if is_gone else vector.astype("<f2").tobytes(),
        )
        for key, vector in zip(keys, vectors, strict=True)
    ]
    finish._write_embeddings(rows, "default")


def feed_now(version: IndexVersion) -> int:
    return feed.catch_up(version, components.store_for(version))


def take_over(version: IndexVersion) -> int:
    """Feed like another process after the lease of a paused one has expired."""
    FeedLease.objects.update(lease_until="2000-01-01T00:00Z")
    return feed_now(version)


def stored(version: IndexVersion) -> dict[str, int]:
    return dict(components.store_for(version).scroll())


def table(version: IndexVersion) -> dict[str, int]:
    rows = Embedding.objects.filter(version=version, vector__isnull=False)
    return {str(pk): seq for pk, seq in rows.values_list("id", "seq")}


def position_of(version: IndexVersion) -> int:
    position = components.store_for(version).position()
    assert position is not None
    return position.seq


# The lease


def test_feed__writes_its_position_into_the_store_and_into_the_lease(version: IndexVersion) -> None:
    write(version, "1", "2", "3")
    assert feed_now(version) == 3
    assert stored(version) == table(version)
    row = FeedLease.objects.get()
    assert (row.seq, row.epoch, row.token, row.lease_until) == (3, str(FeedState.objects.get().epoch), None, None)
    assert position_of(version) == 3


def test_feed__while_another_process_feeds_leaves_the_store_to_it(version: IndexVersion) -> None:
    write(version, "1")
    with leases.hold(version) as lease:
        assert lease is not None
        assert feed_now(version) == 0
        with leases.hold(version) as second:
            assert second is None
    assert feed_now(version) == 1


def test_lease_of_a_killed_feeder__is_free_when_it_has_ended(version: IndexVersion) -> None:
    write(version, "1")
    leases.get_row(version)
    FeedLease.objects.update(token=uuid.uuid4(), lease_until=timezone.now() + datetime.timedelta(seconds=30))
    assert feed_now(version) == 0
    assert take_over(version) == 1


def test_lease_of_a_clock_that_was_set_back__is_free(version: IndexVersion) -> None:
    write(version, "1")
    leases.get_row(version)
    FeedLease.objects.update(token=uuid.uuid4(), lease_until=timezone.now() + datetime.timedelta(hours=1))
    assert feed_now(version) == 1


def test_lease__is_waited_for_on_request(version: IndexVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1)
    leases.get_row(version)
    assert leases._take(leases.Lease(version, uuid.uuid4(), "default"))
    write(version, "1")
    assert feed.catch_up(version, components.store_for(version), wait_seconds=0.3) == 0
    assert feed.catch_up(version, components.store_for(version), wait_seconds=10) == 1


def test_lease__is_renewed_with_each_page(
    version: IndexVersion, store: PausingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PAGE", 1)
    write(version, "1", "2", "3")
    ends = []
    set_position = store.set_position

    def record_end(position: Position) -> None:
        ends.append(FeedLease.objects.get().lease_until)
        FeedLease.objects.update(lease_until="2000-01-01T00:00Z")
        set_position(position)

    monkeypatch.setattr(store, "set_position", record_end)
    feed.catch_up(version, store)
    assert [end.year > 2000 for end in ends] == [True] * 4


def test_row_committed_while_another_process_feeds__is_fed_by_that_one(
    version: IndexVersion, store: PausingStore
) -> None:
    write(version, "1")

    def commit() -> None:
        write(version, "2")
        assert feed_now(version) == 0  # the lease is taken; its holder checks again

    store.meanwhile["upsert"] = commit
    assert feed.catch_up(version, store) == 2
    assert stored(version) == table(version)


# Feeders that were paused and lost their lease


def test_paused_feeder__cannot_overwrite_newer_points_nor_set_the_position_back(
    version: IndexVersion, store: PausingStore
) -> None:
    write(version, "1", "2")
    store.meanwhile["upsert"] = lambda: (write(version, "1"), take_over(version))
    with pytest.raises(LeaseLost, match="Another process feeds"):
        feed.catch_up(version, store)
    assert stored(version) == table(version)
    assert position_of(version) == 3
    assert feed_now(version) == 0


def test_paused_feeder__cannot_delete_a_point_that_came_back(version: IndexVersion, store: PausingStore) -> None:
    write(version, "1", "2")
    feed_now(version)
    write(version, "1", is_gone=True)
    store.meanwhile["delete"] = lambda: (write(version, "1"), take_over(version))
    with pytest.raises(LeaseLost):
        feed.catch_up(version, store)
    assert stored(version) == table(version)
    assert len(table(version)) == 2


def test_deleted_point_that_a_paused_feeder_wrote__is_removed_by_the_sweep(
    version: IndexVersion, store: PausingStore
) -> None:
    write(version, "1", "2")
    store.meanwhile["upsert"] = lambda: (write(version, "1", is_gone=True), take_over(version))
    with pytest.raises(LeaseLost):
        feed.catch_up(version, store)
    assert len(stored(version)) == 2
    assert repair.repair_shared_store(version) == 1
    assert stored(version) == table(version)


def test_position_that_a_paused_feeder_set_back__is_fed_from_again(version: IndexVersion, store: PausingStore) -> None:
    write(version, "1", "2")
    store.meanwhile["set_position"] = lambda: (write(version, "1", "3"), take_over(version))
    with pytest.raises(LeaseLost):
        feed.catch_up(version, store)
    assert position_of(version) == 2
    assert feed_now(version) == 2
    assert (stored(version), position_of(version)) == (table(version), 4)


def test_position_that_a_paused_feeder_set_ahead_of_one_that_started_over__is_not_trusted(
    version: IndexVersion, store: PausingStore
) -> None:
    write(version, "1", "2")
    feed.catch_up(version, store)
    store.reset()
    leases.get_row(version)
    FeedLease.objects.update(seq=0)  # another feeder started over and was killed
    store.set_position(Position(str(FeedState.objects.get().epoch), 2))  # the paused one continues
    assert feed_now(version) == 2
    assert stored(version) == table(version)


def test_feeder_that_waited_for_the_lease__reads_the_state_anew(
    version: IndexVersion, store: PausingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(version, *map(str, range(50)))
    feed_now(version)
    write(version, "50")
    take, resets = leases._take, forbid_resets(monkeypatch)

    def take_second(lease: leases.Lease) -> bool:
        """Lose the lease once to another process, which feeds rows that are newer than what this one read."""
        monkeypatch.setattr(leases, "_take", take)
        write(version, "51", "52")
        feed_now(version)
        return False

    monkeypatch.setattr(leases, "_take", take_second)
    feed.catch_up(version, store, wait_seconds=2)
    assert resets == []
    assert stored(version) == table(version)
    assert not FeedLease.objects.get().must_compare


@pytest.mark.parametrize("is_pruned", [False, True], ids=["with tombstones", "tombstones pruned"])
def test_refill_that_is_killed_again_and_again__continues_where_it_ended(
    version: IndexVersion, store: PausingStore, monkeypatch: pytest.MonkeyPatch, is_pruned: bool
) -> None:
    monkeypatch.setattr(feed, "PAGE", 10)
    write(version, *map(str, range(100)))
    write(version, "0", is_gone=True)
    if is_pruned:
        FeedState.objects.update(pruned_through=FeedState.objects.get().last_seq)
        Embedding.objects.filter(vector=None).delete()
    resets = forbid_resets(monkeypatch)
    upsert, seen = PausingStore.upsert, []
    for _ in range(3):  # each task is killed in its fourth page
        left = iter(range(3))

        def upsert_some(self: PausingStore, points: Sequence[Point], left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            upsert(self, points)

        with monkeypatch.context() as patch:
            patch.setattr(PausingStore, "upsert", upsert_some)
            with pytest.raises(KeyboardInterrupt):
                feed.catch_up(version, store)
        seen.append(len(stored(version)))
    assert seen == [30, 60, 90]
    feed_now(version)
    repair.repair_shared_store(version)
    assert resets == []
    assert stored(version) == table(version)


def test_refill_within_a_deadline__hands_on_and_continues(
    version: IndexVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PAGE", 10)
    write(version, *map(str, range(100)))
    store = components.store_for(version)
    assert [feed.catch_up(version, store, seconds=0) for _ in range(11)] == [10] * 10 + [0]
    assert stored(version) == table(version)
    assert not feed.feed_shared_store(version, seconds=60)


def forbid_resets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record each time that a store is emptied or dropped: it answers searches meanwhile."""
    calls: list[str] = []
    for call in ("reset", "drop"):
        monkeypatch.setattr(QdrantStore, call, lambda self, call=call: calls.append(call))
    return calls


def test_rows_of_a_worker_killed_before_it_fed_them__are_fed_by_the_sweep(version: IndexVersion) -> None:
    write(version, "1", "2")
    sweep.sweep()
    assert stored(version) == table(version)


# Stores and databases that were lost or restored


def test_lost_collection__is_filled_again(version: IndexVersion, client: QdrantClient) -> None:
    write(version, "1", "2")
    feed_now(version)
    client.delete_collection(f"shop_v{version.pk}")
    assert feed_now(version) == 2
    assert stored(version) == table(version)


def test_store_restored_from_an_old_snapshot__is_fed_from_there(version: IndexVersion) -> None:
    write(version, "1", "2")
    feed_now(version)
    write(version, "3")
    write(version, "1", is_gone=True)
    feed_now(version)
    store = components.store_for(version)  # restore the state after the first feed
    store.upsert(feed.rows_to_points(list(Embedding.objects.filter(product_key="2")), DIM))
    store.delete([str(point_id(version.pk, "3", "1"))])
    store.set_position(Position(str(FeedState.objects.get().epoch), 2))
    assert feed_now(version) == 2
    assert stored(version) == table(version)


def test_store_that_lost_points_but_not_its_position__is_filled_by_the_sweep_in_slices(
    version: IndexVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "SLICE", 3)
    write(version, *(str(number) for number in range(20)))
    feed_now(version)
    components.store_for(version).delete(sorted(table(version))[2:15])
    assert feed_now(version) == 0
    assert repair.repair_shared_store(version) == 13
    assert stored(version) == table(version)
    assert repair.repair_shared_store(version) == 0


def test_comparison__goes_on_where_the_last_sweep_ended(version: IndexVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "SLICE", 4)
    monkeypatch.setattr(repair, "COMPARE_SECONDS", 0)
    write(version, *(str(number) for number in range(10)))
    feed_now(version)
    last = max(stored(version))
    row = Embedding.objects.get(pk=last)
    Embedding.objects.filter(pk=last).update(seq=0)  # the store's point is newer: of another history
    assert [repair.repair_shared_store(version) for _ in range(4)] == [0, 0, 1, 0]
    assert stored(version) == table(version)
    assert row.seq != stored(version)[last]


def test_comparison__leaves_rows_that_were_not_fed_yet_to_the_feed(version: IndexVersion, store: PausingStore) -> None:
    write(version, "1", "2")
    feed_now(version)
    write(version, "1", "3")
    assert repair.repair_slice(version, store, None, through=2)[0] == 0
    assert repair.repair_shared_store(version) == 0
    assert feed_now(version) == 2
    assert stored(version) == table(version)


def test_database_restored_from_a_backup__is_written_over_what_the_store_holds(
    version: IndexVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    resets = forbid_resets(monkeypatch)
    write(version, "1", "2")
    row = FeedLease.objects.get_or_create(version=version)[0]
    feed_now(version)
    backup = list(Embedding.objects.all())
    write(version, "1", "3")
    feed_now(version)
    Embedding.objects.all().delete()
    Embedding.objects.bulk_create(backup)
    FeedState.objects.update(last_seq=2)
    row.epoch, row.seq = str(FeedState.objects.get().epoch), 2
    row.save()
    write(version, "4", "5", "6")  # the table is ahead of the store again
    assert feed_now(version) == 3
    assert FeedLease.objects.get().must_compare
    sweep.sweep()
    assert stored(version) == table(version)
    assert not FeedLease.objects.get().must_compare
    assert resets == []


def test_reset_feed__fills_every_store_again(version: IndexVersion, capsys: pytest.CaptureFixture[str]) -> None:
    write(version, "1", "2")
    feed_now(version)
    components.store_for(version).upsert(
        feed.rows_to_points([Embedding(id=uuid.uuid4(), vector=Embedding.objects.first().vector, seq=99)], DIM)
    )
    call_command("reset_feed")
    assert "within a minute" in capsys.readouterr().out
    assert feed_now(version) == 2
    sweep.sweep()
    assert stored(version) == table(version)
    assert FeedLease.objects.get().epoch == str(FeedState.objects.get().epoch)


def test_comparison_that_must_be_done__goes_on_over_several_sweeps(
    version: IndexVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "SLICE", 4)
    monkeypatch.setattr(repair, "REPAIR_SECONDS", 0)
    write(version, *map(str, range(10)))
    feed_now(version)
    FeedLease.objects.update(must_compare=True)
    rounds = []
    for _ in range(4):
        repair.repair_shared_store(version)
        rounds.append(FeedLease.objects.get().must_compare)
    assert rounds == [True, True, False, False]


def test_lease_row_of_a_version_that_was_deleted__is_no_integrity_error(version: IndexVersion) -> None:
    gone = IndexVersion.objects.get(pk=version.pk)
    IndexVersion.objects.all().delete()
    with pytest.raises(VersionSuperseded):
        leases.get_row(gone)


def test_store_fed_before_there_was_a_lease__is_not_fed_again(version: IndexVersion) -> None:
    write(version, "1")
    feed_now(version)
    FeedLease.objects.all().delete()
    assert feed_now(version) == 0


def test_reset_index__drops_the_collection(version: IndexVersion, client: QdrantClient) -> None:
    write(version, "1")
    feed_now(version)
    versions.reset_index()
    assert client.get_collections().collections == []


# The alias for external clients


def alias_of(client: QdrantClient) -> dict[str, str]:
    return {alias.alias_name: alias.collection_name for alias in client.get_aliases().aliases}


def test_alias__is_pointed_to_the_first_version_and_follows_the_active_one(
    version: IndexVersion, client: QdrantClient
) -> None:
    write(version, "1")
    feed.feed_shared_store(version)
    assert alias_of(client) == {"shop": f"shop_v{version.pk}"}
    IndexVersion.objects.update(state=IndexVersion.State.RETIRED)
    second = IndexVersion.objects.create(checkpoint="b", fingerprint="g", dim=DIM)
    feed.feed_shared_store(second)
    assert alias_of(client) == {"shop": f"shop_v{version.pk}"}
    IndexVersion.objects.filter(pk=second.pk).update(state=IndexVersion.State.ACTIVE)
    feed.feed_shared_store(version)
    assert alias_of(client) == {"shop": f"shop_v{version.pk}"}
    feed.feed_shared_store(second)
    assert alias_of(client) == {"shop": f"shop_v{second.pk}"}


# Feeders in their own processes: killed, or stopped for longer than their lease

FEEDER = """
    import os, sys
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django
    from django.conf import settings
    django.setup()
    from django.core.management import call_command
    from django.test.utils import override_settings
    from qdrant_client import QdrantClient
    from tests.index.test_shared_feed import DIM, table, write
    from visual_search import components
    from visual_search.index import feed, leases, repair
    from visual_search.models import FeedLease, IndexVersion
    from visual_search.stores.qdrant import QdrantStore

    feed.PAGE, leases.LEASE_SECONDS = 10, 2
    place = sys.argv[1]
    options = {"url": place} if place.startswith("http") else {"client": QdrantClient(path=place)}
    backend = {"BACKEND": "visual_search.stores.qdrant.QdrantStore", "OPTIONS": options}
    override_settings(VISUAL_SEARCH=settings.VISUAL_SEARCH | {"STORE": backend}).enable()
    call_command("migrate", verbosity=0)
    version = IndexVersion.objects.first()
    if version is None:
        version = IndexVersion.objects.create(checkpoint="a", fingerprint="f", dim=DIM, state="active")
        write(version, *(str(number) for number in range(35)))
    store = components.store_for(version)
"""
KILLED = """
    import signal
    pages = []
    set_position = store.set_position
    def die(position):
        pages.append(position)
        if len(pages) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        set_position(position)
    store.set_position = die
    feed.feed_shared_store(version)
"""
NEXT = """
    assert FeedLease.objects.get().token is not None
    assert len(dict(store.scroll())) == 30 and store.position().seq == 20
    print(feed.catch_up(version, store, wait_seconds=20), repair.repair_shared_store(version))
    assert dict(store.scroll()) == table(version) and len(table(version)) == 35
"""


STOPPED = """
    feed.feed_shared_store(version)
"""
TAKES_OVER = """
    write(version, "1", "25", "33")
    write(version, "2", is_gone=True)
    assert feed.catch_up(version, store, wait_seconds=20) == 17  # from seq 20 on; two of those rows have newer seqs
    assert dict(store.scroll()) == table(version) and store.position().seq == 39
"""
AFTERWARDS = """
    assert store.position().seq == 39 and feed.catch_up(version, store) == 0
    repair.repair_shared_store(version)
    assert dict(store.scroll()) == table(version) and len(table(version)) == 34
"""


def start(script: str, place: object, folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"SHOP_STATE_DIR": str(folder), "TEST_STATE_DIR": str(folder)}
    command = [sys.executable, "-c", textwrap.dedent(FEEDER) + textwrap.dedent(script), str(place)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(script: str, place: object, folder: Path) -> str:
    process = start(script, place, folder)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out


@pytest.mark.skipif(connection.vendor != "sqlite", reason="the processes make a SQLite database of their own")
def test_feeder_killed_between_points_and_position__is_followed_by_one_that_goes_on(tmp_path: Path) -> None:
    killed = start(KILLED, tmp_path / "qdrant", tmp_path)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert run(NEXT, tmp_path / "qdrant", tmp_path).split() == ["15", "0"]


@pytest.mark.skipif(connection.vendor != "sqlite", reason="the processes make a SQLite database of their own")
def test_feeder_stopped_for_longer_than_its_lease__changes_nothing_when_it_goes_on(tmp_path: Path) -> None:
    server = FakeQdrant()
    stopped = threading.Event()

    def stop_at_third_page() -> None:
        if len(server.asked("PUT", "/points")) == 3 and not stopped.is_set():
            os.kill(feeder.pid, signal.SIGSTOP)
            stopped.set()

    server.fault = stop_at_third_page
    feeder = start(STOPPED, server.url, tmp_path)
    try:
        assert stopped.wait(60)
        run(TAKES_OVER, server.url, tmp_path)
        os.kill(feeder.pid, signal.SIGCONT)
        _, errors = feeder.communicate(timeout=60)
        assert "Another process feeds the store" in errors
        run(AFTERWARDS, server.url, tmp_path)
    finally:
        feeder.kill()
        feeder.communicate()
        server.close()
