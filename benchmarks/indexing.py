"""Compare the speed of indexing with that of the bare encoder, and measure how long it holds SQLite's write lock.

    python -m benchmarks.indexing [--images 1000]

Same photos, same process, same run: first the bare encoder, without the time to read and decode pictures, then the
drain from the first claim to the last commit, including reading and decoding.
"""

from __future__ import annotations

import argparse
import io
import time
from typing import Any

from benchmarks.shop import add_products, temporary_shop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    count = parser.parse_args().images
    with temporary_shop():
        add_products(count)
        bare = bare_rate()
        drained, held_ms = drain_rate()
        print(f"{count} images of 640 x 480, starter checkpoint")
        print(f"bare encoder   {bare:6.1f} images/s")
        print(f"whole drain    {drained:6.1f} images/s, ratio {drained / bare:.2f} (target: at least 0.7)")
        print(f"finishing transactions: {len(held_ms)}, longest {max(held_ms):.0f} ms (target: at most 50)")


def bare_rate() -> float:
    from example_shop.models import ProductImage
    from visual_search.components import get_encoder
    from visual_search.conf import get_settings
    from visual_search.vision.images import open_product_image

    settings = get_settings()
    encoder = get_encoder(settings.CHECKPOINT)
    encoder.warm_up()
    target_px = encoder.input_size_px * 2
    rows, seconds = list(ProductImage.objects.all()), 0.0
    for start in range(0, len(rows), settings.BATCH_SIZE):
        files = [row.image.read() for row in rows[start : start + settings.BATCH_SIZE]]
        images = [open_product_image(io.BytesIO(data), max_pixels=10**8, target_px=target_px) for data in files]
        if start == 0:
            encoder.embed_images(images)  # the first batch of a process is slower
        started = time.perf_counter()
        encoder.embed_images(images)
        seconds += time.perf_counter() - started
    return len(rows) / seconds


def drain_rate() -> tuple[float, list[float]]:
    """Return images per second, and the duration of each finishing transaction in ms."""
    from visual_search.index import drain

    held_ms: list[float] = []
    finish = drain.finish

    def timed_finish(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return finish(*args, **options)
        finally:
            held_ms.append((time.perf_counter() - started) * 1000)

    drain.finish = timed_finish
    started = time.perf_counter()
    report = drain.drain(seconds=float("inf"))
    seconds = time.perf_counter() - started
    drain.finish = finish
    return report.embedded / seconds, held_ms


if __name__ == "__main__":
    main()
