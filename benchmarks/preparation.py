"""Measure what each preparation finds, and what it costs.

    python -m benchmarks.preparation --data data/grocery [--limit 0] [--json FILE]     (make preparation DATA=…)

Searches the catalogue's pictures exactly with phone photos, for every strategy. Differences to `none` have paired 95 %
intervals: bootstrap over products, because photos of one product resemble each other. Masks are cached in .demo/masks
by the digest of the pixels, so that a second run is quick. The times are measured without this cache.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.grocery import DATA, GETTING_THE_DATA
from visual_search.quality.metrics import interval
from visual_search.vision.background import BackgroundRemover
from visual_search.vision.encoder import TransformersEncoder
from visual_search.vision.images import decode_photo
from visual_search.vision.preparation import STRATEGIES, embed_prepared, prepare

STATE = Path(os.environ.get("SHOP_STATE_DIR", ".demo"))
TIMED_PHOTOS = 60
PAIRS = [*((query, "none") for query in STRATEGIES), *((query, query) for query in STRATEGIES if query != "none")]


@dataclass
class Outcome:
    """One row of the table: rates in percent, differences to none/none in points with their interval."""

    query: str
    gallery: str
    hit_at_1: float
    hit_at_10: float
    mrr: float
    hit_at_1_gain: tuple[float, float, float]
    hit_at_10_gain: tuple[float, float, float]


class MaskCache:
    """Masks on disk, by the digest of the image's pixels."""

    def __init__(self, remover: BackgroundRemover, folder: Path) -> None:
        self.remover, self.folder = remover, folder
        folder.mkdir(parents=True, exist_ok=True)

    def find_mask(self, image: Image.Image) -> Image.Image:
        path = self.folder / f"{hashlib.sha256(image.tobytes()).hexdigest()[:32]}.png"
        if path.exists():
            return Image.open(path).convert("L")
        mask = self.remover.find_mask(image)
        mask.save(path)
        return mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--split", default="train")
    parser.add_argument("--limit", type=int, default=0, help="Number of photos, evenly spaced; 0 uses all.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (options.data / "photos.csv").exists():
        parser.exit(2, GETTING_THE_DATA.format(folder=options.data) + "\n")
    encoder = TransformersEncoder(os.environ.get("CHECKPOINT", STATE / "starter"))
    encoder.warm_up()
    products = read_rows(options.data / "products.csv")
    photos = [row for row in read_rows(options.data / "photos.csv") if row["split"] == options.split]
    photos = photos[:: max(1, len(photos) // options.limit)] if options.limit else photos
    before = rss_mb()
    remover = BackgroundRemover("u2net")
    remover.warm_up()
    costs = time_strategies(encoder, remover, [options.data / row["photo"] for row in photos])
    memory = rss_mb() - before
    masks = MaskCache(remover, STATE / "masks")
    place = {row["product_id"]: at for at, row in enumerate(products)}
    truth = np.array([place[row["product_id"]] for row in photos])
    galleries = {
        name: embed(encoder, [options.data / row["image"] for row in products], name, masks) for name in STRATEGIES
    }
    queries = {
        name: embed(encoder, [options.data / row["photo"] for row in photos], name, masks) for name in STRATEGIES
    }
    ranks = {(query, gallery): ranks_of(queries[query][0], galleries[gallery][0], truth) for query, gallery in PAIRS}
    outcomes = [
        outcome(query, gallery, ranks[query, gallery], ranks["none", "none"], truth) for query, gallery in PAIRS
    ]
    about = f"{len(photos)} {options.split} photos, {len(products)} catalogue pictures"
    report(outcomes, costs, memory, about, {name: used for name, (_, used) in queries.items()})
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in outcomes], indent=1))


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def read_image(path: Path, target_px: int) -> Image.Image:
    return decode_photo(path.read_bytes(), max_bytes=2**25, max_pixels=50_000_000, target_px=target_px)


def embed(
    encoder: TransformersEncoder, paths: Sequence[Path], strategy: str, masks: MaskCache
) -> tuple[Any, Counter[str]]:
    """Return (len(paths), dim), and how often the strategy and each fallback were used."""
    rows, used = [], Counter[str]()
    for batch in batches(paths, 64):
        prepared = [prepare(read_image(path, encoder.input_size_px * 2), strategy, masks.find_mask) for path in batch]
        used.update(item.fallback or item.strategy for item in prepared)
        rows.append(embed_prepared(encoder, prepared))
    print(f"  {strategy}: {len(paths)} images, {dict(used)}", flush=True)
    return np.concatenate(rows), used


def batches(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), size):
        yield paths[start : start + size]


def ranks_of(queries: Any, gallery: Any, truth: Any) -> Any:
    """Return the rank of each photo's own product, starting at 1."""
    scores = queries @ gallery.T
    own = scores[np.arange(len(truth)), truth]
    return (scores > own[:, None]).sum(axis=1) + 1


def outcome(query: str, gallery: str, ranks: Any, base: Any, products: Any) -> Outcome:
    gains = [paired_interval((ranks <= k) * 100.0 - (base <= k) * 100.0, products) for k in (1, 10)]
    rates = [float((ranks <= k).mean() * 100) for k in (1, 10)]
    return Outcome(query, gallery, *rates, float((1 / ranks).mean() * 100), *gains)


def paired_interval(differences: Any, products: Any) -> tuple[float, float, float]:
    """Return the mean difference with its 95 % interval. The bootstrap draws products with all their photos."""
    found = interval(differences, products.tolist())
    return found.value, found.low, found.high


def time_strategies(
    encoder: TransformersEncoder, remover: BackgroundRemover, paths: Sequence[Path]
) -> dict[str, tuple[float, float]]:
    """Return the median times to prepare and to embed one photo, in ms. The strategies take turns."""
    chosen = paths[:: max(1, len(paths) // TIMED_PHOTOS)][:TIMED_PHOTOS]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in STRATEGIES}
    for path in chosen:
        image = read_image(path, encoder.input_size_px * 2)
        for name in STRATEGIES:
            start = time.perf_counter()
            prepared = prepare(image, name, partial(remover.find_mask, seconds=None))
            middle = time.perf_counter()
            embed_prepared(encoder, [prepared])
            times[name].append(((middle - start) * 1000, (time.perf_counter() - middle) * 1000))
    return {
        name: (statistics.median(p for p, _ in pairs), statistics.median(e for _, e in pairs))
        for name, pairs in times.items()
    }


def rss_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def report(
    outcomes: list[Outcome],
    costs: dict[str, tuple[float, float]],
    memory_mb: float,
    about: str,
    used: dict[str, Counter[str]],
) -> None:
    print(f"\n{about}; the background model takes {memory_mb:.0f} MB in each process.\n")
    print("| Photos | Pictures | hit@1 | hit@10 | MRR | hit@1 gained | hit@10 gained | Prepare | Embed |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in outcomes:
        prepare_ms, embed_ms = costs[row.query]
        gains = [
            f"{gain:+.1f} ({low:+.1f} to {high:+.1f})" for gain, low, high in (row.hit_at_1_gain, row.hit_at_10_gain)
        ]
        if row.query == row.gallery == "none":
            gains = ["", ""]
        rates = " | ".join(f"{rate:.1f}" for rate in (row.hit_at_1, row.hit_at_10, row.mrr))
        times = f"{prepare_ms:.0f} ms | {embed_ms:.0f} ms"
        print(f"| `{row.query}` | `{row.gallery}` | {rates} | {gains[0]} | {gains[1]} | {times} |")
    for name, counts in used.items():
        left = ", ".join(f"{count} {reason}" for reason, count in counts.items() if reason != name)
        if left:
            print(f"\nPhotos that {name} left unchanged: {left}.")


if __name__ == "__main__":
    main()
