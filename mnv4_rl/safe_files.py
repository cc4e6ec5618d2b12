"""Files that are safe to open, and written whole or not at all, whatever stops the process in between.

Only regular files are opened, without waiting, and read to a size known before; inside a folder from elsewhere no link
is followed.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

PARTIAL = ".partial"
MAX_JSON_BYTES = 4_000_000

Writer = Callable[[BinaryIO], object]
Mode = Literal["rb", "ab", "r+b", "xb"]

_FLAGS: dict[Mode, int] = {
    "rb": os.O_RDONLY,
    "ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "r+b": os.O_RDWR,
    "xb": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
}
_NO_FOLLOW, _FOLDER = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_DIRECTORY", 0)
# Without it, opening a pipe waits for its other end.
_ALWAYS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NOT_REGULAR = {errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENOTDIR, errno.ENODEV}


class DamagedError(ValueError):
    """A file or folder that is not what its kind, its schema or its manifest says."""


def open_regular(path: Path, mode: Mode = "rb", *, below: Path | None = None) -> BinaryIO:
    """Open a regular file: no pipe, device or folder, and never waiting for one.

    Args:
        path: The file.
        mode: Read, append, change in place, or create where nothing is. A file that is written is never reached
            through a link, nor one that has a second name.
        below: A folder that the path lies in and that may be somebody else's: nothing below it may be a link.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedError: If it is a link that must not be followed, or no regular file.
        OSError: If it cannot be opened.
    """
    flags = _FLAGS[mode] | _ALWAYS | (_NO_FOLLOW if below is not None or mode != "rb" else 0)
    try:
        descriptor = os.open(path, flags, 0o666) if below is None else _open_below(below, path, flags)
    except OSError as error:
        if error.errno not in _NOT_REGULAR:
            raise
        raise DamagedError(f"{path} is a link, a pipe or a device; only regular files are opened here.") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or (mode in ("ab", "r+b") and found.st_nlink > 1):
        os.close(descriptor)
        kind = "has a second name (a hard link)" if stat.S_ISREG(found.st_mode) else "is no regular file"
        raise DamagedError(f"{path} {kind}; only regular files are opened here.")
    return os.fdopen(descriptor, "wb" if mode == "xb" else mode)


def _open_below(folder: Path, path: Path, flags: int) -> int:
    """Open a path one component at a time, from a folder on."""
    *folders, name = path.relative_to(folder).parts
    if ".." in folders or name == "..":
        raise DamagedError(f"{path} leads out of {folder}.")
    current = os.open(folder, os.O_RDONLY | _FOLDER)
    try:
        for part in folders:
            inner = os.open(part, os.O_RDONLY | _FOLDER | _NO_FOLLOW, dir_fd=current)
            os.close(current)
            current = inner
        return os.open(name, flags, 0o666, dir_fd=current)
    finally:
        os.close(current)


def read_file(path: Path, max_bytes: int, *, below: Path | None = None) -> bytes:
    """What a regular file holds; arguments as :func:`open_regular`.

    Raises:
        DamagedError: If it is no regular file, or larger than ``max_bytes``.
        OSError: If it cannot be read.
    """
    with open_regular(path, below=below) as file:
        size = check_size(file, path, max_bytes)
        content = file.read(size + 1)
    if len(content) != size:
        raise DamagedError(f"{path} has {size:,} bytes by its folder's account and gives others when read.")
    return content


def check_size(file: BinaryIO, path: Path, max_bytes: int) -> int:
    """The size of an open file in bytes.

    Raises:
        DamagedError: If it is larger than ``max_bytes``.
    """
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise DamagedError(f"{path} has {size:,} bytes; such a file has at most {max_bytes:,}.")
    return size


def append_file(path: Path, content: bytes, *, below: Path | None = None) -> None:
    """Add to the end of a file, or begin it: all of the content or nothing; arguments as :func:`open_regular`.

    Raises:
        DamagedError: If it is no regular file.
        OSError: If it cannot be written; the file is as it was.
    """
    with open_regular(path, "ab", below=below) as file:
        descriptor = file.fileno()
        written = os.write(descriptor, content)
        if written < len(content):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def cut_file(path: Path, size: int, *, below: Path | None = None) -> None:
    """Drop what a file holds beyond its first ``size`` bytes, in one step; arguments as :func:`open_regular`.

    Raises:
        DamagedError: If it is no regular file.
        OSError: If it cannot be changed; it is as it was.
    """
    with open_regular(path, "r+b", below=below) as file:
        if size < os.fstat(file.fileno()).st_size:
            file.truncate(size)
            os.fsync(file.fileno())


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
        remove(partial)  # left by a killed process
        write_synced(partial, lambda file: file.write(content))
        os.replace(partial, path)
    except BaseException:
        remove(partial)
        raise
    sync_folder(path.parent)


def write_csv(
    path: Path, rows: Sequence[Mapping[str, Any]], *, comments: Iterable[str] = (), digits: int | None = None
) -> None:
    """Replace a CSV as :func:`write_file` does.

    Args:
        path: The file.
        rows: The keys of the first are the header; without rows there is none.
        comments: Lines in front of it, each written behind a ``#``.
        digits: Significant digits that floats keep; all by default.
    """

    def shortened(value: Any) -> Any:
        return f"{value:.{digits}g}" if digits and isinstance(value, float) else value

    head = "".join(f"# {line}\n" for line in comments)
    rows = [{key: shortened(value) for key, value in row.items()} for row in rows]
    write_file(path, head.encode() + as_csv(rows, list(rows[0]) if rows else []))


def as_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], header: bool = True) -> bytes:
    """Rows as the lines of a CSV; a column that a row lacks stays empty there."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header and columns:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write_synced(path: Path, fill: Writer) -> None:
    """Create a file where nothing is, and have it on the disk before returning."""
    with open_regular(path, "xb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
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


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, as far as it can be; of a link, never what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
