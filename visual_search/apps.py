from __future__ import annotations

from typing import Any

from django.apps import AppConfig, apps
from django.core.checks import Tags, register
from django.db.models.signals import post_migrate


class VisualSearchConfig(AppConfig):
    name = "visual_search"
    verbose_name = "Visual search"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from visual_search import checks, index_checks, queue_checks, signals

        register(checks.check_settings, "visual_search")
        register(checks.check_catalog, Tags.models)
        register(queue_checks.check_queue, "visual_search")
        register(queue_checks.check_deployed_queue, "visual_search", deploy=True)
        if apps.is_installed("rest_framework"):
            from visual_search.api import checks as api_checks

            register(api_checks.check_api, "visual_search")
            register(api_checks.check_deployed_cache, "visual_search", deploy=True)
            register(api_checks.check_deployed_policies, "visual_search", deploy=True)
        register(index_checks.check_index, Tags.database)
        signals.connect()
        if apps.is_installed("drf_spectacular"):
            import visual_search.api.schema  # noqa: F401  # registers what it says of the views
        post_migrate.connect(_schedule_sweep, sender=self, dispatch_uid="visual_search.schedule")


def _schedule_sweep(*, using: str, **kwargs: Any) -> None:
    from visual_search.queue import schedule_sweep

    schedule_sweep(using)
