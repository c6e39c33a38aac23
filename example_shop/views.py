from __future__ import annotations

from django.core.paginator import Paginator
from django.db.models import Count, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render

from example_shop.models import Category, Product

PAGE_SIZE = 24
MORE_PRODUCTS = 4


def home(request: HttpRequest) -> HttpResponse:
    """Show the published products, of one category if the address names it."""
    categories = categories_with_products()
    category = chosen_category(categories, request.GET.get("category"))
    products = published_products()
    if category:
        products = products.filter(category=category)
    page = Paginator(products, PAGE_SIZE).get_page(request.GET.get("page"))
    return render(request, "example_shop/home.html", {"categories": categories, "category": category, "page": page})


def product(request: HttpRequest, slug: str) -> HttpResponse:
    """Show one published product, with a few others of its category."""
    found = get_object_or_404(published_products(), slug=slug)
    more = published_products().filter(category=found.category).exclude(pk=found.pk)[:MORE_PRODUCTS]
    return render(request, "example_shop/product.html", {"product": found, "more": more})


def published_products() -> QuerySet[Product]:
    return Product.objects.filter(is_published=True).select_related("category", "brand").prefetch_related("images")


def categories_with_products() -> list[Category]:
    """Return the categories a shopper can choose, each with its `product_count`."""
    published = Count("products", filter=Q(products__is_published=True))
    return list(Category.objects.annotate(product_count=published).filter(product_count__gt=0))


def chosen_category(categories: list[Category], slug: str | None) -> Category | None:
    if not slug:
        return None
    for category in categories:
        if category.slug == slug:
            return category
    raise Http404(f"No category {slug!r} has products.")
