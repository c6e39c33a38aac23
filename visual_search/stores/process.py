"""What belongs to one process: its private folder, and what a forked child must leave alone. For Unix (flock)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

PREFIX = "visual-search-shard-"

# The engine writes through memory maps, and makes its files larger in steps of tens of megabytes without reserving
# them: a process that writes to one when the disk is full is ended by the kernel (SIGBUS), web server and all.
ROOM_BYTES = 64 * 2**20


class PrivateFolder:
    """A new folder in `parent`, locked for as long as this process lives.

    The lock is on the folder itself: the kernel drops it when the process is killed, and systemd-tmpfiles
    leaves locked folders alone. Folders that nobody locks any more are removed here. Raises OSError.
    """

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_dead(parent)
        self.pid = os.getpid()
        self.path, self._descriptor = _make_locked(parent)

    def check_room(self, more_bytes: int) -> None:
        """Raise OSError if the disk may be full before as many bytes are written."""
        free = shutil.disk_usage(self.path).free
        if free < more_bytes + ROOM_BYTES:
            raise OSError(
                errno.ENOSPC,
                f"only {free / 2**20:.0f} MB are free where the embedded store keeps its files; make room there, or "
                'name another place in VISUAL_SEARCH["STORE"]["OPTIONS"]["folder"]',
                str(self.path),
            )

    def remove(self) -> None:
        if self.pid == os.getpid():
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._descriptor)

    def leave_to_parent(self) -> None:
        """In a forked child: drop the inherited descriptor, or the lock would outlive the parent."""
        os.close(self._descriptor)


def never_destroy(inherited: Any) -> None:
    """In a forked child: keep the destructor of an inherited object from ever running, even at exit.

    One reference too many does that. A destructor would flush to the parent's files or talk on its connections.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


def _make_locked(parent: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return path, descriptor
        os.close(descriptor)  # another process took it for dead before it was locked


def _remove_dead(parent: Path) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone in the meantime, no folder, or another user's
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its process lives
        else:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)
