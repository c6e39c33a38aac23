"""Measure cheap tricks that might find more. None is built in unless it pays.

    python -m benchmarks.gains [--data data/grocery] [--limit 500]

Searches the catalogue's pictures exactly with the training photos. Intervals are paired 95 % intervals over products.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.grocery import DATA, GETTING_THE_DATA
from visual_search.quality.metrics import hit_rate_at_k, interval
from visual_search.vision.encoder import TransformersEncoder
from visual_search.vision.images import decode_photo

STATE = Path(os.environ.get("SHOP_STATE_DIR", ".demo"))
CENTRE = 0.15  # share cut off on each side
EXPANSION = 0.3  # weight of the two nearest pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--limit", type=int, default=500, help="Number of photos, evenly spaced.")
    options = parser.parse_args()
    if not (options.data / "photos.csv").exists():
        parser.exit(2, GETTING_THE_DATA.format(folder=options.data) + "\n")
    products = read_rows(options.data / "products.csv")
    photos = [row for row in read_rows(options.data / "photos.csv") if row["split"] == "train"]
    photos = photos[:: max(1, len(photos) // options.limit)][: options.limit]
    encoder = TransformersEncoder(os.environ.get("CHECKPOINT", STATE / "starter"))

    def embed(rows: list[dict[str, str]], name: str, change: Callable[[Image.Image], Image.Image]) -> Any:
        return np.concatenate(
            [encoder.embed_images([change(read(options.data / row[name])) for row in batch]) for batch in batches(rows)]
        )

    pictures, flipped = embed(products, "image", same), embed(products, "image", ImageOps.mirror)
    whole, centre = embed(photos, "photo", same), embed(photos, "photo", middle)
    mirrored = embed(photos, "photo", ImageOps.mirror)
    nearest = pictures[np.argsort(-(whole @ pictures.T), axis=1)[:, :2]].mean(axis=1)
    both = unit(pictures + flipped)
    ways = {
        "as it is": (whole, pictures),
        "catalogue pictures averaged with their mirror images": (whole, both),
        "photos averaged with their mirror images": (unit(whole + mirrored), pictures),
        "both averaged with their mirror images": (unit(whole + mirrored), both),
        "photos averaged with their middle": (unit(whole + centre), pictures),
        "centred on the mean of the catalogue": (unit(whole - pictures.mean(0)), unit(pictures - pictures.mean(0))),
        "each side centred on its own mean": (unit(whole - whole.mean(0)), unit(pictures - pictures.mean(0))),
        "photos moved towards their two nearest pictures": (unit(whole + EXPANSION * nearest), pictures),
    }
    place = {row["product_id"]: at for at, row in enumerate(products)}
    truth = np.array([place[row["product_id"]] for row in photos])
    report(ways, truth)


def report(ways: dict[str, tuple[Any, Any]], truth: Any) -> None:
    print("| Way | hit@1 | hit@10 | hit@1 gained | hit@10 gained |\n|---|---|---|---|---|")
    base = hits(*ways["as it is"], truth)
    for name, (queries, gallery) in ways.items():
        found = hits(queries, gallery, truth)
        rates = " | ".join(f"{100 * rate.mean():.1f}" for rate in found)
        gains = [interval(100 * (new - old), truth.tolist()) for new, old in zip(found, base, strict=True)]
        gained = " | ".join(
            f"{gain.value:+.1f}" + (f" ({gain.low:+.1f} to {gain.high:+.1f})" if gain.low < gain.high else "")
            for gain in gains
        )
        print(f"| {name} | {rates} | {'|' if name == 'as it is' else gained} |")


def hits(queries: Any, gallery: Any, truth: Any) -> tuple[Any, Any]:
    order = np.argsort(-(queries @ gallery.T), axis=1)
    is_right = order == truth[:, None]
    return hit_rate_at_k(is_right, 1), hit_rate_at_k(is_right, 10)


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def same(image: Image.Image) -> Image.Image:
    return image


def middle(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((width * CENTRE, height * CENTRE, width * (1 - CENTRE), height * (1 - CENTRE)))


def read(path: Path) -> Image.Image:
    return decode_photo(path.read_bytes(), max_bytes=2**25, max_pixels=50_000_000, target_px=448)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def batches(rows: list[dict[str, str]], size: int = 32) -> Iterable[list[dict[str, str]]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


if __name__ == "__main__":
    main()
