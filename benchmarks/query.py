"""Measure searches without the encoder, similar products and facets.

    python -m benchmarks.query [--products 10000] [--searches 60]

Searches a catalogue with 1 and with 3 images per product with a 640-pixel JPEG, on SQLite, with the starter, in one
process. The catalogue's vectors are drawn around 200 centres; all pictures are one file. Prints medians (p50) and p95.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.shop import percentiles, temporary_shop
from tests.drawings import photo_bytes

API = "/api/visual-search/v1/"
WARM_UP = 5  # the first requests fill caches
ENCODING = ("encode", "background", "wait")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=10_000)
    parser.add_argument("--searches", type=int, default=60)
    options = parser.parse_args()
    with temporary_shop():
        from django.core.cache import cache

        for images in (1, 3):
            cache.clear()
            fill(options.products, images)
            print(f"\n{options.products} products with {images} image(s) each")
            measure(options.searches)


def fill(products: int, images: int) -> None:
    """Write products with random vectors into the tables, as a drain would."""
    from django.core.files.base import ContentFile

    from example_shop.models import Brand, Category, Product, ProductImage
    from visual_search.catalog import get_catalog
    from visual_search.index import versions
    from visual_search.models import Embedding, FeedState, IndexMark, point_id
    from visual_search.search import warm_up

    Product.objects.all().delete()
    versions.reset_index()
    version = versions.ensure_active()
    dice = np.random.default_rng(0)
    centres = dice.standard_normal((200, version.dim)).astype(np.float32)
    categories = [Category.objects.get_or_create(slug=f"c{n}", defaults={"name": f"C{n}"})[0] for n in range(20)]
    brands = [Brand.objects.get_or_create(slug=f"b{n}", defaults={"name": f"B{n}"})[0] for n in range(50)]
    rows = [
        Product(
            sku=f"q{n}", slug=f"q{n}", name=f"Product {n}", description="A thing in words. " * 20, price=n % 997 + 1,
            category=categories[n % 20], brand=brands[n % 50], stock=n % 5,
        )
        for n in range(products)
    ]  # fmt: skip
    Product.objects.bulk_create(rows, batch_size=500)
    first = ProductImage(product=rows[0], position=0)
    first.image.save("one.jpg", ContentFile(photo_bytes((64, 64))), save=False)
    name = first.image.name
    pictures = [ProductImage(product=row, image=name, position=place) for row in rows for place in range(images)]
    ProductImage.objects.bulk_create(pictures, batch_size=500)
    catalog = get_catalog()
    payloads = {product.pk: catalog.payload(product) for product in catalog.queryset()}
    vectors = centres[dice.integers(200, size=len(pictures))]
    vectors = vectors + dice.standard_normal(vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    Embedding.objects.bulk_create(
        (
            Embedding(
                id=point_id(version.pk, str(picture.product_id), str(picture.pk)), version=version,
                product_key=str(picture.product_id), image_key=str(picture.pk), image_identity=picture.image.name,
                digest="", is_main=not picture.position, vector=vector.astype("<f2").tobytes(),
                payload=payloads[picture.product_id], seq=seq,
            )
            for seq, (picture, vector) in enumerate(zip(pictures, vectors, strict=True), start=1)
        ),
        batch_size=500,
    )  # fmt: skip
    state, _ = FeedState.objects.get_or_create(pk=1)
    FeedState.objects.filter(pk=state.pk).update(last_seq=len(pictures))
    IndexMark.objects.all().delete()
    warm_up()


def measure(searches: int) -> None:
    from django.core.files.uploadedfile import SimpleUploadedFile
    from django.test import Client

    from example_shop.models import Product

    client = Client()
    keys = list(Product.objects.values_list("pk", flat=True)[: searches + WARM_UP])
    photos = [photo_bytes((640, 480), seed=seed) for seed in range(searches + WARM_UP)]

    def photo(number: int) -> Any:
        upload = SimpleUploadedFile("photo.jpg", photos[number], content_type="image/jpeg")
        return client.post(f"{API}search/", {"photo": upload})

    def get(view: str, **fields: Any) -> Any:
        return client.get(f"{API}{view}/", fields)

    def filtered(number: int) -> Any:
        upload = SimpleUploadedFile("photo.jpg", photos[number][:-2] + b"\0\xff\xd9", content_type="image/jpeg")
        return client.post(f"{API}search/", {"photo": upload, "category": "c1", "max_price": "500"})

    print_times("photo search, without encoding", photo, searches, target="under 15", without=ENCODING)
    print_times("the same, filtered", filtered, searches, target="under 15", without=ENCODING)
    print_times("the same photo again (cached)", lambda number: photo(0), searches)
    print_times("text search, without encoding", lambda n: get("search", q=f"a {n}"), searches, without=ENCODING)
    print_times("similar", lambda n: get("similar", product=keys[n]), searches, target="under 10")
    print_times("similar, a page of 24", lambda n: get("similar", product=keys[n], limit=24), searches)
    print_times("facets", lambda n: get("facets"), searches, target="under 5")
    print_times("facets, filtered", lambda n: get("facets", min_price=n), searches, target="under 5")
    print_times("facets of a category", lambda n: get("facets", category=f"c{n % 20}"), searches, target="under 5")


def print_times(
    name: str, ask: Callable[[int], Any], searches: int, *, target: str = "", without: tuple[str, ...] = ()
) -> None:
    """Print the percentiles of whole requests minus the stages in `without`, and the medians of the stages."""
    times, stages = [], {}
    for number in range(searches + WARM_UP):
        started = time.perf_counter()
        answer = ask(number)
        whole = (time.perf_counter() - started) * 1000
        assert answer.status_code == 200, answer.content
        durations = dict(part.split(";dur=") for part in answer["Server-Timing"].split(", "))
        if number >= WARM_UP:
            times.append(whole - sum(float(durations.get(stage, 0)) for stage in without))
            for stage, ms in durations.items():
                stages.setdefault(stage, []).append(float(ms))
    parts = ", ".join(f"{stage} {sorted(ms)[len(ms) // 2]:.1f}" for stage, ms in stages.items() if max(ms) >= 0.05)
    print(f"  {name:<32} {percentiles(times)}" + (f" (target: {target})" if target else "") + f"   {parts}")


if __name__ == "__main__":
    main()
