"""The error messages that shoppers read: one translated sentence for each error code.

The messages of the exceptions are for developers and logs, in English. Codes are stable (docs/api.md); a test checks
that every code that can reach a shopper has a sentence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.utils.translation import gettext_lazy as _

from visual_search.conf import get_settings

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

UNAVAILABLE = _("The search is not available at the moment. Please try again soon.")
PREPARING = _("The search is being prepared. Please try again in a few minutes.")
BAD_FILTER = _("One of the filters can't be used. Please remove it.")

SENTENCES: dict[str, _StrPromise] = {
    # The photo
    "photo_empty": _("This file is empty. Please choose another photo."),
    "photo_unsupported": _("This file is not a photo that we can read. Please use a JPEG, PNG or WebP."),
    "photo_ambiguous": _("This file is not a photo that we can read. Please use a JPEG, PNG or WebP."),
    "photo_damaged": _("This photo is damaged. Please choose another one."),
    "photo_too_small": _("This photo is too small. Please choose a larger one."),
    "photo_too_large": _("This photo is too large. Please use one below %(megabytes)s MB."),
    "photo_too_many_pixels": _("This photo has too many pixels. Please use one below %(megapixels)s megapixels."),
    "photo_not_single": _("Please choose one photo at a time."),
    "too_many_photos": _("Please choose up to %(photos)s photos."),
    "photo_not_a_file": _("The photo did not arrive. Please choose it again."),
    "photo_misnamed": _("The photo did not arrive. Please choose it again."),
    "photo_rejected": _("This photo can't be used for a search. Please choose another one."),
    "photo_expired": _("Your photo is no longer here. Please choose it again."),
    "invalid_crop": _("This part of the photo can't be used. Please mark another one."),
    "crop_too_small": _("The marked part is too small. Please mark a larger one."),
    # Words, products, filters
    "query_empty": _("Choose a photo first, or describe in words what you are looking for."),
    "text_too_long": _("Please use at most %(characters)s characters."),
    "product_not_indexed": _("This product can't be used for a search. It may be new, or no longer available."),
    "invalid_filter": BAD_FILTER,
    "invalid_query": _("This search can't be answered. Please start a new one."),
    "bad_request": _("This search can't be answered. Please start a new one."),
    "parse_error": _("The photo did not arrive in full. Please send it again."),
    # The shop
    "throttled": _("You have sent many photos in a short time. Please try again in a minute."),
    "not_authenticated": _("Please sign in to search by photo."),
    "permission_denied": _("You may not search by photo here."),
    "search_busy": _("Many people are searching at this moment. Please try again."),
    "index_empty": PREPARING,
    "index_filling": PREPARING,
    "index_outdated": PREPARING,
    "store_unavailable": UNAVAILABLE,
    "search_unavailable": UNAVAILABLE,
    # Errors that only the browser detects
    "photo_lost": _("The photo could not be carried over. Please choose it here once more."),
    "text_pasted": _("That was text, not a picture. Paste a picture, or write the words into the field."),
    "page_expired": _("This page has been open for too long. Please reload it."),
    "network": _("The shop can't be reached. Please check your connection and try again."),
}


def sentence(code: str) -> str:
    """Return the sentence for an error code; a general one for a code that no shopper should see."""
    settings = get_settings()
    values = {
        "megabytes": f"{settings.MAX_UPLOAD_BYTES / 2**20:.3g}",
        "megapixels": f"{settings.MAX_PHOTO_PIXELS / 1e6:.3g}",
        "photos": settings.MAX_PHOTOS,
        "characters": settings.MAX_TEXT_LENGTH,
    }
    return str(SENTENCES.get(code, UNAVAILABLE)) % values
