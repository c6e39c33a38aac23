"""Read, keep and find the photos that shoppers send.

Photos are read within limits, decoded late and kept only on request. A kept photo stays in Django's cache for some
minutes, without its metadata, under a signed token; this app writes nothing to disk. If the token is lost, expired or
forged, the shopper has to send the photo again. For any other photo only the embedding is cached, under its digest.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from django.core import signing
from django.core.cache import caches

from visual_search.components import encode_slot
from visual_search.conf import get_settings
from visual_search.exceptions import InvalidQuery, PhotoRejected, Unavailable
from visual_search.vision.images import Crop, decode_photo, encode_jpeg

if TYPE_CHECKING:
    from django.core.cache import BaseCache
    from PIL.Image import Image

    from visual_search.vision.encoder import FloatArray

logger = logging.getLogger(__name__)

# The longest side of a kept photo. A crop of a quarter of it still has twice the pixels that an encoder reads.
KEPT_PX = 2048
INVALID_CROP = (
    "crop must be left,top,right,bottom as fractions of the photo's sides, 0 ≤ left < right ≤ 1 and "
    "0 ≤ top < bottom ≤ 1, for example 0.1,0.2,0.9,0.8."
)
SALT = "visual_search.photos"


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo as an encoded file. crop: the part to search with; None means the whole photo."""

    data: bytes
    crop: Crop | None = None

    @property
    def digest(self) -> str:
        """The SHA-256 of the file and the crop. Photos with equal digests find the same products."""
        part = "" if self.crop is None else ",".join(f"{edge:.4f}" for edge in self.crop)
        digest = hashlib.sha256(self.data)
        digest.update(part.encode())
        return digest.hexdigest()

    def decode(self, target_px: int | None = None) -> Image:
        """Return the photo, or its crop, upright and in RGB. Raises PhotoRejected; see decode_photo."""
        settings = get_settings()
        return decode_photo(
            self.data,
            max_bytes=settings.MAX_UPLOAD_BYTES,
            max_pixels=settings.MAX_PHOTO_PIXELS,
            target_px=target_px,
            crop=self.crop,
        )


@dataclass(frozen=True, slots=True)
class KeptPhoto:
    """A photo in the cache, with what the shopper's browser needs to know. width, height: pixels, upright.

    photo: the kept file. Search with it at once, so that later searches by the token return the same results.
    """

    token: str
    width: int
    height: int
    seconds: int
    photo: Photo


def read_photo(upload: bytes | BinaryIO, *, crop: Crop | None = None) -> Photo:
    """Return an upload as a photo. Reads at most one byte more than MAX_UPLOAD_BYTES.

    crop: left, top, right, bottom of the upright photo, from 0 to 1. Raises InvalidQuery for a crop outside the photo.
    Errors in the photo itself are raised when it is decoded.
    """
    data = upload if isinstance(upload, bytes) else upload.read(get_settings().MAX_UPLOAD_BYTES + 1)
    if crop is not None:
        left, top, right, bottom = crop
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise InvalidQuery(INVALID_CROP, code="invalid_crop")
    return Photo(data, crop)


def parse_crop(value: str) -> Crop | None:
    """Parse `left,top,right,bottom` into four fractions; return None for an empty value. Raises InvalidQuery."""
    if not value.strip():
        return None
    try:
        left, top, right, bottom = map(float, value[:200].split(","))
    except ValueError:
        raise InvalidQuery(INVALID_CROP, code="invalid_crop") from None
    return left, top, right, bottom


def keep_photo(photo: Photo) -> KeptPhoto:
    """Keep a photo in the cache for PHOTO_TOKEN_SECONDS, with its crop applied, and return it with its token.

    Raises PhotoRejected, Busy, Unavailable.
    """
    with encode_slot():  # a hostile photo is most expensive to decode, here as in a search
        image = photo.decode(KEPT_PX)
        data = encode_jpeg(image, longest_px=KEPT_PX)
    seconds = get_settings().PHOTO_TOKEN_SECONDS
    name = secrets.token_urlsafe(24)
    try:
        _cache().set(_key(name), data, timeout=seconds)
    except Exception as error:  # each cache backend raises its client's own errors
        raise Unavailable(f"The cache did not store the photo: {type(error).__name__}: {error}") from error
    scale = min(1.0, KEPT_PX / max(image.size))
    width, height = round(image.width * scale), round(image.height * scale)
    return KeptPhoto(signing.dumps(name, salt=SALT), width, height, seconds, Photo(data))


def find_photo(token: str, *, crop: Crop | None = None) -> Photo:
    """Return the photo that was kept under a token.

    Raises PhotoRejected with the code photo_expired if there is none, for whatever reason; Unavailable if the cache
    does not answer; InvalidQuery for a crop outside the photo.
    """
    expired = PhotoRejected("This photo is no longer available. Please send it again.", code="photo_expired")
    try:
        name = signing.loads(token, salt=SALT, max_age=get_settings().PHOTO_TOKEN_SECONDS)
    except signing.BadSignature:
        raise expired from None
    try:
        data = _cache().get(_key(name))
    except Exception as error:  # as above
        raise Unavailable(f"The cache does not answer: {type(error).__name__}: {error}") from error
    if data is None:
        raise expired
    return read_photo(data, crop=crop)


def get_cached_embedding(name: str, dim: int) -> tuple[FloatArray, str, str] | None:
    """Return a photo's unit vector (dim,), preparation and fallback; None if they are not cached or the cache fails."""
    import numpy as np

    if not get_settings().EMBEDDING_CACHE_SECONDS:
        return None
    try:
        cached = _cache().get(f"visual_search:embedding:{name}")
    except Exception as error:  # each cache backend raises its client's own errors
        logger.warning("The cache does not answer: %s: %s", type(error).__name__, error)
        return None
    if cached is None:
        return None
    data, preparation, fallback = cached
    vector = np.frombuffer(data, dtype="<f4")
    return (vector, preparation, fallback) if len(vector) == dim else None


def set_cached_embedding(name: str, vector: FloatArray, preparation: str, fallback: str) -> None:
    """Cache what `get_cached_embedding` returns for EMBEDDING_CACHE_SECONDS. A cache failure is only logged."""
    seconds = get_settings().EMBEDDING_CACHE_SECONDS
    if not seconds:
        return
    value = (vector.astype("<f4").tobytes(), preparation, fallback)
    try:
        _cache().set(f"visual_search:embedding:{name}", value, timeout=seconds)
    except Exception as error:  # as above
        logger.warning("The cache does not store an embedding: %s: %s", type(error).__name__, error)


def _key(name: str) -> str:
    return f"visual_search:photo:{name}"


def _cache() -> BaseCache:
    return caches[get_settings().CACHE]
