"""System checks of what the API's settings name: classes, rates, and the cache that photos are kept in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.conf import settings as django_settings
from django.core.cache import InvalidCacheBackendError, caches
from django.core.checks import CheckMessage, Error, Info, Warning
from django.utils.module_loading import import_string

from visual_search.conf import get_settings

ON_DISK = ("filebased.FileBasedCache", "db.DatabaseCache")
OF_ONE_PROCESS = ("locmem.LocMemCache",)
KEEPS_NOTHING = ("dummy.DummyCache",)


def check_api(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """The classes that the API takes by dotted path, its rate, and its cache."""
    return [*_wrong_classes(), *_wrong_rate(), *_wrong_cache()]


def check_deployed_cache(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Where several processes answer: can one find the photo that another has kept? Runs with `check --deploy`."""
    return list(
        _unsuited_cache(
            OF_ONE_PROCESS,
            "each process has a cache of its own: another one does not know the photo's token, and counts anew",
            "visual_search.W044",
        )
    )


def check_deployed_policies(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Who may search, and by which address is counted? Runs with `check --deploy`."""
    from rest_framework.settings import api_settings

    found: list[CheckMessage] = []
    if api_settings.NUM_PROXIES is None:
        found.append(
            Warning(
                "Photos are counted by X-Forwarded-For as the shopper's browser sends it: anybody can get around it.",
                hint='Say how many proxies there are: REST_FRAMEWORK = {"NUM_PROXIES": 1}; 0 for none.',
                id="visual_search.W045",
            )
        )
    policies: list[Any] = list(api_settings.DEFAULT_PERMISSION_CLASSES)
    asks = [policy.__name__ for policy in policies if policy.__name__ != "AllowAny"]
    if get_settings().PERMISSION_CLASSES is None and asks:
        found.append(
            Info(
                f"REST_FRAMEWORK asks for {', '.join(asks)}: so does the search.",
                hint='For shoppers, set PERMISSION_CLASSES to ["rest_framework.permissions.AllowAny"].',
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
            wanted = "a list of dotted paths" if is_list else "a dotted path"
            yield Error(f'VISUAL_SEARCH["{key}"] is {value!r}; {wanted} or None was wanted.', id="visual_search.E041")
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
        message = f'VISUAL_SEARCH["PHOTO_RATE"] is {rate!r}; DRF takes a number per second, minute, hour or day.'
        yield Error(message, hint='"30/min", or None for no limit.', id="visual_search.E042")


def _wrong_cache() -> Iterator[CheckMessage]:
    name = get_settings().CACHE
    try:
        caches[name]
    except InvalidCacheBackendError:
        hint = f"CACHES has: {', '.join(map(repr, django_settings.CACHES))}."
        yield Error(f'VISUAL_SEARCH["CACHE"] is {name!r}, which CACHES lacks.', hint=hint, id="visual_search.E043")
        return
    yield from _unsuited_cache(ON_DISK, "it would write shoppers' photos to a disk", "visual_search.W043")
    yield from _unsuited_cache(KEEPS_NOTHING, "it keeps no photo, so every token is lost at once", "visual_search.W043")


def _unsuited_cache(backends: tuple[str, ...], reason: str, check: str) -> Iterator[CheckMessage]:
    name = get_settings().CACHE
    backend = str(django_settings.CACHES.get(name, {}).get("BACKEND", ""))
    if backend.endswith(backends):
        message = f"The cache {name!r} is {backend.rpartition('.')[2]}: {reason}."
        yield Warning(message, hint='Name another one in VISUAL_SEARCH["CACHE"], such as Redis.', id=check)
