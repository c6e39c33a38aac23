"""Limit how many photos one shopper may send, because each one has to be encoded."""

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
    """Limit the forms and tokens that one user, or one IP address, sends. Text searches by GET are not counted."""

    scope = "visual_search_photo"

    def get_rate(self) -> str | None:
        # Read at each request: DRF reads its rates when the class is defined.
        return get_settings().PHOTO_RATE

    def get_cache_key(self, request: Request, view: APIView) -> str | None:
        if not carries_photo(request):
            return None  # DRF does not count the request then
        user: Any = request.user
        ident = user.pk if user and user.is_authenticated else self.get_ident(request)
        return self.cache_format % {"scope": self.scope, "ident": ident}


def carries_photo(request: Request) -> bool:
    """Return whether a request may carry an upload or a photo token. Does not read the body: every POST counts."""
    return request.method == "POST" or "token" in request.query_params


class ThrottledView(APIView):
    """A view whose throttles come from THROTTLE_CLASSES, read at each request."""

    def get_throttles(self) -> list[Any]:
        paths = get_settings().THROTTLE_CLASSES
        return super().get_throttles() if paths is None else [import_string(path)() for path in paths]


def check_throttles(request: HttpRequest) -> None:
    """Throttle a request to a page, which is not a DRF view, as the API would. Raises Throttled."""
    drf_request = Request(request)
    drf_request.user = getattr(request, "user", AnonymousUser())
    view = ThrottledView()
    for throttle in view.get_throttles():
        if not throttle.allow_request(drf_request, view):
            raise exceptions.Throttled(throttle.wait())
