"""Compute the sizing tables of docs/deployment.md from measured numbers.

    python -m benchmarks.sizing [--dim 768] [--replicas 2] [--gpu-images-per-second 200] [--node-ram-gb 64] …

Each constant gives its source; assumptions that are not measured are options. The tables are linear in their inputs:
good enough to choose a machine, but no guarantee.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence

GB, MILLION = 10**9, 10**6
SIZES = (100_000, MILLION, 10 * MILLION, 100 * MILLION)

# Images per second of one worker on 2 cores, float32. The starter: the whole drain, on a busy machine (load 3 to 4;
# `python -m benchmarks.indexing`). The others: only the encoder, random weights; the drain reaches 0.8 to 0.95 of it.
WORKERS = (("starter, 2 busy cores", 17.2), ("CLIP ViT-B/32, 2 cores", 15.9), ("CLIP ViT-L/14, 2 cores", 0.87))

# Bytes per image in PostgreSQL 15, tables and indexes of embeddings and entries: `python -m benchmarks.table_size`.
TABLE_BYTES = {512: 1_471 + 222, 768: 2_153 + 222, 1024: 3_164 + 222}

# Qdrant's embedded engine (qdrant-edge 0.9.0) with 1M vectors of 512 dimensions, int8 copy, HNSW m=16:
# 1.1 GB of anonymous memory, 2.9 GB on disk, and 662 s to build the graph on two idle threads.
MEASURED_DIM = 512
POINT_RAM_BYTES = 1_100 - MEASURED_DIM  # without the int8 copy: graph, ids, payload indexes
POINT_DISK_BYTES = 2_900 - 5 * MEASURED_DIM  # without float32 vectors and int8 copy
HNSW_SECONDS, HNSW_THREADS = 662, 2

ALL_IN_RAM = 4 * 1.5  # bytes per number, from Qdrant's capacity planning
NODES_MIN = 3  # Qdrant's advice for a cluster that tolerates the loss of a node
SHARDS_PER_NODE = 2  # Qdrant's advice is 2 to 4: the number of shards is fixed, and new nodes take over whole shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, choices=sorted(TABLE_BYTES), default=768, help="768: the default checkpoint")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--gpu-images-per-second", type=float, default=200, help="assumed: measure yours")
    parser.add_argument("--node-ram-gb", type=float, default=64, help="assumed")
    parser.add_argument("--node-fill", type=float, default=0.7, help="assumed: the rest is for merging segments")
    parser.add_argument("--node-threads", type=int, default=8, help="assumed: threads that build the graph")
    print(tables(parser.parse_args()))


def tables(options: argparse.Namespace) -> str:
    """Return both tables in Markdown."""
    head = ("Worker", "Images/s", "1M images", "100M images", "Workers for 100M in a week")
    parts = [markdown(head, embedding_rows(options))]
    head = (
        "Images", "PostgreSQL", "All in RAM", "int8 in RAM", "Disk",
        f"Nodes of {options.node_ram_gb:g} GB", "Shards", "Graph built in",
    )  # fmt: skip
    return "\n\n".join([*parts, markdown(head, index_rows(options))])


def embedding_rows(options: argparse.Namespace) -> Iterator[Sequence[str]]:
    week = 7 * 24 * 3600
    for name, rate in (*WORKERS, ("a GPU, assumed", options.gpu_images_per_second)):
        needed = math.ceil(100 * MILLION / rate / week)
        yield name, f"{rate:g}", span(MILLION / rate), span(100 * MILLION / rate), f"{needed:,}"


def index_rows(options: argparse.Namespace) -> Iterator[Sequence[str]]:
    """Yield one row per size. Sizes are of one copy; nodes, shards and build time are of a cluster with replicas."""
    dim = options.dim
    for images in SIZES:
        ram = images * (dim + POINT_RAM_BYTES)
        nodes = math.ceil(ram * options.replicas / (options.node_ram_gb * GB * options.node_fill))
        nodes = max(nodes, NODES_MIN if options.replicas > 1 else 1)
        seconds = images / MILLION * HNSW_SECONDS * (dim / MEASURED_DIM) * HNSW_THREADS / options.node_threads
        yield (
            f"{images:,}",
            size(images * TABLE_BYTES[dim]),
            size(images * dim * ALL_IN_RAM),
            size(ram),
            size(images * (5 * dim + POINT_DISK_BYTES)),
            str(nodes),
            str(nodes * SHARDS_PER_NODE),
            span(seconds * options.replicas / nodes),
        )


def markdown(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def size(count: float) -> str:
    return f"{count / GB:.1f} GB" if count < 10 * GB else f"{count / GB:,.0f} GB"


def span(seconds: float) -> str:
    """Format a time span: "40 s", "12 min", "9.2 h", "36 days"."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
