"""The VISUAL_SEARCH setting: every key with its default, unit and reason.

Read a value as `get_settings().LEASE_SECONDS`. The object is cached; Django's `setting_changed` clears the cache,
so `override_settings` works in tests.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from django.conf import settings as django_settings
from django.core.signals import setting_changed

SETTING = "VISUAL_SEARCH"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    CATALOG: str = ""
    """Dotted path of the shop's Catalog class. Required."""

    # Encoder
    CHECKPOINT: str = "openai/clip-vit-large-patch14"
    """Hub name or folder of the dual encoder for the first index version."""
    DEVICE: str = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, `mps`."""
    BATCH_SIZE: int = 32
    """Images embedded at once. More gains little on one GPU and costs memory."""
    ENCODER_THREADS: int | None = None
    """CPU threads of one encoder. None keeps torch's default; with several processes use cores / processes."""

    ENCODE_CONCURRENCY: int = 4
    """Queries that one web process encodes at once; more would only make each of them slower."""
    ENCODE_WAIT_SECONDS: float = 5
    """How long a query waits to be encoded before the response is 503 with Retry-After."""

    # Preparation of images
    QUERY_PREPARATION: str = "none"
    """How a photo is prepared: `none`, `crop`, `cutout` or `blend`; docs/preparation.md has measurements."""
    GALLERY_PREPARATION: str = "none"
    """The same for product images. Changing it requires a new index version."""
    BACKGROUND_MODEL: str = "u2net"
    """rembg's name of the model that finds the object. Don't use rembg's default: commercial use of it must be paid."""
    BACKGROUND_SECONDS: float = 5
    """How long a search waits for the object's mask before it uses the photo as it is."""

    # Store
    STORE: dict[str, Any] = field(
        default_factory=lambda: {"BACKEND": "visual_search.stores.edge.EdgeStore", "OPTIONS": {}}
    )
    """`{"BACKEND": dotted path, "OPTIONS": {…}}`, like Django's own backends."""
    COLLECTION: str = "visual_search"
    """Prefix of collection names, and alias of the active collection. Shops on one server need different ones."""

    # Queue
    QUEUE_CLUSTER: str = "embedding"
    """The django-q2 cluster that embeds: `Q_CLUSTER_NAME=embedding python manage.py qcluster`."""
    DRAIN_SECONDS: float = 60
    """A drain ends after this time and requests another: half of the task's timeout, which can't stop a C call."""
    READ_SECONDS: float = 20
    """How long a drain waits for a batch of image files; a storage that hangs must not have the task killed."""
    LEASE_SECONDS: float = 300
    """A claim expires if not renewed for this long. It is renewed for each batch, which takes far less time."""
    MAX_ATTEMPTS: int = 3
    """How often a product is tried before it stays failed until it changes or is reindexed."""
    BACKOFF_SECONDS: float = 30
    """The wait before the second attempt; each later one is four times longer."""
    MARK_AGE_SECONDS: float = 300
    """A check warns if a mark waits longer and no drain is running: five sweeps have requested a drain by then."""
    SWEEP_SECONDS: float = 5
    """How long one sweep, each minute, compares products with the index; the next one continues from there."""
    TOMBSTONE_DAYS: float = 7
    """How long deletions are kept for stores that lag; a store that lags longer is refilled."""

    # Limits on requests
    MAX_UPLOAD_BYTES: int = 20 * 1024 * 1024
    MAX_PHOTO_PIXELS: int = 50_000_000
    """Above the largest common phone camera mode (48 megapixels)."""
    MAX_PHOTOS: int = 4
    """Photos of one query; each must be encoded."""
    MAX_LIMIT: int = 100
    MAX_OFFSET: int = 1_000
    MAX_TEXT_LENGTH: int = 500
    """Characters; encoders read 64 to 128 tokens."""
    DEFAULT_LIMIT: int = 24
    """Fills rows of 2, 3, 4 and 6."""

    # Django's cache
    CACHE: str = "default"
    """The alias of the cache. Several web processes need a shared one, such as Redis."""
    PHOTO_TOKEN_SECONDS: int = 600
    """How long a kept photo can be used by its token, for example to crop it again."""
    EMBEDDING_CACHE_SECONDS: int = 3600
    """How long a photo's embedding is cached by the photo's digest: the next page needs no encoder. 0 disables it."""

    # The API
    PERMISSION_CLASSES: list[str] | None = None
    """Dotted paths of DRF permission classes. None uses the project's default."""
    THROTTLE_CLASSES: list[str] | None = field(default_factory=lambda: ["visual_search.api.throttles.PhotoThrottle"])
    """Dotted paths of DRF throttle classes. None uses the project's default."""
    PHOTO_RATE: str | None = "60/min"
    """How many photos one shopper may send, in DRF's notation. None sets no limit."""
    PRODUCT_SERIALIZER: str | None = None
    """Dotted path of a DRF serializer; each result contains the serialized product as `product`."""

    # Search
    SCORE_THRESHOLD: float | None = None
    """Cosine below which a product is not shown. None: it depends on checkpoint and catalogue; calibrate it."""


@cache
def get_settings() -> Settings:
    """Return the project's settings. Unknown keys are ignored; a system check reports them."""
    values = {key: value for key, value in user_settings().items() if key in known_keys()}
    if isinstance(values.get("CHECKPOINT"), os.PathLike):
        values["CHECKPOINT"] = os.fspath(values["CHECKPOINT"])
    return Settings(**values)


def user_settings() -> dict[str, Any]:
    """Return VISUAL_SEARCH as the project wrote it."""
    value = getattr(django_settings, SETTING, {})
    return value if isinstance(value, dict) else {}


def known_keys() -> tuple[str, ...]:
    return tuple(item.name for item in fields(Settings))


def _clear_cache(*, setting: str, **kwargs: Any) -> None:
    if setting == SETTING:
        get_settings.cache_clear()


setting_changed.connect(_clear_cache, dispatch_uid="visual_search.conf")
