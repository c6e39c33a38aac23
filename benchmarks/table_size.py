"""Measure the bytes per indexed image in PostgreSQL, for tables and indexes together.

    python -m benchmarks.table_size [--rows 20000] [--dim 768]

Starts its own PostgreSQL (Debian: apt install postgresql) and writes one image per product, with random vectors.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import uuid

TABLES = ("visual_search_embedding", "visual_search_indexentry")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=768)
    options = parser.parse_args()
    from tests import servers

    with servers.postgres() as port, tempfile.TemporaryDirectory() as folder:
        os.environ |= {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres", "PGDATABASE": "postgres"}
        os.environ |= {"SHOP_STATE_DIR": folder, "DJANGO_SETTINGS_MODULE": "example_shop.settings"}
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        fill(options.rows, options.dim)
        measure(options.rows, options.dim)


def fill(count: int, dim: int) -> None:
    import numpy as np

    from visual_search.models import Embedding, IndexEntry, IndexVersion

    version = IndexVersion.objects.create(checkpoint="random", fingerprint="0" * 16, dim=dim, state="active")
    dice = np.random.default_rng(1)
    payload = {"category": "shoes", "brand": "acme", "price": 79.9, "in_stock": True}
    for start in range(0, count, 1000):
        numbers = range(start, start + 1000)
        Embedding.objects.bulk_create(
            Embedding(
                id=uuid.uuid4(), version=version, product_key=str(number), image_key=str(number), is_main=True,
                image_identity=f"products/picture-{number}.jpg", digest=hashlib.sha256(bytes(number % 7)).hexdigest(),
                vector=dice.standard_normal(dim).astype("<f2").tobytes(), payload=payload, seq=number + 1,
            )
            for number in numbers
        )  # fmt: skip
        IndexEntry.objects.bulk_create(
            IndexEntry(version=version, key=str(number), state="indexed", content_digest="0" * 64) for number in numbers
        )


def measure(count: int, dim: int) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("VACUUM FULL")
        for table in TABLES:
            cursor.execute("SELECT pg_total_relation_size(%s)", [table])
            print(f"{table}: {cursor.fetchone()[0] / count:.0f} bytes per row ({count} rows, {dim}-d)")


if __name__ == "__main__":
    main()
