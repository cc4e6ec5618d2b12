"""Files and folders that are either whole or absent, whatever stops the process in between.

A folder is written beside its final name, every file flushed to disk and listed with its SHA-256 in ``manifest.json``,
and then renamed: one step of the file system decides whether it exists. Reading starts with the manifest.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

MANIFEST = "manifest.json"
PARTIAL = ".partial"

Writer = Callable[[BinaryIO], object]


class DamagedError(ValueError):
    """A folder that is not what its manifest says."""


def make_folder(path: Path) -> None:
    """Make a folder, and those it lies in.

    Raises:
        OSError: If something is in the way, or nothing may be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"The folder {path} cannot be made ({error.strerror}); name another one.") from error


def write_file(path: Path, content: bytes) -> None:
    """Replace a file, so that a reader finds the old content or the new one and nothing between.

    Raises:
        OSError: If it cannot be written; the old content stays.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        _write_synced(partial, lambda file: file.write(content))
        os.replace(partial, path)
    except BaseException:
        _remove(partial)
        raise
    _sync_folder(path.parent)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace a CSV as :func:`write_file` does; the keys of the first row are the header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def write_folder(path: Path, files: Mapping[str, Writer]) -> None:
    """Write a folder of files with their manifest; one of the same name is replaced once the new one is complete.

    Args:
        path: The folder's final name.
        files: File name -> what fills it.

    Raises:
        OSError: If it cannot be written; nothing of it stays behind, and an older folder of this name is untouched.
    """
    partial, old = path.with_name(path.name + PARTIAL), path.with_name(path.name + ".old" + PARTIAL)
    try:
        _remove(partial)  # left by a killed process
        partial.mkdir(parents=True)
        for name, fill in files.items():
            _write_synced(partial / name, fill)
        manifest = json.dumps({name: _fingerprint(partial / name) for name in files}, indent=1)
        _write_synced(partial / MANIFEST, lambda file: file.write(manifest.encode()))
        _sync_folder(partial)
        _remove(old)
        if path.exists():
            os.rename(path, old)  # a folder cannot be renamed onto one that holds files
        os.rename(partial, path)
    except BaseException:
        _remove(partial)
        raise
    _remove(old)
    _sync_folder(path.parent)


def verify_folder(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """Check a folder against its manifest.

    Args:
        path: The folder.
        required: Names its manifest must list.
        optional: Names it may list; anything else in the folder is never opened.

    Raises:
        DamagedError: Naming the first file that is missing, unknown, cut short or changed.
    """
    manifest = _manifest(path)
    if missing := set(required) - set(manifest):
        raise DamagedError(f"{path}: the manifest does not list {', '.join(sorted(missing))}.")
    for name, expected in manifest.items():
        if name not in (known := (*required, *optional)):
            raise DamagedError(f"{path}: the manifest lists {name!r}; known files are {', '.join(known)}.")
        try:
            found = _fingerprint(path / name)
        except OSError as error:
            raise DamagedError(f"{path}: {name} cannot be read ({error.strerror}).") from error
        if found != expected:
            raise DamagedError(f"{path}: {name} is not what was written ({found['bytes']:,} bytes); it is damaged.")


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: {MANIFEST} is missing or unreadable.") from error
    if not isinstance(manifest, dict):
        raise DamagedError(f"{path}: {MANIFEST} is no table of files.")
    return manifest


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _write_synced(path: Path, fill: Writer) -> None:
    with path.open("wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make a rename inside the folder last through a power cut, where the file system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened everywhere
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
