"""One process a run folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import psutil

from mnv4_rl.safe_files import DamagedError, check_size, open_regular

_OWNER_BYTES = 4096


class FolderInUseError(ValueError):
    """Another live process writes to the folder."""


class LostFolderError(OSError):
    """The folder, or the lock in it, is no longer the one that this process took."""


class RunLock:
    """The right to write to a folder, and a file in it that names the process holding it, for as long as it lives.

    The kernel lets go of the lock when the process ends, however it ends: what a killed process leaves behind is only
    its name, which is taken over with a note. What is locked is the folder itself, so that nobody takes it over by
    removing the file; the file is locked in its place on file systems that cannot lock folders (NFS).

    Args:
        path: The lock file.
        quiet: Whether taking over from a dead process goes without a note.

    Attributes:
        previous: What a dead owner had left in the file, None where there was none.

    Raises:
        FolderInUseError: If a live process holds it, with its id and start.
        DamagedError: If the lock file is a link or no regular file; it is left as it is.
        OSError: If the file cannot be written.
    """

    def __init__(self, path: Path, quiet: bool = False) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self.previous: str | None = ""
        self._folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._file = self._take()
            self._sign(quiet)
        except BaseException:
            self._close()
            raise

    def check(self) -> None:
        """Make sure that the folder is still this process's.

        Raises:
            LostFolderError: If the lock file was removed, or another folder has come in this one's place.
        """
        held = self._file is not None and _same(self._path, self._file.fileno())
        if not held or not _same(self._path.parent, self._folder):
            raise LostFolderError(
                f"{self._path} was removed, or its folder replaced, while the run was going on: another process may "
                "take the folder now, so this one ends without writing to it."
            )

    def release(self, previous: str | None = None) -> None:
        """Let go, and remove the file if it is still this process's.

        Args:
            previous: What a dead owner had left, to leave again in a folder that is to stay as it was found.
        """
        if self._file is not None and _same(self._path, self._file.fileno()):
            if previous is None:
                self._path.unlink(missing_ok=True)
            else:
                self._write(previous)
        self._close()

    def _take(self) -> BinaryIO:
        locks_folders = self._lock(self._folder)
        while True:
            with suppress(FileExistsError):
                open_regular(self._path, "xb").close()
                self.previous = None
            file = open_regular(self._path, "r+b")
            if locks_folders or (self._lock(file.fileno()) and _same(self._path, file.fileno())):
                return file
            file.close()  # its owner removed it between our open and our lock

    def _lock(self, descriptor: int) -> bool:
        """Lock, or refuse where another process holds it; False for a folder on a system that cannot lock folders."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            raise FolderInUseError(
                f"{self._path.parent} is in use by {self._owner()}. Wait until it ends, or name another folder."
            ) from None
        except OSError:
            if descriptor != self._folder:
                raise
            return False

    def _sign(self, quiet: bool) -> None:
        assert self._file is not None
        check_size(self._file, self._path, _OWNER_BYTES)
        if self.previous is not None:
            self.previous = self._file.read(_OWNER_BYTES).decode(errors="replace")
        if self.previous and not quiet:
            owner = _shown(self.previous)
            print(f"note: {owner}, which used this folder, has ended; going on in its place", file=sys.stderr)
        self._write(_this_process())

    def _write(self, owner: str) -> None:
        assert self._file is not None
        self._file.truncate(0)
        os.pwrite(self._file.fileno(), owner.encode(), 0)

    def _owner(self) -> str:
        try:
            with open_regular(self._path, below=self._path.parent) as file:
                return _shown(file.read(_OWNER_BYTES).decode(errors="replace"))
        except (OSError, DamagedError):
            return _shown("")

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


def _same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _this_process() -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(psutil.Process().create_time()))
    return json.dumps({"pid": os.getpid(), "started": started, "host": socket.gethostname()})


def _shown(owner: str) -> str:
    try:
        data = json.loads(owner)
        return f"process {data['pid']} on {data['host']}, started {data['started']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"
