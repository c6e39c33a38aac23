"""The commands that index, search and report, with the real starter."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection

from example_shop.models import Product
from tests.drawings import photo_bytes
from visual_search import tasks
from visual_search.exceptions import CheckpointMissing
from visual_search.models import Embedding, IndexEntry, IndexMark

pytestmark = pytest.mark.django_db


def run(*words: str) -> str:
    out = io.StringIO()
    call_command(*words, stdout=out, stderr=out)
    return out.getvalue()


@pytest.fixture
def shop(make_product: Any, index: Any) -> Any:
    products = [make_product(1), make_product(2, category="hats", price="20.00")]
    index.drain()
    return products


def test_reindex_all__marks_and_embeds_nothing_that_is_unchanged(shop: Any, index: Any) -> None:
    assert "2 products marked." in run("reindex_products", "--all")
    assert index.drain().embedded == 0


def test_reindex_force__embeds_again(shop: Any, index: Any) -> None:
    run("reindex_products", "--all", "--force")
    assert index.drain().embedded == 2


def test_reindex_force_alone__means_all_products(shop: Any, index: Any) -> None:
    assert "2 products marked." in run("reindex_products", "--force")
    assert index.drain().embedded == 2


def test_reindex_here_alone__works_off_what_is_marked(make_product: Any, index: Any) -> None:
    make_product(1)
    said = run("reindex_products", "--here")
    assert "0 products marked." in said
    assert "1 indexed" in said


def test_reindex_keys__marks_those(shop: Any) -> None:
    run("reindex_products", str(shop[1].pk))
    assert IndexMark.objects.get().key == str(shop[1].pk)


@pytest.mark.parametrize("words", [[], ["99"], ["x"], ["1", "--all"]])
def test_reindex_with_wrong_words__says_what_is_wanted(db: Any, words: list[str]) -> None:
    with pytest.raises(CommandError):
        run("reindex_products", *words)


def test_reindex_missing__takes_what_is_not_wholly_indexed(shop: Any, make_product: Any, index: Any) -> None:
    broken = make_product(3)
    Path(broken.images.get().image.path).write_bytes(b"")
    index.drain()
    assert "1 product marked." in run("reindex_products", "--missing")


def test_reindex_payload__takes_what_differs(shop: Any, index: Any) -> None:
    Product.objects.filter(pk=shop[0].pk).update(price="1.23")
    assert "1 product marked." in run("reindex_products", "--payload")
    assert index.drain().embedded == 0
    assert Embedding.objects.filter(payload__price=1.23).exists()


def test_reindex_here__indexes_without_a_worker_and_reports_failures(make_product: Any, starter_folder: Any) -> None:
    make_product(1)
    Path(make_product(2).images.get().image.path).write_bytes(b"junk")
    said = run("reindex_products", "--missing", "--here")
    assert "1 indexed, 1 failed" in said
    assert "not an image" in said or "2-0" in said


def test_reindex_wait_without_a_worker__says_what_to_start(
    make_product: Any, monkeypatch: pytest.MonkeyPatch, starter_folder: Any
) -> None:
    monkeypatch.setattr("visual_search.management.commands.reindex_products.STUCK_SECONDS", 0.1)
    make_product(1)
    with pytest.raises(CommandError, match="Q_CLUSTER_NAME=embedding"):
        run("reindex_products", "--all", "--wait")


def test_search_by_photo__prints_a_table_with_milliseconds(shop: Any, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(photo_bytes(seed=200))
    lines = run("search_by_photo", str(photo)).splitlines()
    assert "Product 2" in lines[0]
    assert "category hats" in lines[0]
    assert "ms (" in lines[-1]


def test_search_by_photo__takes_declared_filters_as_options(shop: Any) -> None:
    said = run("search_by_photo", "--text", "a thing", "--category", "hats", "--category", "bags", "--min-price", "15")
    assert "Product 2" in said
    assert "Product 1" not in said
    assert "Nothing was found" in run("search_by_photo", "--text", "a thing", "--max-price", "1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/no/such/photo.jpg"], "can't be read"),
        ([], "photo"),
        (["--text", "a", "--limit", "1000"], "limit"),
        (["--text", "a", "--min-price", "cheap"], "min_price"),
        ([__file__], "photo|image"),
    ],
)
def test_search_by_photo_with_bad_input__ends_with_a_sentence(shop: Any, words: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        run("search_by_photo", *words)


def test_index_status__counts_and_says_who_works(shop: Any, index: Any) -> None:
    assert "start `Q_CLUSTER_NAME=embedding python manage.py qcluster`" in run("index_status")
    index.sweep()
    shop[0].save()
    said = run("index_status")
    assert "2 indexed" in said
    assert "1 change, the oldest for" in said
    assert "swept 0 s ago" in said
    status = json.loads(run("index_status", "--json"))
    assert (status["indexed"], status["marks"], status["states"]["indexed"]) == (2, 1, 2)


def test_index_status__says_why_products_failed(make_product: Any, index: Any) -> None:
    make_product(1, images=0)
    index.drain()
    assert "failed: The product has no image." in run("index_status")


@pytest.mark.parametrize("words", [["index_status"], ["verify_index"], ["reindex_products", "--all"]])
def test_command_before_migrate__says_so(words: list[str], db: Any) -> None:
    with connection.cursor() as cursor:
        for table in ("embedding", "indexentry", "indexversion", "indexmark", "feedstate", "queuestate"):
            cursor.execute(f"DROP TABLE visual_search_{table}")
    with pytest.raises(CommandError, match="manage.py migrate"):
        run(*words)


def test_index_status_of_nothing__says_so(db: Any) -> None:
    assert "nothing indexed yet" in run("index_status")


def test_verify_index__finds_nothing_and_exits_0(shop: Any) -> None:
    assert "2 products, 2 embeddings, 2 points in the store: no differences." in run("verify_index", "--deep")


def test_verify_index__names_each_difference_and_exits_1(shop: Any) -> None:
    Product.objects.filter(pk=shop[0].pk).update(price="9.99")
    Embedding.objects.filter(product_key=str(shop[1].pk)).delete()
    out = io.StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("verify_index", "--json", stdout=out)
    assert ended.value.code == 1
    kinds = {(d["kind"], d["product"]) for d in json.loads(out.getvalue())["differences"]}
    assert ("content", str(shop[0].pk)) in kinds
    assert ("embedding_missing", str(shop[1].pk)) in kinds


def test_verify_index_deep__finds_a_vector_of_something_else(shop: Any) -> None:
    one, two = Embedding.objects.all()
    Embedding.objects.filter(pk=one.pk).update(vector=two.vector)
    with pytest.raises(SystemExit):
        run("verify_index", "--deep")


def test_reset_index__empties_and_marks_everything(shop: Any) -> None:
    assert "2 products marked" in run("reset_index", "--yes")
    assert not IndexEntry.objects.exists()


def test_reindex_wait_when_the_worker_failed__passes_its_reason_on(
    make_product: Any, settings: Any, starter_folder: Any
) -> None:
    make_product(1)
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": "/nowhere/at/all"}
    with pytest.raises(CheckpointMissing):
        tasks.drain()
    assert "/nowhere/at/all" in run("index_status")
    with pytest.raises(CommandError, match="/nowhere/at/all"):
        run("reindex_products", "--all", "--wait")
