"""Run the commands in the documentation, as written, against the real demo shop."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests import ROOT
from tests.conftest import own_environment, skip_or_fail
from tests.servers import free_port

ADDRESS = "127.0.0.1:8000"
READY_SECONDS = 120


def console_lines(document: str) -> list[str]:
    """Return the commands of a document's console blocks."""
    blocks = re.findall(r"^```console\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="module")
def demo(starter_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Run `manage.py demo` in a folder of its own, laid out like the project's. Yield the folder and the address."""
    if shutil.which("npm") is None:
        skip_or_fail("npm", "npm, which fetches the sample catalogue, is not installed")
    if shutil.which("curl") is None:
        skip_or_fail("curl", "curl is not installed")
    folder, port = tmp_path_factory.mktemp("demo"), free_port()
    log = folder / "log"
    environment = own_environment(
        SHOP_STATE_DIR=str(folder / ".demo"),
        CHECKPOINT=str(starter_folder),
        DJANGO_SETTINGS_MODULE="example_shop.settings",
    )
    command = [sys.executable, str(ROOT / "manage.py"), "demo", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=restore_interrupts,
        )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not responds(f"http://127.0.0.1:{port}/"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield folder, f"127.0.0.1:{port}"
    finally:
        # Like Ctrl-C in a terminal: it goes to the whole process group, which must not include the worker.
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)
    assert processes_of(folder) == []


def restore_interrupts() -> None:
    """Restore SIGINT in the child: a shell that runs the tests in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of the processes that use a demo's folder."""
    wanted = f"SHOP_STATE_DIR={folder / '.demo'}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # ended meanwhile, or not a process
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text())
    return found


def test_demo_on_a_port_that_is_taken__says_so_before_it_starts_anything(
    demo: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = demo
    before = len(processes_of(folder))
    command = [sys.executable, str(ROOT / "manage.py"), "demo", "--port", address.partition(":")[2]]
    environment = own_environment(SHOP_STATE_DIR=str(folder / ".demo"), DJANGO_SETTINGS_MODULE="example_shop.settings")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "can't be used" in done.stderr
    assert "1. Checkpoint" not in done.stdout
    assert len(processes_of(folder)) == before


def responds(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.parametrize("document", ["docs/api.md"])
def test_curl_lines__run_as_written(demo: tuple[Path, str], document: str) -> None:
    folder, address = demo
    lines = console_lines(document)
    mark = "\n<end of line>\n"
    script = "".join(f"{line.replace(ADDRESS, address)}\nprintf %s {mark!r}\n".replace("\\n", "\n") for line in lines)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    outputs = done.stdout.split(mark)[:-1]
    assert len(outputs) == len(lines) > 12
    for line, output in zip(lines, outputs, strict=True):
        if not line.startswith("curl"):
            continue
        body = json.loads(output)
        assert "code" not in body, (line, body)
        if "/search/" in line or "/similar/" in line:
            assert body["results"] or body["fallback"], (line, body)
