"""The API: search and health. Errors are `{"code": …, "detail": …}`; codes are stable, details are for people."""

from __future__ import annotations

import logging
from typing import Any

from django.db import transaction
from django.http import HttpRequest
from django.utils.decorators import method_decorator
from rest_framework import exceptions, status
from rest_framework.parsers import FormParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from visual_search.api.serializers import read_query, results_data
from visual_search.conf import get_settings
from visual_search.exceptions import BadRequest, PhotoRejected, Unavailable, VisualSearchError
from visual_search.search import search, why_not_ready

logger = logging.getLogger(__name__)

FORM_BYTES = 1024 * 1024  # what a form may weigh besides its photo
TOO_LARGE = {"photo_too_large", "photo_too_many_pixels"}
RETRY_AFTER_SECONDS = 10
SHOPPERS_SENTENCE = "The search is not available at the moment. Please try again soon."


def refuse_large_upload(request: HttpRequest) -> None:
    """Refuse by the announced length, before a byte of the body is read. Raises PhotoRejected."""
    limit = get_settings().MAX_UPLOAD_BYTES
    try:
        announced = int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        announced = 0
    if announced > limit + FORM_BYTES:
        megabytes = f"{limit / 2**20:.3g} MB"
        raise PhotoRejected(f"This photo is too large. Use one below {megabytes}.", code="photo_too_large")


def explain(error: VisualSearchError) -> tuple[int, dict[str, str]]:
    """Return the status and body of the answer to an error. What only staff can mend goes to the log."""
    if isinstance(error, BadRequest):
        is_large = error.code in TOO_LARGE
        return (413 if is_large else 400), {"code": error.code, "detail": str(error)}
    logger.error("Search unavailable (%s): %s", error.code, error)
    code = error.code if isinstance(error, Unavailable) else Unavailable.code
    return 503, {"code": code, "detail": SHOPPERS_SENTENCE}


# A photo takes a while to decode and embed: no transaction may be open meanwhile, whatever ATOMIC_REQUESTS says.
@method_decorator(transaction.non_atomic_requests, name="dispatch")
class SearchAPIView(APIView):
    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, VisualSearchError):
            code, body = explain(exc)
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if code == status.HTTP_503_SERVICE_UNAVAILABLE else None
            return Response(body, status=code, headers=headers)
        response = super().handle_exception(exc)
        if isinstance(exc, exceptions.APIException) and isinstance(exc.detail, str):
            response.data = {"code": exc.detail.code, "detail": str(exc.detail)}
        return response


class SearchView(SearchAPIView):
    """Products that look like a photo, fit a text, or both."""

    parser_classes = [MultiPartParser, FormParser]

    def get(self, request: Request) -> Response:
        return self.answer(request, request.query_params)

    def post(self, request: Request) -> Response:
        refuse_large_upload(request)
        return self.answer(request, request.data)

    def answer(self, request: Request, data: Any) -> Response:
        results = search(read_query(request, data), request=request)
        return Response(results_data(results, request))


class HealthView(SearchAPIView):
    """200 when this process can answer a search at once, else 503. Loads nothing, so it may be asked often."""

    authentication_classes = []
    permission_classes = []
    throttle_classes = []

    def get(self, request: Request) -> Response:
        if reason := why_not_ready():
            logger.info("Not ready: %s", reason)
            return Response({"code": "not_ready", "detail": reason}, status=status.HTTP_503_SERVICE_UNAVAILABLE)
        return Response({"status": "ok"})
