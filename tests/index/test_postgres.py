"""Run the index tests on a real PostgreSQL, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import ROOT, servers

SUITE = [
    "index/test_concurrency.py", "index/test_indexing.py", "index/test_marks.py", "index/test_migrations.py",
    "index/test_shared_feed.py", "index/test_sharing.py", "index/test_sweep.py", "index/test_verify.py",
    "index/test_versions.py", "search/test_search.py", "search/test_serving.py",
]  # fmt: skip


def test_index__works_on_postgresql(starter_folder: Path) -> None:
    with servers.postgres() as port:
        environment = os.environ | {
            "DATABASE": "postgres",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(port),
            "PGUSER": "postgres",
            "CHECKPOINT": str(starter_folder),
        }
        command = [sys.executable, "-m", "pytest", "-q", "--create-db", *(f"tests/{name}" for name in SUITE)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
