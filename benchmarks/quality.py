"""Measure the quality of the search before and after fine-tuning.

    python -m benchmarks.quality --data data/grocery [--photos FILE.csv]     (make quality DATA=… PHOTOS=…)

Runs the management commands on a fresh database: load the grocery catalogue, index it with the starter, evaluate,
fine-tune on the training photos of 55 products, build, switch, and evaluate again. The queries are PHOTOS (by default
the data's `val` photos; never rows of the split `train`) and all photos of the 16 held-out products. Prints tables and,
as the last line, JSON. Database, checkpoint and reports stay in .demo/quality.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.grocery import DATA, GETTING_THE_DATA, HELD_OUT, LEARNED, STOPPING

if TYPE_CHECKING:
    from visual_search.quality.evaluation import Outcome
    from visual_search.quality.figures import Figures

STATE = Path(os.environ.get("SHOP_STATE_DIR", ".demo")).resolve()
MEASURES = ("hit_at_1", "hit_at_10", "mrr")


@dataclass(frozen=True)
class Shop:
    """A shop with its own database in `state`, controlled by management commands."""

    state: Path
    checkpoint: Path

    def enter(self) -> None:
        """Configure this process's Django for the shop."""
        os.environ |= {
            "SHOP_STATE_DIR": str(self.state),
            "CHECKPOINT": str(self.checkpoint),
            "DJANGO_SETTINGS_MODULE": "example_shop.settings",
        }

    def manage(self, *words: object) -> None:
        """Run a command as a user would. If it fails, exit with its status."""
        command = ["manage.py", *map(str, words)]
        print("\n$ python " + " ".join(command), flush=True)
        if code := subprocess.run([sys.executable, *command], check=False).returncode:
            sys.exit(code)


def main() -> None:
    options = read_options()
    data = options.data.resolve()
    shop = Shop(STATE / "quality", STATE / "starter")
    shutil.rmtree(shop.state, ignore_errors=True)
    shop.state.mkdir(parents=True)
    shop.enter()
    photos = query_photos(data, options.photos)
    queries = write_queries(data, photos, shop.state / "queries.csv")
    before, after, tuned = (shop.state / name for name in ("before.json", "after.json", "fine-tuned"))
    shop.manage("build_starter_checkpoint", shop.checkpoint)
    shop.manage("migrate", "-v0")
    shop.manage("load_catalog", data / "products.csv")
    shop.manage("reindex_products", "--all", "--here")
    shop.manage("evaluate_search", queries, "--json", before)
    started = time.monotonic()
    shop.manage(
        *("fine_tune", tuned, "--photos", data / "photos.csv", "--split", "train", "--report-split", "val"),
        *("--products-held-out", *HELD_OUT, "--products-stopping", *STOPPING, "--epochs", options.epochs),
    )
    seconds, peak_gb = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    shop.manage("build_version", "--checkpoint", tuned)
    shop.manage("switch_version", 2)
    shop.manage(
        "evaluate_search", queries, "--json", after, "--compare", before, "--report", after.with_suffix(".html")
    )
    report(
        before, after, {photo for photo, _ in photos}, {"fine_tuning_seconds": seconds, "fine_tuning_peak_gb": peak_gb}
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--photos", type=Path, default=os.environ.get("PHOTOS") or None)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    if not all((options.data / name).exists() for name in ("photos.csv", "products.csv")):
        parser.exit(2, GETTING_THE_DATA.format(folder=options.data) + "\n")
    if options.photos and not options.photos.exists():
        parser.exit(2, f"There is no file {options.photos}. PHOTOS names a CSV file with photo and product_id.\n")
    return options


def query_photos(data: Path, file: Path | None) -> list[tuple[Path, str]]:
    """Return (photo, product id) pairs: all but the split `train` of `file`, or by default the data's split `val`."""
    own = data / "photos.csv"
    file = own if file is None else file.resolve()
    rows = [row for row in read_rows(file) if (row["split"] == "val" if file == own else row.get("split") != "train")]
    # Paths are relative to the file, or to the data folder.
    places = [
        file.parent / row["photo"] if (file.parent / row["photo"]).exists() else data / row["photo"] for row in rows
    ]
    return [(place, row["product_id"]) for place, row in zip(places, rows, strict=True)]


def write_queries(data: Path, photos: list[tuple[Path, str]], path: Path) -> Path:
    """Write the queries: `photos`, all photos of held-out products, and each product's name and category as a text."""
    held_out = {
        (data / row["photo"], row["product_id"])
        for row in read_rows(data / "photos.csv")
        if row["product_id"] in HELD_OUT and row["split"] in ("train", "val")
    }
    texts = [(f"{row['name']} {row['category']}", row["product_id"]) for row in read_rows(data / "products.csv")]
    with path.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(("photo", "text", "product_id"))
        writer.writerows((photo, "", product) for photo, product in sorted(held_out | set(photos)))
        writer.writerows(("", text, product) for text, product in texts)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def report(before: Path, after: Path, asked: set[Path], costs: dict[str, float]) -> None:
    """Print the figures of each kind of query before and after and the gains, then all of it as JSON."""
    import django

    django.setup()
    from visual_search.quality.figures import compare, figures
    from visual_search.quality.runs import read_run
    from visual_search.quality.tables import percent, points

    runs = [divide(read_run(path).outcomes, asked) for path in (before, after)]
    print("\nPercent and points, with 95 % intervals over products; gains are paired.\n")
    print("| Asked with | n | Products | Measure | Before | After | Gained |\n|---|---|---|---|---|---|---|")
    answer: dict[str, Any] = {}
    for name, titles in KINDS.items():
        one, other = (run[name] for run in runs)
        if not one:
            continue
        gains = compare(other, one).gains
        for key, found in zip(titles, (figures(one), figures(other)), strict=True):
            answer[key] = as_plain(found)
        answer[f"{name}_gain"] = as_plain(gains)
        for measure in MEASURES:
            old, new = (figures(outcomes).metrics[measure] for outcomes in (one, other))
            print(
                f"| {name.replace('_', ' ')} | {gains.queries} | {gains.products} | {measure} | {percent(old)} "
                f"| {percent(new)} | {points(gains.metrics[measure])} |"
            )
    print(f"\nFine-tuning took {costs['fine_tuning_seconds']:.0f} s and {costs['fine_tuning_peak_gb']:.2f} GB.\n")
    print(json.dumps(answer | {name: round(value, 2) for name, value in costs.items()}))


# Kinds of queries, with their JSON keys before and after.
KINDS = {
    "photos": ("zero_shot", "fine_tuned"),
    "photos_of_learned_products": ("learned_before", "learned_after"),
    "photos_of_held_out_products": ("held_out_before", "held_out_after"),
    "texts": ("text_before", "text_after"),
    "texts_of_learned_products": ("text_learned_before", "text_learned_after"),
    "texts_of_held_out_products": ("text_held_out_before", "text_held_out_after"),
}


def divide(outcomes: list[Outcome], asked: set[Path]) -> dict[str, list[Outcome]]:
    """Return the outcomes for each kind in KINDS."""
    from visual_search.catalog import get_catalog

    keys = get_catalog().keys_of([*LEARNED, *HELD_OUT])
    learned, held_out = ({keys[name] for name in names} for names in (LEARNED, HELD_OUT))
    photos = [one for one in outcomes if one.query.photo in asked]
    texts = [one for one in outcomes if one.query.kind == "text"]
    every = [one for one in outcomes if one.query.kind == "photo"]
    return {
        "photos": photos,
        "photos_of_learned_products": [one for one in photos if one.query.products[0] in learned],
        "photos_of_held_out_products": [one for one in every if one.query.products[0] in held_out],
        "texts": texts,
        "texts_of_learned_products": [one for one in texts if one.query.products[0] in learned],
        "texts_of_held_out_products": [one for one in texts if one.query.products[0] in held_out],
    }


def as_plain(summary: Figures) -> dict[str, Any]:
    """Return shares from 0 to 1, each with the bounds of its 95 % interval, which are None if undefined."""
    plain: dict[str, Any] = {"n": summary.queries, "products": summary.products}
    for measure in MEASURES:
        found = summary.metrics[measure]
        plain[measure] = round(found.value, 4)
        plain[f"{measure}_interval"] = [
            None if math.isnan(bound) else round(bound, 4) for bound in (found.low, found.high)
        ]
    return plain


if __name__ == "__main__":
    main()
