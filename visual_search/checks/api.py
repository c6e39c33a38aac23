"""System checks of the API's settings: classes, the photo rate, and the cache that keeps photos."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.conf import settings as django_settings
from django.core.cache import InvalidCacheBackendError, caches
from django.core.checks import CheckMessage, Error, Info, Warning
from django.utils.module_loading import import_string

from visual_search.conf import get_settings

DISK_CACHES = ("filebased.FileBasedCache", "db.DatabaseCache")
PROCESS_CACHES = ("locmem.LocMemCache",)
DUMMY_CACHES = ("dummy.DummyCache",)


def check_api(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Check the classes that the API's settings name, the photo rate and the cache."""
    return [*_wrong_classes(), *_wrong_rate(), *_wrong_cache()]


def check_deployed_cache(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that a process can find the photos that another one has kept. Runs with `check --deploy`."""
    return list(
        _unsuitable_cache(
            PROCESS_CACHES,
            "each process has its own cache, so others don't know a photo's token and count requests separately",
            "visual_search.W044",
        )
    )


def check_deployed_policies(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Check who may search, and by which address photos are counted. Runs with `check --deploy`."""
    from rest_framework.settings import api_settings

    found: list[CheckMessage] = []
    if api_settings.NUM_PROXIES is None:
        found.append(
            Warning(
                "Photos are counted by the X-Forwarded-For header that the client sends: anybody can evade the limit.",
                hint='Set the number of proxies: REST_FRAMEWORK = {"NUM_PROXIES": 1}; 0 for none.',
                id="visual_search.W045",
            )
        )
    policies: list[Any] = list(api_settings.DEFAULT_PERMISSION_CLASSES)
    required = [policy.__name__ for policy in policies if policy.__name__ != "AllowAny"]
    if get_settings().PERMISSION_CLASSES is None and required:
        found.append(
            Info(
                f"REST_FRAMEWORK requires {', '.join(required)}, and so does the search.",
                hint='To let all shoppers search, set PERMISSION_CLASSES to ["rest_framework.permissions.AllowAny"].',
                id="visual_search.I046",
            )
        )
    return found


def _wrong_classes() -> Iterator[CheckMessage]:
    settings = get_settings()
    serializer = settings.PRODUCT_SERIALIZER
    for key, value, is_list in (
        ("PERMISSION_CLASSES", settings.PERMISSION_CLASSES, True),
        ("THROTTLE_CLASSES", settings.THROTTLE_CLASSES, True),
        ("PRODUCT_SERIALIZER", None if serializer is None else [serializer], False),
    ):
        if value is None:
            continue
        if not isinstance(value, list | tuple) or not all(isinstance(path, str) for path in value):
            expected = "a list of dotted paths" if is_list else "a dotted path"
            yield Error(f'VISUAL_SEARCH["{key}"] is {value!r}; expected {expected} or None.', id="visual_search.E041")
            continue
        for path in value:
            try:
                import_string(path)
            except ImportError as error:
                yield Error(f'VISUAL_SEARCH["{key}"]: {path!r} could not be imported: {error}', id="visual_search.E041")


def _wrong_rate() -> Iterator[CheckMessage]:
    from visual_search.web.throttles import PhotoThrottle

    rate = get_settings().PHOTO_RATE
    try:
        PhotoThrottle().parse_rate(rate)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError):
        message = f'VISUAL_SEARCH["PHOTO_RATE"] is {rate!r}; DRF expects a number per second, minute, hour or day.'
        yield Error(message, hint='Use a rate such as "30/min", or None for no limit.', id="visual_search.E042")


def _wrong_cache() -> Iterator[CheckMessage]:
    name = get_settings().CACHE
    try:
        caches[name]
    except InvalidCacheBackendError:
        hint = f"CACHES defines: {', '.join(map(repr, django_settings.CACHES))}."
        yield Error(f'VISUAL_SEARCH["CACHE"] is {name!r}, which is not in CACHES.', hint=hint, id="visual_search.E043")
        return
    yield from _unsuitable_cache(DISK_CACHES, "it would write shoppers' photos to disk", "visual_search.W043")
    yield from _unsuitable_cache(
        DUMMY_CACHES, "it keeps no photo, so every token is lost at once", "visual_search.W043"
    )


def _unsuitable_cache(backends: tuple[str, ...], reason: str, check: str) -> Iterator[CheckMessage]:
    name = get_settings().CACHE
    backend = str(django_settings.CACHES.get(name, {}).get("BACKEND", ""))
    if backend.endswith(backends):
        message = f"The cache {name!r} is {backend.rpartition('.')[2]}: {reason}."
        yield Warning(message, hint='Set VISUAL_SEARCH["CACHE"] to another cache, such as Redis.', id=check)
