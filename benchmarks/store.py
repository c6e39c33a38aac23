"""Compare the speed and recall of the stores with numpy, and measure the cost of feeding the default store.

    python -m benchmarks.store [--sizes 10000,100000] [--engines edge,…] [--json FILE]
    python -m benchmarks.store --sizes 1000000 --engines edge_hnsw --build-threads 2

Seeded 512-d unit vectors around 2,000 centres; queries from the same mixture; one thread; top 20. The filters: one of
20 categories, and the cheaper half of one category. The engines, including numpy, take turns of five queries, so that
a busy machine slows all equally: compare ratios, not milliseconds. Engines that are not installed are reported and
skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before numpy is imported

import numpy as np  # noqa: E402

from benchmarks.engines import Data, Engine, NumpyExact, Wanted, engines  # noqa: E402
from benchmarks.feeding import measure_feeding  # noqa: E402

DIM = 512
CENTRES = 2000
NOISE = 0.7  # per dimension, to 1 for the centres: a vector is nearest to the 5 or 50 of its own centre
CATEGORIES, PRICE_MAX = 20, 1000
DEFAULT = ["edge", "edge_int8", "edge_hnsw", "qdrant_local", "faiss_hnsw", "usearch_hnsw"]
QDRANT_LOCAL_MAX = 20_000  # 17 ms per query at 10,000 points, 130 with a filter, and growing with the number of points
QUERIES, QUERIES_A_TURN = 200, 5
FILTERS = (None, "category", "category+price")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000")
    parser.add_argument("--engines", default=",".join(DEFAULT))
    parser.add_argument("--build-threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--no-feed", action="store_true", help="do not measure feeding")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        rows += compare(size, options.engines.split(","), options.build_threads)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if "edge" in options.engines.split(",") and not options.no_feed:
        for size in sizes:
            measure_feeding(size, DIM)


def compare(size: int, names: list[str], threads: int) -> list[dict[str, Any]]:
    data, queries = draw(size)
    print(f"\n{size} points of {DIM} dimensions", flush=True)
    built: dict[str, Engine] = {"numpy_exact": NumpyExact(data)}
    for name in names:
        if (engine := build(name, data, threads)) is not None:
            built[name] = engine
    found: list[dict[str, Any]] = []
    print("\n| Engine | Filter | p50 ms | p95 ms | recall@10 | ratio to exact |\n|---|---|---|---|---|---|")
    for filter_name in FILTERS:
        wanted = [wanted_by(filter_name, number) for number in range(len(queries))]
        found += measure(built, queries, wanted, size, filter_name)
    for engine in built.values():
        engine.close()
    return found


def draw(size: int) -> tuple[Data, np.ndarray]:
    dice = np.random.default_rng(0)
    centres = dice.standard_normal((CENTRES, DIM), dtype=np.float32)

    def mixture(count: int) -> np.ndarray:
        vectors = NOISE * dice.standard_normal((count, DIM), dtype=np.float32)
        vectors += centres[dice.integers(CENTRES, size=count)]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    vectors = mixture(size)
    data = Data(vectors, dice.integers(CATEGORIES, size=size), dice.uniform(0, PRICE_MAX, size=size).round(2))
    return data, mixture(QUERIES)


def wanted_by(filter_name: str | None, number: int) -> Wanted | None:
    if filter_name is None:
        return None
    return Wanted(number % CATEGORIES, PRICE_MAX / 2 if filter_name == "category+price" else None)


def build(name: str, data: Data, threads: int) -> Engine | None:
    size = len(data.vectors)
    if name == "qdrant_local" and size > QDRANT_LOCAL_MAX:
        print(f"{name}: skipped above {QDRANT_LOCAL_MAX} points: too slow", flush=True)
        return None
    before, started = memory_mb(), time.perf_counter()
    try:
        engine = engines(threads)[name](data)
    except ImportError as error:
        print(f"{name}: skipped: {error.name} is not installed", flush=True)
        return None
    seconds = time.perf_counter() - started
    anonymous, mapped = (after - was for after, was in zip(memory_mb(), before, strict=True))
    rate = f"{size / seconds:.0f} points/s"
    print(
        f"{name}: built in {seconds:.1f} s ({rate}), {anonymous:.0f} MB + {mapped:.0f} MB of mapped files", flush=True
    )
    return engine


def measure(
    built: dict[str, Engine], queries: np.ndarray, wanted: list[Wanted | None], size: int, filter_name: str | None
) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {name: [] for name in built}
    answers: dict[str, list[list[int]]] = {name: [] for name in built}
    names = list(built)
    asked = [name for name in names if filter_name is None or built[name].takes_filters]
    dice = np.random.default_rng(1)
    for start in range(0, len(queries), QUERIES_A_TURN):
        # In a random order each time: after a large scan, the next engine finds a cold CPU cache.
        for name in dice.permutation(asked).tolist():
            for number in range(start, start + QUERIES_A_TURN):
                started = time.perf_counter()
                answer = built[name].query(queries[number], wanted[number])
                times[name].append((time.perf_counter() - started) * 1000)
                answers[name].append(answer)
    exact = float(np.median(times["numpy_exact"]))
    rows = []
    for name in names:
        if not times[name]:
            print(f"| {name} | {filter_name} | no filters | | | |")
            continue
        pairs = zip(answers[name], answers["numpy_exact"], strict=True)
        recall = float(np.mean([len({*got[:10]} & {*best[:10]}) / len(best[:10]) for got, best in pairs]))
        p50, p95 = np.percentile(times[name], [50, 95])
        print(
            f"| {name} | {filter_name or '-'} | {p50:.2f} | {p95:.2f} | {recall:.4f} | {p50 / exact:.2f} |", flush=True
        )
        rows.append(
            {
                "engine": name, "size": size, "filter": filter_name, "p50_ms": round(float(p50), 4),
                "p95_ms": round(float(p95), 4), "recall_at_10": round(recall, 4),
                "ratio_to_exact": round(float(p50) / exact, 4),
            }
        )  # fmt: skip
    return rows


def memory_mb() -> tuple[float, float]:
    """Return this process's memory in MB: anonymous, and mapped files, which the system may drop."""
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return (0.0, 0.0)
    found = dict(line.split(":") for line in rollup.read_text().splitlines()[1:])
    anonymous, mapped = (int(found[key].split()[0]) / 1024 for key in ("Pss_Anon", "Pss_File"))
    return anonymous, mapped


if __name__ == "__main__":
    main()
