"""Errors in the browser, each from its real cause: one clear sentence, and a form that works afterwards."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import LiveShop
from tests.browser.storefront import (
    HITS,
    action,
    choose,
    expect_error,
    expect_first,
    expect_idle,
    focused,
    give,
    said,
    slow_down,
    titles,
    uploads,
)
from tests.drawings import NOT_IMAGES, heic_header, photo_bytes

if TYPE_CHECKING:
    from playwright.sync_api import Page

OpenPage = Callable[..., "Page"]


def expect_usable(page: Page, photo: bytes) -> None:
    """Check that the next photo finds its product as usual."""
    assert not focused(page).startswith("BODY") or page.evaluate("document.hasFocus()")
    choose(page, photo)
    expect_first(page, "Sage chair")
    expect(page.locator("[data-vs-error]")).to_be_empty()


# Files that are not photos

BAD_FILES: dict[str, tuple[str, str, bytes, str]] = {
    "text": ("letter.txt", "text/plain", NOT_IMAGES["text"], "photo_unsupported"),
    "text that is called a photo": ("photo.jpg", "image/jpeg", NOT_IMAGES["text"], "photo_unsupported"),
    "empty": ("photo.jpg", "image/jpeg", b"", "photo_empty"),
    "broken": ("photo.jpg", "image/jpeg", photo_bytes(seed=1)[:200], "photo_damaged"),
    "broken HEIC": ("IMG_1.HEIC", "image/heic", heic_header(), "photo_damaged"),
    "too small": ("dot.png", "image/png", photo_bytes((1, 1), format="PNG"), "photo_too_small"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_file_that_is_no_good_photo__is_refused_in_one_sentence(page: Page, snapshots: Any, kind: str) -> None:
    name, mime, data, code = BAD_FILES[kind]
    choose(page, data, name, mime)
    expect_error(page, code)
    expect(said(page)).to_be_empty()
    expect(page.locator("[data-vs-choose]")).to_be_visible()
    expect_usable(page, snapshots())


def test_file_that_is_too_large_to_be_sent_as_it_is__is_refused_before(
    page: Page, tmp_path: Path, snapshots: Any
) -> None:
    large = tmp_path / "IMG_1.HEIC"
    large.write_bytes(heic_header() + bytes(21 * 2**20))
    sent = uploads(page)
    page.locator("[data-vs-file]").set_input_files(large)
    expect(expect_error(page, "photo_too_large")).to_contain_text("20 MB")
    assert sent == []
    expect_usable(page, snapshots())


def test_two_files__are_refused(page: Page, snapshots: Any) -> None:
    give(page, "drop", snapshots(), photo_bytes(seed=1), to="[data-vs-photo]")
    expect_error(page, "photo_not_single")
    expect_usable(page, snapshots())


def test_pasted_text__is_refused_and_may_go_into_the_field(page: Page, snapshots: Any) -> None:
    paste = """selector => {
      const data = new DataTransfer();
      data.setData("text/plain", "a lamp");
      const event = new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData: data });
      document.querySelector(selector).dispatchEvent(event);
      return event.defaultPrevented;
    }"""
    page.evaluate(paste, "body")
    expect_error(page, "text_pasted")
    expect_usable(page, snapshots())
    assert page.evaluate(paste, "#vs-text") is False
    expect(page.locator("[data-vs-error]")).to_be_empty()


def test_nothing_asked__says_what_is_wanted(page: Page, snapshots: Any) -> None:
    page.locator("[data-vs-form] button[type=submit]").click()
    expect_error(page, "query_empty")
    expect_usable(page, snapshots())


@pytest.mark.parametrize(
    ("crop", "code"), [("0.5,0.5,3,3", "invalid_crop"), ("a", "invalid_crop"), ("0,0,0.001,0.001", "crop_too_small")]
)
def test_crop_outside_of_the_picture__is_refused(new_page: OpenPage, snapshots: Any, crop: str, code: str) -> None:
    page = new_page()
    choose(page, snapshots())
    expect_first(page, "Sage chair")
    page.goto(f"{page.url}&crop={crop}")
    expect_error(page, code)
    page.locator("[data-vs-form] button[type=submit]").click()
    expect_first(page, "Sage chair")
    expect(page.locator("[data-vs-error]")).to_be_empty()


def test_double_submit__gives_one_set_of_results(page: Page, snapshots: Any) -> None:
    choose(page, snapshots())
    expect_first(page, "Sage chair")
    page.get_by_label("In words").fill("a lamp")
    page.locator("[data-vs-form] button[type=submit]").dblclick()
    expect(page).to_have_url(re.compile("text="))
    expect_idle(page)
    expect(page.locator(HITS)).to_have_count(12)
    expect(page.locator("[data-vs-error]")).to_be_empty()
    page.go_back()
    expect(page.get_by_label("In words")).to_have_value("")


# Expired photos


def test_expired_photo_that_the_tab_still_has__is_sent_again_silently(
    page: Page, shop: LiveShop, snapshots: Any
) -> None:
    choose(page, snapshots())
    expect_first(page, "Sage chair")
    shop.forget_photos()
    sent = uploads(page)
    page.get_by_label("In words").fill("a lamp")
    page.get_by_label("In words").press("Enter")
    expect(page).to_have_url(re.compile("text="))
    expect_idle(page)
    expect(page.locator("[data-vs-error]")).to_be_empty()
    assert len(sent) == 1
    assert any("lamp" in title for title in titles(page)[:4])


def test_reload_with_an_expired_photo__sends_it_again(page: Page, shop: LiveShop, snapshots: Any) -> None:
    choose(page, snapshots())
    expect_first(page, "Sage chair")
    shop.forget_photos()
    page.reload()
    expect_first(page, "Sage chair")
    expect(page.locator("[data-vs-error]")).to_be_empty()
    expect(page.locator("[data-vs-canvas]")).to_be_visible()


def test_expired_photo_in_a_shared_address__asks_for_it(new_page: OpenPage, shop: LiveShop, snapshots: Any) -> None:
    page = new_page()
    choose(page, snapshots())
    expect_first(page, "Sage chair")
    shop.forget_photos()
    other = new_page(page.url)
    expect_error(other, "photo_expired")
    expect_usable(other, snapshots())


# Server and network errors


def test_server_that_is_down__is_told_and_works_when_it_is_back(page: Page, shop: LiveShop, snapshots: Any) -> None:
    shop.stop("web.log")
    try:
        choose(page, snapshots())
        expect_error(page, "network")
        expect(page.locator("[data-vs-canvas]")).to_be_visible()  # the photo is kept
    finally:
        shop.serve()
    page.locator("[data-vs-form] button[type=submit]").click()
    expect(page.locator(HITS).first).to_contain_text("Sage chair", timeout=60_000)  # the encoder is cold
    expect_idle(page)
    expect(page.locator("[data-vs-error]")).to_be_empty()


def test_slow_line__shows_how_far_it_is_and_can_be_cancelled(page: Page, snapshots: Any) -> None:
    slow_down(page, upload=30_000)
    choose(page, snapshots())
    expect(said(page)).to_have_text("Sending your photo …")
    progress = page.get_by_role("progressbar")
    expect(progress).to_be_visible()
    expect(progress).to_have_attribute("value", re.compile(r"^[1-9]\d"))
    action(page, "cancel").click()
    expect(said(page)).to_have_text("Cancelled.")
    expect(progress).to_be_hidden()
    assert not focused(page).startswith("BODY")
    expect(page.locator(HITS)).to_have_count(0)
    expect(page.locator("[data-vs-canvas]")).to_be_visible()

    slow_down(page, upload=0)
    sent = uploads(page)
    page.locator("[data-vs-form] button[type=submit]").click()
    expect_first(page, "Sage chair")
    assert len(sent) == 1


def test_too_many_photos__are_told_to_wait(page: Page, shop: LiveShop, snapshots: Any) -> None:
    codes = {status_of_an_empty_search(shop) for _ in range(70)}
    assert 429 in codes
    choose(page, snapshots())
    error = expect_error(page, "throttled")
    expect(error).to_contain_text("minute")
    expect(page.locator("[data-vs-canvas]")).to_be_visible()
    shop.forget_photos()  # a minute later
    page.locator("[data-vs-form] button[type=submit]").click()
    expect_first(page, "Sage chair")


def status_of_an_empty_search(shop: LiveShop) -> int:
    try:
        return int(urllib.request.urlopen(f"{shop.address}/api/visual-search/v1/search/", b"").status)
    except urllib.error.HTTPError as error:
        return error.code
