"""Measure how long a shopper waits for a photo search in a warm web process.

    python -m benchmarks.searching [--products 54] [--searches 100]

Sends a 1-megapixel JPEG through the API in one process: upload, decode, encode, store, database, JSON.
"""

from __future__ import annotations

import argparse
import time

from benchmarks.shop import add_products, percentiles, temporary_shop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--products", type=int, default=54)
    parser.add_argument("--searches", type=int, default=100)
    options = parser.parse_args()
    with temporary_shop():
        add_products(options.products)
        from visual_search.index import drain
        from visual_search.search import warm_up

        drain.drain(seconds=float("inf"))
        warm_up()
        whole_ms, stages = measure(options.searches)
        print(f"{options.searches} photo searches of 1.0 megapixel at {options.products} products, starter checkpoint")
        print(f"{'whole request':<14} {percentiles(whole_ms)} (target: under 150)")
        for stage, times in stages.items():
            print(f"{stage:<14} {percentiles(times)}" + (" (target: under 2)" if stage == "store" else ""))


def measure(searches: int) -> tuple[list[float], dict[str, list[float]]]:
    from django.core.files.uploadedfile import SimpleUploadedFile
    from django.test import Client

    from tests.drawings import photo_bytes

    client, whole_ms = Client(), []
    stages: dict[str, list[float]] = {}
    for number in range(searches + 5):
        photo = SimpleUploadedFile("photo.jpg", photo_bytes((1155, 866), seed=number), content_type="image/jpeg")
        started = time.perf_counter()
        answer = client.post("/api/visual-search/v1/search/", {"photo": photo})
        if number >= 5:  # the first requests fill caches
            whole_ms.append((time.perf_counter() - started) * 1000)
            for stage, ms in answer.json()["timings_ms"].items():
                stages.setdefault(stage, []).append(ms)
    return whole_ms, stages


if __name__ == "__main__":
    main()
