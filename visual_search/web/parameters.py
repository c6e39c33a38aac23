"""What a request may say: its parameters, read into a query."""

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

IGNORED = {"csrfmiddlewaretoken", "format"}  # sent by forms and by DRF's own pages
FORM_BYTES = 1024 * 1024  # what a form may weigh besides its photos


class PhotoField(serializers.FileField):
    """An uploaded file; whether it is a photo is seen when it is decoded."""


class SearchRequestSerializer(serializers.Serializer[SearchQuery]):
    """Photos, texts, products or all of these; every other parameter is a filter that the catalogue declares."""

    photo = serializers.ListField(
        child=PhotoField(allow_empty_file=True),
        required=False,
        help_text="Photos: JPEG, PNG, WebP, GIF, BMP, AVIF, and HEIC where the server reads it.",
    )
    token = serializers.ListField(
        child=serializers.CharField(), required=False, help_text="Photos that were sent to `photos/` before."
    )
    crop = serializers.ListField(
        child=serializers.CharField(allow_blank=True),
        required=False,
        help_text="The part of each photo to search with: left,top,right,bottom as shares of its sides, 0 to 1.",
    )
    text = serializers.CharField(required=False, allow_blank=True, help_text="In words, up to 500 characters.")
    q = serializers.CharField(required=False, allow_blank=True, help_text="Short for `text`.")
    like = serializers.ListField(
        child=serializers.CharField(), required=False, help_text="Keys of products: more like these."
    )
    unlike = serializers.ListField(
        child=serializers.CharField(), required=False, help_text="Keys of products: less like those."
    )
    photo_weight = serializers.FloatField(
        required=False, default=1.0, min_value=0, max_value=10, help_text="How much each photo counts."
    )
    text_weight = serializers.FloatField(
        required=False, default=1.0, min_value=0, max_value=10, help_text="How much the text counts."
    )
    like_weight = serializers.FloatField(
        required=False, default=1.0, min_value=0, max_value=10, help_text="How much each product in `like` counts."
    )
    unlike_weight = serializers.FloatField(
        required=False,
        default=0.5,
        min_value=0,
        max_value=10,
        help_text="How much each one in `unlike` counts against.",
    )
    limit = serializers.IntegerField(required=False, min_value=1, help_text="Products on a page.")
    offset = serializers.IntegerField(required=False, default=0, min_value=0, help_text="Products to pass over.")
    score_threshold = serializers.FloatField(
        required=False, min_value=-1, max_value=1, help_text="Cosine; products below it are left out."
    )
    fallback = serializers.IntegerField(
        required=False,
        default=0,
        min_value=0,
        help_text="How many of the nearest products to name where none passes the threshold.",
    )


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


def read_query(data: QueryDict, uploads: Sequence[UploadedFile[Any]]) -> SearchQuery:
    """Return the query that a request asks for. uploads: the files sent as `photo`. Raises BadRequest errors."""
    if not uploads and data.get("photo"):
        raise PhotoRejected("The photo must be sent as a file.", code="photo_not_a_file")
    given = data.copy()
    for key in list(given):
        if key in ("photo", "token", "crop") or given[key] == "":  # an empty field of a form says nothing
            del given[key]
    fields = SearchRequestSerializer(data=given)
    if not fields.is_valid():
        raise InvalidQuery("; ".join(f"{name}: {_sentences(errors)}" for name, errors in fields.errors.items()))
    wanted: dict[str, Any] = fields.validated_data
    known = {*fields.fields, *IGNORED}
    text = wanted.get("text") or wanted.get("q")
    return SearchQuery(
        photos=read_photos(data, uploads),
        texts=[text] if text else [],
        like=wanted.get("like", []),
        unlike=wanted.get("unlike", []),
        like_weight=wanted["like_weight"],
        unlike_weight=wanted["unlike_weight"],
        photo_weight=wanted["photo_weight"],
        text_weight=wanted["text_weight"],
        filters=parse_filters(get_catalog().filters, {key: data.getlist(key) for key in data if key not in known}),
        limit=wanted.get("limit"),
        offset=wanted["offset"],
        score_threshold=wanted.get("score_threshold"),
        fallback=wanted["fallback"],
    )


def read_photos(data: QueryDict, uploads: Sequence[UploadedFile[Any]]) -> list[Photo]:
    """Return the uploads and the photos named by token, each with its crop; nothing is decoded."""
    tokens = [token for token in data.getlist("token") if token]
    most = get_settings().MAX_PHOTOS
    if len(uploads) + len(tokens) > most:
        raise InvalidQuery(f"Send up to {most} photos.", code="too_many_photos")
    crops = [parse_crop(value) for value in data.getlist("crop")]
    if not any(crops):
        crops = [None] * (len(uploads) + len(tokens))
    if len(crops) != len(uploads) + len(tokens):
        given = f"{len(crops)} for {len(uploads) + len(tokens)}"
        message = f"Each photo takes one crop, an empty one for all of it; here: {given}."
        raise InvalidQuery(message, code="invalid_crop")
    photos = [read_photo(cast(BinaryIO, upload), crop=crop) for upload, crop in zip(uploads, crops, strict=False)]
    return photos + [find_photo(token, crop=crop) for token, crop in zip(tokens, crops[len(uploads) :], strict=True)]


def _sentences(errors: Any) -> str:
    """Return DRF's messages, which are nested for the items of a list, in one line."""
    if isinstance(errors, dict):
        return " ".join(_sentences(error) for error in errors.values())
    return " ".join(map(str, errors))
