"""The search page, its fragment and the template tags, without a browser or JavaScript."""

from __future__ import annotations

import ast
import gzip
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.template import Context, RequestContext, Template, TemplateSyntaxError
from django.test import Client, RequestFactory

from example_shop.models import Product
from tests import ROOT
from tests.drawings import photo_bytes
from visual_search.components import store_for
from visual_search.exceptions import ConfigurationError
from visual_search.index.versions import get_active
from visual_search.search import results as search_module
from visual_search.storefront.filters import CHOICES_SHOWN
from visual_search.web import messages

pytestmark = pytest.mark.django_db

PAGE = "/search-by-photo/"
RESULTS = f"{PAGE}results/"
PACKAGE = ROOT / "visual_search"


@pytest.fixture(autouse=True)
def _own_templates(settings: Any) -> None:
    """Use the package's own templates: the example shop overrides some."""
    settings.TEMPLATES = [settings.TEMPLATES[0] | {"DIRS": []}]


@pytest.fixture
def shop(make_product: Callable[..., Product], index: Any) -> list[Product]:
    products = [make_product(1, images=2), make_product(2, category="hats", price="20.00")]
    index.drain()
    search_module.warm_up()
    return products


def upload(seed: int = 100) -> SimpleUploadedFile:
    return SimpleUploadedFile("photo.jpg", photo_bytes(seed=seed), content_type="image/jpeg")


def html_of(answer: Any) -> str:
    return str(answer.content.decode())


def titles(html: str) -> list[str]:
    """Return the names of the products in the list of hits, in order."""
    shown = re.search(r"data-vs-hits>(.*?)</ul>", html, re.S)
    return re.findall(r"Product \d+", shown[1]) if shown else []


def error_of(html: str) -> str | None:
    found = re.search(r'data-vs-error data-code="(\w+)"', html)
    return found[1] if found else None


def links(html: str, marker: str) -> list[str]:
    found = [tag for tag in re.findall(r"<a [^>]*>", html) if marker in tag]
    return [re.search(r'href="([^"]*)"', tag)[1].replace("&amp;", "&") for tag in found]  # type: ignore[index]


def render(source: str, request: Any = None, **values: Any) -> str:
    template = Template("{% load visual_search %}" + source)
    context = Context(values) if request is False else RequestContext(request or RequestFactory().get("/"), values)
    return template.render(context)


# The page


def test_page__shows_a_form_then_hits(client: Client, shop: Any) -> None:
    form = client.get(PAGE)
    assert form.status_code == 200
    assert 'enctype="multipart/form-data"' in html_of(form)
    page = html_of(client.post(PAGE, {"photo": upload(), "category": "", "min_price": ""}))
    assert titles(page) == ["Product 1", "Product 2"]
    assert "0.9" not in page  # no raw scores


def test_photo_sent_by_a_plain_form__is_named_by_token_from_then_on(client: Client, shop: Any) -> None:
    page = html_of(client.post(PAGE, {"photo": upload(), "limit": "1"}))
    (following,) = links(page, 'rel="next"')
    second = html_of(client.get(following))
    assert (titles(page), titles(second)) == (["Product 1"], ["Product 2"])
    (before,) = links(second, 'rel="prev"')
    assert titles(html_of(client.get(before))) == ["Product 1"]
    token = re.search(r'name="token" value="([^"]+)"', page)[1]  # type: ignore[index]
    again = html_of(client.post(PAGE, {"token": token, "category": "hats"}))
    assert titles(again) == ["Product 2"]


def test_new_photo__takes_the_place_of_the_forms_earlier_one(client: Client, shop: Any) -> None:
    first = html_of(client.post(PAGE, {"photo": upload(200)}))
    assert titles(first)[0] == "Product 2"
    token = re.search(r'name="token" value="([^"]+)"', first)[1]  # type: ignore[index]
    second = html_of(client.post(PAGE, {"photo": upload(100), "token": token, "crop": "0,0,0.5,0.5"}))
    assert titles(second)[0] == "Product 1"
    assert 'name="crop" value=""' in second


def test_cache_that_keeps_nothing__costs_the_token_and_not_the_search(client: Client, shop: Any, settings: Any) -> None:
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    assert titles(html_of(client.post(PAGE, {"photo": upload()}))) == ["Product 1", "Product 2"]


def test_several_photos_by_form__are_searched_with_together(client: Client, shop: Any) -> None:
    page = html_of(client.post(PAGE, {"photo": [upload(100), upload(200)]}))
    assert len(titles(page)) == 2
    assert 'name="token" value=""' in page


def test_page__escapes_what_was_typed(client: Client, shop: Any) -> None:
    html = html_of(client.get(PAGE, {"q": "<script>alert(1)</script>", "category": '"><b>'}))
    assert "<script>alert(1)" not in html
    assert '"><b>' not in html


def test_page__has_a_message_when_nothing_fits(client: Client, shop: Any) -> None:
    assert 'data-code="nothing_found"' in html_of(client.get(PAGE, {"q": "a", "category": "none"}))


def test_page__enforces_csrf(shop: Any) -> None:
    assert Client(enforce_csrf_checks=True).post(PAGE, {"text": "a"}).status_code == 403


def test_page__ignores_what_newsletters_and_ads_add_to_an_address(client: Client, shop: Any) -> None:
    page = client.get(PAGE, {"q": "a", "utm_source": "news", "fbclid": "x"})
    assert page.status_code == 200
    assert len(titles(html_of(page))) == 2
    assert "utm_source" not in html_of(client.get(RESULTS, {"q": "a", "utm_source": "news"}))


def test_page_that_can_not_answer_now__has_a_retry_after(client: Client, index: Any) -> None:
    page = client.get(PAGE, {"q": "a"})
    assert page.status_code == 503
    assert page["Retry-After"]
    assert error_of(html_of(page)) == "index_empty"


def test_expired_token__leaves_words_and_filters_and_asks_for_the_photo(client: Client, shop: Any) -> None:
    page = client.get(PAGE, {"token": "gone", "crop": "0,0,1,1", "text": "red", "category": "hats"})
    html = html_of(page)
    assert (page.status_code, error_of(html)) == (400, "photo_expired")
    assert 'name="token" value=""' in html
    assert 'value="red"' in html
    assert re.search(r'name="category" value="hats" checked', html)


def test_answers__are_private_and_kept_out_of_search_engines(client: Client, shop: Any) -> None:
    page = client.get(PAGE, {"q": "a"})
    assert "private" in page["Cache-Control"]
    assert page["X-Robots-Tag"] == "noindex"
    assert "X-Robots-Tag" not in client.get(PAGE)


def test_like__shows_the_example_and_not_as_a_hit(client: Client, shop: Any) -> None:
    html = html_of(client.get(PAGE, {"like": shop[0].pk}))
    assert titles(html) == ["Product 2"]
    assert f'name="like" value="{shop[0].pk}"' in html


def test_like_of_a_hidden_product__is_rejected_and_not_shown(client: Client, shop: Any) -> None:
    Product.objects.filter(pk=shop[0].pk).update(is_published=False)
    page = client.get(PAGE, {"like": shop[0].pk})
    assert (page.status_code, error_of(html_of(page))) == (400, "product_not_indexed")
    assert "Product 1" not in html_of(page)


def test_like_of_an_invalid_key__is_rejected_also_with_other_errors(client: Client, shop: Any) -> None:
    for asked in ({"like": "\0"}, {"like": "\0", "max_price": "cheap"}, {"like": ["7"] * 900, "max_price": "cheap"}):
        assert client.get(PAGE, asked).status_code == 400


# Filters


def test_filters__offer_what_they_may_be_changed_to(client: Client, shop: Any) -> None:
    html = html_of(client.get(PAGE, {"category": "hats", "q": "a"}))
    assert re.search(r'name="category" value="hats" checked', html)
    assert re.search(r'name="category" value="shoes">', html)
    assert 'name="min_price"' not in html  # a single price offers no choice
    assert re.search(r'name="min_price" value="" placeholder="10"', html_of(client.get(PAGE)))


def test_filters_alone__wait_for_a_photo_or_words(client: Client, shop: Any) -> None:
    page = client.get(PAGE, {"category": "hats"})
    assert page.status_code == 200
    assert error_of(html_of(page)) is None
    assert titles(html_of(page)) == []
    assert re.search(r'name="category" value="hats" checked', html_of(page))


def test_chosen_filters__are_links_without_them(client: Client, shop: Any) -> None:
    html = html_of(client.get(PAGE, {"q": "a", "category": ["hats", "shoes"], "max_price": "15"}))
    assert titles(html) == ["Product 1"]
    remove_shoes, remove_hats, remove_price, remove_all = links(html, "data-vs-follow")
    assert remove_hats.endswith("?q=a&category=shoes&max_price=15")
    assert "shoes" not in remove_shoes
    assert "max_price" not in remove_price
    assert remove_all.endswith("?q=a")


def test_filters_that_can_not_be_read__are_an_error_with_the_form_intact(client: Client, shop: Any) -> None:
    page = client.get(PAGE, {"q": "a", "max_price": "cheap"})
    assert (page.status_code, error_of(html_of(page))) == (400, "invalid_filter")
    assert 'value="hats"' in html_of(page)


def test_filters_of_a_cold_process__do_not_fill_its_store(client: Client, shop: Any) -> None:
    store_for(get_active()).close()
    html = html_of(client.get(PAGE))
    assert 'value="hats"' not in html
    assert store_for(get_active()).position() is None


def test_many_values__stand_behind_show_all(client: Client, make_product: Any, index: Any) -> None:
    for seed in range(CHOICES_SHOWN + 2):
        make_product(seed + 1, brand=f"brand-{seed:02}")
    index.drain()
    search_module.warm_up()
    last = f"brand-{CHOICES_SHOWN + 1}"
    hidden = re.search(r'class="vs-more-choices".*?</details>', html_of(client.get(PAGE)), re.S)[0]  # type: ignore[index]
    assert last in hidden
    chosen = html_of(client.get(PAGE, {"brand": last}))
    assert last not in re.search(r'class="vs-more-choices".*?</details>', chosen, re.S)[0]  # type: ignore[index]


# The fragment


def test_fragment__says_what_the_page_of_the_same_address_says(client: Client, shop: Any) -> None:
    page, fragment = (html_of(client.get(path, {"q": "a", "category": "hats"})) for path in (PAGE, RESULTS))
    assert titles(page) == titles(fragment) == ["Product 2"]
    assert "<html" not in fragment
    assert f'data-address="{PAGE}?q=a&amp;category=hats"' in fragment
    assert 'data-announcement="1 product found."' in fragment


def test_fragment_of_a_photo__names_its_token(client: Client, shop: Any) -> None:
    fragment = html_of(client.post(RESULTS, {"photo": upload()}))
    token = re.search(r'data-token="([^"]+)"', fragment)[1]  # type: ignore[index]
    assert titles(html_of(client.get(RESULTS, {"token": token, "crop": "0.1,0.1,0.9,0.9"})))


def test_fragment__carries_errors_with_their_status(client: Client, shop: Any) -> None:
    answer = client.post(RESULTS, {"photo": SimpleUploadedFile("photo.jpg", b"")})
    assert (answer.status_code, error_of(html_of(answer))) == (400, "photo_empty")
    answer = client.get(RESULTS, {"token": "gone"})
    assert (answer.status_code, error_of(html_of(answer))) == (400, "photo_expired")
    assert client.delete(RESULTS).status_code == 405


# The tags


def test_widget__needs_one_line(shop: Any) -> None:
    html = render("{% visual_search_widget %}")
    for part in ("widget.css", "widget.js", "csrfmiddlewaretoken", "data-vs-form", 'data-vs-part="results"', "hats"):
        assert part in html


def test_widget__has_no_inline_script_or_style(shop: Any) -> None:
    html = render(
        "{% visual_search_widget %}{% visual_search_widget placement='button' %}{% similar_products product %}",
        product=shop[0],
    )
    assert " style=" not in html
    assert "<style" not in html
    assert re.findall(r"<script[^>]*>([^<]*)", html) == ["", ""]
    assert not re.search(r"\son\w+=", html)


def test_button__is_a_link_to_the_page_with_its_filters(shop: Any) -> None:
    html = render('{% visual_search_widget placement="button" category="hats" max_price=50 %}')
    assert f'href="{PAGE}?category=hats&amp;max_price=50"' in html
    assert "csrf" not in html  # so that a page with the button can be cached for everyone


def test_widget_with_filters__carries_them_along(shop: Any) -> None:
    html = render("{% visual_search_widget category='hats' in_stock=True brand=none %}", none=None)
    assert re.search(r'name="category" value="hats" checked', html)
    assert re.search(r'name="in_stock" value="true" checked', html)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% visual_search_widget colour='red' %}", "Filters: category, brand, min_price, max_price, in_stock"),
        ("{% visual_search_widget placement='footer' %}", "page, button"),
    ],
)
def test_wrong_use_of_the_widget__raises_an_error_for_the_developer(db: None, source: str, words: str) -> None:
    with pytest.raises(TemplateSyntaxError, match=words):
        render(source)


def test_widget_without_a_request__raises_an_error_for_the_developer(db: None) -> None:
    with pytest.raises(TemplateSyntaxError, match="context_processors.request"):
        render("{% visual_search_widget %}", request=False)


@pytest.mark.parametrize("source", ["{% visual_search_widget %}", "{% photo_search_link '1' %}"])
def test_page_missing_from_the_urls__raises_an_error_for_the_developer(db: None, settings: Any, source: str) -> None:
    settings.ROOT_URLCONF = "visual_search.api.urls"
    with pytest.raises(ConfigurationError, match="include"):
        render(source)


def test_similar_products__are_shown_without_the_product(shop: Any) -> None:
    html = render("{% similar_products product limit=1 %}", product=shop[0])
    assert "Product 2" in html
    assert "Product 1" not in html


def test_similar_products__never_break_a_product_page(make_product: Any, index: Any) -> None:
    product = make_product(1)
    assert render("{% similar_products product %}", product=product).strip() == ""  # nothing is indexed
    index.drain()
    late = make_product(2)
    assert render("{% similar_products product %}", product=late).strip() == ""  # not indexed yet
    assert render("{% similar_products product %}", product=product).strip() == ""  # no other product


def test_photo_search_link__leads_to_a_search_like_the_product(client: Client, shop: Any) -> None:
    html = render("{% photo_search_link product %}", product=shop[0])
    (address,) = links(html, "vs-like")
    assert titles(html_of(client.get(address))) == ["Product 2"]


# Sentences


def codes_in_source() -> set[str]:
    """Return the error codes in the package's source."""
    codes: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                codes.add(str(node.value.value))
    return codes


def test_every_code_that_a_shopper_can_meet__has_its_sentence() -> None:
    listed = (PACKAGE.parent / "docs" / "api.md").read_text().partition("| Status | Codes |")[2].partition("## ")[0]
    documented = set(re.findall(r"`([a-z_]+)`", listed))
    of_programs = {"not_found", "method_not_allowed", "not_acceptable", "unsupported_media_type", "not_ready", "format"}
    assert documented - of_programs <= set(messages.SENTENCES)
    of_staff = {"encoder_failed", "storage_unavailable"}
    assert {code for code in codes_in_source() if "_" in code} - of_staff <= set(messages.SENTENCES) | of_programs


@pytest.mark.parametrize("code", [*messages.SENTENCES, "unknown_code"])
def test_sentence__is_whole(code: str) -> None:
    sentence = messages.sentence(code)
    assert sentence.endswith(".")
    assert "%" not in sentence


def test_too_large__names_the_limit_of_the_setting(settings: Any) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"MAX_UPLOAD_BYTES": 3 * 2**20}
    assert "3 MB" in messages.sentence("photo_too_large")


def test_script__is_small() -> None:
    script = (PACKAGE / "static" / "visual_search" / "widget.js").read_bytes()
    assert len(gzip.compress(script, 9)) < 12 * 1024
