"""Request drains and sweeps. The only module that uses django-q2; the tasks it calls by name are in tasks.py."""

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
from visual_search.models import QueueState, get_singleton

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger(__name__)

DRAIN, SWEEP = "visual_search.tasks.drain", "visual_search.tasks.sweep"
SWEEP_SCHEDULE = "visual_search sweep"
WAITING_MAX = (
    2  # tasks in the queue, of which one may be a sweep: a backlog must not pile up more drains than are taken
)
REQUEST_SECONDS = 2  # a drain requested this recently and not yet started sees the new marks too

_runs_inline = False


def request_drain(database: str) -> None:
    """Request a drain when the transaction commits: once per transaction, however many products it saves."""
    if not _runs_inline and is_drain_requested(transaction.get_connection(database)):
        return
    # robust: a broker that does not answer must not make a committed save fail; the sweep requests a drain again.
    transaction.on_commit(enqueue_drain, using=database, robust=True)


def is_drain_requested(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the connection's transaction will ask for a drain when it commits."""
    return any(callback is enqueue_drain for _, callback, *_ in connection.run_on_commit)


def enqueue_drain() -> None:
    """Queue a drain, unless one was requested in the last REQUEST_SECONDS and has not started yet."""
    if _runs_inline:
        import_string(DRAIN)()
        return
    states = QueueState.objects.using(get_catalog().database)
    recently = datetime.timedelta(seconds=REQUEST_SECONDS)
    # Not in the future either: the database's clock may have been set back.
    is_requested = Q(drain_requested_at__gte=Now() - recently, drain_requested_at__lte=Now() + recently)
    if not states.filter(~is_requested | Q(drain_requested_at=None), pk=1).update(drain_requested_at=Now()):
        if states.filter(pk=1).exists():
            return
        get_singleton(QueueState, states.db)
    if (waiting_tasks() or 0) < WAITING_MAX:
        async_task(DRAIN)


def enqueue_extra_drain() -> None:
    """Queue a further drain beside the running ones, unless a task is already waiting: this bounds the queue.

    A cluster takes tasks before its worker is free (one in its queue, one in its pusher), so it may take several
    requests until an idle cluster gets one.
    """
    if _runs_inline or waiting_tasks() != 0:  # None: the broker can't be asked; without a bound, queue nothing
        return
    try:
        async_task(DRAIN)
    except Exception as error:  # each broker raises its own client's errors; this drain continues alone
        logger.warning("Another drain could not be requested: %s", error)


def record_drain_start() -> None:
    """Record that the drain started, so that the next mark requests another. Call it before reading the first mark."""
    states = QueueState.objects.using(get_catalog().database)
    states.filter(pk=1, drain_requested_at__isnull=False).update(drain_requested_at=None)


def record_drain_end(error: str = "") -> None:
    """Record why a drain stopped, for `index_status`. A successful drain clears it."""
    state = read_queue_state()
    if state.drain_error != error:
        state.drain_error = error
        state.save(update_fields=["drain_error"])


def read_queue_state() -> QueueState:
    state: QueueState = get_singleton(QueueState, get_catalog().database)
    return state


def async_task(name: str) -> None:
    """Put a task on the embedding cluster's queue."""
    from django_q.tasks import async_task as push

    # Successful tasks are not saved: there is one a minute. django-q2 ignores options outside q_options.
    push(name, q_options={"cluster": get_settings().QUEUE_CLUSTER, "group": "visual_search", "save": False})


def schedule_sweep(database: str) -> None:
    """Schedule a sweep each minute on the embedding cluster. Called after every migrate; it is idempotent."""
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
def run_inline() -> Iterator[None]:
    """Run drains in this process as soon as they are requested. For tests (visual_search.test.IndexNow)."""
    global _runs_inline
    before, _runs_inline = _runs_inline, True
    try:
        yield
    finally:
        _runs_inline = before


def runs_inline() -> bool:
    """Return whether this process drains by itself, as in a shop's tests."""
    return _runs_inline


def worker_command() -> str:
    """Return the command that starts a worker. django-q2 reads the name on import, so its option -n comes too late."""
    return f"Q_CLUSTER_NAME={get_settings().QUEUE_CLUSTER} python manage.py qcluster"


def waiting_tasks() -> int | None:
    """Return how many tasks wait for the embedding cluster, or None if the broker can't be asked."""
    try:
        from django_q.brokers import get_broker

        return int(get_broker(get_settings().QUEUE_CLUSTER).queue_size())
    except Exception:  # each broker raises its own client's errors
        return None


def cluster_settings() -> dict[str, Any]:
    """Return Q_CLUSTER as the embedding cluster reads it."""
    from django.conf import settings

    own: dict[str, Any] = dict(getattr(settings, "Q_CLUSTER", {}))
    alternatives = own.pop("ALT_CLUSTERS", {})
    return {**own, **alternatives.get(get_settings().QUEUE_CLUSTER, {})}
