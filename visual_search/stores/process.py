"""Resources of a single process: its private folder, and objects that a forked child must not destroy. Unix only."""

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

# The engine writes through memory maps and grows its files by tens of megabytes without reserving disk space. If the
# disk is full, the kernel kills the writing process (SIGBUS), for example a web server.
FREE_BYTES_MIN = 64 * 2**20


class PrivateFolder:
    """A new folder in `parent`, locked (flock) while this process lives.

    The lock is on the folder itself: the kernel releases it when the process is killed, and systemd-tmpfiles
    skips locked folders. Creating a folder also removes those of dead processes. Raises OSError.
    """

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        self.pid = os.getpid()
        self.path, self._descriptor = _make_locked(parent)

    def check_free_space(self, more_bytes: int) -> None:
        """Raise OSError if the disk may be full before that many bytes are written."""
        free = shutil.disk_usage(self.path).free
        if free < more_bytes + FREE_BYTES_MIN:
            raise OSError(
                errno.ENOSPC,
                f"only {free / 2**20:.0f} MB are free where the embedded store keeps its files; free space there, or "
                'set another folder in VISUAL_SEARCH["STORE"]["OPTIONS"]["folder"]',
                str(self.path),
            )

    def remove(self) -> None:
        if self.pid == os.getpid():
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._descriptor)

    def detach_after_fork(self) -> None:
        """In a forked child, close the inherited descriptor; otherwise the lock would outlive the parent."""
        os.close(self._descriptor)


def never_destroy(inherited: Any) -> None:
    """In a forked child, prevent the destructor of an inherited object from ever running, even at exit.

    An extra reference achieves this. The destructor would write to the parent's files or use its connections.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


def _make_locked(parent: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return path, descriptor
        os.close(descriptor)  # another process removed it before it was locked


def _remove_abandoned(parent: Path) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # removed meanwhile, not a folder, or another user's
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its process is alive
        else:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)
