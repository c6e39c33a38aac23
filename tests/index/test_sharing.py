"""Request further drains for a large backlog; the real queue's table shows how many wait."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone
from django_q.models import OrmQ

from visual_search import tasks
from visual_search.exceptions import CheckpointMissing
from visual_search.index import finish, queue, sharing
from visual_search.models import IndexEntry, IndexMark


@pytest.fixture(autouse=True)
def _empty_queue(db: Any, settings: Any, starter_folder: Any) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"BATCH_SIZE": 2}  # a claim takes four
    OrmQ.objects.all().delete()


def waiting_drains() -> int:
    return sum(task.func() == queue.DRAIN for task in OrmQ.objects.all())


def test_drain_that_can_claim_everything__requests_no_other(make_product: Callable[..., Any]) -> None:
    for seed in range(4):
        make_product(seed)
    assert tasks.drain()["indexed"] == 4
    assert waiting_drains() == 0


def test_drain_of_a_large_backlog__requests_one_other_however_often_it_checks(
    make_product: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(12):
        make_product(seed)
    monkeypatch.setattr(sharing, "CHECK_SECONDS", 0)
    assert tasks.drain()["indexed"] == 12
    assert waiting_drains() == 1


def test_products_with_many_marks_each__are_a_backlog_too(make_product: Callable[..., Any]) -> None:
    for seed in range(12):
        make_product(seed, images=4)  # five marks each: the marks that a claim reads belong to only a few products
    assert tasks.drain()["indexed"] == 12
    assert waiting_drains() == 1


def test_request_that_a_busy_cluster_took__is_made_again(
    make_product: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "CHECK_SECONDS", 0)
    for seed in range(12):
        make_product(seed)
    on_result = sharing.share_backlog()
    on_result(finish.Result("1", IndexEntry.State.INDEXED))
    assert waiting_drains() == 1
    OrmQ.objects.all().delete()
    on_result(finish.Result("2", IndexEntry.State.INDEXED))
    assert waiting_drains() == 1


def test_products_that_other_workers_have_claimed__are_no_backlog(make_product: Callable[..., Any], index: Any) -> None:
    for seed in range(12):
        make_product(seed)
    index.drain()
    products = list(IndexEntry.objects.values_list("key", flat=True))
    IndexMark.objects.bulk_create([IndexMark(model_label="example_shop.product", key=key) for key in products])
    assert sharing.has_backlog()
    for entry in IndexEntry.objects.all()[:8]:
        entry.claim_token = "5d6a7c0e-8b0f-5c52-9f0e-3f6a0c5a1f5e"
        entry.lease_until = timezone.now() + datetime.timedelta(minutes=1)
        entry.save()
    assert not sharing.has_backlog()


def test_drain_that_fails_at_once__requests_no_others(make_product: Callable[..., Any], settings: Any) -> None:
    for seed in range(12):
        make_product(seed)
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": "/nowhere"}
    with pytest.raises(CheckpointMissing):
        tasks.drain()
    assert waiting_drains() == 0


def test_unreachable_broker__does_not_stop_the_drain(
    make_product: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from django_q.conf import Conf

    for seed in range(12):
        make_product(seed)
    monkeypatch.setattr(Conf, "ORM", None)
    monkeypatch.setattr(Conf, "REDIS", "redis://127.0.0.1:1/0")  # no server listens there
    assert tasks.drain()["indexed"] == 12
