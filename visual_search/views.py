"""The results page: a form that works without JavaScript, and the products found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import render
from django.utils.translation import gettext
from django.views.decorators.http import require_http_methods
from rest_framework.exceptions import Throttled

from visual_search.api.serializers import SearchRequestSerializer, read_query
from visual_search.api.views import (
    RETRY_AFTER_SECONDS,
    check_throttles,
    explain,
    refuse_large_upload,
    without_transaction,
)
from visual_search.catalog import get_catalog
from visual_search.exceptions import VisualSearchError
from visual_search.facets import count_facets, is_at_hand
from visual_search.filters import Boolean, Number, parameter_names
from visual_search.search import ProductHit, SearchResults, search

FALLBACK = 8  # nearest products shown where nothing is close enough


@without_transaction
@require_http_methods(["GET", "HEAD", "POST"])
def search_page(request: HttpRequest) -> HttpResponse:
    """Show the form, and below it what was found. A photo is searched with and forgotten."""
    data, status = request.GET, 200
    context: dict[str, Any] = {}
    try:
        if request.method == "POST":
            refuse_large_upload(request)
            data = request.POST
        if is_asked(request, data):
            check_throttles(request)
            query = replace(read_query(known_parameters(data), request.FILES.getlist("photo")), fallback=FALLBACK)
            results = search(query, request=request)
            context["hits"] = [card(hit) for hit in results.hits or results.fallback]
            context["is_nothing_close"] = results.is_nothing_close
            context |= {"was_searched": True, "next": next_page(request, data, results)}
    except VisualSearchError as error:
        status, context["error"] = explain(error)
    except Throttled as throttled:
        detail = gettext("You have sent many photos in a short time. Please try again in a minute.")
        status, context["error"] = throttled.status_code, {"code": throttled.default_code, "detail": detail}
    fields = form_fields(data)
    context |= {
        "text": data.get("text") or data.get("q", ""),
        "fields": fields,
        "has_filters": any(field["value"] for field in fields),
    }
    response = render(request, "visual_search/search.html", context, status=status)
    if status in (429, 503):
        response["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response


def known_parameters(data: QueryDict) -> QueryDict:
    """Return what a search understands: addresses in newsletters and ads carry more than that."""
    known = {*SearchRequestSerializer().fields, *parameter_names(get_catalog().filters)}
    kept = data.copy()
    for name in set(kept) - known:
        del kept[name]
    return kept


def is_asked(request: HttpRequest, data: QueryDict) -> bool:
    """Say whether this is a search, or the empty form."""
    return request.method == "POST" or any(data.get(name, "").strip() for name in ("text", "q"))


def card(hit: ProductHit) -> dict[str, Any]:
    catalog = get_catalog()
    return {
        "product": hit.product,
        "title": catalog.title(hit.product),
        "url": catalog.url(hit.product),
        "image_url": hit.image.file.url if hit.image else "",
        "score": hit.score,
    }


def next_page(request: HttpRequest, data: QueryDict, results: SearchResults) -> str:
    """Return the address of the next page of a text search; a photo would have to be sent again."""
    if results.next_offset is None or request.FILES:
        return ""
    address = data.copy()
    address.pop("csrfmiddlewaretoken", None)
    address["offset"] = str(results.next_offset)
    return f"{request.path}?{address.urlencode()}"


def known_choices() -> dict[str, dict[str | bool, int]]:
    """Return the filters' values to choose from; nothing before this process has its store: people can still type."""
    try:
        return count_facets().values if is_at_hand() else {}
    except VisualSearchError:
        return {}


def form_fields(data: QueryDict) -> list[dict[str, Any]]:
    """Return the declared filters as form fields with what was entered."""
    fields: list[dict[str, Any]] = []
    choices = known_choices()
    for name, declared in get_catalog().filters.items():
        label = name.replace("_", " ").capitalize()
        if isinstance(declared, Number):
            sides = [(f"min_{name}", f"{label} from"), (f"max_{name}", f"{label} to")]
            fields += [{"name": n, "label": text, "kind": "number", "value": data.get(n, "")} for n, text in sides]
        else:
            kind = "boolean" if isinstance(declared, Boolean) else "keyword"
            fields.append({"name": name, "label": label, "kind": kind, "value": data.get(name, "")})
            fields[-1]["choices"] = sorted(choices.get(name, ())) if kind == "keyword" else ()
    return fields
