"""Real phone photos in a real browser: scaling them down before sending costs no hits."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, expect

from benchmarks.grocery import DATA, GETTING_THE_DATA
from tests.browser.conftest import PATIENCE_MS, LiveShop
from tests.browser.storefront import choose, expect_idle, titles
from tests.conftest import skip_or_fail
from tests.shops import wait_for

if TYPE_CHECKING:
    from pathlib import Path

PHOTOS = 24  # one per product; each is sent twice, and a shopper may send 60 a minute
LOSS = 1  # hits that scaling down may cost


@pytest.fixture(scope="module")
def grocery(starter_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveShop]:
    """A shop with the 81 groceries, indexed by its worker."""
    if not (DATA / "photos.csv").exists():
        skip_or_fail("grocery", GETTING_THE_DATA.format(folder=DATA))
    live = LiveShop(tmp_path_factory.mktemp("grocery"), starter_folder)
    try:
        live.manage("migrate", "--verbosity", "0")
        live.start_worker()
        live.manage("load_catalog", str(DATA.resolve() / "products.csv"))
        live.wait(indexed=81)
        live.serve()
        wait_for(lambda: live.answers("/search-by-photo/?q=apple"), live)
        yield live
    finally:
        for name in list(live.processes):
            live.stop(name)


def test_phone_photos__find_as_much_as_the_files_themselves(browser: Browser, grocery: LiveShop) -> None:
    """Source of the photos: Grocery Store Dataset, Klasson, Zhang and Kjellström, WACV 2019, arXiv:1901.00711."""
    names = {row["product_id"]: row["name"] for row in rows("products.csv")}
    photos = {row["product_id"]: row["photo"] for row in rows("photos.csv") if row["split"] == "val"}
    page = browser.new_page(base_url=grocery.address)
    page.goto("/search-by-photo/")
    by_widget, by_file = [], []
    for product, photo in list(photos.items())[:PHOTOS]:
        data = (DATA / photo).read_bytes()
        choose(page, data)
        expect(page.locator("[data-vs-said]")).to_contain_text("found", timeout=PATIENCE_MS)
        expect_idle(page)
        by_widget.append(names[product] in titles(page)[:10])
        upload = {"photo": {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": data}, "limit": "10"}
        answer = page.request.post("/api/visual-search/v1/search/", multipart=upload)
        by_file.append(names[product] in [hit["title"] for hit in answer.json()["results"]])
    page.close()
    print(f"among the first ten: {sum(by_widget)} by the widget, {sum(by_file)} by the file, of {PHOTOS}")  # noqa: T201
    assert sum(by_file) > PHOTOS / 2
    assert sum(by_widget) >= sum(by_file) - LOSS


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(newline="") as lines:
        return list(csv.DictReader(lines))
