from __future__ import annotations

from django.core.paginator import Paginator
from django.db.models import Count, OuterRef, Q, QuerySet, Subquery
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render

from example_shop.listing import ListingForm
from example_shop.models import Category, Product, ProductImage

PAGE_SIZE = 24
NEW_PRODUCTS = 8
MORE_PRODUCTS = 4


def home(request: HttpRequest) -> HttpResponse:
    """Show the ways into the shop: by photo, by category, by what is new."""
    if slug := request.GET.get("category"):  # categories' addresses looked so once
        return redirect(get_object_or_404(Category, slug=slug.replace("\0", "")), permanent=True)
    context = {
        "categories": categories_with_products(),
        "products": published_products().order_by("-pk")[:NEW_PRODUCTS],
    }
    return render(request, "example_shop/home.html", context)


def listing(request: HttpRequest, slug: str | None = None) -> HttpResponse:
    """Show the published products, of one category or of all, narrowed and sorted as the address says."""
    categories = categories_with_products()
    category = next((one for one in categories if one.slug == slug), None)
    if slug and not category:
        raise Http404(f"No category {slug!r} has products.")
    products = published_products()
    if category:
        products = products.filter(category=category)
    form = ListingForm(request.GET, products)
    form.is_valid()
    page = Paginator(form.narrow(products), PAGE_SIZE).get_page(request.GET.get("page"))
    context = {"categories": categories, "category": category, "form": form, "chips": form.chips(), "page": page}
    return render(request, "example_shop/listing.html", context)


def product(request: HttpRequest, slug: str) -> HttpResponse:
    """Show one published product, with a few others of its category."""
    found = get_object_or_404(published_products(), slug=slug)
    more = published_products().filter(category=found.category).exclude(pk=found.pk)[:MORE_PRODUCTS]
    return render(request, "example_shop/product.html", {"product": found, "more": more})


def published_products() -> QuerySet[Product]:
    return Product.objects.filter(is_published=True).select_related("category", "brand").prefetch_related("images")


def categories_with_products() -> list[Category]:
    """Return the categories a shopper can choose, each with its `product_count` and a `picture` (a storage name)."""
    published = Count("products", filter=Q(products__is_published=True))
    pictures = ProductImage.objects.filter(product__category=OuterRef("pk"), product__is_published=True)
    picture = Subquery(pictures.order_by("position", "pk").values("image")[:1])
    found = Category.objects.annotate(product_count=published, picture=picture)
    return list(found.filter(product_count__gt=0))
