"""The API's response serializers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from django.http import HttpRequest
from django.utils.module_loading import import_string
from rest_framework import serializers
from rest_framework.utils.urls import remove_query_param, replace_query_param

from visual_search.catalog import CatalogImage, get_catalog
from visual_search.conf import get_settings
from visual_search.search.query import SearchQuery
from visual_search.search.results import ProductHit, SearchResults
from visual_search.web.parameters import PhotoField


class ErrorSerializer(serializers.Serializer[Any]):
    code = serializers.CharField(help_text="Stable, for programs.")
    detail = serializers.CharField(help_text="A message, for people.")


class KeptPhotoSerializer(serializers.Serializer[Any]):
    token = serializers.CharField(help_text="Names the photo in later searches.")
    width = serializers.IntegerField(help_text="Pixels, upright.")
    height = serializers.IntegerField(help_text="Pixels, upright.")
    seconds = serializers.IntegerField(help_text="How long the token is valid.")


class PhotoFormSerializer(serializers.Serializer[Any]):
    photo = PhotoField(allow_empty_file=True, help_text="One photo.")


class PayloadField(serializers.Field[Any, Any, Any, Any]):
    """The values of a product's declared filters."""

    def to_representation(self, value: Any) -> Any:
        return get_catalog().payload(value)


class ImageSerializer(serializers.Serializer[CatalogImage]):
    key = serializers.CharField(help_text="The key of the image.")
    url = serializers.SerializerMethodField(help_text="The URL of the image.")

    def get_url(self, image: CatalogImage) -> str:
        return _absolute(self.context, image.file.url)


class HitSerializer(serializers.Serializer[ProductHit]):
    key = serializers.CharField(source="product.pk", help_text="The product's primary key.")
    title = serializers.SerializerMethodField(help_text="The product's title.")
    url = serializers.SerializerMethodField(help_text="The URL of the product's page.")
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
    fallback = serializers.CharField(help_text="Why the photo was not prepared as configured, or empty.")
    is_cached = serializers.BooleanField(help_text="Whether the embedding came from the cache.")


class SearchResponseSerializer(serializers.Serializer[SearchResults]):
    """A page of results. `results_data` builds its input, with the links."""

    next = serializers.URLField(allow_null=True, help_text="The next page; a POST sends the same form there.")
    previous = serializers.URLField(allow_null=True, help_text="The previous page.")
    results = HitSerializer(many=True, source="hits", help_text="Best first, one hit per product.")
    nothing_close = serializers.BooleanField(
        source="is_nothing_close", help_text="There are products, but none reaches the threshold."
    )
    fallback = HitSerializer(many=True, help_text="If nothing is close: the nearest products, as many as requested.")
    photos = PhotoReportSerializer(many=True, help_text="How each photo was prepared.")
    timings_ms = serializers.DictField(child=serializers.FloatField(), help_text="Milliseconds by stage.")


class FacetChoiceField(serializers.Field[Any, Any, Any, Any]):
    """A keyword or a boolean."""

    def to_representation(self, value: str | bool) -> str | bool:
        return value


class FacetValueSerializer(serializers.Serializer[Any]):
    value = FacetChoiceField(help_text="A value that the filter accepts.")
    count = serializers.IntegerField(help_text="Number of products with this value.")


class BoundsSerializer(serializers.Serializer[Any]):
    minimum = serializers.FloatField()
    maximum = serializers.FloatField()


class FacetsSerializer(serializers.Serializer[Any]):
    facets = serializers.DictField(
        child=FacetValueSerializer(many=True),
        help_text="Values of each keyword and boolean filter, most frequent first.",
    )
    bounds = serializers.DictField(
        child=BoundsSerializer(allow_null=True), help_text="Lowest and highest value of each number filter."
    )


class HealthSerializer(serializers.Serializer[Any]):
    status = serializers.CharField(help_text="`ok`.")


def results_data(results: SearchResults, query: SearchQuery, request: HttpRequest) -> dict[str, Any]:
    """Return a page of results as data for JSON, with links to the next and previous pages."""
    url = remove_query_param(request.build_absolute_uri(), "offset")
    limit = query.limit or get_settings().DEFAULT_LIMIT
    following = results.next_offset
    before = max(0, query.offset - limit)
    links = {
        "next": None if following is None else replace_query_param(url, "offset", following),
        "previous": None if not query.offset else replace_query_param(url, "offset", before) if before else url,
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
