from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html

from example_shop.models import Brand, Category, Product, ProductImage
from visual_search.admin import reindex_selected_products

THUMBNAIL_PX = 56


def thumbnail(row: ProductImage | None) -> str:
    """Return a small square of the row's image, or a dash."""
    if row is None or not row.image:
        return "–"
    return format_html(
        '<img src="{}" alt="" width="{}" height="{}" loading="lazy" style="object-fit: cover; border-radius: 4px">',
        row.image.url,
        THUMBNAIL_PX,
        THUMBNAIL_PX,
    )


class NamedAdmin(admin.ModelAdmin):
    list_display = ["name", "slug"]
    search_fields = ["name"]
    prepopulated_fields = {"slug": ["name"]}


@admin.register(Category)
class CategoryAdmin(NamedAdmin):
    pass


@admin.register(Brand)
class BrandAdmin(NamedAdmin):
    pass


class ProductImageInline(admin.TabularInline):
    model = ProductImage
    fields = ["preview", "image", "position"]
    readonly_fields = ["preview"]
    extra = 1

    @admin.display(description="")
    def preview(self, row: ProductImage) -> str:
        return thumbnail(row)


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    list_display = ["main_image", "name", "category", "price", "stock", "is_published"]
    list_display_links = ["main_image", "name"]
    list_editable = ["is_published"]
    list_filter = ["is_published", "category", "brand"]
    list_select_related = ["category"]
    search_fields = ["name", "sku", "brand__name"]
    autocomplete_fields = ["category", "brand"]
    prepopulated_fields = {"slug": ["name"]}
    inlines = [ProductImageInline]
    actions = [reindex_selected_products]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Product]:
        return super().get_queryset(request).prefetch_related("images")

    @admin.display(description="image")
    def main_image(self, product: Product) -> str:
        # Not .first(): it would ignore the prefetched images and query the database for each row.
        return thumbnail(next(iter(product.images.all()), None))
