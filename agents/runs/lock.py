"""One process a run folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path

import psutil


class FolderInUseError(ValueError):
    """Another live process writes to the folder."""


class RunLock:
    """A lock file that names the process holding it, for as long as it lives.

    The kernel lets go of the lock when the process ends, however it ends: what a killed process leaves behind is only
    its name, which is taken over with a note.

    Args:
        path: The lock file.
        quiet: Whether taking over from a dead process goes without a note.

    Raises:
        FolderInUseError: If a live process holds it, with its id and start.
        OSError: If the file cannot be written.
    """

    def __init__(self, path: Path, quiet: bool = False) -> None:
        self._path = path
        self._descriptor = self._open()
        previous = os.pread(self._descriptor, 4096, 0).decode(errors="replace")
        if previous and not quiet:
            print(
                f"note: {_shown(previous)}, which used this folder, has ended; going on in its place", file=sys.stderr
            )
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, _this_process().encode(), 0)

    def release(self) -> None:
        """Let go and remove the file."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = _shown(os.pread(descriptor, 4096, 0).decode(errors="replace"))
                os.close(descriptor)
                raise FolderInUseError(
                    f"{self._path.parent} is in use by {owner}. Wait until it ends, or name another folder."
                ) from None
            if self._still_there(descriptor):
                return descriptor
            os.close(descriptor)  # its owner removed the file between our open and our lock

    def _still_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(descriptor))
        except FileNotFoundError:
            return False


def _this_process() -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(psutil.Process().create_time()))
    return json.dumps({"pid": os.getpid(), "started": started, "host": socket.gethostname()})


def _shown(owner: str) -> str:
    try:
        data = json.loads(owner)
        return f"process {data['pid']} on {data['host']}, started {data['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
