"""The search page, and its results alone for the widget's script. Both take the same parameters."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import render
from django.utils.cache import patch_cache_control
from django.views.decorators.http import require_http_methods
from rest_framework.exceptions import Throttled

from visual_search.exceptions import Busy, Unavailable, VisualSearchError
from visual_search.search.photos import keep_photo
from visual_search.search.query import SearchQuery
from visual_search.search.results import search
from visual_search.storefront.addresses import QUERY_PARAMETERS, read_parameters, replace_parameters
from visual_search.storefront.state import Storefront
from visual_search.web.answers import RETRY_AFTER_SECONDS, describe_error, without_transaction
from visual_search.web.parameters import read_query, reject_large_upload
from visual_search.web.throttles import check_throttles

logger = logging.getLogger(__name__)

FALLBACK_LIMIT = 8  # nearest products to show if none is close enough


@without_transaction
@require_http_methods(["GET", "HEAD", "POST"])
def search_page(request: HttpRequest) -> HttpResponse:
    """Show the form and the results."""
    return render_search(request, "visual_search/search.html")


@without_transaction
@require_http_methods(["GET", "HEAD", "POST"])
def results(request: HttpRequest) -> HttpResponse:
    """Show only the examples, filters, results and error of the search page with the same parameters."""
    return render_search(request, "visual_search/results.html")


def render_search(request: HttpRequest, template: str) -> HttpResponse:
    """Render the results of a search, or the empty form. Errors appear in the page and set its status."""
    store, status, seconds = run_search(request)
    store.load_filters_and_examples(request)
    response = render(request, template, {"visual_search": store}, status=status)
    if seconds is not None:
        response["Retry-After"] = str(seconds)
    patch_cache_control(response, private=True)
    if store.data:
        response["X-Robots-Tag"] = "noindex"
    return response


def run_search(request: HttpRequest) -> tuple[Storefront, int, int | None]:
    """Run the request's search, if any. Return its state, the status and the Retry-After seconds, or None."""
    store = Storefront(QueryDict())
    seconds: int | None = None
    status = 200
    try:
        if request.method == "POST":
            reject_large_upload(request)
        given = request.POST if request.method == "POST" else request.GET
        store.data = read_parameters(given)
        if uploads(request) and store.token:  # the new photo replaces the form's earlier one
            store.data = replace_parameters(store.data, token=None, crop=None)
        if request.method == "POST" or any(store.data.get(name) for name in QUERY_PARAMETERS):
            check_throttles(request)
            query = replace(read_query(search_data(store.data, given), uploads(request)), fallback=FALLBACK_LIMIT)
            query, store.data = keep_upload(query, store.data, uploads(request))
            store.show_results(search(query, request=request))
    except VisualSearchError as error:
        status, body = describe_error(error)
        store.show_error(body["code"])
    except Throttled as throttled:
        status, seconds = throttled.status_code, int(getattr(throttled, "wait", None) or RETRY_AFTER_SECONDS)
        store.show_error(throttled.default_code)
    return store, status, RETRY_AFTER_SECONDS if status == 503 else seconds


def uploads(request: HttpRequest) -> list[UploadedFile[Any]]:
    return request.FILES.getlist("photo") if request.method == "POST" else []


def search_data(data: QueryDict, given: QueryDict) -> QueryDict:
    """Return the parameters for `read_query`, with a photo sent as text, which is an error there."""
    return replace_parameters(data, photo=given.get("photo"))


def keep_upload(query: SearchQuery, data: QueryDict, files: list[UploadedFile[Any]]) -> tuple[SearchQuery, QueryDict]:
    """Keep an uploaded photo, so that filters, the crop and the next page need no second upload.

    Returns the query with the kept photo in place of the upload, and the parameters with its token. With several
    photos, or if the cache fails, returns both unchanged.
    """
    if len(files) != 1 or len(query.photos) != 1:
        return query, data
    (photo,) = query.photos
    try:
        kept = keep_photo(replace(photo, crop=None))
    except Busy:
        raise
    except Unavailable as error:
        logger.warning("The search uses a photo that could not be kept: %s", error)
        return query, data
    return replace(query, photos=[replace(kept.photo, crop=photo.crop)]), replace_parameters(data, token=kept.token)
