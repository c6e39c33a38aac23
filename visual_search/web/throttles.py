"""How many photos one shopper may send: each costs an encoding."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest
from django.utils.module_loading import import_string
from rest_framework import exceptions
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


class ThrottledView(APIView):
    """A view that the settings' throttles count, read at each request."""

    def get_throttles(self) -> list[Any]:
        paths = get_settings().THROTTLE_CLASSES
        return super().get_throttles() if paths is None else [import_string(path)() for path in paths]


def check_throttles(request: HttpRequest) -> None:
    """Count a request to a page, which is no view of DRF's, as the API would. Raises Throttled."""
    counted = Request(request)
    counted.user = getattr(request, "user", AnonymousUser())
    view = ThrottledView()
    for throttle in view.get_throttles():
        if not throttle.allow_request(counted, view):
            raise exceptions.Throttled(throttle.wait())
