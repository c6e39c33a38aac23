"""Take the README's screenshots: `make screenshots`.

The demo runs in a temporary folder, with its real queue worker and the drawn catalogue, so that the screenshots contain
no third party's photo; Debian's chromium visits it as a shopper would.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from example_shop.drawn.pictures import phone_photo  # noqa: E402
from example_shop.drawn.products import products  # noqa: E402

FOLDER = ROOT / "docs" / "screenshots"
START_SECONDS = 240  # drawing, weights, indexing
MAX_BYTES = 150_000
QUALITY = 82
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 1180}  # taller than a phone: shows the form and the results


def main() -> None:
    chromium = shutil.which("chromium") or sys.exit("chromium is not installed (Debian: apt-get install chromium).")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, demo_shop(Path(folder)) as address, sync_playwright() as playwright:
        photo = Path(folder) / "photo.jpg"
        drawn = {product.id: product for product in products()}
        phone_photo(drawn["forest-backpack"], beside=drawn["green-rubber-plant"]).save(photo, quality=88)
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []  # chromium's sandbox does not run as root
        browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        shoot_home(browser, address)
        shoot_search(browser, address, photo)
        shoot_product(browser, address)
        shoot_phone(browser, address, photo)
        browser.close()


@contextmanager
def demo_shop(folder: Path) -> Iterator[str]:
    """Run the demo in `folder`; yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}", folder / "log"
    checkpoint = os.environ.get("CHECKPOINT", str(ROOT / ".demo" / "starter"))
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "manage.py", "demo", "--source", "drawn", "--port", str(port)],
            cwd=ROOT,
            env=os.environ | {"SHOP_STATE_DIR": str(folder), "CHECKPOINT": checkpoint},
            stdout=out,
            stderr=out,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_up(address):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"The demo did not start:\n{log.read_text()}")
            time.sleep(0.5)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def is_up(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:  # noqa: S310
            return bool(response.status == 200)
    except OSError:
        return False


def shoot_home(browser: Browser, address: str) -> None:
    for name, scheme in (("home", "light"), ("home-dark", "dark")):
        page = browser.new_page(viewport=DESKTOP, color_scheme=scheme)
        page.goto(address)
        save_screenshot(page, name)


def shoot_search(browser: Browser, address: str, photo: Path) -> None:
    for name, scheme in (("search", "light"), ("search-dark", "dark")):
        page = browser.new_page(viewport=DESKTOP, color_scheme=scheme)
        page.goto(f"{address}/search-by-photo/")
        search_with(page, photo)
        save_screenshot(page, name)


def shoot_product(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport=DESKTOP | {"height": 1210})
    page.goto(f"{address}/products/sage-chair/")
    save_screenshot(page, "product")


def shoot_phone(browser: Browser, address: str, photo: Path) -> None:
    page = browser.new_page(viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True)
    page.goto(f"{address}/search-by-photo/")
    search_with(page, photo)
    save_screenshot(page, "phone")


def search_with(page: Page, photo: Path) -> None:
    """Choose the photo and crop it to the backpack, by keyboard."""
    page.set_input_files("[data-vs-file]", photo)
    expect(page.locator("[data-vs-hits] > li").first).to_be_visible()
    for edge, key, presses in ((0, "ArrowRight", 3), (1, "ArrowDown", 15), (2, "ArrowLeft", 15), (3, "ArrowUp", 7)):
        for _ in range(presses):
            page.locator(f"[data-vs-edge='{edge}']").press(key)
    page.wait_for_timeout(1500)  # the widget searches again shortly after an edge has moved
    expect(page.locator("[data-vs-part='results'][aria-busy='true']")).to_have_count(0)


def save_screenshot(page: Page, name: str) -> None:
    """Write a screenshot of the page as a WebP file, once its images are loaded."""
    page.wait_for_load_state("networkidle")
    page.evaluate("Promise.all([...document.images].filter(one => one.loading != 'lazy').map(one => one.decode()))")
    page.evaluate("document.activeElement?.blur()")
    path = FOLDER / f"{name}.webp"
    Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB").save(path, quality=QUALITY, method=6)
    size = path.stat().st_size
    if size > MAX_BYTES:
        sys.exit(f"{path} has {size} bytes, more than {MAX_BYTES}.")
    print(f"{path.relative_to(ROOT)}  {size / 1000:.0f} KB")  # noqa: T201
    page.close()


if __name__ == "__main__":
    main()
