"""Change the checkpoint without downtime: build, switch, roll back, prune; and what a process answers meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.management import CommandError, call_command

from tests.drawings import photo_bytes
from tests.qdrant_server import FakeQdrant
from tests.tiny_checkpoints import tiny_clip
from visual_search import components
from visual_search.checks.index import check_index
from visual_search.components import encoder_for, store_for
from visual_search.exceptions import (
    ConfigurationError,
    IndexFilling,
    IndexOutdated,
    StoreUnavailable,
    VersionSuperseded,
)
from visual_search.index import building, claims, drain, feed, finish, versions
from visual_search.index.verify import verify
from visual_search.models import Embedding, IndexEntry, IndexMark, IndexVersion
from visual_search.search import SearchQuery, read_photo, results, search, serving
from visual_search.stores.base import Filters

State = IndexVersion.State


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint with another dimension."""
    return str(tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def shop(db: Any, make_product: Any, index: Any) -> Any:
    products = [make_product(1, images=2), make_product(2, category="hats"), make_product(3)]
    index.drain()
    return products


def built(checkpoint: str, **options: Any) -> IndexVersion:
    version = building.start_build(checkpoint=checkpoint, **options)
    building.build(version)
    return version


def names(**query: Any) -> list[str]:
    photo = read_photo(photo_bytes(seed=100))
    return [hit.product.name for hit in search(SearchQuery(photos=[photo], **query)).hits]


def test_build__embeds_everything_and_changes_no_search(shop: Any, other: str) -> None:
    version = built(other)
    assert (version.state, version.dim, building.count_pending(version)) == (State.BUILDING, 8, 0)
    assert Embedding.objects.filter(version=version, vector__isnull=False).count() == 4
    assert versions.get_active().dim == 1024
    assert names()[0] == "Product 1"
    assert verify().differences == []


def test_switch_and_roll_back__answer_with_the_version_that_is_active(shop: Any, other: str) -> None:
    first = versions.get_active()
    second = built(other)
    building.switch(second)
    assert versions.get_active().pk == second.pk
    serving.reset()  # a new process
    assert len(names()) == 3
    assert verify(is_deep=True).differences == []
    assert IndexVersion.objects.get(pk=first.pk).state == State.RETIRED
    assert building.roll_back().pk == first.pk
    serving.reset()
    assert names()[0] == "Product 1"
    assert verify(is_deep=True).differences == []
    assert building.roll_back().pk == second.pk  # and back again


def test_changes_while_a_version_is_built__are_caught_up_before_the_switch(
    shop: Any, make_product: Any, index: Any, other: str
) -> None:
    version = built(other)
    shop[0].price = "77.00"
    shop[0].save()
    shop[1].delete()
    make_product(4)
    assert building.count_pending(version) == 0  # a change makes its product pending when it is drained
    index.drain()
    assert building.count_pending(version) == 3
    report = building.build(version)
    assert (report.indexed, report.removed, report.embedded) == (2, 1, 1)  # a price embeds nothing
    building.switch(version)
    serving.reset()
    assert set(names()) == {"Product 1", "Product 3", "Product 4"}
    assert names(filters=Filters(any_of={"category": ("hats",)})) == []
    assert verify().differences == []


def test_changes_that_no_drain_has_seen__are_drained_for_the_new_version(shop: Any, index: Any, other: str) -> None:
    version = built(other)
    shop[0].price = "77.00"
    shop[0].save()
    building.switch(version)
    assert [difference.kind for difference in verify().differences][:1] == ["waiting"]
    index.drain()
    assert verify().differences == []


def test_entries_that_fell_behind_during_the_switch__are_drained_after_it(
    shop: Any, index: Any, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = built(other)
    build = building.build

    def build_then_drain(*args: Any, **options: Any) -> Any:
        report = build(*args, **options)
        shop[0].price = "77.00"
        shop[0].save()
        index.drain()  # finishes for the old version after the last check for pending products
        return report

    monkeypatch.setattr(building, "build", build_then_drain)
    building.switch(version)
    assert building.count_pending(version) == 1
    index.drain()
    assert building.count_pending(version) == 0
    assert verify().differences == []


def test_drain_that_finishes_after_a_switch__writes_nothing_and_keeps_its_marks(
    shop: Any, index: Any, other: str
) -> None:
    version, old = built(other), versions.get_active()
    shop[0].price = "77.00"
    shop[0].save()
    claim = claims.claim(old, limit=10)
    assert claim is not None
    building.switch(version)
    before = Embedding.objects.order_by("pk").values_list("pk", "seq")
    seqs = list(before)
    with pytest.raises(VersionSuperseded):
        list(
            drain.index_claim(claim, encoder_for(old), report=finish.DrainReport(), database=old._state.db or "default")
        )
    assert list(before.all()) == seqs
    assert IndexMark.objects.filter(key=str(shop[0].pk)).exists()
    index.drain()
    assert verify().differences == []
    assert building.count_pending(old) == 1


def test_builds_claim__ends_when_a_drain_finishes_the_same_product(shop: Any, index: Any, other: str) -> None:
    version = building.start_build(checkpoint=other)
    claim = claims.claim_pending(version, limit=10)
    assert claim is not None
    assert len(claim.products) == 3
    shop[0].price = "77.00"
    shop[0].save()
    index.drain()
    encoder = encoder_for(version)
    finished = list(drain.index_claim(claim, encoder, report=finish.DrainReport(), database="default"))
    assert {result.key for result in finished} == {str(product.pk) for product in shop[1:]}
    assert building.count_pending(version) == 1
    building.build(version)
    row = Embedding.objects.filter(version=version, product_key=str(shop[0].pk)).first()
    assert row is not None
    assert row.payload["price"] == 77


def test_build_that_was_killed__goes_on_where_it_ended(shop: Any, other: str, settings: Any) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"BATCH_SIZE": 1}
    version = building.start_build(checkpoint=other)
    claim = claims.claim_pending(version, limit=2)
    assert claim is not None
    results = drain.index_claim(claim, encoder_for(version), report=finish.DrainReport(), database="default")
    next(results)
    del results  # the process ends here: one product is done, another one claimed
    IndexEntry.objects.filter(claim_token__isnull=False).update(lease_until="2000-01-01T00:00Z")
    again = building.start_build(checkpoint=other)
    assert again.pk == version.pk
    assert building.build(again).indexed + 1 == 3
    building.switch(again)
    assert verify().differences == []


def test_failed_products_of_a_build__are_tried_again_once_it_is_active(shop: Any, index: Any, other: str) -> None:
    image = shop[1].images.get().image
    content = image.read()
    image.storage.delete(image.name)
    version = built(other)
    assert version.entries.get(key=str(shop[1].pk)).state == IndexEntry.State.FAILED
    building.switch(version)
    image.storage.save(image.name, ContentFile(content))
    IndexEntry.objects.filter(version=version).exclude(next_attempt_at=None).update(next_attempt_at="2000-01-01T00:00Z")
    index.sweep()
    assert verify().differences == []


def test_settings_that_name_an_existing_version__are_accepted(shop: Any, settings: Any, other: str) -> None:
    second = built(other)
    building.switch(second)
    assert versions.get_active().pk == second.pk  # the setting still names the first
    assert [message.id for message in check_index(databases=["default"]) if "W037" in message.id] != []
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": other}
    assert versions.get_active().pk == second.pk
    assert [message.id for message in check_index(databases=["default"]) if "W037" in message.id] == []
    building.roll_back()
    assert versions.get_active().pk != second.pk


def test_settings_that_name_a_version_never_built__are_rejected_with_the_commands(shop: Any, settings: Any) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": "another/checkpoint"}
    with pytest.raises(IndexOutdated, match=r"build_version.*switch_version"):
        names()
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": versions.find_active().checkpoint}  # type: ignore[union-attr]
    names()
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"GALLERY_PREPARATION": "crop"}
    with pytest.raises(IndexOutdated, match="GALLERY_PREPARATION"):
        names()


def test_build_of_the_active_version__is_refused(shop: Any) -> None:
    with pytest.raises(ConfigurationError, match="active"):
        building.start_build()


def test_switch_to_what_is_active__is_refused(shop: Any, other: str) -> None:
    version = built(other)
    building.switch(version)
    with pytest.raises(ConfigurationError, match="active already"):
        building.switch(versions.get_active())


def test_second_of_two_switches__raises(shop: Any, other: str) -> None:
    version = built(other)
    building.switch(IndexVersion.objects.get(pk=version.pk))
    with pytest.raises(ConfigurationError, match="meanwhile"):
        building.switch(version)  # read before the first switch
    assert versions.get_active().pk == version.pk


def test_prune__keeps_the_active_one_the_way_back_and_what_the_settings_name(
    shop: Any, settings: Any, other: str, tmp_path: Path
) -> None:
    first, second = versions.get_active(), built(other)
    building.switch(second)
    third = built(str(tiny_clip(tmp_path / "third", seed=3)))
    building.switch(third)
    assert building.prune(keep=1) == []  # the settings name the first
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": third.checkpoint}
    assert [version.pk for version in building.prune(keep=1)] == [first.pk]
    assert not Embedding.objects.filter(version_id=first.pk).exists()
    assert building.roll_back().pk == second.pk
    unfinished = building.start_build(checkpoint=str(tiny_clip(tmp_path / "fourth", seed=4)))
    assert building.prune(keep=5) == []
    assert [version.pk for version in building.prune(keep=5, with_builds=True)] == [unfinished.pk]
    assert verify().differences == []


def test_prepared_version__is_built_and_switched_to_as_another_one(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.conftest import skip_or_fail
    from visual_search.vision.background import find_u2net

    if find_u2net() is None:
        skip_or_fail("u2net", "u2net.onnx is not on this machine; `manage.py fetch_background_model` fetches it")
    checkpoint = versions.get_active().checkpoint
    version = built(checkpoint, preparation="cutout")
    assert version.preparation == "cutout/1/u2net"
    building.switch(version)
    assert verify(is_deep=True).differences == []


def test_process__keeps_the_old_version_until_the_new_one_is_warm(
    shop: Any, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names()[0] == "Product 1"
    old, new = versions.get_active(), built(other)
    building.switch(new)
    asked: list[int] = []
    monkeypatch.setattr(serving, "_warm_up_in_thread", lambda version: asked.append(version.pk))
    # The build loaded the encoder in this process; only the store is missing.
    store_for(new).close()
    assert serving.serving_version().pk == old.pk
    assert names()[0] == "Product 1"
    assert set(asked) == {new.pk}
    serving.warm_up(versions.get_active())
    assert serving.serving_version().pk == new.pk
    assert store_for(new).dim == 8


def test_process_whose_old_version_was_pruned__takes_the_new_one(shop: Any, settings: Any, other: str) -> None:
    names()
    new = built(other)
    building.switch(new)
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": other}
    building.prune(keep=0)
    assert serving.serving_version().pk == new.pk
    assert len(names()) == 3


# The commands


def run(*words: str) -> None:
    call_command(*words)


def test_commands__build_list_switch_roll_back_and_prune(
    shop: Any, settings: Any, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run("build_version", "--checkpoint", other)
    output = capsys.readouterr().out
    assert "4 images embedded" in output
    number = IndexVersion.objects.get(checkpoint=other).pk
    assert f"switch_version {number}" in output
    run("list_versions")
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in listed] == ["active", "building"]
    assert "3 products, up to date" in listed[1]
    run("switch_version", str(number))
    assert f"Version {number} ({other}) is active." in capsys.readouterr().out
    run("list_versions", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in rows] == ["retired", "active"]
    run("rollback_version")
    assert "active again" in capsys.readouterr().out
    run("prune_versions", "--keep", "0")
    assert f"Deleted version {number}" in capsys.readouterr().out
    run("prune_versions")
    assert "Nothing to delete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["switch_version", "999999"], "list_versions"),
        (["rollback_version"], "list_versions"),
        (["build_version"], "active"),
        (["build_version", "--checkpoint", "/nowhere"], "no checkpoint folder"),
        (["prune_versions", "--keep", "-1"], "0 or more"),
    ],
)
def test_commands__say_what_is_wrong(shop: Any, words: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        run(*words)


def test_build_without_an_index__says_what_comes_first(db: Any, index: Any) -> None:
    with pytest.raises(CommandError, match="reindex_products"):
        run("build_version")


# On a shared store


@pytest.fixture
def server() -> Iterator[FakeQdrant]:
    made = FakeQdrant()
    yield made
    made.close()


def on_server(settings: Any, server: FakeQdrant) -> None:
    backend = "visual_search.stores.qdrant.QdrantStore"
    options = {"url": server.url, "timeout": 30, "retries": 0}
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"STORE": {"BACKEND": backend, "OPTIONS": options}}


def collections(server: FakeQdrant) -> dict[str, int]:
    """Return the number of points in each collection."""
    names = [found.name for found in server.engine.get_collections().collections]
    return {name: server.engine.count(name).count for name in names}


@pytest.mark.django_db
def test_version_on_a_server__has_a_collection_of_its_own_and_the_alias_follows(
    server: FakeQdrant, settings: Any, make_product: Any, index: Any, other: str
) -> None:
    on_server(settings, server)
    product = make_product(1, images=2)
    index.drain()
    first, second = versions.get_active(), built(other)
    building.switch(second)
    assert collections(server) == {f"visual_search_v{first.pk}": 2, f"visual_search_v{second.pk}": 2}
    alias = server.engine.get_aliases().aliases
    assert [(a.alias_name, a.collection_name) for a in alias] == [("visual_search", f"visual_search_v{second.pk}")]
    assert names() == ["Product 1"]
    product.delete()
    index.drain()
    building.roll_back()
    index.drain()
    assert collections(server)[f"visual_search_v{first.pk}"] == 0
    assert verify().differences == []
    assert server.engine.get_aliases().aliases[0].collection_name == f"visual_search_v{first.pk}"
    building.prune(keep=0)
    assert list(collections(server)) == [f"visual_search_v{first.pk}"]


@pytest.mark.django_db
def test_server_that_fails_during_a_switch__leaves_the_old_version_active(
    server: FakeQdrant, settings: Any, make_product: Any, index: Any, other: str
) -> None:
    on_server(settings, server)
    make_product(1)
    index.drain()
    first, second = versions.get_active(), built(other)
    server.fault = lambda: 500
    with pytest.raises(StoreUnavailable):
        building.switch(second)
    assert versions.get_active().pk == first.pk
    server.fault = None
    assert names() == ["Product 1"]
    building.switch(IndexVersion.objects.get(pk=second.pk))
    assert verify().differences == []


# A search, a prune and a rollback at the same time


def test_search_that_encodes_during_a_switch__keeps_its_store_and_its_encoder(
    shop: Any, index: Any, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = versions.get_active(), built(other)
    assert len(names()) == 3
    store, encoder = components.store_for(old), components.get_encoder(old.checkpoint)
    fed: list[int] = []
    feed_private = feed._feed_private
    monkeypatch.setattr(
        feed, "_feed_private", lambda version, *args: (fed.append(version.pk), feed_private(version, *args))[1]
    )
    embed_query = results.embed_query

    def embed_and_switch(*args: Any) -> Any:
        embedded = embed_query(*args)
        monkeypatch.setattr(results, "embed_query", embed_query)
        building.switch(new)
        serving.warm_up(versions.get_active())
        fed.clear()
        assert len(names()) == 3  # another thread's search, with the new version
        assert store.position() is not None
        assert components.get_encoder(old.checkpoint) is encoder
        return embedded

    monkeypatch.setattr(results, "embed_query", embed_and_switch)
    assert len(names()) == 3
    assert old.pk not in fed  # nothing was filled again in the shopper's request
    assert store.position() is None  # given back with the search's end
    assert [version for _, version in components._stores] == [new.pk]
    assert components.get_encoder(old.checkpoint) is not encoder


def test_closed_store__is_no_empty_answer(shop: Any, index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = components.store_for(versions.get_active())
    assert len(names()) == 3
    query = store.query

    def close_and_query(*args: Any, **options: Any) -> Any:
        store.close()  # another thread found it damaged
        return query(*args, **options)

    monkeypatch.setattr(store, "query", close_and_query)
    with pytest.raises(IndexFilling):
        names()
    monkeypatch.undo()
    assert len(names()) == 3


def test_prune_while_somebody_rolls_back__deletes_no_active_version(
    shop: Any, settings: Any, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = versions.get_active(), built(other)
    building.switch(new)
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": other}
    store = components.store_for(old)
    refused: list[str] = []

    def drop() -> None:
        with pytest.raises(ConfigurationError) as error:
            building.roll_back()  # in another terminal
        refused.append(str(error.value))
        with pytest.raises(ConfigurationError, match="deleted"):
            building.switch(IndexVersion.objects.get(pk=old.pk))

    monkeypatch.setattr(store, "drop", drop)
    monkeypatch.setattr(building, "store_for", lambda version: store)
    assert [version.pk for version in building.prune(keep=0)] == [old.pk]
    assert "no version to roll back to" in refused[0]
    assert versions.get_active().pk == new.pk
    assert set(Embedding.objects.values_list("version", flat=True)) == {new.pk}


def test_prune_that_was_killed__is_finished_by_the_next(shop: Any, settings: Any, other: str) -> None:
    old, new = versions.get_active(), built(other)
    building.switch(new)
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": other}
    IndexVersion.objects.filter(pk=old.pk).update(state=State.DELETING)
    assert [version.pk for version in versions.all_versions()] == [new.pk]
    assert [version.pk for version in building.prune(keep=5)] == [old.pk]
    assert list(IndexVersion.objects.values_list("pk", flat=True)) == [new.pk]


def test_rollback__is_at_once_and_indexes_afterwards(
    shop: Any, index: Any, other: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    building.switch(built(other))
    shop[0].price = "77.00"
    shop[0].save()
    index.drain()
    monkeypatch.setattr(building, "build", lambda *args, **options: pytest.fail("a rollback must not embed first"))
    run("rollback_version")
    assert "1 products changed since it was last active" in capsys.readouterr().out
    index.drain()
    assert verify().differences == []
