"""System checks of django-q2's settings: report what would lose, repeat, hold back or never run a task."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Info, Warning
from django.db import router

from visual_search import conf
from visual_search.index import queue
from visual_search.models import IndexMark

BROKER_KEYS = ("broker_class", "iron_mq", "sqs", "orm", "mongo", "mongo_db", "redis", "django_redis")
NON_REDIS_KEYS = ("broker_class", "iron_mq", "sqs", "orm", "mongo")  # django-q2 uses Redis if none of them is set
RECYCLE_MIN = 10_000  # with a task every two seconds (a busy shop), a worker then keeps its model for five hours


def check_queue(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that django-q2 is installed, shop and worker share a broker, and the cluster has suitable options."""
    if not apps.is_installed("django_q"):
        hint = 'Install django-q2 and add "django_q" to INSTALLED_APPS; `reindex_products --here` needs no queue.'
        message = "django_q is not in INSTALLED_APPS, so no worker indexes products."
        return [Warning(message, hint=hint, id="visual_search.W020")]
    name = conf.get_settings().QUEUE_CLUSTER
    if name not in _cluster_names():
        return [
            Error(
                f'Q_CLUSTER has no cluster {name!r}, which VISUAL_SEARCH["QUEUE_CLUSTER"] names.',
                hint=f'Add "ALT_CLUSTERS": {{"{name}": {{"workers": 1, "timeout": 120, "retry": 600, …}}}}. '
                f"Without ALT_CLUSTERS a process started with Q_CLUSTER_NAME={name} fails with a KeyError.",
                id="visual_search.E021",
            )
        ]
    cluster = queue.cluster_settings()
    return [
        *_wrong_name(),
        *_wrong_broker(cluster),
        *_wrong_times(cluster),
        *_wrong_limits(cluster),
        *_no_sweep(cluster),
    ]


def check_deployed_queue(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Inform about the guarantees of the Redis broker. Runs with `check --deploy`."""
    if not apps.is_installed("django_q") or any(queue.cluster_settings().get(key) for key in NON_REDIS_KEYS):
        return []
    return [
        Info(
            "django-q2's Redis broker has no receipts: a task is lost if Redis or the worker that took it dies.",
            hint="No product is lost: its mark stays in the database, and a sweep requests a drain within a minute.",
            id="visual_search.I068",
        )
    ]


def _cluster_names() -> list[str]:
    own = getattr(django_settings, "Q_CLUSTER", {})
    return [name for name in (own.get("name"), own.get("cluster_name"), *own.get("ALT_CLUSTERS", {})) if name]


def _wrong_name() -> Iterator[CheckMessage]:
    name = os.environ.get("Q_CLUSTER_NAME")
    if name and name not in _cluster_names():
        yield Warning(
            f"Q_CLUSTER_NAME is {name!r}, which is not in Q_CLUSTER: this process would wait on a queue of its own.",
            hint=f"Q_CLUSTER defines: {', '.join(_cluster_names())}. Run `{queue.worker_command()}`.",
            id="visual_search.W067",
        )


def _wrong_broker(cluster: dict[str, Any]) -> Iterator[CheckMessage]:
    shop, index_database = getattr(django_settings, "Q_CLUSTER", {}), router.db_for_write(IndexMark)
    if different := [key for key in BROKER_KEYS if cluster.get(key) != shop.get(key)]:
        yield Error(
            f"The embedding cluster has another {different[0]!r} than Q_CLUSTER: it never sees the shop's tasks.",
            hint="Set the broker only in Q_CLUSTER, not in ALT_CLUSTERS.",
            id="visual_search.E062",
        )
    database = cluster.get("orm")
    if not database or cluster.get("broker_class"):
        return
    if database not in django_settings.DATABASES:
        hint = f"DATABASES defines: {', '.join(map(repr, django_settings.DATABASES))}."
        yield Error(f'Q_CLUSTER["orm"] is {database!r}, which is not in DATABASES.', hint=hint, id="visual_search.E061")
    elif database != index_database:
        yield Warning(
            f"Tasks are queued in the database {database!r}, but the index is in {index_database!r}.",
            hint=f'Set "orm": "{index_database}", or run `manage.py migrate --database {database}` too and back it up.',
            id="visual_search.W063",
        )


def _wrong_times(cluster: dict[str, Any]) -> Iterator[CheckMessage]:
    timeout, retry, drain = cluster.get("timeout"), cluster.get("retry", 60), conf.get_settings().DRAIN_SECONDS
    if not timeout or timeout < 2 * drain:
        hint = f"A drain runs for {drain:g} s and then finishes its batch: set timeout to {2 * drain:g} or more."
        yield Warning(f"The embedding cluster's timeout is {timeout!r}.", hint=hint, id="visual_search.W022")
    elif retry < 3 * timeout:
        hint = f"The time counts from when a task is taken: set retry to {3 * timeout:g} or more."
        yield Warning(f"The embedding cluster's retry is {retry!r}.", hint=hint, id="visual_search.W023")
    if not cluster.get("ack_failures") or not cluster.get("max_attempts"):
        hint = 'Set "max_attempts": 1 and "ack_failures": True; the sweep requests a new drain for what is left.'
        yield Warning("The embedding cluster retries failed tasks forever.", hint=hint, id="visual_search.W024")


def _wrong_limits(cluster: dict[str, Any]) -> Iterator[CheckMessage]:
    workers = cluster.get("workers") or os.cpu_count() or 4  # django-q2's own defaults
    limit, recycle = cluster.get("queue_limit", workers**2), cluster.get("recycle", 500)
    if limit != 1:
        yield Warning(
            f"The embedding cluster's queue_limit is {limit or 'unlimited'}: it takes tasks that another cluster could "
            "start at once, and holds them until their retry is due.",
            hint='Set "queue_limit": 1.',
            id="visual_search.W064",
        )
    if recycle < RECYCLE_MIN:
        yield Warning(
            f"The embedding cluster's recycle is {recycle}: a worker loads its model again after that many tasks.",
            hint='Set "recycle": 100_000.',
            id="visual_search.W065",
        )


def _no_sweep(cluster: dict[str, Any]) -> Iterator[CheckMessage]:
    if not cluster.get("scheduler", True):
        yield Warning(
            "The embedding cluster's scheduler is off: no sweep finds lost tasks, due retries or unsignalled changes.",
            hint='Remove "scheduler": False from its settings.',
            id="visual_search.W066",
        )
