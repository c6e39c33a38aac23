"""Run a real PostgreSQL and Redis for tests: on 127.0.0.1, each in its own folder, as an unprivileged user."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import skip_or_fail

START_SECONDS = 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgres() -> Iterator[int]:
    """Run PostgreSQL and yield its port; the user is postgres, without a password."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb") or (str(programs[-1] / "initdb") if programs else "")
    if not found or not Path(found).exists():
        skip_or_fail("postgres", "PostgreSQL's programs are not installed (Debian: apt install postgresql)")
    bin_folder, port = Path(found).parent, free_port()
    with folder_of("postgres") as (folder, user):

        def run(*command: str) -> None:
            subprocess.run(command, user=user, cwd=folder, check=True, capture_output=True)

        data = str(folder / "data")
        run(str(bin_folder / "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        control = [str(bin_folder / "pg_ctl"), "-D", data, "-w"]
        run(*control, "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield port
        finally:
            run(*control, "-m", "immediate", "stop")


@contextmanager
def redis() -> Iterator[str]:
    """Run Redis without persistence and yield its URL."""
    program = shutil.which("redis-server")
    if program is None:
        skip_or_fail("redis", "Redis is not installed (Debian: apt install redis-server)")
    port = free_port()
    with folder_of("redis") as (folder, user):
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen([program, *options], user=user, cwd=folder, stdout=log, stderr=log)
        try:
            wait_for_port(port, server, folder / "log")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(START_SECONDS)


@contextmanager
def folder_of(user: str) -> Iterator[tuple[Path, str | None]]:
    """Yield a folder and its user: `user` if root runs the tests, since PostgreSQL refuses to run as root."""
    # Not in pytest's folder: a pytest that runs inside a test makes that one inaccessible to other users.
    folder = Path(tempfile.mkdtemp(prefix=f"visual-search-{user}-"))
    try:
        if os.geteuid() != 0:
            yield folder, None
            return
        owner = pwd.getpwnam(user)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        yield folder, user
    finally:
        shutil.rmtree(folder)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
