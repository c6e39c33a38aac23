"""The example shop with a strict Content-Security-Policy, and with a right-to-left language."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from tests.qcluster_settings import *  # noqa: F403
from tests.qcluster_settings import LANGUAGES, MIDDLEWARE, STATE_DIR, VISUAL_SEARCH

MIDDLEWARE = ["tests.browser.settings.content_security_policy", *MIDDLEWARE]
LANGUAGES = [*LANGUAGES, ("ar", "Arabic")]
ROOT_URLCONF = "tests.browser.urls"
VISUAL_SEARCH = VISUAL_SEARCH | {"DEFAULT_LIMIT": 12, "PHOTO_RATE": "60/min"}
PHOTO_CACHE = STATE_DIR / "cache"  # tests empty it to remove kept photos
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": PHOTO_CACHE},
}


def content_security_policy(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[..., HttpResponse]:
    """Allow only what the shop itself serves: nothing inline, no data: and no blob: URLs."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["Content-Security-Policy"] = "default-src 'self'"
        return response

    return middleware
