"""Fixtures: a live shop with a real queue worker, and Debian's Chromium to visit it."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from example_shop.drawn.pictures import phone_photo
from example_shop.drawn.products import DrawnProduct
from example_shop.drawn.products import products as drawn_products
from tests.conftest import skip_or_fail
from tests.drawings import file_bytes
from tests.servers import free_port
from tests.shops import Shop, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

PRODUCTS = 30  # three pages of them
PATIENCE_MS = 15_000  # for anything a shopper waits for; the machine may be busy

# Recorded on every page: violations of the policy, and layout shifts.
WATCH = """
addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) =>
  console.error("policy", violatedDirective, blockedURI));
window.shifts = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    const moved = entry.sources.map((source) => {
      const node = source.node?.nodeType === 1 ? source.node : source.node?.parentElement;
      return `${node?.tagName}.${node?.className} ${source.previousRect.y}->${source.currentRect.y}`;
    });
    window.shifts.push({ at: entry.startTime, value: entry.value, moved });
  }
}).observe({ type: "layout-shift", buffered: true });
"""


class LiveShop(Shop):
    """The example shop with its web process and its worker."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        super().__init__(folder, checkpoint)
        self.environment["DJANGO_SETTINGS_MODULE"] = "tests.browser.settings"
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"

    def serve(self) -> None:
        """Start the web process and wait until it answers; its encoder may still be cold."""
        self.start("web.log", "runserver", f"127.0.0.1:{self.port}", "--noreload")
        wait_for(lambda: self.answers("/"), self)

    def answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.address + path, timeout=60) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def forget_photos(self) -> None:
        """Empty the cache: this removes kept photos, as if ten minutes had passed, and the throttles' counts."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)


@pytest.fixture(scope="session")
def shop(starter_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveShop]:
    """The drawn shop, indexed by its worker, with a warm web process."""
    if shutil.which("chromium") is None:
        skip_or_fail("chromium", "Chromium is not installed (Debian: apt install chromium)")
    live = LiveShop(tmp_path_factory.mktemp("browser"), starter_folder)
    try:
        live.manage("migrate", "--verbosity", "0")
        live.start_worker()
        live.manage("load_catalog", "drawn", "--limit", str(PRODUCTS))
        live.serve()
        live.wait(indexed=PRODUCTS)
        wait_for(lambda: live.answers("/search-by-photo/?q=lamp"), live)
        yield live
    finally:
        live.stop_all()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Module-scoped: while Playwright runs, Django refuses database access in this thread."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        skip_or_fail("chromium", "Chromium is not installed (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        running = playwright.chromium.launch(executable_path=program, args=sandbox)
        yield running
        running.close()


@pytest.fixture
def new_page(browser: Browser, shop: LiveShop) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a page in a window of its own: `new_page("/", viewport={…})`.

    Fails at the end if any page met an error or a violation of the policy.
    """
    shop.forget_photos()
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def collect_error(message: Any) -> None:
        # Chromium logs every error response; the tests themselves check which ones to expect.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            problems.append(f"{message.text} ({message.location})")

    def open_page(path: str = "/search-by-photo/", **options: Any) -> Page:
        context = browser.new_context(base_url=shop.address, **{"viewport": {"width": 1280, "height": 900}} | options)
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(WATCH)
        context.on("console", collect_error)
        context.on("weberror", lambda error: problems.append(str(error.error)))
        contexts.append(context)
        page = context.new_page()
        # Playwright intercepts file choosers only with a listener, which reaches Chromium with a delay: listen early.
        page.on("filechooser", lambda chooser: None)
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def page(new_page: Callable[..., Page]) -> Page:
    """The search page in a window of 1280 x 900."""
    return new_page()


def product(name: str) -> DrawnProduct:
    return next(one for one in drawn_products() if one.name == name)


@pytest.fixture(scope="session")
def snapshots() -> Callable[..., bytes]:
    """Return a function that returns a photo, 1200 x 1400: a product, and another one behind it on the right."""
    made: dict[tuple[str, str], bytes] = {}

    def snapshot(name: str = "Sage chair", beside: str = "Cream table lamp") -> bytes:
        if (name, beside) not in made:
            made[name, beside] = file_bytes(phone_photo(product(name), product(beside)), "JPEG", quality=90)
        return made[name, beside]

    return snapshot
