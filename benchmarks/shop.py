"""The shop for benchmarks: the example shop in a temporary folder, with drawn pictures."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_shop() -> Iterator[Path]:
    """Set up Django on an empty SQLite database (WAL, IMMEDIATE), which is deleted afterwards."""
    checkpoint = os.environ.get("CHECKPOINT") or str(
        Path(os.environ.get("SHOP_STATE_DIR", ".demo")).resolve() / "starter"
    )
    with tempfile.TemporaryDirectory(prefix="visual-search-benchmark-") as folder:
        os.environ |= {"SHOP_STATE_DIR": folder, "CHECKPOINT": checkpoint}
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_shop.settings")
        import django

        django.setup()
        from django.conf import settings
        from django.core.management import call_command
        from django.test import override_settings

        settings.ALLOWED_HOSTS = ["testserver"]
        call_command("build_starter_checkpoint", checkpoint, verbosity=0)
        call_command("migrate", verbosity=0)
        try:
            with override_settings(VISUAL_SEARCH=settings.VISUAL_SEARCH | {"PHOTO_RATE": None}):  # all from one client
                yield Path(folder)
        finally:
            from visual_search.components import close_stores

            close_stores()


def add_products(count: int, *, images: int = 1, size: tuple[int, int] = (640, 480)) -> None:
    """Add products with drawn pictures. Each gets an index mark."""
    from django.core.files.base import ContentFile
    from django.db import transaction

    from example_shop.models import Category, Product, ProductImage
    from tests.drawings import photo_bytes

    categories = [Category.objects.get_or_create(slug=f"c{n}", defaults={"name": f"C{n}"})[0] for n in range(5)]
    with transaction.atomic():
        for number in range(count):
            product = Product.objects.create(
                sku=f"b{number}",
                slug=f"b{number}",
                name=f"Product {number}",
                category=categories[number % 5],
                price=number % 100 + 1,
                stock=1,
            )
            for position in range(images):
                data = photo_bytes(size, seed=number * 10 + position)
                picture = ContentFile(data, name=f"{number}-{position}.jpg")
                ProductImage.objects.create(product=product, image=picture, position=position)


def percentiles(times_ms: list[float]) -> str:
    ordered = sorted(times_ms)
    return f"p50 {ordered[len(ordered) // 2]:.1f} ms, p95 {ordered[int(len(ordered) * 0.95)]:.1f} ms"
