"""Asking for a drain. The only file that knows django-q2; what it calls by name stands in tasks.py."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db import DatabaseError, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.module_loading import import_string

from visual_search.catalog import get_catalog
from visual_search.conf import get_settings
from visual_search.models import QueueState, first_row

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger(__name__)

DRAIN, SWEEP = "visual_search.tasks.drain", "visual_search.tasks.sweep"
SWEEP_SCHEDULE = "visual_search sweep"
REQUEST_SECONDS = 2  # a drain asked for within this time and not yet started will see our marks too

_runs_inline = False


def request_drain(database: str) -> None:
    """Ask for a drain when the transaction commits: once a transaction, however many products it saves."""
    if not _runs_inline and is_drain_requested(transaction.get_connection(database)):
        return
    # robust: a broker that does not answer must not turn a committed save into an error; the sweep asks again.
    transaction.on_commit(enqueue_drain, using=database, robust=True)


def is_drain_requested(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the connection's transaction will ask for a drain when it commits."""
    return any(callback is enqueue_drain for _, callback, *_ in connection.run_on_commit)


def enqueue_drain() -> None:
    """Queue a drain, unless one was asked for a moment ago and has not started yet."""
    if _runs_inline:
        import_string(DRAIN)()
        return
    states = QueueState.objects.using(get_catalog().database)
    waits = Q(drain_requested_at__gte=Now() - datetime.timedelta(seconds=REQUEST_SECONDS))
    if not states.filter(~waits | Q(drain_requested_at=None), pk=1).update(drain_requested_at=Now()):
        if states.filter(pk=1).exists():
            return
        first_row(QueueState, states.db)
    async_task(DRAIN)


def enqueue_another() -> None:
    """Queue a drain beside those that run, unless a task waits already: so any number of workers is bounded.

    A cluster takes tasks before its worker is free (one in its queue, one in its pusher's hand), so a request may
    have to be made more than once until an idle cluster gets one.
    """
    if _runs_inline or waiting_tasks() != 0:  # None: the broker can't be asked, and without a bound nothing is added
        return
    try:
        async_task(DRAIN)
    except Exception as error:  # each broker raises errors of its own client; this drain goes on alone
        logger.warning("Another drain could not be asked for: %s", error)


def drain_started() -> None:
    """Let the next mark ask for another drain. Called before the drain reads its first mark."""
    states = QueueState.objects.using(get_catalog().database)
    states.filter(pk=1, drain_requested_at__isnull=False).update(drain_requested_at=None)


def drain_ended(error: str = "") -> None:
    """Remember why a drain stopped, for `index_status`; a drain that did its work clears it."""
    state = read_state()
    if state.drain_error != error:
        state.drain_error = error
        state.save(update_fields=["drain_error"])


def read_state() -> QueueState:
    state: QueueState = first_row(QueueState, get_catalog().database)
    return state


def async_task(name: str) -> None:
    """Put a task on the embedding cluster's queue."""
    from django_q.tasks import async_task as push

    # Successes are not kept: one a minute says nothing. Options go in q_options; as plain arguments they are lost.
    push(name, q_options={"cluster": get_settings().QUEUE_CLUSTER, "group": "visual_search", "save": False})


def schedule_sweep(database: str) -> None:
    """Have the embedding cluster sweep each minute. Called after every migrate; repeating it changes nothing."""
    if not apps.is_installed("django_q"):
        return
    from django_q.models import Schedule

    with suppress(DatabaseError):  # a database without django-q2's tables: no cluster reads its schedules
        Schedule.objects.using(database).update_or_create(
            name=SWEEP_SCHEDULE,
            defaults={
                "func": SWEEP,
                "schedule_type": Schedule.MINUTES,
                "minutes": 1,
                "repeats": -1,
                "cluster": get_settings().QUEUE_CLUSTER,
                "kwargs": "q_options={'group': 'visual_search', 'save': False}",
            },
        )


@contextmanager
def inline() -> Iterator[None]:
    """Run drains in this process as soon as they are asked for. For tests (visual_search.test.IndexNow)."""
    global _runs_inline
    before, _runs_inline = _runs_inline, True
    try:
        yield
    finally:
        _runs_inline = before


def worker_command() -> str:
    """Return the line that starts a worker. django-q2 reads the name when it is imported: -n comes too late."""
    return f"Q_CLUSTER_NAME={get_settings().QUEUE_CLUSTER} python manage.py qcluster"


def waiting_tasks() -> int | None:
    """Return how many tasks wait for the embedding cluster, or None where the broker can't be asked."""
    try:
        from django_q.brokers import get_broker

        return int(get_broker(get_settings().QUEUE_CLUSTER).queue_size())
    except Exception:  # each broker raises errors of its own client; the count is only for people
        return None


def cluster_settings() -> dict[str, Any]:
    """Return Q_CLUSTER as the embedding cluster will read it."""
    from django.conf import settings

    own: dict[str, Any] = dict(getattr(settings, "Q_CLUSTER", {}))
    alternatives = own.pop("ALT_CLUSTERS", {})
    return {**own, **alternatives.get(get_settings().QUEUE_CLUSTER, {})}
