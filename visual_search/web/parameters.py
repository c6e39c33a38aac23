"""Request parameters, and how they are read into a query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO, cast

from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, QueryDict
from rest_framework import serializers

from visual_search.catalog import get_catalog
from visual_search.conf import get_settings
from visual_search.exceptions import InvalidQuery, PhotoRejected
from visual_search.filters import parse_filters
from visual_search.search.photos import Photo, find_photo, parse_crop, read_photo
from visual_search.search.query import SearchQuery

IGNORED_FIELDS = {"csrfmiddlewaretoken", "format"}  # sent by forms and by DRF's browsable API
FORM_OVERHEAD_BYTES = 1024 * 1024  # what a form may add to its photos


class PhotoField(serializers.FileField):
    """An uploaded file. Whether it is a photo is checked when it is decoded."""


class SearchRequestSerializer(serializers.Serializer[SearchQuery]):
    """Photos, texts, products or a mix of them. Every other parameter is a filter that the catalogue declares."""

    photo = serializers.ListField(
        child=PhotoField(allow_empty_file=True),
        required=False,
        help_text="Photos: JPEG, PNG, WebP, GIF, BMP, AVIF, and HEIC if the server can read it.",
    )
    token = serializers.ListField(
        child=serializers.CharField(), required=False, help_text="Tokens of photos that were sent to `photos/`."
    )
    crop = serializers.ListField(
        child=serializers.CharField(allow_blank=True),
        required=False,
        help_text="The part of each photo to search with: left,top,right,bottom as fractions of its sides, 0 to 1.",
    )
    text = serializers.CharField(required=False, allow_blank=True, help_text="A description, up to 500 characters.")
    q = serializers.CharField(required=False, allow_blank=True, help_text="Short for `text`.")
    like = serializers.ListField(
        child=serializers.CharField(), required=False, help_text="Keys of products that the results should look like."
    )
    unlike = serializers.ListField(
        child=serializers.CharField(),
        required=False,
        help_text="Keys of products that the results should differ from.",
    )
    photo_weight = serializers.FloatField(
        required=False, default=1.0, min_value=0, max_value=10, help_text="Weight of each photo."
    )
    text_weight = serializers.FloatField(
        required=False, default=1.0, min_value=0, max_value=10, help_text="Weight of the text."
    )
    like_weight = serializers.FloatField(
        required=False, default=1.0, min_value=0, max_value=10, help_text="Weight of each product in `like`."
    )
    unlike_weight = serializers.FloatField(
        required=False,
        default=0.5,
        min_value=0,
        max_value=10,
        help_text="Weight of each product in `unlike`, which is subtracted.",
    )
    limit = serializers.IntegerField(required=False, min_value=1, help_text="Products per page.")
    offset = serializers.IntegerField(required=False, default=0, min_value=0, help_text="Products to skip.")
    score_threshold = serializers.FloatField(
        required=False, min_value=-1, max_value=1, help_text="Cosine; products below it are left out."
    )
    fallback = serializers.IntegerField(
        required=False,
        default=0,
        min_value=0,
        help_text="How many of the nearest products to return if none reaches the threshold.",
    )


def reject_large_upload(request: HttpRequest) -> None:
    """Raise PhotoRejected if the Content-Length is too large, before the body is read."""
    settings = get_settings()
    limit = settings.MAX_UPLOAD_BYTES
    try:
        content_length = int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        content_length = 0
    if content_length > limit * settings.MAX_PHOTOS + FORM_OVERHEAD_BYTES:
        megabytes = f"{limit / 2**20:.3g} MB"
        raise PhotoRejected(f"This photo is too large. Use one below {megabytes}.", code="photo_too_large")


def read_query(data: QueryDict, uploads: Sequence[UploadedFile[Any]]) -> SearchQuery:
    """Return the query that a request describes. uploads: the files sent as `photo`. Raises BadRequest errors."""
    if not uploads and data.get("photo"):
        raise PhotoRejected("The photo must be sent as a file.", code="photo_not_a_file")
    values = data.copy()
    for key in list(values):
        if key in ("photo", "token", "crop") or values[key] == "":  # forms send empty fields too
            del values[key]
    fields = SearchRequestSerializer(data=values)
    if not fields.is_valid():
        raise InvalidQuery("; ".join(f"{name}: {_join_errors(errors)}" for name, errors in fields.errors.items()))
    validated: dict[str, Any] = fields.validated_data
    known = {*fields.fields, *IGNORED_FIELDS}
    text = validated.get("text") or validated.get("q")
    return SearchQuery(
        photos=read_photos(data, uploads),
        texts=[text] if text else [],
        like=validated.get("like", []),
        unlike=validated.get("unlike", []),
        like_weight=validated["like_weight"],
        unlike_weight=validated["unlike_weight"],
        photo_weight=validated["photo_weight"],
        text_weight=validated["text_weight"],
        filters=parse_filters(get_catalog().filters, {key: data.getlist(key) for key in data if key not in known}),
        limit=validated.get("limit"),
        offset=validated["offset"],
        score_threshold=validated.get("score_threshold"),
        fallback=validated["fallback"],
    )


def read_photos(data: QueryDict, uploads: Sequence[UploadedFile[Any]]) -> list[Photo]:
    """Return the uploaded photos, then the kept ones, each with its crop. Decodes nothing."""
    tokens = [token for token in data.getlist("token") if token]
    limit = get_settings().MAX_PHOTOS
    if len(uploads) + len(tokens) > limit:
        raise InvalidQuery(f"Send at most {limit} photos.", code="too_many_photos")
    crops = [parse_crop(value) for value in data.getlist("crop")]
    if not any(crops):
        crops = [None] * (len(uploads) + len(tokens))
    if len(crops) != len(uploads) + len(tokens):
        found = f"{len(crops)} crops for {len(uploads) + len(tokens)} photos"
        message = f"Send one crop for each photo, empty for the whole photo, not {found}."
        raise InvalidQuery(message, code="invalid_crop")
    photos = [read_photo(cast(BinaryIO, upload), crop=crop) for upload, crop in zip(uploads, crops, strict=False)]
    return photos + [find_photo(token, crop=crop) for token, crop in zip(tokens, crops[len(uploads) :], strict=True)]


def _join_errors(errors: Any) -> str:
    """Return DRF's messages, which are nested for the items of a list, as one line."""
    if isinstance(errors, dict):
        return " ".join(_join_errors(error) for error in errors.values())
    return " ".join(map(str, errors))
