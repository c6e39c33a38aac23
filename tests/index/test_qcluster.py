"""A real queue worker with its own database: what a shop's staff sees when they change products."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from tests import ROOT
from tests.drawings import photo_bytes
from tests.shops import Shop, wait_for


def encoder_process(shop: Shop) -> int:
    """Return the id of this shop's process that has loaded an encoder: the large one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
                pages = int((entry / "statm").read_text().split()[1])
            except OSError:
                continue
            if f"SHOP_STATE_DIR={shop.folder}\0".encode() in environment and pages * 4096 > 250 * 2**20:
                found.append(int(entry.name))
    (process,) = found
    return process


def test_worker__follows_every_change_and_survives_being_killed(shop: Shop) -> None:
    shop.wait(indexed=3)
    assert "Thing 2" in shop.search(2)
    assert "no differences" in shop.manage("verify_index", "--deep")

    # Another image, saved as the admin does.
    new = shop.folder / "new.jpg"
    new.write_bytes(photo_bytes(seed=50))
    shop.shell(
        "from django.core.files import File\n"
        f"image = ProductImage.objects.get(product__name='Thing 2')\n"
        f"image.image.save('new.jpg', File(open({str(new)!r}, 'rb')))"
    )
    shop.wait(15, indexed=3)
    assert "Thing 2" in shop.search(50)

    shop.shell("product = Product.objects.get(name='Thing 3'); product.is_published = False; product.save()")
    shop.shell("Product.objects.get(name='Thing 1').delete()")
    shop.wait(indexed=1, removed=2)
    assert "Thing 2" in shop.search(1)
    assert "1 products, 1 embeddings, 1 points in the store: no differences" in shop.manage("verify_index")


def test_worker_killed_while_it_embeds__loses_nothing(shop: Shop) -> None:
    shop.wait(indexed=3)
    for seed in range(100, 160):
        (shop.folder / "pictures" / "Things" / f"Thing {seed}.jpg").write_bytes(photo_bytes(seed=seed))
    with closing(sqlite3.connect(shop.folder / "shop.sqlite3")) as database:
        loading = subprocess.Popen(
            [sys.executable, "manage.py", "load_catalog", str(shop.folder / "pictures")], cwd=ROOT, env=shop.environment
        )
        # django-q2's queue breaks when an idle worker is killed; a worker that embeds does not hold the queue's lock.
        claimed = "SELECT COUNT(*) FROM visual_search_indexentry WHERE claim_token IS NOT NULL"
        wait_for(lambda: database.execute(claimed).fetchone()[0] > 5, shop)
    os.kill(encoder_process(shop), signal.SIGKILL)
    assert loading.wait(60) == 0
    shop.wait_with_sweeps(indexed=63)
    assert "63 points in the store: no differences" in shop.manage("verify_index")


def test_migrate__schedules_one_sweep_a_minute_on_the_embedding_cluster(shop: Shop) -> None:
    shop.manage("migrate", "--verbosity", "0")
    output = shop.shell(
        "from django_q.models import Schedule\n"
        "print(list(Schedule.objects.values_list('func', 'minutes', 'cluster', 'repeats')))"
    )
    assert output.strip() == "[('visual_search.tasks.sweep', 1, 'embedding', -1)]"
