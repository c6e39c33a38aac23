"""Run the example shop in its own folder, with real processes, as a shop does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.conftest import own_environment
from tests.drawings import photo_bytes


class Shop:
    """The example shop in a folder, controlled through its commands."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder = folder
        self.environment = own_environment(
            SHOP_STATE_DIR=str(folder), CHECKPOINT=str(checkpoint), DJANGO_SETTINGS_MODULE="tests.qcluster_settings"
        )
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *words: str, **environment: str) -> None:
        """Start a command of the shop; `name` is the name of its log file in the shop's folder."""
        with (self.folder / name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "manage.py", *words],
                cwd=ROOT,
                env=self.environment | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, name: str) -> None:
        process = self.processes.pop(name)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise

    def stop_all(self) -> None:
        for name in list(self.processes):
            self.stop(name)

    def start_worker(self) -> None:
        """Start the embedding worker."""
        self.start("log", "qcluster", Q_CLUSTER_NAME="embedding")

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
        """Wait until no mark is left and the entries are in these states."""
        deadline = time.monotonic() + seconds
        while (status := self.status())["marks"] or {k: v for k, v in status["states"].items() if v} != states:
            assert time.monotonic() < deadline, f"{status}\n{(self.folder / 'log').read_text()[-4000:]}"
            time.sleep(0.5)

    def wait_with_sweeps(self, **states: int) -> None:
        """Wait like `wait`, but sweep at once instead of when the schedule does, each minute."""
        for _ in range(60):
            self.shell("from visual_search.index import queue, sweep; sweep.sweep(); queue.enqueue_drain()")
            status = self.status()
            if not status["marks"]:
                break
            time.sleep(1)
        self.wait(**states)

    def search(self, seed: int) -> str:
        """Return what `search_by_photo` prints for the photo of this seed: the best hit."""
        photo = self.folder / "photo.jpg"
        photo.write_bytes(photo_bytes(seed=seed))
        return self.manage("search_by_photo", str(photo), "--limit", "1")


def wait_for(condition: Callable[[], bool], shop: Shop, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, (shop.folder / "log").read_text()[-4000:]
        time.sleep(0.01)
