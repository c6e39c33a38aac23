"""Simulate a shop's other processes while workers index: `python -m tests.traffic import|search|save FOLDER`.

Each runs until the folder contains a file named `stop`, then prints its count and its errors as JSON.
"""

from __future__ import annotations

import io
import itertools
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django
from django.core.files.base import ContentFile
from django.db import transaction

from tests.drawings import photo_bytes

PRODUCTS, IMAGES = 150, 3
PICTURES = 40  # drawn images; products share them
BACKLOG = 400  # marks that the writer and the test keep waiting; four claims of 16 products hold 250


def import_products(folder: Path) -> None:
    """Add all products in one transaction."""
    pictures = [photo_bytes(seed=seed) for seed in range(PICTURES)]
    with transaction.atomic():
        for number in range(PRODUCTS):
            add_product(f"p{number}", [pictures[(number + place) % PICTURES] for place in range(IMAGES)])


def add_product(sku: str, pictures: list[bytes]) -> None:
    from example_shop.models import Brand, Category, Product, ProductImage

    category, _ = Category.objects.get_or_create(slug=f"c{len(sku) % 2}", defaults={"name": "Category"})
    brand, _ = Brand.objects.get_or_create(slug="acme", defaults={"name": "Acme"})
    product = Product.objects.create(
        sku=sku, slug=sku, name=f"Product {sku}", category=category, brand=brand, price="10.00", stock=1
    )
    for position, data in enumerate(pictures):
        image = ContentFile(data, name=f"{sku}-{position}.jpg")
        ProductImage.objects.create(product=product, image=image, position=position)


def search_until_stopped(folder: Path) -> None:
    """Search by photo and by text; an empty result is an error too."""
    from visual_search.search import SearchQuery, read_photo, search

    photos = [photo_bytes((320, 240), seed=seed) for seed in range(PICTURES)]

    def search_once(number: int) -> None:
        photo = read_photo(io.BytesIO(photos[number % PICTURES]))
        query = SearchQuery(texts=["a red shape"]) if number % 5 == 4 else SearchQuery(photos=[photo])
        assert search(query).hits, "nothing was found"

    repeat(folder, search_once, pause=0.02)


def save_until_stopped(folder: Path) -> None:
    """Change the shop's data in every possible way, and keep the backlog large."""
    from example_shop.models import Brand, Product, ProductImage
    from visual_search.index.marks import mark_dirty
    from visual_search.models import IndexMark

    rng = random.Random(5)
    names = (f"new{number}" for number in itertools.count())

    def random_product() -> Any:
        return rng.choice(list(Product.objects.order_by("pk")[:PRODUCTS]))

    def change_price() -> None:
        product = random_product()
        product.price, product.is_published = rng.randint(1, 99), rng.random() < 0.9
        product.save()

    def change_picture() -> None:
        image = ProductImage.objects.filter(product=random_product()).first()
        if image is not None:
            data = photo_bytes(seed=rng.randrange(10**6))
            image.image.save("changed.jpg", ContentFile(data))

    def replace_product() -> None:
        with transaction.atomic():
            random_product().delete()
            add_product(next(names), [photo_bytes(seed=rng.randrange(10**6))])

    def update_without_signals() -> None:
        Product.objects.filter(pk=random_product().pk).update(price=rng.randint(100, 199))

    def rename_brand() -> None:
        Brand.objects.get(slug="acme").save()

    changes = [change_price, change_price, change_picture, replace_product, update_without_signals]

    def change(number: int) -> None:
        (rename_brand if number % 50 == 49 else rng.choice(changes))()
        if IndexMark.objects.count() < BACKLOG:
            mark_dirty(Product.objects.all(), kind=IndexMark.Kind.FORCED)

    repeat(folder, change, pause=0.1)


def repeat(folder: Path, work: Callable[[int], None], *, pause: float) -> None:
    done, errors = 0, []
    while not (folder / "stop").exists():
        try:
            work(done)
        except Exception as error:  # the test reads it from the output
            errors.append(f"{type(error).__name__}: {error}")
        done += 1
        if done == 1:
            print_line("ready")
        time.sleep(pause)
    print_line(json.dumps({"done": done, "errors": errors}))


def print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


COMMANDS = {"import": import_products, "search": search_until_stopped, "save": save_until_stopped}

if __name__ == "__main__":
    django.setup()
    COMMANDS[sys.argv[1]](Path(sys.argv[2]))
