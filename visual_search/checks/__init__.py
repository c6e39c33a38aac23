"""System checks: report each wrong setting with a hint on how to fix it."""

from __future__ import annotations

from django.apps import apps
from django.core.checks import Tags, register


def register_all() -> None:
    """Register the checks. Called when Django starts."""
    from visual_search.checks import index, queue, settings

    register(settings.check_settings, "visual_search")
    register(settings.check_catalog, Tags.models)
    register(queue.check_queue, "visual_search")
    register(queue.check_deployed_queue, "visual_search", deploy=True)
    if apps.is_installed("rest_framework"):
        from visual_search.checks import api

        register(api.check_api, "visual_search")
        register(api.check_deployed_cache, "visual_search", deploy=True)
        register(api.check_deployed_policies, "visual_search", deploy=True)
    register(index.check_index, Tags.database)
