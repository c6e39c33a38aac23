"""Does the index keep up at size? Claims, drains without a change, the sweep, the queries of each minute.

    python -m benchmarks.scale [--products 300000] [--database sqlite|postgres]

A shop whose first category holds a third of the products, and its index as drains would have left it. PostgreSQL is
started for this and stopped again.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from benchmarks.shop import temporary_shop

SLICE = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=300_000)
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    options = parser.parse_args()
    with ExitStack() as stack:
        if options.database == "postgres":
            from tests import servers

            port = stack.enter_context(servers.postgres())
            os.environ |= {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres", "PGDATABASE": "postgres"}
        stack.enter_context(temporary_shop())
        logging.getLogger("visual_search").setLevel(logging.WARNING)
        logging.getLogger("django-q").setLevel(logging.WARNING)
        started = time.perf_counter()
        fill(options.products)
        print(f"{options.database}, {options.products} products, filled in {time.perf_counter() - started:.0f} s")
        measure(options.products)


def fill(count: int) -> None:
    """Write the shop's rows and its index, with digests as a drain makes them."""
    from django.db import connection, transaction

    from example_shop.models import Brand, Category, Product, ProductImage
    from visual_search.catalog import get_catalog
    from visual_search.index.plans import product_digest
    from visual_search.index.versions import ensure_active
    from visual_search.models import Embedding, FeedState, IndexEntry, IndexMark, point_id

    version = ensure_active()
    categories = [Category.objects.create(name=f"C{n}", slug=f"c{n}") for n in range(20)]
    brands = [Brand.objects.create(name=f"B{n}", slug=f"b{n}") for n in range(50)]
    vectors = np.random.default_rng(0).standard_normal((SLICE, version.dim), dtype=np.float32).astype("<f2")
    catalog = get_catalog()
    seq = 0
    for start in range(1, count + 1, SLICE):
        numbers = range(start, min(start + SLICE, count + 1))
        with transaction.atomic():
            Product.objects.bulk_create(
                Product(
                    id=n, sku=f"sku-{n}", name=f"Product {n}", slug=f"product-{n}", description="words " * 40,
                    category=categories[0 if n % 3 == 0 else 1 + n % 19], brand=brands[n % 50],
                    price=n % 997 + 1, stock=n % 5,
                )
                for n in numbers
            )  # fmt: skip
            ProductImage.objects.bulk_create(
                ProductImage(id=n, product_id=n, image=f"products/{n}.jpg", position=0) for n in numbers
            )
            entries, rows = [], []
            for at, product in enumerate(catalog.queryset().filter(pk__in=numbers)):
                payload, images = catalog.payload(product), catalog.images_of(product)
                key, seq = str(product.pk), seq + 1
                entries.append(
                    IndexEntry(
                        version=version, key=key, state=IndexEntry.State.INDEXED, indexed_at=now(),
                        content_digest=product_digest(payload, images),
                    )
                )  # fmt: skip
                rows.append(
                    Embedding(
                        id=point_id(version.pk, key, images[0].key), version=version, product_key=key,
                        image_key=images[0].key, image_identity=images[0].identity, digest="0" * 64, is_main=True,
                        vector=vectors[at].tobytes(), payload=payload, seq=seq,
                    )
                )  # fmt: skip
            IndexEntry.objects.bulk_create(entries, batch_size=500)
            Embedding.objects.bulk_create(rows, batch_size=500)
    FeedState.objects.update_or_create(pk=1, defaults={"last_seq": seq})
    IndexMark.objects.all().delete()
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def now() -> datetime.datetime:
    from django.utils import timezone

    return timezone.now()


def measure(count: int) -> None:
    from example_shop.models import Category, Product
    from visual_search import components
    from visual_search.index import claims, drain, expansion, feed, queue, status, sweep, verify, versions
    from visual_search.models import IndexMark

    version = versions.find_active()
    assert version is not None
    queue.enqueue_drain()  # imports django-q2
    in_category = Product.objects.filter(category__slug="c0").count()

    line("prune, nothing old", timed(lambda: sweep.prune_tombstones("default")), "ms")
    line("due retries", timed(lambda: sweep.mark_due_retries(version, "default")), "ms")
    line("has work", timed(lambda: claims.has_work("default")), "ms")
    line("index_status", timed(status.read_status, times=1), "ms")

    Category.objects.get(slug="c0").save()
    Category.objects.get(slug="c0").save()
    with held_locks() as held:
        seconds = timed(lambda: expansion.expand_related_marks("default"), times=1) / 1000
    marks = IndexMark.objects.count()
    print(f"  {in_category} products of a category saved twice: {marks} marks, {in_category / seconds:.0f} a second")
    line("  longest transaction of it", max(held), "ms")

    claim_times = []
    for _ in range(20):
        started = time.perf_counter()
        claim = claims.claim(version, limit=64)
        claim_times.append((time.perf_counter() - started) * 1000)
        assert claim is not None
        claims.release(claim, "default")
    line("claim at this backlog (target: under 60)", statistics.median(claim_times), "ms")
    saved = Product.objects.get(pk=count)
    saved.save()
    claim = claims.claim(version, limit=64)
    assert claim is not None
    print(f"  a product saved meanwhile is in the next claim: {str(count) in claim.products}")
    claims.release(claim, "default")

    with held_locks() as held:
        started = time.perf_counter()
        report = drain.drain(seconds=20)
        seconds = time.perf_counter() - started
    done = sum((report.indexed, report.partial, report.failed, report.removed))
    print(
        f"  drain without a change: {done / seconds:.0f} products a second (target: 3,000), encoded {report.embedded}"
    )
    line("  longest transaction of it (target: under 50)", max(held), "ms")
    IndexMark.objects.all().delete()

    seconds = 3.0
    started = time.perf_counter()
    compared = 0
    for _ in sweep.differing_products(version, "default"):
        compared += sweep.SLICE
        if time.perf_counter() - started >= seconds:
            break
    print(f"  sweep: {compared / (time.perf_counter() - started):.0f} products a second")
    started = time.perf_counter()
    compared = 0
    for _ in sweep.orphaned_entries(version, "default"):
        compared += sweep.SLICE
        if time.perf_counter() - started >= seconds:
            break
    print(f"  sweep: {compared / (time.perf_counter() - started):.0f} entries a second")

    stop = threading.Event()
    saver = threading.Thread(target=save_on, args=(stop, count), daemon=True)
    saver.start()
    drain.drain(seconds=5)  # loads what a worker has loaded
    feed.catch_up(version, components.store_for(version))
    before = peak_mb()
    started = time.perf_counter()
    verification = verify.verify()
    stop.set()
    saver.join()
    print(
        f"  verify_index beside 5 saves a second: {time.perf_counter() - started:.0f} s (target: under 180), "
        f"{len(verification.differences)} differences, {peak_mb() - before:.0f} MB more than before (target: under 400)"
    )


def save_on(stop: threading.Event, count: int) -> None:
    """Save five products a second and drain them, as a shop and its worker do."""
    from django.db import connections

    from example_shop.models import Product
    from visual_search.index import drain

    for number in range(1, count, 7):
        if stop.wait(0.2):
            break
        product = Product.objects.get(pk=number)
        product.price += 1
        product.save()
        if number % 35 == 1:
            drain.drain(seconds=5)
    connections.close_all()


@contextmanager
def held_locks() -> Iterator[list[float]]:
    """Collect how long each transaction lasted, in ms."""
    from django.db import connection, transaction

    held: list[float] = [0.0]
    enter, leave = transaction.Atomic.__enter__, transaction.Atomic.__exit__
    began: list[float] = []

    def timed_enter(self: Any) -> None:
        is_outermost = not connection.in_atomic_block
        enter(self)
        if is_outermost:
            began.append(time.perf_counter())

    def timed_exit(self: Any, *args: Any) -> None:
        leave(self, *args)
        if not connection.in_atomic_block and began:
            held.append((time.perf_counter() - began.pop()) * 1000)

    transaction.Atomic.__enter__, transaction.Atomic.__exit__ = timed_enter, timed_exit  # type: ignore[method-assign]
    try:
        yield held
    finally:
        transaction.Atomic.__enter__, transaction.Atomic.__exit__ = enter, leave  # type: ignore[method-assign]


def timed(call: Callable[[], object], *, times: int = 3) -> float:
    """Return the median of some runs, in ms."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken)


def line(what: str, value: float, unit: str) -> None:
    print(f"  {what}: {value:.1f} {unit}", flush=True)


def peak_mb() -> float:
    """Return the most memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
