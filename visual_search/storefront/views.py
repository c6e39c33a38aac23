"""The search page, and its results alone for the widget's script. Both work from the same address."""

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
from visual_search.storefront.addresses import QUESTIONS, changed, read_parameters
from visual_search.storefront.state import Storefront
from visual_search.web.answers import RETRY_AFTER_SECONDS, explain, without_transaction
from visual_search.web.parameters import read_query, refuse_large_upload
from visual_search.web.throttles import check_throttles

logger = logging.getLogger(__name__)

FALLBACK = 8  # nearest products shown where nothing is close enough


@without_transaction
@require_http_methods(["GET", "HEAD", "POST"])
def search_page(request: HttpRequest) -> HttpResponse:
    """Show the form, and below it what was found."""
    return respond(request, "visual_search/search.html")


@without_transaction
@require_http_methods(["GET", "HEAD", "POST"])
def results(request: HttpRequest) -> HttpResponse:
    """Show what the same address of the search page shows, without the page around it: filters, results, error."""
    return respond(request, "visual_search/results.html")


def respond(request: HttpRequest, template: str) -> HttpResponse:
    """Answer a search in the page, or the empty form. Errors stand in the page, with their status."""
    store, status, seconds = look(request)
    store.complete(request)
    response = render(request, template, {"visual_search": store}, status=status)
    if seconds is not None:
        response["Retry-After"] = str(seconds)
    patch_cache_control(response, private=True)
    if store.data:
        response["X-Robots-Tag"] = "noindex"
    return response


def look(request: HttpRequest) -> tuple[Storefront, int, int | None]:
    """Return what was found, the status, and after how many seconds to ask again where that may help."""
    store = Storefront(QueryDict())
    seconds: int | None = None
    status = 200
    try:
        if request.method == "POST":
            refuse_large_upload(request)
        given = request.POST if request.method == "POST" else request.GET
        store.data = read_parameters(given)
        if uploads(request) and store.token:  # the form's earlier photo
            store.data = changed(store.data, token=None, crop=None)
        if request.method == "POST" or any(store.data.get(name) for name in QUESTIONS):
            check_throttles(request)
            query = replace(read_query(search_data(store.data, given), uploads(request)), fallback=FALLBACK)
            query, store.data = keep(query, store.data, uploads(request))
            store.show(search(query, request=request))
    except VisualSearchError as error:
        status, body = explain(error)
        store.refuse(body["code"])
    except Throttled as throttled:
        status, seconds = throttled.status_code, int(getattr(throttled, "wait", None) or RETRY_AFTER_SECONDS)
        store.refuse(throttled.default_code)
    return store, status, RETRY_AFTER_SECONDS if status == 503 else seconds


def uploads(request: HttpRequest) -> list[UploadedFile[Any]]:
    return request.FILES.getlist("photo") if request.method == "POST" else []


def search_data(data: QueryDict, given: QueryDict) -> QueryDict:
    """Return the parameters as the API reads them: a photo that came as text is an error there."""
    return changed(data, photo=given.get("photo"))


def keep(query: SearchQuery, data: QueryDict, files: list[UploadedFile[Any]]) -> tuple[SearchQuery, QueryDict]:
    """Keep a photo that was sent, so that filters, the crop and the next page need no second upload.

    Returns the query with what is kept in the photo's place, and the parameters with its token. Several photos, or a
    cache that fails, are searched with all the same.
    """
    if len(files) != 1 or len(query.photos) != 1:
        return query, data
    (photo,) = query.photos
    try:
        kept = keep_photo(replace(photo, crop=None))
    except Busy:
        raise
    except Unavailable as error:
        logger.warning("A photo is searched with and not kept: %s", error)
        return query, data
    return replace(query, photos=[replace(kept.photo, crop=photo.crop)]), changed(data, token=kept.token)
