"""The API views. Errors are `{"code": …, "detail": …}`: codes are stable, details are for people."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

from django.core.files.uploadedfile import UploadedFile
from django.http import QueryDict
from django.utils.module_loading import import_string
from rest_framework import exceptions, status
from rest_framework.parsers import FormParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from visual_search.api.serializers import FacetsSerializer, KeptPhotoSerializer, results_data
from visual_search.catalog import get_catalog
from visual_search.conf import get_settings
from visual_search.exceptions import InvalidQuery, PhotoRejected, VisualSearchError
from visual_search.filters import parse_filters
from visual_search.search.facets import count_facets
from visual_search.search.photos import keep_photo, read_photo
from visual_search.search.query import Timer
from visual_search.search.results import SIMILAR_LIMIT, search, why_not_ready
from visual_search.web.answers import RETRY_AFTER_SECONDS, describe_error
from visual_search.web.parameters import IGNORED_FIELDS, read_query, reject_large_upload
from visual_search.web.throttles import ThrottledView

logger = logging.getLogger(__name__)

SEARCH_ONLY = {"q", "text", "photo", "token", "crop", "like"}  # these need the encoder or name the product


def reject_misnamed_files(request: Request) -> None:
    """Raise PhotoRejected for files that are not sent as `photo`: nothing would read them."""
    if others := sorted(set(request.FILES) - {"photo"}):
        raise PhotoRejected(f"Send photos as 'photo', not as {others[0][:40]!r}.", code="photo_misnamed")


def server_timing(stages: Mapping[str, float]) -> dict[str, str]:
    """Return the Server-Timing header (a W3C draft), which browsers' developer tools display."""
    return {"Server-Timing": ", ".join(f"{stage};dur={ms:.2f}" for stage, ms in stages.items())}


class SearchAPIView(ThrottledView):
    """Base class of all views: policies from the settings, read at each request, and errors with codes."""

    def get_permissions(self) -> Sequence[Any]:
        paths = get_settings().PERMISSION_CLASSES
        return super().get_permissions() if paths is None else [import_string(path)() for path in paths]

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        reject_large_upload(request)  # before authentication: its CSRF check reads the body
        super().initial(request, *args, **kwargs)

    def answer(self, request: Request, data: QueryDict, photos: list[UploadedFile[Any]]) -> Response:
        query = read_query(data, photos)
        results = search(query, request=request)
        return Response(results_data(results, query, request), headers=server_timing(results.timings_ms))

    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, VisualSearchError):
            code, body = describe_error(exc)
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if code == status.HTTP_503_SERVICE_UNAVAILABLE else None
            return Response(body, status=code, headers=headers)
        response = super().handle_exception(exc)
        detail = response.data.get("detail")
        if isinstance(detail, exceptions.ErrorDetail):
            response.data = {"code": detail.code, "detail": str(detail)}
        return response


class SearchView(SearchAPIView):
    """Find products by photos, text, similar products or a mix of these."""

    parser_classes = [MultiPartParser, FormParser]

    def get(self, request: Request) -> Response:
        return self.answer(request, request.query_params, [])

    def post(self, request: Request) -> Response:
        reject_misnamed_files(request)
        data = request.POST.copy()
        data.update(request.query_params)  # the query string overrides the form: `next` changes the offset
        return self.answer(request, data, request.FILES.getlist("photo"))


class SimilarView(SearchAPIView):
    """Find products that look like a given one: `?product=<key>`, with filters and paging as in a search."""

    def get(self, request: Request) -> Response:
        data = request.query_params.copy()
        keys = [key for key in data.pop("product", []) if key]
        if len(keys) != 1:
            raise InvalidQuery("Name one product: ?product=<key>.")
        if others := sorted(SEARCH_ONLY & set(data)):
            raise InvalidQuery(f"similar/ takes a product, filters and paging; use search/ for {others[0]!r}.")
        data.setlist("like", keys)
        data.setdefault("limit", str(SIMILAR_LIMIT))
        return self.answer(request, data, [])


class PhotosView(SearchAPIView):
    """Keep a photo for some minutes, for further searches with other crops."""

    parser_classes = [MultiPartParser]

    def post(self, request: Request) -> Response:
        reject_misnamed_files(request)
        if others := sorted({*request.POST, *request.query_params} - {*IGNORED_FIELDS, "photo"}):
            raise InvalidQuery(f"photos/ takes a photo and nothing else; use search/ for {others[0][:40]!r}.")
        uploads = request.FILES.getlist("photo")
        if len(uploads) != 1:
            raise PhotoRejected("Please send one photo, as a file.", code="photo_not_single")
        timer = Timer()
        with timer("decode"):
            kept = keep_photo(read_photo(cast(Any, uploads[0])))
        body = KeptPhotoSerializer(kept).data
        return Response(body, status=status.HTTP_201_CREATED, headers=server_timing(timer.stages))


class FacetsView(SearchAPIView):
    """Count the products for each value of the declared filters, among those that match the given filters."""

    def get(self, request: Request) -> Response:
        given = {key: request.query_params.getlist(key) for key in request.query_params if key not in IGNORED_FIELDS}
        counted = count_facets(parse_filters(get_catalog().filters, given))
        facets = {
            name: [{"value": value, "count": count} for value, count in values.items()]
            for name, values in counted.values.items()
        }
        body = FacetsSerializer({"facets": facets, "bounds": counted.bounds}).data
        return Response(body, headers=server_timing(counted.timings_ms))


class HealthView(SearchAPIView):
    """Answer 200 if this process can answer a search at once, else 503. Loads nothing, so it can be polled."""

    authentication_classes = []

    def get_permissions(self) -> Sequence[Any]:
        return []

    def get_throttles(self) -> list[Any]:
        return []

    def get(self, request: Request) -> Response:
        if reason := why_not_ready():
            logger.warning("Not ready: %s", reason)
            body = {
                "code": "not_ready",
                "detail": "This process can't answer searches yet. Its log has the reason.",
            }
            return Response(body, status=status.HTTP_503_SERVICE_UNAVAILABLE)
        return Response({"status": "ok"})
