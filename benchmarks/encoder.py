"""Measure one checkpoint on this machine: loading, one image, batches, one text, memory.

    python -m benchmarks.encoder                      # the starter, built if necessary
    python -m benchmarks.encoder --checkpoint openai/clip-vit-large-patch14 --threads 4

Prints medians as one JSON object. Images are 640 x 480 RGB in memory; the times include preprocessing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from visual_search.vision.encoder import TransformersEncoder

STARTER = Path(__file__).resolve().parent.parent / ".demo" / "starter"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=os.environ.get("CHECKPOINT", str(STARTER)))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if options.checkpoint == str(STARTER):
        from visual_search.vision.starter.build import build

        build(STARTER)
    json.dump(measure(options), sys.stdout, indent=2)
    print()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from tests.drawings import draw_photo

    encoder = TransformersEncoder(
        options.checkpoint, device=options.device, batch_size=options.batch_size, threads=options.threads
    )
    load_seconds = seconds_of(encoder.warm_up)
    images = [draw_photo(seed=seed) for seed in range(options.batch_size)]
    image_seconds = median_seconds(lambda: encoder.embed_images(images[:1]), options.rounds)
    text_seconds = median_seconds(lambda: encoder.embed_texts(["a red shoe with white laces"]), options.rounds)
    batch_seconds = median_seconds(lambda: encoder.embed_images(images), max(3, options.rounds // 5))
    import torch

    return {
        "checkpoint": options.checkpoint,
        "fingerprint": encoder.fingerprint,
        "dim": encoder.dim,
        "device": str(encoder._load().device),
        "threads": torch.get_num_threads(),
        "load_seconds": round(load_seconds, 2),
        "image_ms": round(image_seconds * 1000, 1),
        "text_ms": round(text_seconds * 1000, 1),
        "batch_size": len(images),
        "images_per_second": round(len(images) / batch_seconds, 1),
        "peak_rss_mb": peak_rss_mb(),
    }


def median_seconds(work: Callable[[], object], rounds: int) -> float:
    return statistics.median(seconds_of(work) for _ in range(rounds))


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_rss_mb() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))  # bytes on macOS, KiB on Linux


if __name__ == "__main__":
    main()
