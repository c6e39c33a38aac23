"""Helpers for browser tests: what shoppers do with the widget and what they see."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Request

HITS = "[data-vs-hits] > li"
# Paste or drop files with a real DataTransfer, as Chromium itself does.
GIVE = """([kind, selector, files]) => {
  const data = new DataTransfer();
  for (const { name, type, base64 } of files)
    data.items.add(new File([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], name, { type }));
  const target = document.querySelector(selector);
  const init = { bubbles: true, cancelable: true };
  if (kind === "paste") target.dispatchEvent(new ClipboardEvent("paste", { ...init, clipboardData: data }));
  else for (const step of ["dragenter", "dragover", "drop"])
    target.dispatchEvent(new DragEvent(step, { ...init, dataTransfer: data }));
}"""


def choose(page: Page, data: bytes, name: str = "photo.jpg", mime: str = "image/jpeg") -> None:
    page.locator("[data-vs-file]").set_input_files({"name": name, "mimeType": mime, "buffer": data})


def give(page: Page, kind: str, *files: bytes, mime: str = "image/jpeg", to: str = "body") -> None:
    """Paste or drop files. kind: `paste` or `drop`."""
    sent = [{"name": "photo.jpg", "type": mime, "base64": base64.b64encode(data).decode()} for data in files]
    page.evaluate(GIVE, [kind, to, sent])


def titles(page: Page) -> list[str]:
    return [re.sub(r"\s+", " ", text).strip() for text in page.locator(f"{HITS} a").all_inner_texts()]


def expect_first(page: Page, name: str) -> None:
    """Wait until the search is over and this product comes first."""
    expect(page.locator(HITS).first).to_contain_text(name)
    expect_idle(page)


def expect_idle(page: Page) -> None:
    expect(page.locator('[data-vs-part="results"]')).not_to_have_attribute("aria-busy", "true")


def expect_error(page: Page, code: str) -> Locator:
    """Wait for this error and return the element with its sentence."""
    error = page.locator("[data-vs-error]")
    expect(error).to_have_attribute("data-code", code)
    expect(error).not_to_be_empty()
    expect_idle(page)
    return error


def said(page: Page) -> Locator:
    return page.locator("[data-vs-said]")


def action(page: Page, name: str) -> Locator:
    return page.locator(f'[data-vs-action="{name}"]')


def focused(page: Page) -> str:
    """Describe the focused element: its tag, and its label, text or name."""
    return str(
        page.evaluate("""() => {
          const it = document.activeElement;
          return `${it.tagName} ${it.getAttribute("aria-label") ?? (it.innerText?.trim() || it.name || "")}`;
        }""")
    )


def crop_of(page: Page) -> list[float]:
    """Return the form's crop: left, top, right, bottom; the whole photo if it is empty."""
    value = page.locator('[data-vs-form] [name="crop"]').input_value()
    return [float(share) for share in value.split(",")] if value else [0, 0, 1, 1]


def uploads(page: Page) -> list[Request]:
    """Return a list that receives every POST request from now on."""
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request) if request.method == "POST" else None)
    return sent


def weight(request: Request) -> int:
    """Return how many bytes a request sent."""
    return int(request.all_headers()["content-length"])


def pixel(page: Page, x: float, y: float) -> list[int]:
    """Return the RGB colour of the preview at this point. x, y: fractions of its sides."""
    found: Any = page.evaluate(
        """([x, y]) => {
          const canvas = document.querySelector("[data-vs-canvas]");
          const at = (share, px) => Math.min(px - 1, Math.floor(share * px));
          return [...canvas.getContext("2d").getImageData(at(x, canvas.width), at(y, canvas.height), 1, 1).data];
        }""",
        [x, y],
    )
    return [int(value) for value in found[:3]]


def canvas_size(page: Page) -> tuple[int, int]:
    width, height = page.locator("[data-vs-canvas]").evaluate("canvas => [canvas.width, canvas.height]")
    return width, height


def slow_down(page: Page, *, upload: float, latency_ms: float = 50) -> None:
    """Slow the connection down to `upload` bytes per second. Zero makes it fast again."""
    rates = {"uploadThroughput": upload or -1, "downloadThroughput": -1, "latency": latency_ms if upload else 0}
    line = page.context.new_cdp_session(page)
    line.send("Network.enable")
    line.send("Network.emulateNetworkConditions", {"offline": False} | rates)
