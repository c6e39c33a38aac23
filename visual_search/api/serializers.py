"""What requests may say, and what answers look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, cast

from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, QueryDict
from django.utils.module_loading import import_string
from rest_framework import serializers
from rest_framework.utils.urls import remove_query_param, replace_query_param

from visual_search.catalog import CatalogImage, get_catalog
from visual_search.conf import get_settings
from visual_search.exceptions import InvalidQuery, PhotoRejected
from visual_search.filters import parse_filters
from visual_search.search.photos import Photo, find_photo, parse_crop, read_photo
from visual_search.search.query import SearchQuery
from visual_search.search.results import ProductHit, SearchResults

IGNORED = {"csrfmiddlewaretoken", "format"}  # sent by forms and by DRF's own pages


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


class ErrorSerializer(serializers.Serializer[Any]):
    code = serializers.CharField(help_text="Stable, for programs.")
    detail = serializers.CharField(help_text="A sentence, for people.")


class KeptPhotoSerializer(serializers.Serializer[Any]):
    token = serializers.CharField(help_text="Names the photo in later searches.")
    width = serializers.IntegerField(help_text="Pixels, upright.")
    height = serializers.IntegerField(help_text="Pixels, upright.")
    seconds = serializers.IntegerField(help_text="How long the token is good.")


class PhotoFormSerializer(serializers.Serializer[Any]):
    photo = PhotoField(allow_empty_file=True, help_text="One photo.")


class PayloadField(serializers.Field[Any, Any, Any, Any]):
    """The values of a product's declared filters."""

    def to_representation(self, value: Any) -> Any:
        return get_catalog().payload(value)


class ImageSerializer(serializers.Serializer[CatalogImage]):
    key = serializers.CharField(help_text="Which of the product's images.")
    url = serializers.SerializerMethodField(help_text="Its address.")

    def get_url(self, image: CatalogImage) -> str:
        return _absolute(self.context, image.file.url)


class HitSerializer(serializers.Serializer[ProductHit]):
    key = serializers.CharField(source="product.pk", help_text="The product's primary key.")
    title = serializers.SerializerMethodField(help_text="What to call it.")
    url = serializers.SerializerMethodField(help_text="Its page.")
    score = serializers.SerializerMethodField(help_text="Cosine, at most 1: higher is closer.")
    image = ImageSerializer(allow_null=True, help_text="The image that matched.")
    filters = PayloadField(source="product", help_text="The values of the declared filters.")

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        fields = super().get_fields()
        if path := get_settings().PRODUCT_SERIALIZER:
            fields["product"] = import_string(path)(read_only=True)
        return fields

    def get_title(self, hit: ProductHit) -> str:
        return get_catalog().title(hit.product)

    def get_url(self, hit: ProductHit) -> str | None:
        url = get_catalog().url(hit.product)
        return _absolute(self.context, url) if url else None

    def get_score(self, hit: ProductHit) -> float:
        return round(hit.score, 4)


class PhotoReportSerializer(serializers.Serializer[Any]):
    preparation = serializers.CharField(help_text="What was done before the search: `none`, `crop`, `cutout`, `blend`.")
    fallback = serializers.CharField(help_text="Why the photo was left as it is although more was wanted, or empty.")
    is_cached = serializers.BooleanField(help_text="Whether its embedding was known already.")


class SearchResponseSerializer(serializers.Serializer[SearchResults]):
    """A page of results. Made by `results_data`, which knows the links."""

    next = serializers.URLField(allow_null=True, help_text="The next page; a POST sends the same form there.")
    previous = serializers.URLField(allow_null=True, help_text="The page before.")
    results = HitSerializer(many=True, source="hits", help_text="Best first, one a product.")
    nothing_close = serializers.BooleanField(
        source="is_nothing_close", help_text="Products there are, but none passes the threshold."
    )
    fallback = HitSerializer(many=True, help_text="Then, if asked for, the nearest all the same.")
    photos = PhotoReportSerializer(many=True, help_text="What was done with each photo.")
    timings_ms = serializers.DictField(child=serializers.FloatField(), help_text="Milliseconds by stage.")


class FacetChoiceField(serializers.Field[Any, Any, Any, Any]):
    """A keyword, or true or false."""

    def to_representation(self, value: str | bool) -> str | bool:
        return value


class FacetValueSerializer(serializers.Serializer[Any]):
    value = FacetChoiceField(help_text="What the filter takes.")
    count = serializers.IntegerField(help_text="Products that have it.")


class BoundsSerializer(serializers.Serializer[Any]):
    minimum = serializers.FloatField()
    maximum = serializers.FloatField()


class FacetsSerializer(serializers.Serializer[Any]):
    facets = serializers.DictField(
        child=FacetValueSerializer(many=True), help_text="Of each keyword and boolean filter: its values, most first."
    )
    bounds = serializers.DictField(
        child=BoundsSerializer(allow_null=True), help_text="Of each number: the lowest and the highest value."
    )


class HealthSerializer(serializers.Serializer[Any]):
    status = serializers.CharField(help_text="`ok`.")


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


def results_data(results: SearchResults, query: SearchQuery, request: HttpRequest) -> dict[str, Any]:
    """Return a page of results as JSON, with DRF's links to the pages around it."""
    address = remove_query_param(request.build_absolute_uri(), "offset")
    limit = query.limit or get_settings().DEFAULT_LIMIT
    following = results.next_offset
    before = max(0, query.offset - limit)
    links = {
        "next": None if following is None else replace_query_param(address, "offset", following),
        "previous": None if not query.offset else replace_query_param(address, "offset", before) if before else address,
    }
    page: dict[str, Any] = {
        "hits": results.hits,
        "is_nothing_close": results.is_nothing_close,
        "fallback": results.fallback,
        "photos": results.photos,
        "timings_ms": {stage: round(ms, 2) for stage, ms in results.timings_ms.items()},
    }
    return dict(SearchResponseSerializer(cast(Any, page | links), context={"request": request}).data)


def _absolute(context: Mapping[str, Any], url: str) -> str:
    return str(context["request"].build_absolute_uri(url))


def _sentences(errors: Any) -> str:
    """Return DRF's messages, which are nested for the items of a list, in one line."""
    if isinstance(errors, dict):
        return " ".join(_sentences(error) for error in errors.values())
    return " ".join(map(str, errors))
