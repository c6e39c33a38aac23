"""A database of before: it migrates, backwards too, and answers without embedding anything anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from visual_search.index import versions
from visual_search.index.verify import verify
from visual_search.models import IndexMark
from visual_search.search import SearchQuery, search

pytestmark = pytest.mark.django_db(transaction=True)

BEFORE = "0004"


@pytest.fixture
def shop(make_product: Callable[..., Any], index: Any) -> Iterator[list[Any]]:
    products = [make_product(seed) for seed in (1, 2)]
    index.drain()
    yield products
    call_command("migrate", "visual_search", verbosity=0)


def test_database_of_before__answers_and_embeds_nothing(shop: list[Any], index: Any) -> None:
    call_command("migrate", "visual_search", BEFORE, verbosity=0)
    shop[0].price = "77.00"
    shop[0].save()  # the table of marks lacks columns by now: the save must not fail, and the sweep finds it
    call_command("migrate", "visual_search", verbosity=0)
    assert len(search(SearchQuery(texts=["a"])).hits) == 2
    assert index.sweep()["found"] == 1
    assert index.drain().embedded == 0
    assert verify().differences == []


def test_old_processes_during_a_deployment__write_marks_that_new_workers_drain(shop: list[Any], index: Any) -> None:
    with connection.cursor() as cursor:  # as the code before wrote it, without the columns it did not know
        cursor.execute(
            "INSERT INTO visual_search_indexmark (model_label, key, kind) VALUES (%s, %s, %s)",
            ["example_shop.product", str(shop[0].pk), "changed"],
        )
    mark = IndexMark.objects.get()
    assert (mark.is_bulk, mark.expanded_through) == (False, "")
    assert index.drain().indexed == 1
    version = versions.get_active()
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO visual_search_feedlease (version_id, epoch, seq) VALUES (%s, '', 0)", [version.pk])
    assert verify().differences == []
