"""Measure the cost of feeding the default store from SQLite, as part of `python -m benchmarks.store`."""

from __future__ import annotations

import logging
import time
from statistics import median

import numpy as np

from benchmarks.shop import temporary_shop

CHANGED = 1000
LOOK_UPS = 500


def measure_feeding(size: int, dim: int) -> None:
    with temporary_shop():
        logging.getLogger("visual_search").setLevel(logging.WARNING)
        from visual_search.components import store_for
        from visual_search.index import feed
        from visual_search.index.versions import find_active

        fill(size, dim)
        version = find_active()
        assert version is not None
        store = store_for(version)
        started = time.perf_counter()
        feed.catch_up(version, store)
        seconds = time.perf_counter() - started
        assert store.count() == size
        print(f"\nFeeding {size} points of {dim} dimensions from SQLite")
        print(f"  a full refill, checked    {seconds:.1f} s, {size / seconds:.0f} points/s (target: at least 5,000)")
        look_ups = [timed(lambda: feed.catch_up(version, store)) for _ in range(LOOK_UPS)]
        print(f"  look-up, nothing changed  {median(look_ups):.3f} ms (target: under 0.2)")
        changes = []
        for _ in range(7):
            change(size, CHANGED)
            changes.append(timed(lambda: feed.catch_up(version, store)))
        print(f"  {CHANGED} changed rows         {median(changes):.0f} ms (target: under 300)", flush=True)
        assert store.count() == size


def timed(call: object) -> float:
    started = time.perf_counter()
    call()  # type: ignore[operator]
    return (time.perf_counter() - started) * 1000


def fill(size: int, dim: int) -> None:
    """Write the rows that a drain would write. Feeding needs no products."""
    from visual_search.models import Embedding, FeedState, IndexVersion, point_id

    for model in (Embedding, IndexVersion, FeedState):
        model.objects.all().delete()
    version = IndexVersion.objects.create(
        checkpoint="benchmark", fingerprint="benchmark", dim=dim, state=IndexVersion.State.ACTIVE
    )
    vectors = np.random.default_rng(0).standard_normal((size, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    Embedding.objects.bulk_create(
        (
            Embedding(
                id=point_id(version.pk, str(n), "0"), version=version, product_key=str(n), image_key="0",
                image_identity=f"products/{n}.jpg", digest="", is_main=True, vector=vectors[n].astype("<f2").tobytes(),
                payload={"category": f"c{n % 20}", "brand": f"b{n % 50}", "price": n % 997 + 1, "in_stock": n % 5 > 0},
                seq=n + 1,
            )
            for n in range(size)
        ),
        batch_size=500,
    )  # fmt: skip
    FeedState.objects.create(pk=1, last_seq=size)


def change(size: int, count: int) -> None:
    """Give `count` rows a new price and a new seq."""
    from django.db.models import F

    from visual_search.models import Embedding, FeedState

    last = FeedState.objects.get().last_seq
    rows = list(Embedding.objects.order_by("seq")[:: max(1, size // count)][:count])
    for seq, row in enumerate(rows, start=last + 1):
        row.seq = seq
        row.payload |= {"price": row.payload["price"] + 1}
    Embedding.objects.bulk_update(rows, ["seq", "payload"], batch_size=200)
    FeedState.objects.update(last_seq=F("last_seq") + len(rows))
