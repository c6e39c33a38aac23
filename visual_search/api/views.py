"""The API. Errors are `{"code": …, "detail": …}`; codes are stable, details are for people."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

from django.contrib.auth.models import AnonymousUser
from django.core.files.uploadedfile import UploadedFile
from django.db import connections, transaction
from django.http import HttpRequest, QueryDict
from django.utils.module_loading import import_string
from rest_framework import exceptions, status
from rest_framework.parsers import FormParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from visual_search.api.serializers import (
    IGNORED,
    FacetsSerializer,
    KeptPhotoSerializer,
    read_query,
    results_data,
)
from visual_search.catalog import get_catalog
from visual_search.conf import get_settings
from visual_search.exceptions import BadRequest, InvalidQuery, PhotoRejected, Unavailable, VisualSearchError
from visual_search.filters import parse_filters
from visual_search.search.facets import count_facets
from visual_search.search.photos import keep_photo, read_photo
from visual_search.search.query import Timer
from visual_search.search.results import SIMILAR_LIMIT, search, why_not_ready

logger = logging.getLogger(__name__)

FORM_BYTES = 1024 * 1024  # what a form may weigh besides its photos
TOO_LARGE = {"photo_too_large", "photo_too_many_pixels"}
RETRY_AFTER_SECONDS = 10
NOT_SIMILAR = {"q", "text", "photo", "token", "crop", "like"}  # they would need the encoder, or are the product
SHOPPERS_SENTENCE = "The search is not available at the moment. Please try again soon."


def refuse_large_upload(request: HttpRequest) -> None:
    """Refuse by the announced length, before the body is read here. Raises PhotoRejected."""
    settings = get_settings()
    limit = settings.MAX_UPLOAD_BYTES
    try:
        announced = int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        announced = 0
    if announced > limit * settings.MAX_PHOTOS + FORM_BYTES:
        megabytes = f"{limit / 2**20:.3g} MB"
        raise PhotoRejected(f"This photo is too large. Use one below {megabytes}.", code="photo_too_large")


def refuse_other_files(request: Request) -> None:
    """Refuse files that nobody would look at. Raises PhotoRejected."""
    if others := sorted(set(request.FILES) - {"photo"}):
        raise PhotoRejected(f"Send photos as 'photo', not as {others[0][:40]!r}.", code="photo_misnamed")


def without_transaction(view: Any) -> Any:
    """Return the view, run without a transaction in any database, whatever ATOMIC_REQUESTS says.

    A photo takes a while to decode and embed; meanwhile SQLite's write lock would be held.
    """
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


def explain(error: VisualSearchError) -> tuple[int, dict[str, str]]:
    """Return the status and body of the answer to an error. What only staff can mend goes to the log."""
    if isinstance(error, BadRequest):
        is_large = error.code in TOO_LARGE
        return (413 if is_large else 400), {"code": error.code, "detail": str(error)}
    logger.error("Search unavailable (%s): %s", error.code, error)
    code = error.code if isinstance(error, Unavailable) else Unavailable.code
    return 503, {"code": code, "detail": SHOPPERS_SENTENCE}


def server_timing(stages: Mapping[str, float]) -> dict[str, str]:
    """Return the header that browsers' developer tools draw (Server-Timing, a W3C draft)."""
    return {"Server-Timing": ", ".join(f"{stage};dur={ms:.2f}" for stage, ms in stages.items())}


class SearchAPIView(APIView):
    """What all views share: the settings' policies, read at each request, and errors with codes."""

    def get_permissions(self) -> Sequence[Any]:
        paths = get_settings().PERMISSION_CLASSES
        return super().get_permissions() if paths is None else [import_string(path)() for path in paths]

    def get_throttles(self) -> list[Any]:
        paths = get_settings().THROTTLE_CLASSES
        return super().get_throttles() if paths is None else [import_string(path)() for path in paths]

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        refuse_large_upload(request)  # before authentication, whose CSRF check reads the body
        super().initial(request, *args, **kwargs)

    def answer(self, request: Request, data: QueryDict, photos: list[UploadedFile[Any]]) -> Response:
        query = read_query(data, photos)
        results = search(query, request=request)
        return Response(results_data(results, query, request), headers=server_timing(results.timings_ms))

    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, VisualSearchError):
            code, body = explain(exc)
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if code == status.HTTP_503_SERVICE_UNAVAILABLE else None
            return Response(body, status=code, headers=headers)
        response = super().handle_exception(exc)
        detail = response.data.get("detail")
        if isinstance(detail, exceptions.ErrorDetail):
            response.data = {"code": detail.code, "detail": str(detail)}
        return response


class SearchView(SearchAPIView):
    """Products that look like photos, fit a text, are like other products, or all of these."""

    parser_classes = [MultiPartParser, FormParser]

    def get(self, request: Request) -> Response:
        return self.answer(request, request.query_params, [])

    def post(self, request: Request) -> Response:
        refuse_other_files(request)
        data = request.POST.copy()
        data.update(request.query_params)  # of both, the address is the last and counts: `next` changes the offset
        return self.answer(request, data, request.FILES.getlist("photo"))


class SimilarView(SearchAPIView):
    """Products that look like one of the catalogue: `?product=<key>`, with filters and paging as in a search."""

    def get(self, request: Request) -> Response:
        data = request.query_params.copy()
        keys = [key for key in data.pop("product", []) if key]
        if len(keys) != 1:
            raise InvalidQuery("Name one product: ?product=<key>.")
        if others := sorted(NOT_SIMILAR & set(data)):
            raise InvalidQuery(f"similar/ takes a product, filters and paging; {others[0]!r} belongs to search/.")
        data.setlist("like", keys)
        data.setdefault("limit", str(SIMILAR_LIMIT))
        return self.answer(request, data, [])


class PhotosView(SearchAPIView):
    """Keep a photo for some minutes, so that it can be searched with again, cropped otherwise."""

    parser_classes = [MultiPartParser]

    def post(self, request: Request) -> Response:
        refuse_other_files(request)
        if others := sorted({*request.POST, *request.query_params} - {*IGNORED, "photo"}):
            raise InvalidQuery(f"photos/ takes a photo and nothing else; {others[0][:40]!r} belongs to search/.")
        uploads = request.FILES.getlist("photo")
        if len(uploads) != 1:
            raise PhotoRejected("Please send one photo, as a file.", code="photo_not_single")
        timer = Timer()
        with timer("decode"):
            kept = keep_photo(read_photo(cast(Any, uploads[0])))
        body = KeptPhotoSerializer(kept).data
        return Response(body, status=status.HTTP_201_CREATED, headers=server_timing(timer.stages))


class FacetsView(SearchAPIView):
    """How many products have each value of the declared filters, among those that the given filters let through."""

    def get(self, request: Request) -> Response:
        given = {key: request.query_params.getlist(key) for key in request.query_params if key not in IGNORED}
        counted = count_facets(parse_filters(get_catalog().filters, given))
        facets = {
            name: [{"value": value, "count": count} for value, count in values.items()]
            for name, values in counted.values.items()
        }
        body = FacetsSerializer({"facets": facets, "bounds": counted.bounds}).data
        return Response(body, headers=server_timing(counted.timings_ms))


class HealthView(SearchAPIView):
    """200 when this process can answer a search at once, else 503. Loads nothing, so it may be asked often."""

    authentication_classes = []

    def get_permissions(self) -> Sequence[Any]:
        return []

    def get_throttles(self) -> list[Any]:
        return []

    def get(self, request: Request) -> Response:
        if reason := why_not_ready():
            logger.warning("Not ready: %s", reason)
            body = {"code": "not_ready", "detail": "This process can't answer searches yet; its log says why."}
            return Response(body, status=status.HTTP_503_SERVICE_UNAVAILABLE)
        return Response({"status": "ok"})


def check_throttles(request: HttpRequest) -> None:
    """Count a request to a page, which is no view of DRF's, as the API would. Raises Throttled."""
    counted = Request(request)
    counted.user = getattr(request, "user", AnonymousUser())
    view = SearchView()
    for throttle in view.get_throttles():
        if not throttle.allow_request(counted, view):
            raise exceptions.Throttled(throttle.wait())
