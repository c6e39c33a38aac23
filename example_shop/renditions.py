"""Serve small pictures for cards and galleries, each made from its original when a browser first requests it.

No page waits for them and no table lists them. The originals, which the search reads, stay unchanged. Renditions are
in the default storage beside the originals and can be deleted at any time.
"""

from __future__ import annotations

import io
import logging
from datetime import datetime

from django.core.exceptions import SuspiciousOperation
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.http import FileResponse, Http404, HttpRequest, HttpResponseBase
from django.shortcuts import redirect
from django.templatetags.static import static
from django.urls import reverse

from visual_search.exceptions import ImageUnreadable
from visual_search.vision import open_product_image

logger = logging.getLogger(__name__)

SIDES_PX = (160, 320, 640, 1280)  # of the shorter side, which equals the side of the square that the picture fills
CARD_SIDE_PX = 640  # a card on a phone with a high-resolution screen
MAX_ASPECT_RATIO = 2  # longer to shorter side; the rest of a panorama is cut off
MAX_PIXELS = 50_000_000
QUALITY = 80
MAX_AGE_SECONDS = 24 * 60 * 60


def rendition_url(name: str, side_px: int) -> str:
    """Return the address of a rendition of the picture `name`; its shorter side has at most `side_px` pixels."""
    return reverse("rendition", args=[side_px, name])


def srcset(name: str) -> str:
    return ", ".join(f"{rendition_url(name, side)} {side}w" for side in SIDES_PX)


def rendition(request: HttpRequest, side_px: int, name: str) -> HttpResponseBase:
    """Return the rendition; redirect to a placeholder if the original is missing or can't be read."""
    if side_px not in SIDES_PX or not name.startswith("products/"):
        raise Http404(f"There are no pictures of {name!r} with {side_px} pixels.")
    try:
        response = FileResponse(default_storage.open(current_rendition(name, side_px)), content_type="image/webp")
    # An impossible file name raises ValueError or SuspiciousOperation.
    except (OSError, ValueError, SuspiciousOperation, ImageUnreadable) as error:
        logger.warning("Cannot show a picture of %r: %s", name, error)
        return redirect(static("example_shop/no-picture.svg"))
    response["Cache-Control"] = f"public, max-age={MAX_AGE_SECONDS}"
    return response


def stored_name(name: str, side_px: int) -> str:
    return f"renditions/{side_px}/{name}.webp"


def current_rendition(name: str, side_px: int) -> str:
    """Return the storage name of the rendition; make it again if it is missing or older than its original."""
    stored = stored_name(name, side_px)
    original_at = default_storage.get_modified_time(name)
    if is_newer(stored, original_at):
        return stored
    with default_storage.open(name) as original:
        content = make_rendition(original, side_px)
    default_storage.delete(stored)
    # If another process was faster, the storage picks another name, and one superfluous file stays.
    return default_storage.save(stored, ContentFile(content))


def is_newer(stored: str, original_at: datetime) -> bool:
    try:
        return default_storage.get_modified_time(stored) >= original_at
    except FileNotFoundError:
        return False


def make_rendition(original: io.BufferedIOBase, side_px: int) -> bytes:
    """Return a WebP of the picture. Raises ImageUnreadable."""
    picture = open_product_image(original, max_pixels=MAX_PIXELS, target_px=side_px)
    width, height = picture.size
    excess = max(width, height) - MAX_ASPECT_RATIO * min(width, height)
    if excess > 0:
        cut = excess / 2
        picture = picture.crop((cut, 0, width - cut, height) if width > height else (0, cut, width, height - cut))
    if (scale := side_px / min(picture.size)) < 1:
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), reducing_gap=2)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=QUALITY)
    return file.getvalue()


def delete_renditions(name: str) -> None:
    """Delete the renditions of a deleted picture."""
    for side in SIDES_PX:
        default_storage.delete(stored_name(name, side))
