"""What a search request may say, and what its answer looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO, cast

from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, QueryDict
from rest_framework import serializers

from visual_search.catalog import get_catalog
from visual_search.exceptions import InvalidQuery, PhotoRejected
from visual_search.filters import parse_filters
from visual_search.search import ProductHit, SearchQuery, SearchResults, read_photo

IGNORED = {"csrfmiddlewaretoken", "format"}  # sent by forms and by DRF's own pages


class SearchRequestSerializer(serializers.Serializer[SearchQuery]):
    """A photo, a text or both; every other parameter is a filter that the catalogue declares."""

    photo = serializers.FileField(required=False, allow_empty_file=True, help_text="JPEG, PNG, WebP, GIF, BMP or AVIF.")
    text = serializers.CharField(required=False, allow_blank=True, trim_whitespace=True, help_text="In words.")
    q = serializers.CharField(required=False, allow_blank=True, trim_whitespace=True, help_text="Short for text.")
    like = serializers.ListField(child=serializers.CharField(), required=False, help_text="Keys of products.")
    unlike = serializers.ListField(child=serializers.CharField(), required=False, help_text="Keys of products.")
    like_weight = serializers.FloatField(required=False, default=1.0, help_text="0 to 10; 1 if not given.")
    unlike_weight = serializers.FloatField(required=False, default=0.5, help_text="0 to 10; 0.5 if not given.")
    photo_weight = serializers.FloatField(required=False, default=1.0, help_text="0 to 10; 1 if not given.")
    text_weight = serializers.FloatField(required=False, default=1.0, help_text="0 to 10; 1 if not given.")
    limit = serializers.IntegerField(required=False, help_text="Products on a page.")
    offset = serializers.IntegerField(required=False, default=0, help_text="Products to pass over.")
    score_threshold = serializers.FloatField(required=False, allow_null=True, help_text="Cosine, -1 to 1.")


def read_query(data: QueryDict, photos: Sequence[UploadedFile[Any]]) -> SearchQuery:
    """Return the query that a request asks for. photos: the uploaded files. Raises BadRequest errors."""
    if len(photos) > 1:
        raise PhotoRejected("Please send one photo.", code="photo_not_single")
    if not photos and data.get("photo"):
        raise PhotoRejected("The photo must be sent as a file.", code="photo_not_a_file")
    several = {"photo", "like", "unlike"}
    fields = SearchRequestSerializer(data={key: data[key] for key in data if key not in several and data[key] != ""})
    if not fields.is_valid():
        raise InvalidQuery("; ".join(f"{name}: {' '.join(map(str, errors))}" for name, errors in fields.errors.items()))
    wanted: dict[str, Any] = fields.validated_data
    known = {*fields.fields, *IGNORED}
    filters = parse_filters(get_catalog().filters, {key: data.getlist(key) for key in data if key not in known})
    text = wanted.get("text") or wanted.get("q")
    return SearchQuery(
        photos=[read_photo(cast(BinaryIO, upload)) for upload in photos],
        texts=[text] if text else [],
        like=data.getlist("like"),
        unlike=data.getlist("unlike"),
        like_weight=wanted["like_weight"],
        unlike_weight=wanted["unlike_weight"],
        photo_weight=wanted["photo_weight"],
        text_weight=wanted["text_weight"],
        filters=filters,
        limit=wanted.get("limit"),
        offset=wanted["offset"],
        score_threshold=wanted.get("score_threshold"),
    )


def hit_data(hit: ProductHit, request: HttpRequest) -> dict[str, Any]:
    """Return one hit as JSON: key, title, addresses, score, the image that matched, the values of its filters."""
    catalog = get_catalog()
    url = catalog.url(hit.product)
    return {
        "key": str(hit.product.pk),
        "title": catalog.title(hit.product),
        "url": request.build_absolute_uri(url) if url else None,
        "score": round(hit.score, 4),
        "image": None
        if hit.image is None
        else {"key": hit.image.key, "url": request.build_absolute_uri(hit.image.file.url)},
        "filters": catalog.payload(hit.product),
    }


def results_data(results: SearchResults, request: HttpRequest) -> dict[str, Any]:
    return {
        "results": [hit_data(hit, request) for hit in results.hits],
        "next_offset": results.next_offset,
        "timings_ms": {stage: round(ms, 2) for stage, ms in results.timings_ms.items()},
    }
