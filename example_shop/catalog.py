"""Describe this shop's products to the search."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from django.db.models import QuerySet
from django.db.models.fields.files import FieldFile
from django.utils.translation import gettext

from example_shop.models import Brand, Category, Product
from example_shop.prices import format_price
from example_shop.renditions import CARD_SIDE_PX, rendition_url
from visual_search.catalog import Boolean, Catalog, Keyword, Number


class ProductCatalog(Catalog):
    model = Product
    images = "images"
    product_id_field = "sku"
    text = "{name}. {description}"
    filters = {
        "category": Keyword("category.slug"),
        "brand": Keyword("brand.slug"),
        "price": Number("price"),
        "in_stock": Boolean("in_stock"),
    }

    def queryset(self) -> QuerySet[Product]:
        return Product.objects.on_show()

    def subtitle(self, product: Product) -> str:
        return format_price(product.price)

    def thumbnail(self, image: FieldFile) -> str:
        return rendition_url(image.name, CARD_SIDE_PX)

    def filter_label(self, name: str) -> str:
        labels = {
            "category": gettext("Category"),
            "brand": gettext("Brand"),
            "price": gettext("Price"),
            "in_stock": gettext("In stock"),
        }
        return labels[name]

    def value_labels(self, name: str, values: Collection[str]) -> Mapping[str, str]:
        model = {"category": Category, "brand": Brand}[name]
        return dict(model.objects.filter(slug__in=values).values_list("slug", "name"))
