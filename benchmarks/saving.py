"""Measure what the search adds to saving a product.

    python -m benchmarks.saving [--saves 1000]

Saves the same product in one transaction, alternating with and without the package's receivers.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks.shop import add_products, temporary_shop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=1000)
    saves = parser.parse_args().saves
    with temporary_shop():
        add_products(1)
        from django.db import connection, transaction
        from django_q.models import OrmQ

        from example_shop.models import Product
        from visual_search.index import queue, signals
        from visual_search.models import IndexMark

        product = Product.objects.get()
        times: dict[bool, float] = {True: 0.0, False: 0.0}
        for is_watched in (True, False) * 3:
            (signals.connect if is_watched else signals.disconnect)()
            started = time.perf_counter()
            with transaction.atomic():
                for _ in range(saves):
                    product.save()
            times[is_watched] += (time.perf_counter() - started) / 3 / saves * 1000
        signals.connect()
        queue.record_drain_start()  # as the worker says when it takes the request of the saves above
        OrmQ.objects.all().delete()  # a queue that holds two tasks takes no more
        before = tasks()
        statements: list[str] = []

        def record(execute: Any, sql: str, *rest: Any) -> Any:
            statements.append(sql)
            return execute(sql, *rest)

        with connection.execute_wrapper(record), transaction.atomic():
            for _ in range(saves):
                product.save()
        inserts = sum(sql.startswith('INSERT INTO "visual_search_indexmark"') for sql in statements)
        print(f"a save: {times[False]:.3f} ms without, {times[True]:.3f} ms with the search watching")
        print(f"{saves} saves in one transaction: {inserts} INSERTs of a mark, {tasks() - before} drain requested")
        print(f"{IndexMark.objects.count()} marks wait")


def tasks() -> int:
    from django_q.models import OrmQ

    return OrmQ.objects.count()


if __name__ == "__main__":
    main()
