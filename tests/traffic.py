"""What a shop's other processes do while workers index: `python -m tests.traffic import|search|save FOLDER`.

Each works until a file named `stop` is in the folder, then prints what it did and which errors it met, as JSON.
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
PICTURES = 40  # drawn ones; products share them
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
    """Search by photo and by text; an answer without a product is an error, too."""
    from visual_search.search import SearchQuery, read_photo, search

    photos = [photo_bytes((320, 240), seed=seed) for seed in range(PICTURES)]

    def look(number: int) -> None:
        photo = read_photo(io.BytesIO(photos[number % PICTURES]))
        query = SearchQuery(texts=["a red shape"]) if number % 5 == 4 else SearchQuery(photos=[photo])
        assert search(query).hits, "nothing was found"

    repeat(folder, look, pause=0.02)


def save_until_stopped(folder: Path) -> None:
    """Change the shop in every way that it can change, and keep the backlog large."""
    from example_shop.models import Brand, Product, ProductImage
    from visual_search.index.marks import mark_dirty
    from visual_search.models import IndexMark

    dice = random.Random(5)
    names = (f"new{number}" for number in itertools.count())

    def some() -> Any:
        return dice.choice(list(Product.objects.order_by("pk")[:PRODUCTS]))

    def change_price() -> None:
        product = some()
        product.price, product.is_published = dice.randint(1, 99), dice.random() < 0.9
        product.save()

    def change_picture() -> None:
        image = ProductImage.objects.filter(product=some()).first()
        if image is not None:
            data = photo_bytes(seed=dice.randrange(10**6))
            image.image.save("changed.jpg", ContentFile(data))

    def replace_product() -> None:
        with transaction.atomic():
            some().delete()
            add_product(next(names), [photo_bytes(seed=dice.randrange(10**6))])

    def update_without_signals() -> None:
        Product.objects.filter(pk=some().pk).update(price=dice.randint(100, 199))

    def rename_brand() -> None:
        Brand.objects.get(slug="acme").save()

    changes = [change_price, change_price, change_picture, replace_product, update_without_signals]

    def change(number: int) -> None:
        (rename_brand if number % 50 == 49 else dice.choice(changes))()
        if IndexMark.objects.count() < BACKLOG:
            mark_dirty(Product.objects.all(), kind=IndexMark.Kind.FORCED)

    repeat(folder, change, pause=0.1)


def repeat(folder: Path, work: Callable[[int], None], *, pause: float) -> None:
    done, errors = 0, []
    while not (folder / "stop").exists():
        try:
            work(done)
        except Exception as error:  # this is what the test wants to hear of
            errors.append(f"{type(error).__name__}: {error}")
        done += 1
        if done == 1:
            say("ready")
        time.sleep(pause)
    say(json.dumps({"done": done, "errors": errors}))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


WORKS = {"import": import_products, "search": search_until_stopped, "save": save_until_stopped}

if __name__ == "__main__":
    django.setup()
    WORKS[sys.argv[1]](Path(sys.argv[2]))
