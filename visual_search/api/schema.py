"""The API's OpenAPI document. Imported only if drf-spectacular is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from drf_spectacular.extensions import OpenApiSerializerFieldExtension, OpenApiViewExtension
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework.serializers import CharField

from visual_search.api import serializers
from visual_search.catalog import get_catalog
from visual_search.exceptions import ConfigurationError
from visual_search.filters import Boolean, Field, Number
from visual_search.web.parameters import SearchRequestSerializer

TAGS = ["visual search"]
ERRORS = dict.fromkeys((400, 401, 403, 406, 413, 429, 503), serializers.ErrorSerializer)
FORM_ERRORS = ERRORS | {415: serializers.ErrorSerializer}
PAYLOAD_TYPES = {"keyword": "string", "number": "number", "boolean": "boolean"}


class SearchParametersSerializer(SearchRequestSerializer):
    """The query string of a search, which can't hold a file."""

    photo = None  # type: ignore[assignment]


class SimilarParametersSerializer(SearchParametersSerializer):
    text = q = token = crop = like = None  # type: ignore[assignment]
    product = CharField(help_text="The key of the product.")


class SearchExtension(OpenApiViewExtension):
    target_class = "visual_search.api.views.SearchView"

    def view_replacement(self) -> Any:
        responses = {200: serializers.SearchResponseSerializer}
        return with_schema(
            self.target_class,
            get=extend_schema(
                operation_id="visual_search",
                summary="Search by text, kept photos or products",
                parameters=[SearchParametersSerializer, *filter_parameters()],
                responses=responses | ERRORS,
                tags=TAGS,
            ),
            post=extend_schema(
                operation_id="visual_search_by_photo",
                summary="Search by photos, with all other search parameters",
                description="Parameters in the query string override those in the form.",
                parameters=[*filter_parameters()],
                request={"multipart/form-data": SearchRequestSerializer},
                responses=responses | FORM_ERRORS,
                tags=TAGS,
            ),
        )


class SimilarExtension(OpenApiViewExtension):
    target_class = "visual_search.api.views.SimilarView"

    def view_replacement(self) -> Any:
        return with_schema(
            self.target_class,
            get=extend_schema(
                operation_id="visual_search_similar",
                summary="Find products that look like a given product",
                parameters=[SimilarParametersSerializer, *filter_parameters()],
                responses={200: serializers.SearchResponseSerializer} | ERRORS,
                tags=TAGS,
            ),
        )


class PhotosExtension(OpenApiViewExtension):
    target_class = "visual_search.api.views.PhotosView"

    def view_replacement(self) -> Any:
        return with_schema(
            self.target_class,
            post=extend_schema(
                operation_id="visual_search_keep_photo",
                summary="Keep a photo for some minutes, for further searches with other crops",
                request={"multipart/form-data": serializers.PhotoFormSerializer},
                responses={201: serializers.KeptPhotoSerializer} | FORM_ERRORS,
                tags=TAGS,
            ),
        )


class FacetsExtension(OpenApiViewExtension):
    target_class = "visual_search.api.views.FacetsView"

    def view_replacement(self) -> Any:
        return with_schema(
            self.target_class,
            get=extend_schema(
                operation_id="visual_search_facets",
                summary="Count the products for each filter value",
                parameters=[*filter_parameters()],
                responses={200: serializers.FacetsSerializer} | ERRORS,
                tags=TAGS,
            ),
        )


class HealthExtension(OpenApiViewExtension):
    target_class = "visual_search.api.views.HealthView"

    def view_replacement(self) -> Any:
        return with_schema(
            self.target_class,
            get=extend_schema(
                operation_id="visual_search_health",
                summary="Check whether this process can answer a search at once",
                responses={200: serializers.HealthSerializer} | dict.fromkeys((406, 503), serializers.ErrorSerializer),
                tags=TAGS,
            ),
        )


class PhotoExtension(OpenApiSerializerFieldExtension):
    target_class = "visual_search.web.parameters.PhotoField"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        """Return a binary file. The default would be a URI unless COMPONENT_SPLIT_REQUEST is set."""
        return {"type": "string", "format": "binary"}


class PayloadExtension(OpenApiSerializerFieldExtension):
    target_class = "visual_search.api.serializers.PayloadField"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        """Return a property for each declared filter: one value, several, or null."""
        properties = {}
        for name, declared in declared_filters().items():
            value = {"type": PAYLOAD_TYPES[declared.kind]}
            properties[name] = {"oneOf": [value, {"type": "array", "items": value}], "nullable": True}
        return {"type": "object", "properties": properties}


class FacetChoiceExtension(OpenApiSerializerFieldExtension):
    target_class = "visual_search.api.serializers.FacetChoiceField"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        return {"oneOf": [{"type": "string"}, {"type": "boolean"}]}


def with_schema(view: Any, **methods: Any) -> Any:
    """Return a subclass of the view with schema annotations."""
    return extend_schema_view(**methods)(type(view.__name__, (view,), {"__doc__": view.__doc__}))


def filter_parameters() -> Iterator[OpenApiParameter]:
    """Yield the query parameters of the declared filters: two for a number, one for any other."""
    for name, declared in declared_filters().items():
        if isinstance(declared, Number):
            yield OpenApiParameter(f"min_{name}", float, description=f"The lowest {name}.")
            yield OpenApiParameter(f"max_{name}", float, description=f"The highest {name}.")
        else:
            kind = bool if isinstance(declared, Boolean) else str
            yield OpenApiParameter(name, kind, many=True, description=f"{name}: any of these.")


def declared_filters() -> dict[str, Field]:
    """Return the catalogue's filters; none if the configuration is wrong, which a system check reports."""
    try:
        return dict(get_catalog().filters)
    except ConfigurationError:
        return {}
