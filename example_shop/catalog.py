"""All that the search needs to know about this shop."""

from __future__ import annotations

from django.db.models import QuerySet

from example_shop.models import Product
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
        published = Product.objects.filter(is_published=True)
        return published.select_related("category", "brand").prefetch_related("images")
