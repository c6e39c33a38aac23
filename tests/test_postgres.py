"""The index path on a real PostgreSQL: started here, on 127.0.0.1, by an unprivileged user, and stopped again."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import lacks

ROOT = Path(__file__).parent.parent
SUITE = ["test_concurrency.py", "test_indexing.py", "test_marks.py", "test_search.py", "test_shared_feed.py"]


@pytest.fixture
def postgres_port() -> Iterator[int]:
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb") or (str(programs[-1] / "initdb") if programs else "")
    if not found or not Path(found).exists():
        lacks("postgres", "PostgreSQL's programs are not installed (Debian: apt install postgresql)")
    bin_folder = Path(found).parent
    # Not in pytest's folder: the pytest that runs below closes that one to other users again.
    folder = Path(tempfile.mkdtemp(prefix="visual-search-postgres-"))
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    if os.geteuid() == 0:
        owner = pwd.getpwnam(user)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    port = free_port()

    def run(*command: str) -> None:
        subprocess.run(command, user=user if os.geteuid() == 0 else None, cwd=folder, check=True, capture_output=True)

    run(
        str(bin_folder / "initdb"),
        "-D",
        str(folder / "data"),
        "-U",
        "postgres",
        "-A",
        "trust",
        "--no-sync",
        "-E",
        "UTF8",
    )
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    control = [str(bin_folder / "pg_ctl"), "-D", str(folder / "data"), "-w"]
    run(*control, "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield port
    finally:
        run(*control, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_index_path__holds_on_postgresql(postgres_port: int, starter_folder: Path) -> None:
    environment = os.environ | {
        "DATABASE": "postgres",
        "PGHOST": "127.0.0.1",
        "PGPORT": str(postgres_port),
        "PGUSER": "postgres",
        "CHECKPOINT": str(starter_folder),
    }
    command = [sys.executable, "-m", "pytest", "-q", "--create-db", *(f"tests/{name}" for name in SUITE)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
