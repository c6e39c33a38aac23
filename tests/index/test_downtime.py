"""Build, switch and roll back a checkpoint while a real server answers searches and a real worker indexes."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.drawings import photo_bytes
from tests.servers import free_port
from tests.shops import Shop, wait_for
from tests.tiny_checkpoints import tiny_clip

BOUNDARY = "photo-of-a-thing"
SAVES = """
import itertools, pathlib, time
for number in itertools.count():
    for product in Product.objects.all():
        product.price = number % 90 + 1
        product.save()
        time.sleep(0.05)
    if pathlib.Path({stop!r}).exists():
        print(number)
        break
"""


@pytest.fixture
def server(shop: Shop) -> Iterator[str]:
    """Run the shop's web process, warmed up. Yield the URL of its search."""
    shop.wait(indexed=3)
    port = free_port()
    shop.start("web.log", "runserver", f"127.0.0.1:{port}", "--noreload")
    address = f"http://127.0.0.1:{port}/api/visual-search/v1/search/"
    try:
        wait_for(lambda: is_answered(f"{address}?q=a"), shop)
        yield address
    finally:
        shop.stop("web.log")


def is_answered(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(address, timeout=30).status == 200)
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read()) from error
    except OSError:
        return False


class Shoppers:
    """Threads that search continuously, by photo and by text."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.failures: list[str] = []
        self.dims: list[int] = []
        self.answers = 0
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._search, args=(place,)) for place in range(2)]

    def __enter__(self) -> Shoppers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(60)

    def _search(self, place: int) -> None:
        number = 0
        while not self._done.is_set():
            number += 1
            try:
                found = self._by_photo(number % 40) if place else self._by_text(number)
                assert len(found["results"]) == 3, found
                self.answers += 1
            except urllib.error.HTTPError as error:
                self.failures.append(f"{error.code} {error.read()!r}")
            except Exception as error:
                self.failures.append(repr(error))

    def _by_text(self, number: int) -> Any:
        return json.load(urllib.request.urlopen(f"{self.address}?q=thing+{number}", timeout=60))

    def _by_photo(self, seed: int) -> Any:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="photo"; filename="photo.jpg"\r\n\r\n'
        body = head.encode() + photo_bytes((320, 240), seed=seed) + f"\r\n--{BOUNDARY}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        return json.load(urllib.request.urlopen(urllib.request.Request(self.address, body, headers), timeout=60))


def test_not_one_search_or_save_fails__while_a_checkpoint_is_built_switched_and_rolled_back(
    shop: Shop, server: str, tmp_path: Path
) -> None:
    other, stop = tiny_clip(tmp_path / "clip"), tmp_path / "stop"
    saving = subprocess.Popen(
        [sys.executable, "manage.py", "shell", "--no-imports", "-c",
         "from example_shop.models import *\n" + SAVES.format(stop=str(stop))],
        cwd=ROOT, env=shop.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with Shoppers(server) as shoppers:
            assert "embedded" in shop.manage("build_version", "--checkpoint", str(other))
            number = json.loads(shop.manage("list_versions", "--json"))[-1]["version"]
            for command in (["switch_version", str(number)], ["rollback_version"], ["rollback_version"]):
                before = shoppers.answers
                shop.manage(*command)
                wait_for(lambda before=before: shoppers.answers > before + 10, shop)  # type: ignore[misc]
    finally:
        stop.touch()
        out, error = saving.communicate(timeout=60)
    assert saving.returncode == 0, error
    assert int(out) > 3  # rounds of saves
    assert shoppers.failures == []
    assert shoppers.answers > 40
    log = (shop.folder / "web.log").read_text()
    assert f"now searches index version {number}" in log
    shop.wait_with_sweeps(indexed=3)
    assert "3 points in the store: no differences" in shop.manage("verify_index", "--deep")


def test_build_that_is_killed__is_finished_by_the_next_one(shop: Shop, tmp_path: Path) -> None:
    shop.wait(indexed=3)
    for seed in range(100, 400):
        (shop.folder / "pictures" / "Things" / f"Thing {seed}.jpg").write_bytes(photo_bytes((160, 120), seed=seed))
    shop.manage("load_catalog", str(shop.folder / "pictures"))
    shop.wait_with_sweeps(indexed=303)
    other = tiny_clip(tmp_path / "clip")
    command = [sys.executable, "manage.py", "build_version", "--checkpoint", str(other)]
    building = subprocess.Popen(
        command, cwd=ROOT, env=shop.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    with closing(sqlite3.connect(shop.folder / "shop.sqlite3")) as database:
        count = "SELECT COUNT(*) FROM visual_search_indexentry WHERE state = 'indexed' AND version_id <> ?"
        (first,) = database.execute("SELECT MIN(id) FROM visual_search_indexversion").fetchone()

        def built() -> int:
            return int(database.execute(count, (first,)).fetchone()[0])

        wait_for(lambda: built() > 0, shop)
        building.kill()
        building.wait(30)
        assert built() < 303
    started = time.monotonic()
    assert "images embedded" in shop.manage("build_version", "--checkpoint", str(other))
    assert time.monotonic() - started < 60  # the dead build's lease ends after ten seconds
    shop.manage("switch_version", str(json.loads(shop.manage("list_versions", "--json"))[-1]["version"]))
    assert "303 points in the store: no differences" in shop.manage("verify_index")
