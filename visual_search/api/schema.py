"""What the API's OpenAPI document says, for projects that have drf-spectacular; imported where it is installed."""

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


class SearchAddressSerializer(SearchRequestSerializer):
    """A search without a file, as an address says it."""

    photo = None  # type: ignore[assignment]


class SimilarAddressSerializer(SearchAddressSerializer):
    text = q = token = crop = like = None  # type: ignore[assignment]
    product = CharField(help_text="The key of the product.")


class SearchExtension(OpenApiViewExtension):
    target_class = "visual_search.api.views.SearchView"

    def view_replacement(self) -> Any:
        answers = {200: serializers.SearchResponseSerializer}
        return described(
            self.target_class,
            get=extend_schema(
                operation_id="visual_search",
                summary="Search by text, by photos that were sent before, or by products",
                parameters=[SearchAddressSerializer, *filter_parameters()],
                responses=answers | ERRORS,
                tags=TAGS,
            ),
            post=extend_schema(
                operation_id="visual_search_by_photo",
                summary="Search by photos, and whatever else a search may say",
                description="What stands in the address counts before what stands in the form.",
                parameters=[*filter_parameters()],
                request={"multipart/form-data": SearchRequestSerializer},
                responses=answers | FORM_ERRORS,
                tags=TAGS,
            ),
        )


class SimilarExtension(OpenApiViewExtension):
    target_class = "visual_search.api.views.SimilarView"

    def view_replacement(self) -> Any:
        return described(
            self.target_class,
            get=extend_schema(
                operation_id="visual_search_similar",
                summary="Products that look like one of the catalogue",
                parameters=[SimilarAddressSerializer, *filter_parameters()],
                responses={200: serializers.SearchResponseSerializer} | ERRORS,
                tags=TAGS,
            ),
        )


class PhotosExtension(OpenApiViewExtension):
    target_class = "visual_search.api.views.PhotosView"

    def view_replacement(self) -> Any:
        return described(
            self.target_class,
            post=extend_schema(
                operation_id="visual_search_keep_photo",
                summary="Keep a photo for some minutes, to search with it again, cropped otherwise",
                request={"multipart/form-data": serializers.PhotoFormSerializer},
                responses={201: serializers.KeptPhotoSerializer} | FORM_ERRORS,
                tags=TAGS,
            ),
        )


class FacetsExtension(OpenApiViewExtension):
    target_class = "visual_search.api.views.FacetsView"

    def view_replacement(self) -> Any:
        return described(
            self.target_class,
            get=extend_schema(
                operation_id="visual_search_facets",
                summary="What there is to choose from",
                parameters=[*filter_parameters()],
                responses={200: serializers.FacetsSerializer} | ERRORS,
                tags=TAGS,
            ),
        )


class HealthExtension(OpenApiViewExtension):
    target_class = "visual_search.api.views.HealthView"

    def view_replacement(self) -> Any:
        return described(
            self.target_class,
            get=extend_schema(
                operation_id="visual_search_health",
                summary="Whether this process can answer a search at once",
                responses={200: serializers.HealthSerializer} | dict.fromkeys((406, 503), serializers.ErrorSerializer),
                tags=TAGS,
            ),
        )


class PhotoExtension(OpenApiSerializerFieldExtension):
    target_class = "visual_search.web.parameters.PhotoField"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        """A file. The default would call it an address unless COMPONENT_SPLIT_REQUEST is set."""
        return {"type": "string", "format": "binary"}


class PayloadExtension(OpenApiSerializerFieldExtension):
    target_class = "visual_search.api.serializers.PayloadField"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        """A property for each declared filter: one value, several, or none."""
        properties = {}
        for name, declared in declared_filters().items():
            one = {"type": PAYLOAD_TYPES[declared.kind]}
            properties[name] = {"oneOf": [one, {"type": "array", "items": one}], "nullable": True}
        return {"type": "object", "properties": properties}


class FacetChoiceExtension(OpenApiSerializerFieldExtension):
    target_class = "visual_search.api.serializers.FacetChoiceField"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        return {"oneOf": [{"type": "string"}, {"type": "boolean"}]}


def described(view: Any, **methods: Any) -> Any:
    """Return a view that does the same and says more of itself."""
    return extend_schema_view(**methods)(type(view.__name__, (view,), {"__doc__": view.__doc__}))


def filter_parameters() -> Iterator[OpenApiParameter]:
    """Yield a parameter for each thing that a request may say of the declared filters."""
    for name, declared in declared_filters().items():
        if isinstance(declared, Number):
            yield OpenApiParameter(f"min_{name}", float, description=f"The lowest {name}.")
            yield OpenApiParameter(f"max_{name}", float, description=f"The highest {name}.")
        else:
            kind = bool if isinstance(declared, Boolean) else str
            yield OpenApiParameter(name, kind, many=True, description=f"{name}: any of these.")


def declared_filters() -> dict[str, Field]:
    """Return the catalogue's filters; none where a system check says what is wrong with it."""
    try:
        return dict(get_catalog().filters)
    except ConfigurationError:
        return {}
