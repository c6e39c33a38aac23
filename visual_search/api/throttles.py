"""How many photos one shopper may send: each costs an encoding."""

from __future__ import annotations

from typing import Any

from rest_framework.request import Request
from rest_framework.throttling import SimpleRateThrottle
from rest_framework.views import APIView

from visual_search.conf import get_settings


class PhotoThrottle(SimpleRateThrottle):
    """Count the forms and tokens that one user, or one address, sends. Searches in words alone pass freely."""

    scope = "visual_search_photo"

    def get_rate(self) -> str | None:
        # Asked at every request: DRF itself would read it when the class is defined.
        return get_settings().PHOTO_RATE

    def get_cache_key(self, request: Request, view: APIView) -> str | None:
        if not carries_photo(request):
            return None  # DRF's way to say "not counted"
        user: Any = request.user
        ident = user.pk if user and user.is_authenticated else self.get_ident(request)
        return self.cache_format % {"scope": self.scope, "ident": ident}


def carries_photo(request: Request) -> bool:
    """Say whether a request may upload something or name a kept photo. Its body, which may, is not read."""
    return request.method == "POST" or "token" in request.query_params
