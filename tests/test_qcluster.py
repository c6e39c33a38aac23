"""A real queue worker on a database of its own: what a shop's staff sees when they change products."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import own_environment
from tests.drawings import photo_bytes

ROOT = Path(__file__).parent.parent


class Shop:
    """The example shop in a folder, driven by its commands."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder = folder
        self.environment = own_environment(
            SHOP_STATE_DIR=str(folder), CHECKPOINT=str(checkpoint), DJANGO_SETTINGS_MODULE="tests.qcluster_settings"
        )

    def manage(self, *words: str) -> str:
        command = [sys.executable, "manage.py", *words]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def shell(self, code: str) -> str:
        return self.manage("shell", "--no-imports", "-c", f"from example_shop.models import *\n{code}")

    def status(self) -> Any:
        return json.loads(self.manage("index_status", "--json"))

    def wait(self, seconds: float = 60, **states: int) -> None:
        """Wait until nothing is marked and the entries are in these states."""
        deadline = time.monotonic() + seconds
        while (status := self.status())["marks"] or {k: v for k, v in status["states"].items() if v} != states:
            assert time.monotonic() < deadline, f"{status}\n{(self.folder / 'log').read_text()[-4000:]}"
            time.sleep(0.5)

    def wait_with_sweeps(self, **states: int) -> None:
        """Wait as above; the sweep, which the schedule runs each minute, runs at once."""
        for _ in range(60):
            self.shell("from visual_search import tasks; tasks.sweep()")
            status = self.status()
            if not status["marks"]:
                break
            time.sleep(1)
        self.wait(**states)

    def first_found(self, seed: int) -> str:
        photo = self.folder / "photo.jpg"
        photo.write_bytes(photo_bytes(seed=seed))
        return self.manage("search_by_photo", str(photo), "--limit", "1")


@pytest.fixture
def shop(tmp_path: Path, starter_folder: Path) -> Iterator[Shop]:
    pictures = tmp_path / "pictures" / "Things"
    pictures.mkdir(parents=True)
    for seed in (1, 2, 3):
        (pictures / f"Thing {seed}.jpg").write_bytes(photo_bytes(seed=seed))
    made = Shop(tmp_path, starter_folder)
    made.manage("migrate", "--verbosity", "0")
    made.manage("load_catalog", str(tmp_path / "pictures"))
    with (tmp_path / "log").open("wb") as log:
        environment = made.environment | {"Q_CLUSTER_NAME": "embedding"}
        worker = subprocess.Popen(
            [sys.executable, "manage.py", "qcluster"],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield made
    finally:
        worker.terminate()
        try:
            worker.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(worker.pid, signal.SIGKILL)
            raise


def encoder_process(shop: Shop) -> int:
    """Return the one process of this shop that holds an encoder: the large one."""
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


def wait_for(condition: Callable[[], bool], shop: Shop, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, (shop.folder / "log").read_text()[-4000:]
        time.sleep(0.01)


def test_worker__follows_every_change_and_survives_being_killed(shop: Shop) -> None:
    shop.wait(indexed=3)
    assert "Thing 2" in shop.first_found(2)
    assert "no differences" in shop.manage("verify_index", "--deep")

    # Another picture, as the admin saves it.
    new = shop.folder / "new.jpg"
    new.write_bytes(photo_bytes(seed=50))
    shop.shell(
        "from django.core.files import File\n"
        f"image = ProductImage.objects.get(product__name='Thing 2')\n"
        f"image.image.save('new.jpg', File(open({str(new)!r}, 'rb')))"
    )
    shop.wait(15, indexed=3)
    assert "Thing 2" in shop.first_found(50)

    shop.shell("product = Product.objects.get(name='Thing 3'); product.is_published = False; product.save()")
    shop.shell("Product.objects.get(name='Thing 1').delete()")
    shop.wait(indexed=1, removed=2)
    assert "Thing 2" in shop.first_found(1)
    assert "1 products, 1 embeddings, 1 points in the store: no differences" in shop.manage("verify_index")


def test_worker_killed_while_it_embeds__loses_nothing(shop: Shop) -> None:
    shop.wait(indexed=3)
    for seed in range(100, 160):
        (shop.folder / "pictures" / "Things" / f"Thing {seed}.jpg").write_bytes(photo_bytes(seed=seed))
    with closing(sqlite3.connect(shop.folder / "shop.sqlite3")) as database:
        loading = subprocess.Popen(
            [sys.executable, "manage.py", "load_catalog", str(shop.folder / "pictures")], cwd=ROOT, env=shop.environment
        )
        # django-q2's queue breaks when an idle worker is killed; one that embeds holds no lock of it.
        claimed = "SELECT COUNT(*) FROM visual_search_indexentry WHERE claim_token IS NOT NULL"
        wait_for(lambda: database.execute(claimed).fetchone()[0] > 5, shop)
    os.kill(encoder_process(shop), signal.SIGKILL)
    assert loading.wait(60) == 0
    shop.wait_with_sweeps(indexed=63)
    assert "63 points in the store: no differences" in shop.manage("verify_index")


def test_migrate__schedules_one_sweep_a_minute_on_the_embedding_cluster(shop: Shop) -> None:
    shop.manage("migrate", "--verbosity", "0")
    said = shop.shell(
        "from django_q.models import Schedule\n"
        "print(list(Schedule.objects.values_list('func', 'minutes', 'cluster', 'repeats')))"
    )
    assert said.strip() == "[('visual_search.tasks.sweep', 1, 'embedding', -1)]"
