"""Several embedding clusters on one queue, as on several machines: real PostgreSQL, real Redis, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests import ROOT, servers
from tests.conftest import own_environment
from tests.traffic import BACKLOG, PRODUCTS

LIVE_CLAIMS = "SELECT COUNT(DISTINCT claim_token) FROM visual_search_indexentry WHERE lease_until > now()"
MARKS = "SELECT COUNT(*) FROM visual_search_indexmark"
MARK_ALL = (
    "WITH made AS (INSERT INTO visual_search_indexmark (model_label, key, kind) "
    "SELECT 'example_shop.product', id::text, 'forced' FROM example_shop_product RETURNING 1) SELECT COUNT(*) FROM made"
)
INDEXED = "SELECT COUNT(*) FROM visual_search_indexentry WHERE state = 'indexed'"


class Machines:
    """The processes of one shop: each cluster in its own process group, as if on its own machine."""

    def __init__(self, folder: Path, environment: dict[str, str], database: psycopg.Connection[Any]) -> None:
        self.folder, self.environment, self.database = folder, environment, database
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        with self.log(name).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=self.environment | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def cluster(self, name: str) -> subprocess.Popen[bytes]:
        return self.start(name, "manage.py", "qcluster", Q_CLUSTER_NAME="embedding")

    def traffic(self, name: str, work: str) -> subprocess.Popen[bytes]:
        return self.start(name, "-m", "tests.traffic", work, str(self.folder))

    def run(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def count(self, sql: str) -> int:
        (found,) = self.database.execute(sql).fetchone() or (0,)
        return int(found)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            logs = "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in self.folder.glob("*.log"))
            assert time.monotonic() < deadline, f"not in time: {what}\n{logs}"
            time.sleep(0.05)

    def working_claims(self) -> int:
        """Return how many workers hold claims now. Keeps the backlog large without requesting a drain."""
        if self.count(MARKS) < BACKLOG:
            self.count(MARK_ALL)
        return self.count(LIVE_CLAIMS)

    def is_draining(self, name: str) -> bool:
        """Return whether a cluster of one worker is running a task, by what it logs at its start and end."""
        lines = self.log(name).read_text().splitlines()
        ends = sum(" Processed '" in line or " Failed '" in line for line in lines)
        return sum(" processing " in line for line in lines) > ends

    def sweep_until_dry(self) -> None:
        """Sweep until no mark is left, without waiting for the clusters' schedulers, which sweep once a minute."""
        for _ in range(60):
            self.run(
                "manage.py",
                "shell",
                "--no-imports",
                "-c",
                "from visual_search.index import queue, sweep; sweep.sweep(); queue.enqueue_drain()",
            )
            if not self.count(MARKS):
                return
            time.sleep(1)
        raise AssertionError(f"{self.count(MARKS)} marks are left")

    def outcome(self, name: str, process: subprocess.Popen[bytes]) -> Any:
        assert process.wait(60) == 0, self.log(name).read_text()
        return json.loads(self.log(name).read_text().splitlines()[-1])

    def end(self) -> None:
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait(10)


def embedding_process(cluster: subprocess.Popen[bytes]) -> int | None:
    """Return the id of a cluster's process that has loaded an encoder: the large one."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == cluster.pid:
                pages = int((entry / "statm").read_text().split()[1])
                if pages * os.sysconf("SC_PAGE_SIZE") > 250 * 2**20:
                    return int(entry.name)
        except OSError:
            continue
    return None


@contextmanager
def machines(folder: Path, checkpoint: Path, broker: str) -> Iterator[Machines]:
    with ExitStack() as running:
        port = running.enter_context(servers.postgres())
        environment = own_environment(
            PGHOST="127.0.0.1",
            PGPORT=str(port),
            PGUSER="postgres",
            PGDATABASE="postgres",
            SHOP_STATE_DIR=str(folder),
            CHECKPOINT=str(checkpoint),
            DJANGO_SETTINGS_MODULE="tests.workers_settings",
        )
        if broker == "redis":
            environment["REDIS_URL"] = running.enter_context(servers.redis())
        address = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
        database = running.enter_context(psycopg.connect(address, autocommit=True))
        shop = Machines(folder, environment, database)
        running.callback(shop.end)
        yield shop


@pytest.mark.parametrize(("broker", "workers", "readers"), [("orm", 2, 1), ("redis", 4, 3)])
def test_clusters_on_one_queue__share_the_work_and_lose_nothing_when_killed(
    tmp_path: Path, starter_folder: Path, broker: str, workers: int, readers: int
) -> None:
    with machines(tmp_path, starter_folder, broker) as shop:
        shop.run("manage.py", "migrate", "--verbosity", "0")
        # No sweep: only the import's single request and running drains start workers.
        shop.count("WITH gone AS (DELETE FROM django_q_schedule RETURNING 1) SELECT COUNT(*) FROM gone")
        shop.run("-m", "tests.traffic", "import", str(tmp_path))
        assert json.loads(shop.run("manage.py", "index_status", "--json"))["waiting_tasks"] == 1

        clusters = {f"cluster{number}": shop.cluster(f"cluster{number}") for number in range(workers)}
        shop.wait_until(lambda: shop.count(INDEXED) > 0, "the first products are indexed")
        searching = {f"reader{number}": shop.traffic(f"reader{number}", "search") for number in range(readers)}
        shop.wait_until(lambda: shop.working_claims() == workers, "every worker has joined")
        saving = shop.traffic("writer", "save")
        for name in [*searching, "writer"]:
            shop.wait_until(lambda name=name: "ready" in shop.log(name).read_text(), f"{name} is at work")

        # django-q2's queue breaks when an idle worker is killed; a worker that drains does not hold the queue's lock.
        shop.wait_until(lambda: shop.is_draining("cluster0"), "the first cluster is at work")
        first, second, *_ = clusters.values()
        worker = embedding_process(first)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)  # such as a worker that runs out of memory: its cluster starts another one
        if workers > 2:
            os.killpg(second.pid, signal.SIGKILL)  # a machine that fails
        indexed = shop.count("SELECT last_seq FROM visual_search_feedstate")
        shop.wait_until(
            lambda: shop.count("SELECT last_seq FROM visual_search_feedstate") > indexed + PRODUCTS, "others go on"
        )
        (tmp_path / "stop").touch()
        done = {name: shop.outcome(name, process) for name, process in (searching | {"writer": saving}).items()}
        assert {name: each["errors"] for name, each in done.items()} == dict.fromkeys(done, [])
        assert min(each["done"] for each in done.values()) > 20

        if broker == "redis":  # Redis loses its data, and so every task
            Redis.from_url(shop.environment["REDIS_URL"]).flushall()
        shop.sweep_until_dry()
        status = json.loads(shop.run("manage.py", "index_status", "--json"))
        assert (status["marks"], status["problem"], status["waiting_tasks"]) == (0, "", 0)
        assert "no differences" in shop.run("manage.py", "verify_index")
        log = shop.log("cluster0").read_text()
        assert "reincarnated worker" in log
