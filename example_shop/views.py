from __future__ import annotations

from django.core.paginator import Paginator
from django.db.models import Count, OuterRef, Q, Subquery
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from example_shop.listing import ListingForm
from example_shop.models import Category, Product, ProductImage

PAGE_SIZE = 24
NEW_PRODUCTS = 8


def home(request: HttpRequest) -> HttpResponse:
    """Show the home page: search by photo, categories and new products."""
    if slug := request.GET.get("category", "").replace("\0", ""):  # the categories' former addresses
        return redirect(get_object_or_404(Category, slug=slug), permanent=True)
    products = Product.objects.on_show().order_by("-pk")[:NEW_PRODUCTS]
    context = {"categories": categories_with_products(), "products": products}
    return render(request, "example_shop/home.html", context)


def listing(request: HttpRequest, slug: str | None = None) -> HttpResponse:
    """Show the published products of one category or of all, filtered and sorted by the query string."""
    categories = categories_with_products()
    category = next((one for one in categories if one.slug == slug), None)
    if slug and not category:
        raise Http404(f"No category {slug!r} has products.")
    products = Product.objects.on_show()
    if category:
        products = products.filter(category=category)
    form = ListingForm(request.GET, products)
    form.is_valid()
    page = Paginator(form.narrow(products), PAGE_SIZE).get_page(request.GET.get("page"))
    context = {"categories": categories, "category": category, "form": form, "chips": form.chips(), "page": page}
    return render(request, "example_shop/listing.html", context)


def product(request: HttpRequest, slug: str) -> HttpResponse:
    """Show one published product."""
    found = get_object_or_404(Product.objects.on_show(), slug=slug)
    return render(request, "example_shop/product.html", {"product": found})


def categories_with_products() -> list[Category]:
    """Return the categories with published products, each with its `product_count` and a `picture` (a storage name)."""
    published = Count("products", filter=Q(products__is_published=True))
    pictures = ProductImage.objects.filter(product__category=OuterRef("pk"), product__is_published=True)
    picture = Subquery(pictures.order_by("position", "pk").values("image")[:1])
    found = Category.objects.annotate(product_count=published, picture=picture)
    return list(found.filter(product_count__gt=0).order_by("name"))
