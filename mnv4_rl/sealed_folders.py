"""Folders that are either whole or absent, whatever stops the process in between.

A folder is written beside its final name, every file flushed to disk and listed with its SHA-256 in ``manifest.json``,
and then renamed: one step of the file system decides whether it exists. Reading starts with the manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from mnv4_rl.safe_files import (
    MAX_JSON_BYTES,
    PARTIAL,
    DamagedError,
    Writer,
    check_size,
    open_regular,
    read_file,
    remove,
    sync_folder,
    write_synced,
)
from mnv4_rl.schemas import Schema, parse_json

MANIFEST = "manifest.json"


class Fingerprint(Schema):
    """What the manifest says of a file."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class SealedFolder:
    """A folder of :func:`write_folder`, for reading.

    Args:
        path: The folder.
        limits: Names of the files it may hold -> bytes of each, at most.
        required: Those of them it must hold.

    Attributes:
        path: Where the folder is.
        names: The files that its manifest lists; anything else in it is never opened.

    Raises:
        DamagedError: If it has no manifest, or one that lists other files.
    """

    def __init__(self, path: Path, limits: Mapping[str, int], required: tuple[str, ...]) -> None:
        self.path, self._limits = standing(path), limits
        try:
            content = read_file(self.path / MANIFEST, MAX_JSON_BYTES, below=self.path)
        except OSError as error:
            what = f"{MANIFEST} is missing or unreadable" if self.path.exists() else "there is no such folder"
            raise DamagedError(f"{path}: {what}; give the folder of a saved agent.") from error
        self._manifest = parse_json(dict[str, Fingerprint], content, self.path / MANIFEST)
        self.names = set(self._manifest)
        if unknown := self.names - set(limits):
            raise DamagedError(f"{path}: the manifest lists {min(unknown)!r}; known files are {', '.join(limits)}.")
        if missing := set(required) - self.names:
            raise DamagedError(f"{path}: the manifest does not list {', '.join(sorted(missing))}.")

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """What a file holds; the very bytes that were compared with the manifest.

        Args:
            name: One of :attr:`names`.
            max_bytes: Refuse a larger one before reading it; the limit of its kind by default.

        Raises:
            DamagedError: If it is missing, too large, no regular file, cut short or changed.
        """
        try:
            content = read_file(self.path / name, max_bytes or self._limits[name], below=self.path)
        except OSError as error:
            raise self._unreadable(name, error) from error
        self._compare(name, len(content), hashlib.sha256(content).hexdigest())
        return content

    def verify(self) -> None:
        """Compare every file with the manifest.

        Raises:
            DamagedError: Naming the first file that is missing, too large, no regular file, cut short or changed.
        """
        for name in self._manifest:
            try:
                with open_regular(self.path / name, below=self.path) as file:
                    size = check_size(file, self.path / name, self._limits[name])
                    self._compare(name, size, hashlib.file_digest(file, "sha256").hexdigest())  # type: ignore[arg-type]
            except OSError as error:
                raise self._unreadable(name, error) from error

    def _compare(self, name: str, size: int, sha256: str) -> None:
        if self._manifest[name] != Fingerprint(bytes=size, sha256=sha256):
            raise DamagedError(f"{self.path}: {name} is not what was written ({size:,} bytes); it is damaged.")

    def _unreadable(self, name: str, error: OSError) -> DamagedError:
        return DamagedError(f"{self.path}: {name} cannot be read ({error.strerror}).")


def write_folder(path: Path, files: Mapping[str, Writer]) -> None:
    """Write a folder of files with their manifest; one of the same name is replaced once the new one is complete.

    Args:
        path: The folder's final name.
        files: File name -> what fills it.

    Raises:
        OSError: If it cannot be written; nothing of it stays behind, and an older folder of this name is untouched.
    """
    partial, old = _beside(path)
    try:
        _put_back(old, path)
        remove(partial)  # left by a killed process
        partial.mkdir(parents=True)
        for name, fill in files.items():
            write_synced(partial / name, fill)
        manifest = {name: _fingerprint(partial / name).model_dump() for name in files}
        write_synced(partial / MANIFEST, lambda file: file.write(json.dumps(manifest, indent=1).encode()))
        sync_folder(partial)
        remove(old)
        if os.path.lexists(path):
            os.rename(path, old)  # a folder cannot be renamed onto one that holds files
        os.rename(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            _put_back(old, path)
        remove(partial)
        raise
    remove(old)
    sync_folder(path.parent)


def check_replaceable(path: Path, limits: Mapping[str, int]) -> None:
    """Refuse a place where :func:`write_folder` would delete more than a folder of these files.

    Args:
        path: The folder that is to be written.
        limits: Names of its files -> bytes of each, at most.

    Raises:
        FileExistsError: Naming what is in the way; everything is left as it is.
    """
    _check_nothing_else(path, limits)
    for beside in _beside(path):  # without a manifest as yet, or no longer with one
        _check_nothing_else(beside, limits)
    if os.path.lexists(path) and (path.is_symlink() or any(path.iterdir())):  # into an empty one anything may go
        try:
            SealedFolder(path, limits, tuple(limits))
        except DamagedError as error:
            raise FileExistsError(_in_the_way(path, str(error))) from error


def _check_nothing_else(path: Path, names: Collection[str]) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise FileExistsError(_in_the_way(path, "it is no folder"))
    for entry in sorted(path.iterdir()):
        if entry.name not in (*names, MANIFEST) or (entry.is_dir() and not entry.is_symlink()):
            raise FileExistsError(_in_the_way(path, f"{entry.name!r} in it is none of an agent's files"))


def _in_the_way(path: Path, why: str) -> str:
    return f"{path} is in the way and is no saved agent: {why.rstrip('.')}. Move it away, or save under another name."


def standing(path: Path) -> Path:
    """Where a folder of :func:`write_folder` is: under its name, or beside it if a kill came between two renames."""
    old = _beside(path)[1]
    return old if old.is_dir() and not os.path.lexists(path) else path


def _beside(path: Path) -> tuple[Path, Path]:
    """Where the new folder grows, and where the old one waits while names change."""
    path = path if path.name not in ("", "..") else path.resolve()  # "." has no name
    if not path.name:
        raise ValueError(f"{path} is the root of the files, and no folder of an agent; name another.")
    return path.with_name(path.name + PARTIAL), path.with_name(path.name + ".old" + PARTIAL)


def _put_back(old: Path, path: Path) -> None:
    if os.path.lexists(old) and not os.path.lexists(path):
        os.rename(old, path)


def _fingerprint(path: Path) -> Fingerprint:
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        return Fingerprint(bytes=file.tell(), sha256=digest)
