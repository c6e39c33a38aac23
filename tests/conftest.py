"""Fixtures for all tests: the real starter checkpoint, products for the shop, an index in the test's process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest
from django.conf import settings as django_settings
from django.core.cache import cache
from django.core.files.base import ContentFile

from tests.drawings import photo_bytes

# CI uses the same examples each time, so that a failure comes from the change; elsewhere each run uses others.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

REQUIRED = set(filter(None, os.environ.get("REQUIRE", "").split(",")))
# test_postgres.py runs it in a process of its own, on a real PostgreSQL.
collect_ignore = [] if os.environ.get("DATABASE") == "postgres" else ["index/test_concurrency.py"]


def skip_or_fail(name: str, reason: str) -> NoReturn:
    """Skip the test because something is missing; fail it if REQUIRE names what is missing."""
    if name in REQUIRED:
        pytest.fail(f"REQUIRE names {name}, but {reason}")
    pytest.skip(reason)


def own_environment(**values: str) -> dict[str, str]:
    """Return the environment for a shop in its own process, without this process's servers."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PGHOST", "REDIS_URL", "QDRANT_URL")}
    return kept | values


@pytest.fixture(scope="session")
def starter_folder() -> Path:
    """The starter checkpoint, built once from the installed packages' weights."""
    folder = Path(django_settings.VISUAL_SEARCH["CHECKPOINT"])
    from visual_search.vision.starter.build import build

    if not (folder / "model.safetensors").exists():
        build(folder)
    return folder


@pytest.fixture(scope="session")
def starter(starter_folder: Path) -> Any:
    from visual_search.vision.encoder import TransformersEncoder

    return TransformersEncoder(str(starter_folder))


@pytest.fixture(autouse=True)
def _media(settings: Any, tmp_path: Path) -> None:
    settings.MEDIA_ROOT = tmp_path / "media"


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    """Clear the photos, embeddings and request counts of the previous test."""
    cache.clear()


@pytest.fixture
def index(starter_folder: Path) -> Iterator[Any]:
    """Index products in this process: on `index.drain()`, or automatically where transactions commit."""
    from visual_search.test import IndexNow

    with IndexNow() as active:
        yield active


@pytest.fixture
def make_product(db: Any) -> Callable[..., Any]:
    """Return a function that saves a product with drawn images; `seed` determines them."""
    from example_shop.models import Brand, Category, Product, ProductImage

    def make(
        seed: int, *, category: str = "shoes", brand: str = "acme", images: int = 1, name: str = "", **values: Any
    ) -> Product:
        product = Product.objects.create(
            sku=f"sku-{seed}",
            slug=f"product-{seed}",
            name=name or f"Product {seed}",
            category=Category.objects.get_or_create(slug=category, defaults={"name": category.title()})[0],
            brand=Brand.objects.get_or_create(slug=brand, defaults={"name": brand.title()})[0] if brand else None,
            **{"price": "10.00", "stock": 1} | values,
        )
        for position in range(images):
            picture = ContentFile(photo_bytes(seed=seed * 100 + position), name=f"{seed}-{position}.jpg")
            ProductImage.objects.create(product=product, image=picture, position=position)
        return product

    return make
