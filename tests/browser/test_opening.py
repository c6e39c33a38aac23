"""A shop on its first day, with real photos: shoppers who come before the index is ready are served afterwards."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import LiveShop
from tests.browser.storefront import HITS, choose, expect_first, said
from tests.conftest import REQUIRED, skip_or_fail
from tests.quality.test_quality import DATA

if TYPE_CHECKING:
    from playwright.sync_api import Page

# Products that are easy to tell apart on a phone photo. tests/quality/test_quality.py measures quality, not this test.
GROCERIES = ["Banana", "Pineapple", "Carrots", "Watermelon", "Avocado"]
DRAWN = ["Terracotta mug", "Sage bowl"]  # the first of the catalogue, if the real photos are not available


@pytest.fixture
def new_shop(starter_folder: Path, tmp_path: Path) -> Iterator[LiveShop]:
    """A running shop with an empty database."""
    opening = LiveShop(tmp_path, starter_folder)
    try:
        opening.manage("migrate", "--verbosity", "0")
        opening.serve()
        yield opening
    finally:
        for name in list(opening.processes):
            opening.stop(name)


def catalogue(folder: Path) -> Path:
    """Write a catalogue of a few groceries, with their own pictures."""
    path = folder / "products.csv"
    with (DATA / "products.csv").open(newline="") as lines, path.open("w", newline="") as out:
        written = csv.writer(out)
        written.writerow(["id", "name", "category", "images"])
        for row in csv.DictReader(lines):
            if row["name"] in GROCERIES:
                written.writerow([row["product_id"], row["name"], row["category"], (DATA / row["image"]).resolve()])
    return path


def phone_photos() -> dict[str, bytes]:
    """Return one shopper's photo for each product, by product name."""
    with (DATA / "products.csv").open(newline="") as lines:
        names = {row["product_id"]: row["name"] for row in csv.DictReader(lines)}
    found: dict[str, bytes] = {}
    with (DATA / "photos.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            name = names[row["product_id"]]
            if row["split"] == "val" and name in GROCERIES and name not in found:
                found[name] = (DATA / row["photo"]).read_bytes()
    return found


@pytest.fixture
def stock(tmp_path: Path, snapshots: Callable[..., bytes]) -> tuple[list[str], dict[str, bytes]]:
    """The catalogue to load, and shoppers' photos by product. Real photos if they are available.

    Source: Grocery Store Dataset, Klasson, Zhang and Kjellström, WACV 2019, arXiv:1901.00711.
    """
    if (DATA / "photos.csv").exists():
        return [str(catalogue(tmp_path))], phone_photos()
    if "grocery" in REQUIRED:
        skip_or_fail("grocery", f"the grocery photos are not in {str(DATA)!r}; name their folder with DATA=")
    mug, bowl = DRAWN
    return ["drawn", "--limit", "2"], {mug: snapshots(mug, beside=bowl), bowl: snapshots(bowl, beside=mug)}


def test_shop_that_says_try_again__is_asked_again_until_it_finds(
    new_page: Callable[..., Page], new_shop: LiveShop, stock: tuple[list[str], dict[str, bytes]]
) -> None:
    source, photos = stock
    page = new_page(f"{new_shop.address}/search-by-photo/")
    name = next(iter(photos))
    choose(page, photos[name])
    expect(said(page)).to_have_text(re.compile(r"Trying again in \d+ s"), timeout=60_000)
    new_shop.start_worker()
    new_shop.manage("load_catalog", *source)
    expect(page.locator(HITS)).to_have_count(len(photos), timeout=60_000)
    expect(page.locator("[data-vs-error]")).to_be_empty()
    for name, photo in photos.items():
        choose(page, photo)
        expect_first(page, name)
