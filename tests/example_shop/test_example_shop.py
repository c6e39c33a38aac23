from __future__ import annotations

import io
import os
import re
from decimal import Decimal
from pathlib import Path

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import connection
from django.template.loader import render_to_string
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import translation
from django.views.defaults import server_error
from PIL import Image

from example_shop.loading import delete_image
from example_shop.models import Brand, Category, Product, ProductImage
from example_shop.views import PAGE_SIZE
from tests.drawings import photo_bytes, plain_bytes

pytestmark = pytest.mark.django_db


@pytest.fixture
def shoes():
    return Category.objects.create(name="Shoes", slug="shoes")


def add_product(category: Category, sku: str, *, images: int = 0, **fields) -> Product:
    product = Product.objects.create(sku=sku, slug=sku, category=category, **{"name": f"Product {sku}"} | fields)
    for position in range(images):
        content = io.BytesIO()
        Image.new("RGB", (24, 16), "red").save(content, "PNG")
        file = ContentFile(content.getvalue(), name=f"{sku}-{position}.png")
        ProductImage.objects.create(product=product, image=file, position=position)
    return product


class TestHome:
    def test_home__of_an_empty_shop_says_so(self, client):
        assert "There are no products yet." in client.get(reverse("home")).text

    def test_home__shows_published_products_only(self, client, shoes):
        add_product(shoes, "boot", images=1)
        add_product(shoes, "draft", is_published=False)
        add_product(Category.objects.create(name="Hats", slug="hats"), "cap", is_published=False)

        page = client.get(reverse("home")).text

        assert "Product boot" in page
        assert "Product draft" not in page
        assert "1 product<" in page
        assert "Hats" not in page

    def test_home__shows_a_category_by_the_picture_of_a_published_product(self, client, shoes):
        add_product(shoes, "draft", images=1, is_published=False)
        add_product(shoes, "boot", images=1)

        tiles = client.get(reverse("home")).text.partition("tiles")[2].partition("</ul>")[0]

        assert reverse("rendition", args=[640, "products/boot-0.png"]) in tiles
        assert reverse("category", args=["shoes"]) in tiles

    def test_home__with_a_category_of_the_old_address_leads_to_the_new_one(self, client, shoes):
        response = client.get(reverse("home"), {"category": "shoes"})
        assert (response.status_code, response["Location"]) == (301, "/categories/shoes/")

    @pytest.mark.parametrize("slug", ["nothing", "\0nothing", "x" * 5000])
    def test_home__with_an_unknown_category_is_not_found(self, client, shoes, slug):
        assert client.get(reverse("home"), {"category": slug}).status_code == 404


def names(response) -> list[str]:
    return [product.name.removeprefix("Product ") for product in response.context["page"]]


class TestListing:
    @pytest.fixture
    def shop(self, shoes):
        """Three shoes, dearest first; the hat is in another category."""
        acme, best = (Brand.objects.create(name=name, slug=name.lower()) for name in ("Acme", "Best"))
        hats = Category.objects.create(name="Hats", slug="hats")
        add_product(shoes, "c", brand=acme, price=Decimal("30.00"), stock=1)
        add_product(shoes, "a", brand=best, price=Decimal("20.00"), stock=0)
        add_product(shoes, "b", price=Decimal("0.00"), stock=5)
        add_product(hats, "hat", brand=Brand.objects.create(name="Capital", slug="capital"), stock=1)
        return reverse("category", args=["shoes"])

    def test_listing__of_a_category_shows_its_products_and_brands_alone(self, client, shop):
        response = client.get(shop)

        assert names(response) == ["b", "a", "c"]
        assert list(response.context["form"].brands) == ["acme", "best"]
        assert "3 products" in response.text

    def test_listing__of_all_shows_all(self, client, shop):
        assert names(client.get(reverse("products"))) == ["hat", "b", "a", "c"]

    @pytest.mark.parametrize(
        ("query", "wanted"),
        [
            ("sort=name", ["a", "b", "c"]),
            ("sort=price", ["a", "c", "b"]),  # products without a price come last
            ("sort=-price", ["c", "a", "b"]),
            ("brand=acme&brand=best&sort=name", ["a", "c"]),
            ("brand=acme", ["c"]),
            ("min_price=20.01", ["c"]),
            ("max_price=20&sort=name", ["a"]),
            ("min_price=20&max_price=30&sort=name", ["a", "c"]),
            ("in_stock=on&sort=name", ["b", "c"]),
            ("in_stock=on&brand=acme", ["c"]),
            ("utm_source=newsletter&sort=name", ["a", "b", "c"]),
        ],
    )
    def test_listing__narrows_and_sorts(self, client, shop, query, wanted):
        assert names(client.get(f"{shop}?{query}")) == wanted

    @pytest.mark.parametrize(
        ("query", "sentence"),
        [
            ("brand=nothing", "nothing is not one of the available choices"),
            ("brand=%00", "is not one of the available choices"),
            ("brand=capital", "capital is not one of the available choices"),
            ("min_price=cheap", "Enter a number."),
            ("min_price=-1", "greater than or equal to 0"),
            ("min_price=NaN", "Enter a number."),
            ("max_price=1e99", "no more than 10 digits"),
            ("min_price=30&max_price=20", "The highest price is below the lowest one."),
            ("sort=random", "random is not one of the available choices"),
        ],
    )
    def test_listing__with_nonsense_says_so_and_shows_the_products(self, client, shop, query, sentence):
        response = client.get(f"{shop}?{query}")

        assert response.status_code == 200
        assert sentence in response.text
        assert names(response)

    def test_listing__where_nothing_is_left_says_so(self, client, shop):
        page = client.get(f"{shop}?min_price=99999").text
        assert "No product is like that." in page
        assert "0 products" in page

    def test_listing__chips_take_one_filter_away_each_and_keep_the_others(self, client, shop):
        response = client.get(f"{shop}?brand=acme&brand=best&min_price=5&max_price=40&in_stock=on&sort=price&page=2")

        assert [(chip.label, chip.address) for chip in response.context["chips"]] == [
            ("Acme", "?brand=best&min_price=5&max_price=40&in_stock=on&sort=price"),
            ("Best", "?brand=acme&min_price=5&max_price=40&in_stock=on&sort=price"),
            ("From $5.00", "?brand=acme&brand=best&max_price=40&in_stock=on&sort=price"),
            ("Up to $40.00", "?brand=acme&brand=best&min_price=5&in_stock=on&sort=price"),
            ("In stock", "?brand=acme&brand=best&min_price=5&max_price=40&sort=price"),
        ]

    @pytest.mark.parametrize("slug", ["nothing", "empty", "x" * 5000])
    def test_listing__of_a_category_without_products_is_not_found(self, client, shoes, slug):
        Category.objects.create(name="Empty", slug="empty")
        add_product(shoes, "boot")
        add_product(Category.objects.get(slug="empty"), "draft", is_published=False)
        assert client.get(reverse("category", args=[slug])).status_code == 404

    def test_listing__pages_keep_the_filters(self, client, shoes):
        for number in range(PAGE_SIZE + 1):
            add_product(shoes, f"boot-{number:02}", stock=1)

        first = client.get("/categories/shoes/?in_stock=on&sort=name")
        second = client.get("/categories/shoes/?in_stock=on&sort=name&page=2")

        assert 'href="?in_stock=on&amp;sort=name&amp;page=2"' in first.text
        assert (len(names(first)), names(second)) == (PAGE_SIZE, ["boot-24"])

    @pytest.mark.parametrize("page", ["nonsense", "0", "99999999999999999999", "%00"])
    def test_listing__with_a_wrong_page_shows_one_that_is_there(self, client, shop, page):
        assert names(client.get(f"{shop}?page={page}"))


class TestProduct:
    def test_product__shows_what_there_is(self, client, shoes):
        acme = Brand.objects.create(name="Acme", slug="acme")
        product = add_product(
            shoes, "boot", images=2, brand=acme, price=Decimal("1299.50"), stock=3, description="Warm.\nDry."
        )

        page = client.get(product.get_absolute_url()).text

        for text in (
            "Product boot",
            "$1,299.50",
            "In stock",
            "Acme",
            "/categories/shoes/",
            "Warm.<br>Dry.",
            "#image-2",
        ):
            assert text in page

    def test_product__without_image_price_stock_or_description_says_so(self, client, shoes):
        page = client.get(add_product(shoes, "boot").get_absolute_url()).text

        for text in ("There is no picture of this product yet.", "Out of stock", "No description yet."):
            assert text in page
        assert "$" not in page

    def test_product__escapes_what_merchants_typed(self, client, shoes):
        product = add_product(shoes, "boot", name="<b>Boot</b>", description="<script>alert(1)</script>")

        page = client.get(product.get_absolute_url()).text

        assert "<b>Boot" not in page
        assert "<script>" not in page

    def test_product__while_the_search_can_not_say_shows_others_of_its_category(self, client, shoes):
        product = add_product(shoes, "boot")
        add_product(shoes, "sandal")
        add_product(shoes, "draft", is_published=False)

        page = client.get(product.get_absolute_url()).text

        assert "More in Shoes" in page
        assert "Product sandal" in page
        assert "Product draft" not in page

    def test_product__unpublished_is_not_found(self, client, shoes):
        product = add_product(shoes, "draft", is_published=False)

        response = client.get(product.get_absolute_url())

        assert response.status_code == 404
        assert "This page is not here" in response.text


def test_product__shows_the_nearest_ones_in_the_cards_of_the_shop(client, make_product, index):
    product, near = make_product(1), make_product(2, images=2, stock=0)
    index.drain()

    page = client.get(product.get_absolute_url()).text

    assert "Similar products" in page
    assert "More in" not in page
    card = page.partition("Similar products")[2].partition("</li>")[0]
    for text in (near.name, "$10.00", "Out of stock", "/pictures/640/products/"):
        assert text in card
    assert "/media/" not in page


@pytest.mark.parametrize("address", ["/", "/products/", "/categories/shoes/", "/products/boot/", "/search-by-photo/"])
def test_pages__ask_the_database_as_often_for_many_as_for_few(client, shoes, django_assert_num_queries, address):
    acme = Brand.objects.create(name="Acme", slug="acme")
    for name in ("boot", "sandal"):
        add_product(shoes, name, images=2, brand=acme)
    client.get(address)  # fills the caches of this process
    with CaptureQueriesContext(connection) as few:
        client.get(address)
    for number in range(5):
        brand = Brand.objects.create(name=f"Brand {number}", slug=f"brand-{number}")
        add_product(shoes, f"boot-{number}", images=3, brand=brand)

    with django_assert_num_queries(len(few)):
        client.get(address)
    assert len(few) <= 10


class TestRendition:
    def fetch(self, client, side: int, name: str):
        response = client.get(reverse("rendition", args=[side, name]), follow=False)
        return response, b"".join(response.streaming_content) if response.streaming else response.content

    def save(self, name: str, content: bytes) -> str:
        return default_storage.save(f"products/{name}", ContentFile(content))

    @pytest.mark.parametrize(("size", "wanted"), [((4000, 3000), (427, 320)), ((300, 200), (300, 200)),
                                                  ((3000, 400), (640, 320))])  # fmt: skip
    def test_rendition__has_the_shorter_side_asked_for_and_never_more_pixels_than_the_original(
        self, client, size, wanted
    ):
        response, content = self.fetch(client, 320, self.save("photo.jpg", photo_bytes(size)))

        assert response["Content-Type"] == "image/webp"
        assert Image.open(io.BytesIO(content)).size == wanted

    def test_rendition__of_a_photo_of_12_megapixels_is_small_enough_for_a_phone(self, client):
        original = photo_bytes((4000, 3000), quality=95)
        _, content = self.fetch(client, 640, self.save("photo.jpg", original))
        assert len(content) < min(100_000, len(original) / 10)

    def test_rendition__stands_upright_without_metadata(self, client):
        turned = self.save("turned.jpg", photo_bytes((600, 400), orientation=6))
        _, content = self.fetch(client, 160, turned)
        picture = Image.open(io.BytesIO(content))
        assert picture.width > picture.height
        assert not picture.getexif()

    def test_rendition__is_made_once_and_anew_when_the_original_is_another(self, client):
        name = self.save("shoe.png", plain_bytes("red"))
        self.fetch(client, 160, name)
        stored = default_storage.path(f"renditions/160/{name}.webp")
        first_at = os.stat(stored).st_mtime_ns
        self.fetch(client, 160, name)
        assert os.stat(stored).st_mtime_ns == first_at

        Path(default_storage.path(name)).write_bytes(plain_bytes("blue"))
        os.utime(default_storage.path(name), ns=(first_at + 10**9, first_at + 10**9))
        _, content = self.fetch(client, 160, name)

        red, _, blue = Image.open(io.BytesIO(content)).convert("RGB").getpixel((0, 0))
        assert blue > red
        assert os.listdir(Path(stored).parent) == [Path(stored).name]

    @pytest.mark.parametrize("content", [None, b"", b"not a picture", photo_bytes((64, 64))[:200]])
    def test_rendition__of_a_broken_or_missing_original_is_a_drawn_stand_in(self, client, content):
        name = "products/missing.jpg" if content is None else self.save("broken.jpg", content)
        response, _ = self.fetch(client, 320, name)
        assert (response.status_code, response["Location"]) == (302, "/static/example_shop/no-picture.svg")

    @pytest.mark.parametrize("name", ["products/../../secret.jpg", "products/\0.jpg", f"products/{'x' * 500}.jpg"])
    def test_rendition__of_a_name_that_no_file_has_is_the_stand_in(self, client, name):
        assert self.fetch(client, 320, name)[0].status_code == 302

    @pytest.mark.parametrize(("side", "name"), [(321, "products/boot.jpg"), (320, "exports/customers.jpg")])
    def test_rendition__of_another_size_or_folder_is_not_found(self, client, side, name):
        assert self.fetch(client, side, name)[0].status_code == 404

    def test_cards__offer_the_browser_small_pictures_alone(self, client, shoes):
        add_product(shoes, "boot", images=1)
        page = client.get(reverse("products")).text
        assert 'srcset="/pictures/160/products/boot-0.png 160w, /pictures/320/' in page
        assert "/media/" not in page

    def test_loading__that_removes_a_picture_removes_what_was_made_of_it(
        self, client, shoes, django_capture_on_commit_callbacks
    ):
        image = add_product(shoes, "boot", images=1).images.get()
        self.fetch(client, 160, image.image.name)
        with django_capture_on_commit_callbacks(execute=True):
            delete_image(image)
        assert default_storage.listdir("renditions/160/products") == ([], [])


class TestLanguage:
    @pytest.fixture(autouse=True)
    def _default_language_again(self):
        """Reset the language: a request leaves its own active in the thread."""
        yield
        translation.deactivate()

    def test_pages__follow_the_browser(self, client, shoes):
        product = add_product(shoes, "boot", price=Decimal("1299.50"), stock=3)
        german = client.get(product.get_absolute_url(), headers={"Accept-Language": "de-AT,de;q=0.9"}).text

        assert '<html lang="de" dir="ltr">' in german
        for text in ("1.299,50 $", "Auf Lager", "Kategorie", "Noch keine Beschreibung."):
            assert text in german

    def test_pages__in_a_language_that_is_read_from_the_right_say_so(self, client):
        assert '<html lang="ar" dir="rtl">' in client.get("/", headers={"Accept-Language": "ar"}).text

    def test_language__chosen_in_the_footer_stays(self, client, shoes):
        response = client.post(reverse("set_language"), {"language": "de", "next": "/products/?sort=name"})

        assert response["Location"] == "/products/?sort=name"
        assert "Alle Produkte" in client.get("/products/").text


def test_server_error_page__needs_neither_request_nor_database(client, django_assert_num_queries):
    with django_assert_num_queries(0):
        response = server_error(RequestFactory().get("/"))
    assert response.status_code == 500
    assert "Something went wrong" in response.text


@pytest.mark.parametrize("address", ["/", "/products/", "/products/boot/", "/nothing/", "/search-by-photo/"])
def test_pages__carry_nothing_inline(client, shoes, address):
    """A Content-Security-Policy of default-src 'self' blocks it."""
    add_product(shoes, "boot", images=1)
    page = client.get(address).text
    assert not re.search(r"\sstyle=|<style|\son[a-z]+=|<script(?![^>]*\ssrc=)|data:", page)


class TestAdmin:
    def test_changelist__asks_the_database_as_often_for_many_as_for_few(
        self, admin_client, shoes, django_assert_max_num_queries
    ):
        address = reverse("admin:example_shop_product_changelist")
        add_product(shoes, "boot", images=1)
        with django_assert_max_num_queries(20) as few:
            assert "boot-0.png" in admin_client.get(address).text
        for number in range(5):
            add_product(shoes, f"boot-{number}", images=2)

        with django_assert_max_num_queries(len(few)):
            admin_client.get(address)

    def test_changelist__finds_by_name_sku_and_brand(self, admin_client, shoes):
        acme = Brand.objects.create(name="Acme", slug="acme")
        add_product(shoes, "b-1", name="Boot", brand=acme)
        add_product(shoes, "s-1", name="Sandal")

        for words in ("boot", "b-1", "acme"):
            page = admin_client.get(reverse("admin:example_shop_product_changelist"), {"q": words}).text
            assert "Boot" in page
            assert "Sandal" not in page

    def test_changelist__offers_to_reindex(self, admin_client, shoes):
        add_product(shoes, "boot")
        page = admin_client.get(reverse("admin:example_shop_product_changelist")).text
        assert 'value="reindex_selected_products"' in page

    @pytest.mark.parametrize("images", [0, 2])
    def test_change_page__shows_the_images(self, admin_client, shoes, images):
        product = add_product(shoes, "boot", images=images)
        page = admin_client.get(reverse("admin:example_shop_product_change", args=[product.pk])).text
        assert page.count("border-radius: 4px") == images

    @pytest.mark.parametrize("model", ["category", "brand"])
    def test_other_models__have_their_pages(self, admin_client, model):
        assert admin_client.get(reverse(f"admin:example_shop_{model}_changelist")).status_code == 200


def test_search_pages__stand_inside_the_shop(rf):
    page = render_to_string("visual_search/base.html", request=rf.get("/?q=red+shoe"))

    assert 'class="site-header"' in page
    assert f'action="{reverse("visual_search:search")}"' in page
    assert 'value="red shoe"' in page
