"""A shopper's photo on its way to the search: read within limits, decoded late, kept only when asked to.

A photo that is kept lies in Django's cache for some minutes, without its metadata, under a signed token; nothing is
written to a disk by this app. A token that is lost, late or forged asks for the photo again. Of any other photo,
only its embedding is kept for a while, by its digest.
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

# The longest side of a kept photo: a crop of a quarter of it still has twice the pixels that an encoder reads.
KEPT_PX = 2048
INVALID_CROP = (
    "crop must be left,top,right,bottom as shares of the photo's sides, 0 ≤ left < right ≤ 1 and 0 ≤ top < bottom ≤ 1, "
    "for example 0.1,0.2,0.9,0.8."
)
SALT = "visual_search.photos"


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo as the file it came in. crop: the part to search with, all of it if None."""

    data: bytes
    crop: Crop | None = None

    @property
    def digest(self) -> str:
        """The SHA-256 of file and crop: equal digests look for the same."""
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
    """What the shopper's browser needs to know of a photo that is kept. width, height: pixels, upright.

    photo: what is kept, to search with at once: later searches by the token then find the same.
    """

    token: str
    width: int
    height: int
    seconds: int
    photo: Photo


def read_photo(upload: bytes | BinaryIO, *, crop: Crop | None = None) -> Photo:
    """Return an upload as a photo; a little more than MAX_UPLOAD_BYTES is read of it at the most.

    crop: left, top, right, bottom from 0 to 1, of the upright photo. Raises InvalidQuery for a crop outside of it.
    What is wrong with the photo itself comes out when it is decoded.
    """
    data = upload if isinstance(upload, bytes) else upload.read(get_settings().MAX_UPLOAD_BYTES + 1)
    if crop is not None:
        left, top, right, bottom = crop
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise InvalidQuery(INVALID_CROP, code="invalid_crop")
    return Photo(data, crop)


def parse_crop(value: str) -> Crop | None:
    """Return the four shares that are written as `left,top,right,bottom`; None for an empty value."""
    if not value.strip():
        return None
    try:
        left, top, right, bottom = map(float, value[:200].split(","))
    except ValueError:
        raise InvalidQuery(INVALID_CROP, code="invalid_crop") from None
    return left, top, right, bottom


def keep_photo(photo: Photo) -> KeptPhoto:
    """Keep a photo for PHOTO_TOKEN_SECONDS, cropped if it is, and return its token.

    Raises PhotoRejected, Busy, Unavailable.
    """
    with encode_slot():  # decoding is what a hostile photo makes dear, here as in a search
        image = photo.decode(KEPT_PX)
        data = encode_jpeg(image, longest_px=KEPT_PX)
    seconds = get_settings().PHOTO_TOKEN_SECONDS
    name = secrets.token_urlsafe(24)
    try:
        _cache().set(_key(name), data, timeout=seconds)
    except Exception as error:  # each backend raises errors of its own client
        raise Unavailable(f"The photo could not be kept: {type(error).__name__}: {error}") from error
    scale = min(1.0, KEPT_PX / max(image.size))
    width, height = round(image.width * scale), round(image.height * scale)
    return KeptPhoto(signing.dumps(name, salt=SALT), width, height, seconds, Photo(data))


def find_photo(token: str, *, crop: Crop | None = None) -> Photo:
    """Return the photo that was kept under a token.

    Raises PhotoRejected with the code photo_expired if there is none, whatever the reason.
    """
    expired = PhotoRejected("This photo is no longer here. Please send it again.", code="photo_expired")
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


def cached_embedding(name: str, dim: int) -> tuple[FloatArray, str, str] | None:
    """Return a photo's unit vector (dim,), its preparation and its fallback, or None. A cache that fails has none."""
    import numpy as np

    if not get_settings().EMBEDDING_CACHE_SECONDS:
        return None
    try:
        kept = _cache().get(f"visual_search:embedding:{name}")
    except Exception as error:  # each backend raises errors of its own client
        logger.warning("The cache does not answer: %s: %s", type(error).__name__, error)
        return None
    if kept is None:
        return None
    data, preparation, fallback = kept
    vector = np.frombuffer(data, dtype="<f4")
    return (vector, preparation, fallback) if len(vector) == dim else None


def keep_embedding(name: str, vector: FloatArray, preparation: str, fallback: str) -> None:
    """Keep what `cached_embedding` returns, for EMBEDDING_CACHE_SECONDS."""
    seconds = get_settings().EMBEDDING_CACHE_SECONDS
    if not seconds:
        return
    kept = (vector.astype("<f4").tobytes(), preparation, fallback)
    try:
        _cache().set(f"visual_search:embedding:{name}", kept, timeout=seconds)
    except Exception as error:  # as above
        logger.warning("The cache does not take an embedding: %s: %s", type(error).__name__, error)


def _key(name: str) -> str:
    return f"visual_search:photo:{name}"


def _cache() -> BaseCache:
    return caches[get_settings().CACHE]
