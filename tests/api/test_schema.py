"""The OpenAPI document: complete, without warnings, and true to the API."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import pytest
import schemathesis
import yaml
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.test import Client
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from example_shop.models import Product
from tests.drawings import photo_bytes
from visual_search.search import warm_up

PREFIX = "/api/visual-search/v1/"

CHECKS = [
    checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

PICTURES = [photo_bytes((64, 48), seed=seed) for seed in range(4)]


def test_schema__is_valid_and_without_warnings() -> None:
    out = io.StringIO()
    call_command("spectacular", "--fail-on-warn", "--validate", stdout=out)
    document = yaml.safe_load(out.getvalue())
    own_paths = {path.removeprefix(PREFIX) for path in document["paths"] if path.startswith(PREFIX)}
    assert own_paths == {"search/", "similar/", "photos/", "facets/", "health/"}


def test_schema__knows_the_catalogues_filters_and_explains_every_field(client: Client) -> None:
    document = yaml.safe_load(client.get(f"{PREFIX}schema/").content)
    search = document["paths"][f"{PREFIX}search/"]
    names = {parameter["name"] for parameter in search["get"]["parameters"]}
    assert {"category", "brand", "min_price", "max_price", "in_stock", "q", "token", "crop"} <= names
    assert "photo" not in names
    assert {parameter["name"] for parameter in search["post"]["parameters"]} >= {"category", "min_price"}
    for schema in document["components"]["schemas"].values():
        for name, field in schema["properties"].items():
            described = "description" in field or any("description" in part for part in field.get("allOf", [{}]))
            assert described or schema is document["components"]["schemas"]["Bounds"], name


@pytest.fixture
def served(make_product: Any, index: Any) -> Any:
    make_product(1, images=2)
    make_product(2, category="hats", brand="")
    index.drain()
    warm_up()
    return schemathesis.openapi.from_wsgi(f"{PREFIX}schema/", get_wsgi_application())


@pytest.mark.django_db
@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize(
    ("path", "method"),
    [("search/", "GET"), ("search/", "POST"), ("similar/", "GET"), ("photos/", "POST"), ("facets/", "GET")],
)
def test_any_request__gets_a_response_of_the_schema(served: Any, path: str, method: str, mode: GenerationMode) -> None:
    """mode: positive for requests that the schema allows, negative for others."""
    statuses: Counter[int] = Counter()

    @given(case=served[PREFIX + path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    def request(case: schemathesis.Case) -> None:
        if statuses.total() % 2:
            make_answerable(case)
        statuses[case.call_and_validate(checks=CHECKS).status_code] += 1

    request()
    if mode == GenerationMode.POSITIVE:
        assert statuses[200] + statuses[201] >= 5, statuses


@pytest.mark.django_db
def test_health__conforms_to_the_schema(served: Any) -> None:
    assert served[f"{PREFIX}health/"]["GET"].Case().call_and_validate(checks=CHECKS).status_code == 200


def make_answerable(case: schemathesis.Case) -> None:
    """Set what no fuzzer can guess, pictures and a product's key, and remove its guesses."""
    for part in (case.query, case.body):
        if isinstance(part, dict):
            for name in ("token", "crop", "like", "unlike", "min_price", "max_price", "limit", "offset", "fallback"):
                part.pop(name, None)
    if case.path.endswith("similar/"):
        case.query |= {"product": str(Product.objects.first().pk)}
    if case.path.endswith("photos/"):
        case.body = {"photo": PICTURES[0]}
    elif case.method == "GET" and case.path.endswith("search/"):
        case.query |= {"q": "a"}
    elif case.method == "POST" and isinstance(case.body, dict):
        case.body["photo"] = PICTURES[: len(case.body) % 4 + 1]
