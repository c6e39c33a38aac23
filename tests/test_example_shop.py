from __future__ import annotations

import io
from decimal import Decimal

import pytest
from django.core.files.base import ContentFile
from django.template.loader import render_to_string
from django.urls import reverse
from PIL import Image

from example_shop.models import Brand, Category, Product, ProductImage
from example_shop.views import PAGE_SIZE

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

        page = client.get(reverse("home")).text

        assert "Product boot" in page
        assert "Product draft" not in page
        assert "1 product<" in page

    def test_home__by_category_shows_that_category(self, client, shoes):
        hats = Category.objects.create(name="Hats", slug="hats")
        add_product(shoes, "boot")
        add_product(hats, "cap")

        page = client.get(reverse("home"), {"category": "hats"}).text

        assert "Product cap" in page
        assert "Product boot" not in page

    @pytest.mark.parametrize("slug", ["nothing", "empty", "\0", "x" * 5000])
    def test_home__by_category_without_products_is_not_found(self, client, shoes, slug):
        Category.objects.create(name="Empty", slug="empty")
        add_product(shoes, "boot")
        assert client.get(reverse("home"), {"category": slug}).status_code == 404

    def test_home__pages_keep_the_category(self, client, shoes):
        for number in range(PAGE_SIZE + 1):
            add_product(shoes, f"boot-{number:02}")

        first = client.get(reverse("home"), {"category": "shoes"}).text
        second = client.get(reverse("home"), {"category": "shoes", "page": "2"}).text

        assert 'href="?category=shoes&amp;page=2"' in first
        assert (first.count('class="card"'), second.count('class="card"')) == (PAGE_SIZE, 1)

    @pytest.mark.parametrize("page", ["nonsense", "0", "99999999999999999999"])
    def test_home__with_a_wrong_page_shows_one_that_is_there(self, client, shoes, page):
        add_product(shoes, "boot")
        assert "Product boot" in client.get(reverse("home"), {"page": page}).text

    def test_home__asks_the_database_as_often_for_many_as_for_few(self, client, shoes, django_assert_max_num_queries):
        add_product(shoes, "boot", images=1)
        with django_assert_max_num_queries(10) as few:
            client.get(reverse("home"))
        for number in range(5):
            add_product(shoes, f"boot-{number}", images=2)

        with django_assert_max_num_queries(len(few)):
            client.get(reverse("home"))


class TestProduct:
    def test_product__shows_what_there_is(self, client, shoes):
        acme = Brand.objects.create(name="Acme", slug="acme")
        product = add_product(
            shoes, "boot", images=2, brand=acme, price=Decimal("1299.50"), stock=3, description="Warm.\nDry."
        )

        page = client.get(product.get_absolute_url()).text

        for text in ("Product boot", "$1,299.50", "In stock", "Acme", "?category=shoes", "Warm.<br>Dry.", "#image-2"):
            assert text in page

    def test_product__without_image_price_stock_or_description_says_so(self, client, shoes):
        page = client.get(add_product(shoes, "boot").get_absolute_url()).text

        for text in ("There is no image of this product yet.", "Out of stock", "No description yet."):
            assert text in page
        assert "$" not in page

    def test_product__escapes_what_merchants_typed(self, client, shoes):
        product = add_product(shoes, "boot", name="<b>Boot</b>", description="<script>alert(1)</script>")

        page = client.get(product.get_absolute_url()).text

        assert "<b>Boot" not in page
        assert "<script" not in page

    def test_product__shows_others_of_its_category(self, client, shoes):
        product = add_product(shoes, "boot")
        add_product(shoes, "sandal")
        add_product(shoes, "draft", is_published=False)

        page = client.get(product.get_absolute_url()).text

        assert "Product sandal" in page
        assert "Product draft" not in page

    def test_product__unpublished_is_not_found(self, client, shoes):
        product = add_product(shoes, "draft", is_published=False)

        response = client.get(product.get_absolute_url())

        assert response.status_code == 404
        assert "This page is not here" in response.text


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
