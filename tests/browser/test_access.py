"""Accessibility: keyboard, screen reader, any width, colour scheme, direction and language, and a stable layout."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.browser.storefront import (
    HITS,
    action,
    choose,
    crop_of,
    expect_error,
    expect_first,
    expect_idle,
    focused,
)
from tests.drawings import NOT_IMAGES

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

OpenPage = Callable[..., "Page"]

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
WIDTHS = [320, 1280]
TARGET_PX = 24  # WCAG 2.2, 2.5.8


def violations(page: Page) -> list[str]:
    """Return the violations that axe-core finds in the current page."""
    import axe_playwright_python

    if not page.evaluate("'axe' in window"):
        # Evaluated, not inserted as a script: the page's policy forbids that.
        page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text())
    found = page.evaluate("rules => axe.run({ runOnly: { type: 'tag', values: rules } })", RULES)
    return [f"{one['id']}: {node['html'][:150]}" for one in found["violations"] for node in one["nodes"]]


def open_filters(page: Page) -> None:
    page.locator("summary", has_text="Filters").first.click()


def empty(page: Page, photo: bytes) -> None:
    """Leave the page as it is when opened."""


def with_results(page: Page, photo: bytes) -> None:
    choose(page, photo)
    expect_first(page, "Sage chair")


def with_a_filter(page: Page, photo: bytes) -> None:
    with_results(page, photo)
    open_filters(page)
    page.get_by_role("checkbox", name=re.compile("^Furniture")).check()
    expect(page.locator(HITS)).to_have_count(3)


def with_an_error(page: Page, photo: bytes) -> None:
    choose(page, NOT_IMAGES["text"])
    expect_error(page, "photo_unsupported")


STATES = [empty, with_results, with_a_filter, with_an_error]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_search_page__has_no_violation_that_axe_finds(
    new_page: OpenPage, snapshots: Any, width: int, scheme: str
) -> None:
    found = {}
    page = new_page(viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce")
    for reach in STATES:
        page.goto("/search-by-photo/")
        reach(page, snapshots())
        found[reach.__name__] = violations(page)
    assert not any(found.values()), found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_shop_pages_with_tags__have_no_violation_that_axe_finds(new_page: OpenPage, width: int, scheme: str) -> None:
    page = new_page("/", viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce")
    assert violations(page) == []
    page.goto("/products/sage-chair/")
    expect(page.get_by_role("heading", name="Similar products")).to_be_visible()
    assert violations(page) == []


# Keyboard


def tab_to(page: Page, wanted: Locator, *, backwards: bool = False) -> None:
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if backwards else "Tab")
        if wanted.evaluate("it => it === document.activeElement"):
            assert is_focus_visible(page), focused(page)
            return
    raise AssertionError(f"{wanted} can't be reached by Tab")


def is_focus_visible(page: Page) -> bool:
    """Return whether the focused element, its marker or its label has a visible focus outline."""
    return bool(
        page.evaluate("""() => {
          const it = document.activeElement;
          const drawn = (style) => style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
          const around = [it, it.closest(".vs-chip"), it.closest(".vs-choose")].filter(Boolean);
          return around.some((one) => drawn(getComputedStyle(one))) || drawn(getComputedStyle(it, "::after"));
        }""")
    )


def test_whole_search__by_keyboard_alone(page: Page, snapshots: Any) -> None:
    tab_to(page, page.locator("[data-vs-file]"))
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": snapshots()})
    expect_first(page, "Sage chair")
    assert not focused(page).startswith("BODY")

    left = page.get_by_role("slider", name="Left edge")
    tab_to(page, left, backwards=True)
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    assert crop_of(page) == [0.6, 0, 1, 1]
    expect_first(page, "lamp")
    expect(left).to_be_focused()

    tab_to(page, action(page, "whole"))
    page.keyboard.press("Space")
    expect_first(page, "Sage chair")
    assert not focused(page).startswith("BODY")

    tab_to(page, page.locator("#vs-text"))
    page.keyboard.type("wooden")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("text=wooden"))
    expect_idle(page)
    expect(page.locator("#vs-text")).to_be_focused()

    tab_to(page, page.locator("summary", has_text="Filters"))
    page.keyboard.press("Enter")
    furniture = page.get_by_role("checkbox", name=re.compile("^Furniture"))
    tab_to(page, furniture)
    page.keyboard.press("Space")
    expect(page.locator(HITS)).to_have_count(3)
    expect(furniture).to_be_focused()

    tab_to(page, page.get_by_role("link", name=re.compile("Furniture.*remove")))
    page.keyboard.press("Enter")
    expect(page.locator(HITS)).to_have_count(12)
    assert not focused(page).startswith("BODY")

    tab_to(page, page.get_by_role("link", name="More", exact=True))
    page.keyboard.press("Enter")
    expect(page.locator(HITS)).to_have_count(24)
    expect(page.locator(f"{HITS} a").nth(12)).to_be_focused()

    tab_to(page, action(page, "remove"), backwards=True)
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/\?text=wooden$"))
    expect_idle(page)
    assert not focused(page).startswith("BODY")

    tab_to(page, page.locator(f"{HITS} a").first)
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/products/"))


# Screen reader


def test_everything_that_happens__is_announced(page: Page, snapshots: Any) -> None:
    page.evaluate("""() => {
      window.heard = [];
      for (const region of document.querySelectorAll("[role=status], [role=alert]"))
        new MutationObserver(() => {
          if (region.textContent) window.heard.push(`${region.getAttribute("role")}: ${region.textContent}`);
        }).observe(region, { childList: true, characterData: true, subtree: true });
    }""")
    choose(page, snapshots())
    expect_first(page, "Sage chair")
    page.get_by_role("link", name="More", exact=True).click()
    expect(page.locator(HITS)).to_have_count(24)
    choose(page, b"", "photo.jpg")
    expect_error(page, "photo_empty")
    heard = list(dict.fromkeys(page.evaluate("window.heard")))
    assert heard == [
        "status: Preparing your photo …",
        "status: Sending your photo …",
        "status: Searching …",
        "status: 12 products found.",
        "status: More products: 12.",
        "alert: This file is empty. Please choose another photo.",
    ]


def test_parts_have_names(page: Page, snapshots: Any) -> None:
    choose(page, snapshots())
    expect_first(page, "Sage chair")
    expect(page.get_by_role("img", name="Your photo")).to_be_visible()
    expect(page.get_by_role("group", name="The part to search with")).to_be_visible()
    assert [edge.get_attribute("aria-label") for edge in page.get_by_role("slider").all()] == [
        "Left edge", "Upper edge", "Right edge", "Lower edge",
    ]  # fmt: skip


# Width, direction, motion


def width_of(page: Page) -> int:
    return int(page.evaluate("document.scrollingElement.scrollWidth"))


@pytest.mark.parametrize("language", ["en", "de", "ar"])
def test_narrow_window__scrolls_only_up_and_down(new_page: OpenPage, snapshots: Any, language: str) -> None:
    page = new_page(viewport={"width": 320, "height": 700}, locale=language)
    assert page.locator("html").get_attribute("dir") == ("rtl" if language == "ar" else "ltr")
    assert width_of(page) == 320
    page.locator(".vs-filters > summary").click()
    assert width_of(page) == 320
    choose(page, NOT_IMAGES["text"])
    expect_error(page, "photo_unsupported")
    assert width_of(page) == 320
    choose(page, snapshots())
    expect_first(page, "Sage chair")
    assert width_of(page) == 320
    overhanging = page.locator(".vs *:visible").evaluate_all(
        "all => all.filter((one) => !one.closest('.vs-frame, .vs-unseen') "
        "&& (one.getBoundingClientRect().right > 320.5 || one.getBoundingClientRect().left < -0.5))"
        ".map((one) => one.outerHTML.slice(0, 80))"
    )
    assert overhanging == []


def test_right_to_left__the_form_stands_to_the_right_of_the_results(new_page: OpenPage, snapshots: Any) -> None:
    page = new_page(locale="ar")
    choose(page, snapshots())
    expect_first(page, "Sage chair")
    form, hits = page.locator("[data-vs-form]").bounding_box(), page.locator("[data-vs-hits]").bounding_box()
    assert form
    assert hits
    assert form["x"] >= hits["x"] + hits["width"]
    assert width_of(page) == 1280
    # The frame lies on a photo: left stays left in every language.
    page.get_by_role("slider").first.press("PageDown")
    assert crop_of(page)[0] == 0.1
    frame, edge = page.locator("[data-vs-frame]").bounding_box(), page.get_by_role("slider").first.bounding_box()
    assert frame
    assert edge
    assert abs(edge["x"] - (frame["x"] + 0.1 * frame["width"])) < 24


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_reduced_motion__is_heeded(new_page: OpenPage, motion: str) -> None:
    page = new_page(reduced_motion=motion)
    moving = page.locator(".vs *").evaluate_all(
        "all => all.filter((one) => getComputedStyle(one).transitionDuration.split(', ').some((each) => each !== '0s') "
        "|| getComputedStyle(one).animationName !== 'none').length"
    )
    assert (moving > 0) == (motion == "no-preference")


@pytest.mark.parametrize("width", WIDTHS)
def test_targets__are_large_enough_for_a_finger(new_page: OpenPage, snapshots: Any, width: int) -> None:
    page = new_page(viewport={"width": width, "height": 900})
    open_filters(page)
    choose(page, snapshots())
    expect_first(page, "Sage chair")
    page.get_by_role("checkbox", name=re.compile("^Furniture")).check()
    expect(page.locator(HITS)).to_have_count(3)
    small = page.locator(
        ".vs :is(a, button, input:not([type=hidden]), summary, [role=slider], [data-vs-corner]):visible"
    ).evaluate_all(
        """(all, wanted) => all.filter((one) => {
          if (one.closest("[data-vs-hits]")) return false; // the shop's own cards
          const { width, height } = one.getBoundingClientRect();
          return width < wanted || height < wanted;
        }).map((one) => one.outerHTML.slice(0, 120))""",
        TARGET_PX,
    )
    assert small == []


# Stable layout


# On a shop's own page, what is below the widget moves down when a photo is chosen, if it is visible.
@pytest.mark.parametrize(
    ("width", "path"),
    [(320, "/search-by-photo/"), (390, "/search-by-photo/"), (1280, "/search-by-photo/"), (390, "/elsewhere/")],
)
def test_results_that_arrive__move_nothing(new_page: OpenPage, snapshots: Any, width: int, path: str) -> None:
    page = new_page(path, viewport={"width": width, "height": 844})
    page.wait_for_load_state("networkidle")
    before = page.evaluate("performance.now()")
    choose(page, snapshots())
    expect_first(page, "Sage chair")
    page.locator(f"{HITS} img").evaluate_all("all => Promise.all(all.slice(0, 6).map((one) => one.decode()))")
    page.wait_for_timeout(300)
    moved = [shift for shift in page.evaluate("window.shifts") if shift["at"] >= before]
    assert sum(shift["value"] for shift in moved) == 0, moved
