"""The API and the search page from the client's side: real uploads, errors with stable codes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from rest_framework import serializers

from example_shop.models import Product
from tests import drawings
from tests.drawings import photo_bytes
from visual_search.components import encode_slot, store_for
from visual_search.index.versions import get_active
from visual_search.search import results as search_module

pytestmark = pytest.mark.django_db

API = "/api/visual-search/v1/"
SEARCH = f"{API}search/"
PAGE = "/search-by-photo/"
STAGES = {"decode", "background", "wait", "encode", "feed", "store", "database"}


def upload(data: bytes, name: str = "photo.jpg", kind: str = "image/jpeg") -> SimpleUploadedFile:
    return SimpleUploadedFile(name, data, content_type=kind)


@pytest.fixture
def shop(make_product: Any, index: Any) -> Any:
    products = [make_product(1, images=2), make_product(2, category="hats", price="20.00")]
    index.drain()
    return products


def test_post_photo__returns_products_with_scores_and_the_image_that_matched(client: Client, shop: Any) -> None:
    answer = client.post(SEARCH, {"photo": upload(photo_bytes(seed=101))})
    assert answer.status_code == 200
    body = answer.json()
    first = body["results"][0]
    assert first["key"] == str(shop[0].pk)
    assert first["title"] == "Product 1"
    assert first["url"] == "http://testserver/products/product-1/"
    assert first["score"] > 0.95
    image = shop[0].images.all()[1]
    assert first["image"] == {"key": str(image.pk), "url": f"http://testserver{image.image.url}"}
    assert first["filters"] == {"category": "shoes", "brand": "acme", "price": 10.0, "in_stock": True}
    assert (body["next"], body["previous"], body["nothing_close"], body["fallback"]) == (None, None, False, [])
    assert body["photos"] == [{"preparation": "none", "fallback": "", "is_cached": False}]
    assert set(body["timings_ms"]) == STAGES


def test_answer__carries_server_timing(client: Client, shop: Any) -> None:
    timing = client.post(SEARCH, {"photo": upload(photo_bytes(seed=100))})["Server-Timing"]
    stages = dict(stage.split(";dur=") for stage in timing.split(", "))
    assert set(stages) == STAGES
    assert float(stages["decode"]) > 0
    assert float(stages["background"]) < 1
    similar = client.get("/api/visual-search/v1/similar/", {"product": shop[0].pk})["Server-Timing"]
    assert "encode;dur=0.00" in similar
    assert "store;dur=" in client.get("/api/visual-search/v1/facets/")["Server-Timing"]


def test_too_many_searches_at_once__are_a_503_with_retry_after(client: Client, shop: Any, settings: Any) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"ENCODE_CONCURRENCY": 1, "ENCODE_WAIT_SECONDS": 0.05}
    with encode_slot():
        answer = client.get(SEARCH, {"q": "a"})
    assert (answer.status_code, answer.json()["code"], answer["Retry-After"]) == (503, "search_busy", "10")


def test_keeping_a_photo_beyond_the_encode_concurrency__is_a_503_with_retry_after(
    client: Client, settings: Any, db: Any
) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"ENCODE_CONCURRENCY": 1, "ENCODE_WAIT_SECONDS": 0.05}
    with encode_slot():
        answer = client.post(f"{API}photos/", {"photo": upload(photo_bytes())})
    assert (answer.status_code, answer.json()["code"]) == (503, "search_busy")
    assert answer["Retry-After"]
    assert client.post(f"{API}photos/", {"photo": upload(photo_bytes())}).status_code == 201


def test_post_photo_and_text_with_filters__answers(client: Client, shop: Any) -> None:
    fields = {
        "photo": upload(photo_bytes(seed=100)),
        "text": "a hat",
        "text_weight": "0.5",
        "category": ["hats", "bags"],
    }
    body = client.post(SEARCH, fields | {"min_price": "15", "max_price": "25.50"}).json()
    assert [result["title"] for result in body["results"]] == ["Product 2"]


def test_post__reads_the_query_string_too(client: Client, shop: Any) -> None:
    photo = {"photo": upload(photo_bytes(seed=100))}
    body = client.post(f"{SEARCH}?category=hats&limit=1", photo).json()
    assert [result["title"] for result in body["results"]] == ["Product 2"]
    assert client.post(f"{SEARCH}?nonsense=1", photo).json()["code"] == "invalid_filter"


def test_get_q__searches_by_text_and_pages(client: Client, shop: Any) -> None:
    first = client.get(SEARCH, {"q": "something", "limit": "1", "category": ["shoes", "hats"]}).json()
    second = client.get(first["next"]).json()
    assert {first["results"][0]["key"], second["results"][0]["key"]} == {str(product.pk) for product in shop}
    assert (first["previous"], second["next"]) == (None, None)
    assert client.get(second["previous"]).json()["results"] == first["results"]


def test_next_page_of_a_photo__is_the_same_form_posted_there(client: Client, shop: Any) -> None:
    def form() -> dict[str, Any]:
        return {"photo": upload(photo_bytes(seed=100)), "limit": "1", "offset": "0"}

    first = client.post(SEARCH, form()).json()
    second = client.post(first["next"], form()).json()
    assert [page["results"][0]["title"] for page in (first, second)] == ["Product 1", "Product 2"]
    assert second["photos"][0]["is_cached"]


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "photo_empty"),
        (b"not an image", 400, "photo_unsupported"),
        (photo_bytes()[:2000], 400, "photo_damaged"),
        (drawings.bomb_png(), 413, "photo_too_many_pixels"),
        (photo_bytes() + b"\0" * (30 * 2**20), 413, "photo_too_large"),
    ],
    ids=["empty", "text", "truncated", "bomb", "30MB"],
)
def test_bad_photo__is_rejected_with_a_code_and_a_sentence(
    client: Client, shop: Any, data: bytes, status: int, code: str
) -> None:
    answer = client.post(SEARCH, {"photo": upload(data)})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["detail"].endswith(".")
    page = client.post(PAGE, {"photo": upload(data)})
    assert page.status_code == status
    assert f'data-vs-error data-code="{code}"' in page.content.decode()


@pytest.mark.parametrize(
    "data",
    [
        drawings.animation(),
        photo_bytes(mode="CMYK"),
        drawings.deep_png((30_000,)),
        drawings.rgba_png_with_hole(),
        photo_bytes(exif_orientation=6),
    ],
    ids=["gif", "cmyk", "16bit", "rgba", "exif"],
)
def test_unusual_photo__gets_the_right_result(client: Client, shop: Any, data: bytes) -> None:
    answer = client.post(SEARCH, {"photo": upload(data)})
    assert answer.status_code == 200
    assert len(answer.json()["results"]) == 2


def test_exif_rotated_photo__finds_what_the_upright_one_finds(client: Client, shop: Any) -> None:
    upright = client.post(SEARCH, {"photo": upload(photo_bytes(seed=100))}).json()
    for orientation in range(1, 9):
        turned = photo_bytes(seed=100, exif_orientation=orientation)
        body = client.post(SEARCH, {"photo": upload(turned)}).json()
        assert [r["key"] for r in body["results"]] == [r["key"] for r in upright["results"]]
        assert body["results"][0]["score"] == pytest.approx(upright["results"][0]["score"], abs=0.03)


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({}, "query_empty", "photo"),
        ({"text": "  "}, "query_empty", "photo"),
        ({"text": "a", "colour": "red"}, "invalid_filter", "category, brand"),
        ({"text": "a", "min_price": "cheap"}, "invalid_filter", "number"),
        ({"text": "a", "limit": str(10**9)}, "invalid_query", "100"),
        ({"text": "a", "limit": "9" * 400}, "invalid_query", "limit"),
        ({"text": "a", "limit": "many"}, "invalid_query", "limit"),
        ({"text": "a", "offset": "-1"}, "invalid_query", "offset"),
        ({"text": "a", "score_threshold": "nan"}, "invalid_query", "score_threshold"),
        ({"text": "a" * 10_000}, "text_too_long", "500"),
        ({"text": "a\0b"}, "invalid_query", "text"),
        ({"text": "a", "category": "x" * 10_000}, "invalid_filter", "category"),
        ({"photo": "a string"}, "photo_not_a_file", "file"),
    ],
)
@pytest.mark.parametrize("method", ["get", "post"])
def test_bad_field__is_a_400_that_names_what_is_allowed(
    client: Client, shop: Any, fields: dict[str, str], code: str, words: str, method: str
) -> None:
    answer = getattr(client, method)(SEARCH, fields)
    assert answer.status_code == 400
    assert answer.json()["code"] == code
    assert words in answer.json()["detail"]


def test_several_photos__count_alike(client: Client, shop: Any) -> None:
    photos = [upload(photo_bytes(seed=seed)) for seed in (100, 101, 200)]
    both = client.post(SEARCH, {"photo": photos}).json()
    assert [result["title"] for result in both["results"]] == ["Product 1", "Product 2"]
    alone = client.post(SEARCH, {"photo": upload(photo_bytes(seed=200))}).json()
    assert both["results"][1]["score"] < alone["results"][0]["score"]
    assert len(both["photos"]) == 3


def test_too_many_photos__are_rejected(client: Client, shop: Any) -> None:
    answer = client.post(SEARCH, {"photo": [upload(photo_bytes()) for _ in range(5)]})
    assert (answer.status_code, answer.json()["code"]) == (400, "too_many_photos")


def test_content_length_too_large__is_rejected_unread(client: Client, shop: Any) -> None:
    class Unreadable(io.BytesIO):
        def read(self, *args: Any) -> bytes:
            raise AssertionError("the body was read")

    kind = "multipart/form-data; boundary=x"
    environ = {"wsgi.input": Unreadable(), "CONTENT_LENGTH": str(200 * 2**20), "CONTENT_TYPE": kind}
    answer = client.post(SEARCH, content_type=kind, **environ)
    assert (answer.status_code, answer.json()["code"]) == (413, "photo_too_large")


def test_get_with_a_large_body__is_rejected_too(client: Client, shop: Any, settings: Any) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"MAX_UPLOAD_BYTES": 1000}
    answer = client.generic("GET", f"{SEARCH}?q=a", b"x" * 2_000_000, content_type="multipart/form-data; boundary=x")
    assert (answer.status_code, answer.json()["code"]) == (413, "photo_too_large")


def test_checkpoint_given_as_a_path__is_the_same_checkpoint(client: Client, shop: Any, settings: Any) -> None:
    path = Path(settings.VISUAL_SEARCH["CHECKPOINT"])
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": path}
    assert client.get(SEARCH, {"q": "a"}).status_code == 200


def test_body_that_is_no_form__is_a_4xx_with_a_code(client: Client, shop: Any) -> None:
    assert client.post(SEARCH, b"{}", content_type="application/json").json()["code"] == "unsupported_media_type"
    broken = client.post(SEARCH, b"junk", content_type="multipart/form-data; boundary=x")
    assert broken.status_code == 400


@pytest.mark.parametrize("method", ["put", "delete"])
def test_other_methods__are_405(client: Client, method: str) -> None:
    assert getattr(client, method)(SEARCH).status_code == 405


def test_nothing_indexed__is_a_503_with_retry_after(client: Client, index: Any) -> None:
    answer = client.get(SEARCH, {"q": "a"})
    assert (answer.status_code, answer.json()["code"]) == (503, "index_empty")
    assert answer["Retry-After"]


def test_index_of_another_checkpoint__is_a_503_that_keeps_the_detail_for_the_log(
    client: Client, shop: Any, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": "other/checkpoint"}
    answer = client.get(SEARCH, {"q": "a"})
    assert (answer.status_code, answer.json()["code"]) == (503, "index_outdated")
    assert "other/checkpoint" not in answer.content.decode()
    assert "other/checkpoint" in caplog.text


def test_missing_checkpoint__is_a_503_not_a_500(client: Client, shop: Any, settings: Any) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": "/nowhere/at/all"}
    for answer in (client.get(SEARCH, {"q": "a"}), client.post(SEARCH, {"photo": upload(photo_bytes())})):
        assert answer.status_code == 503


def test_health__is_503_before_warm_up_and_200_after(client: Client, shop: Any) -> None:
    store_for(get_active()).close()
    before = client.get("/api/visual-search/v1/health/")
    assert (before.status_code, before.json()["code"]) == (503, "not_ready")
    search_module.warm_up()
    assert client.get("/api/visual-search/v1/health/").json() == {"status": "ok"}


def test_admin_action__marks_and_says_how_many(admin_client: Client, shop: Any, index: Any) -> None:
    answer = admin_client.post(
        reverse("admin:example_shop_product_changelist"),
        {"action": "reindex_selected_products", "_selected_action": [product.pk for product in shop]},
        follow=True,
    )
    assert "2 products will be indexed again." in answer.content.decode()
    assert index.drain().embedded == 3


def test_admin_entries__are_listed_and_read_only(admin_client: Client, shop: Any) -> None:
    assert "indexed" in admin_client.get(reverse("admin:visual_search_indexentry_changelist")).content.decode()
    assert admin_client.get(reverse("admin:visual_search_indexentry_add")).status_code == 403


def test_similar__answers_as_a_search_does(client: Client, shop: Any) -> None:
    body = client.get("/api/visual-search/v1/similar/", {"product": shop[0].pk, "limit": "5"}).json()
    assert [result["key"] for result in body["results"]] == [str(shop[1].pk)]
    filtered = client.get("/api/visual-search/v1/similar/", {"product": shop[0].pk, "category": "shoes"}).json()
    assert filtered["results"] == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [({}, "invalid_query"), ({"product": "nope"}, "product_not_indexed"), ({"product": ["1", "2"]}, "invalid_query")],
)
def test_similar_with_bad_fields__is_a_400(client: Client, shop: Any, fields: Any, code: str) -> None:
    answer = client.get("/api/visual-search/v1/similar/", fields)
    assert (answer.status_code, answer.json()["code"]) == (400, code)


def test_more_like_and_less_like__are_taken_with_a_photo(client: Client, shop: Any) -> None:
    fields = {"photo": upload(photo_bytes(seed=100)), "unlike": [str(shop[1].pk)], "unlike_weight": "1"}
    body = client.post(SEARCH, fields).json()
    assert [result["key"] for result in body["results"]] == [str(shop[0].pk)]


def test_facets__list_values_with_counts(client: Client, shop: Any) -> None:
    body = client.get("/api/visual-search/v1/facets/").json()
    assert {"value": "hats", "count": 1} in body["facets"]["category"]
    assert body["facets"]["in_stock"] == [{"value": True, "count": 2}]
    cheap = client.get("/api/visual-search/v1/facets/", {"max_price": "15"}).json()
    assert cheap["facets"]["category"] == [{"value": "shoes", "count": 1}]
    assert client.get("/api/visual-search/v1/facets/", {"colour": "red"}).json()["code"] == "invalid_filter"


# Photos by token, crops, policies


def keep(client: Client, data: bytes) -> str:
    answer = client.post(f"{API}photos/", {"photo": upload(data)})
    assert answer.status_code == 201
    return str(answer.json()["token"])


def test_kept_photo__is_searched_with_cropped_and_paged_by_its_token(client: Client, shop: Any) -> None:
    both = drawings.side_by_side(photo_bytes(seed=100), photo_bytes(seed=200))
    kept = client.post(f"{API}photos/", {"photo": upload(both)}).json()
    assert (kept["width"], kept["height"], kept["seconds"]) == (1280, 480, 600)
    for crop, title in (("0,0,0.5,1", "Product 1"), ("0.5,0,1,1", "Product 2")):
        fields = {"token": kept["token"], "crop": crop, "limit": "1"}
        page = client.get(SEARCH, fields).json()
        assert page["results"][0]["title"] == title
        assert page["results"][0]["score"] > 0.9
        following = client.get(page["next"]).json()
        assert following["results"][0]["title"] != title
        assert following["photos"][0]["is_cached"]
        assert client.post(SEARCH, fields).json()["results"] == page["results"]


def test_upload_with_a_crop__is_that_part(client: Client, shop: Any) -> None:
    both = drawings.side_by_side(photo_bytes(seed=100), photo_bytes(seed=200))
    body = client.post(SEARCH, {"photo": upload(both), "crop": "0.5,0,1,1"}).json()
    assert body["results"][0]["title"] == "Product 2"


def test_photo_and_token__take_a_crop_each(client: Client, shop: Any) -> None:
    fields = {"token": keep(client, photo_bytes(seed=200)), "photo": upload(photo_bytes(seed=100))}
    assert client.post(SEARCH, fields | {"crop": ["0,0,0.9,0.9", ""]}).status_code == 200
    fields["photo"] = upload(photo_bytes(seed=100))
    answer = client.post(SEARCH, fields | {"crop": "0,0,0.9,0.9"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_crop")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"token": "lost"}, "photo_expired"),
        ({"token": "lost", "crop": "0,0,1,1"}, "photo_expired"),
        ({"q": "a", "crop": "0,0,1,1"}, "invalid_crop"),
        ({"q": "a", "crop": "left"}, "invalid_crop"),
        ({"token": ["a", "b", "c", "d", "e"]}, "too_many_photos"),
        ({"q": "a", "fallback": "-1"}, "invalid_query"),
        ({"q": "a", "fallback": "101"}, "invalid_query"),
    ],
)
def test_bad_token_or_crop__is_a_400(client: Client, shop: Any, fields: Any, code: str) -> None:
    answer = client.get(SEARCH, fields)
    assert (answer.status_code, answer.json()["code"]) == (400, code)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (lambda: {}, "photo_not_single"),
        (lambda: {"photo": "text"}, "photo_not_single"),
        (lambda: {"photo": [upload(photo_bytes()), upload(photo_bytes())]}, "photo_not_single"),
        (lambda: {"photo": upload(b"junk")}, "photo_unsupported"),
        (lambda: {"photo": upload(drawings.TWO_FORMATS["jpeg+zip"]())}, "photo_ambiguous"),
    ],
)
def test_photo_that_can_not_be_kept__is_a_400(client: Client, fields: Any, code: str) -> None:
    answer = client.post(f"{API}photos/", fields())
    assert (answer.status_code, answer.json()["code"]) == (400, code)


def test_nothing_close__is_reported_with_the_nearest_as_fallback(client: Client, shop: Any) -> None:
    far = {"q": "a cathedral", "score_threshold": "0.99"}
    body = client.get(SEARCH, far | {"fallback": "1"}).json()
    assert (body["results"], body["nothing_close"], len(body["fallback"])) == ([], True, 1)
    assert set(body["fallback"][0]) == {"key", "title", "url", "score", "image", "filters"}
    assert client.get(SEARCH, far).json()["fallback"] == []
    assert 'data-code="nothing_close"' in client.get(PAGE, far).content.decode()


def test_photos__are_counted_by_rate_and_texts_are_not(client: Client, shop: Any, settings: Any) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"PHOTO_RATE": "2/min"}
    token = keep(client, photo_bytes(seed=100))
    assert client.post(SEARCH, {"photo": upload(photo_bytes(seed=100))}).status_code == 200
    answer = client.get(SEARCH, {"token": token})
    assert (answer.status_code, answer.json()["code"]) == (429, "throttled")
    assert int(answer["Retry-After"]) > 0
    page = client.post(PAGE, {"photo": upload(photo_bytes(seed=100))})
    assert page.status_code == 429
    assert 'data-vs-error data-code="throttled"' in page.content.decode()
    assert client.get(SEARCH, {"q": "a"}).status_code == 200
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"PHOTO_RATE": None}
    assert client.get(SEARCH, {"token": token}).status_code == 200


@pytest.mark.parametrize(
    "ask",
    [
        lambda client, token: client.get(SEARCH, {"token": token}),
        lambda client, token: client.post(SEARCH, f"token={token}", content_type="application/x-www-form-urlencoded"),
        lambda client, token: client.get(PAGE, {"q": "a", "token": token}),
        lambda client, token: client.post(PAGE, {"token": token}),
    ],
    ids=["api address", "api form", "page address", "page form"],
)
def test_token__is_counted_in_address_and_form(client: Client, shop: Any, settings: Any, ask: Any) -> None:
    token = keep(client, photo_bytes(seed=100))
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"PHOTO_RATE": "1/min"}
    assert [ask(client, token).status_code, ask(client, token).status_code] == [200, 429]


def test_photos_on_the_page__are_counted_too(client: Client, shop: Any, settings: Any) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"PHOTO_RATE": "1/min"}
    answers = [client.post(PAGE, {"photo": upload(photo_bytes(seed=100))}).status_code for _ in range(2)]
    assert answers == [200, 429]


def test_permission_classes__are_read_at_each_request(client: Client, shop: Any, settings: Any) -> None:
    addresses = [f"{SEARCH}?q=a", f"{API}similar/?product={shop[0].pk}", f"{API}facets/"]
    classes = ["rest_framework.permissions.IsAdminUser"]
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"PERMISSION_CLASSES": classes}
    for address in addresses:
        answer = client.get(address)
        assert (answer.status_code, answer.json()["code"]) == (403, "not_authenticated")
    assert client.post(f"{API}photos/", {"photo": upload(photo_bytes())}).status_code == 403
    assert client.get(f"{API}health/").status_code in (200, 503)
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"PERMISSION_CLASSES": None}
    assert [client.get(address).status_code for address in addresses] == [200, 200, 200]


class ProductSerializer(serializers.ModelSerializer[Product]):
    class Meta:
        model = Product
        fields = ("sku", "price")


def test_product_serializer__adds_the_shops_own_view_of_a_product(client: Client, shop: Any, settings: Any) -> None:
    path = "tests.api.test_api.ProductSerializer"
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"PRODUCT_SERIALIZER": path}
    body = client.get(SEARCH, {"q": "a"}).json()
    assert {result["product"]["sku"] for result in body["results"]} == {"sku-1", "sku-2"}


def test_similar_to_a_hidden_product__is_rejected(client: Client, shop: Any) -> None:
    Product.objects.filter(pk=shop[0].pk).update(is_published=False)
    answer = client.get(f"{API}similar/", {"product": shop[0].pk})
    assert (answer.status_code, answer.json()["code"]) == (400, "product_not_indexed")


def test_facets__give_the_bounds_of_numbers(client: Client, shop: Any) -> None:
    assert client.get(f"{API}facets/").json()["bounds"] == {"price": {"minimum": 10.0, "maximum": 20.0}}
    hats = client.get(f"{API}facets/", {"category": "hats"}).json()
    assert hats["bounds"] == {"price": {"minimum": 20.0, "maximum": 20.0}}
    assert client.get(f"{API}facets/", {"category": "none"}).json()["bounds"] == {"price": None}


def test_file_under_another_name__is_an_error_that_names_the_right_one(client: Client, shop: Any) -> None:
    for address in (SEARCH, f"{API}photos/"):
        answer = client.post(address, {"image": upload(photo_bytes()), "photo": upload(photo_bytes())})
        assert (answer.status_code, answer.json()["code"]) == (400, "photo_misnamed")
        assert "not as 'image'" in answer.json()["detail"]


def test_keeping_a_photo_with_other_parameters__is_rejected(client: Client, shop: Any) -> None:
    answer = client.post(f"{API}photos/", {"photo": upload(photo_bytes()), "crop": "0,0,1,1"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_query")


@pytest.mark.parametrize("fields", [{"q": "red"}, {"text": "red"}, {"token": "x"}, {"like": "1"}])
def test_similar_with_parameters_that_need_an_encoder__is_rejected(client: Client, shop: Any, fields: Any) -> None:
    answer = client.get(f"{API}similar/", {"product": shop[0].pk} | fields)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_query")
