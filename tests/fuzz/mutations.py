"""Ways to spoil a file: its bytes, what its JSON says, and what stands in its place."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEEP: Any = 0
for _ in range(500):
    DEEP = [DEEP]

VALUES: dict[str, Any] = {
    "nothing": None,
    "text": "x",
    "long text": "x" * 1_000_000,
    "path": "../../../etc/passwd",
    "true": True,
    "zero": 0,
    "negative": -1,
    "fraction": 0.5,
    "million": 10**6,
    "huge": 10**12,
    "beyond 64 bits": 10**30,
    "nan": float("nan"),
    "infinite": float("inf"),
    "list": [],
    "many": [1] * 10_000,
    "table": {},
    "deep": DEEP,
}


def flip(rng: random.Random, content: bytes) -> bytes:
    """One bit of the other value."""
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def truncate(rng: random.Random, content: bytes) -> bytes:
    """Cut short."""
    return content[: rng.randrange(len(content))]


def overwrite(rng: random.Random, content: bytes) -> bytes:
    """A run of bytes replaced."""
    place, length = rng.randrange(len(content)), rng.randrange(1, 64)
    return content[:place] + rng.randbytes(length) + content[place + length :]


def insert(rng: random.Random, content: bytes) -> bytes:
    """Bytes in between."""
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(rng.randrange(1, 64)) + content[place:]


def swell(rng: random.Random, content: bytes) -> bytes:
    """A length somewhere in the first bytes made huge: of the header, or of a zip's member."""
    place = rng.randrange(min(len(content) - 8, 200))
    return content[:place] + b"\xff" * rng.randrange(1, 8) + content[place + 8 :]


BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (flip, truncate, overwrite, insert, swell)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value of nested JSON; of a long list the first few."""
    yield path
    for key, item in data.items() if isinstance(data, dict) else enumerate(data[:3]) if isinstance(data, list) else ():
        yield from places(item, (*path, key))


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value in one place."""
    if not path:
        return value
    data = json.loads(json.dumps(data))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


def link_to_device(path: Path) -> None:
    """Endless zeros by a link."""
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    """A link that leads nowhere."""
    path.symlink_to(path)


def endless(path: Path) -> None:
    """A file with a size that no disk has."""
    path.touch()
    os.truncate(path, 2**42)


IN_ITS_PLACE: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "link to a device": link_to_device,
    "link to itself": link_to_itself,
    "folder": os.mkdir,
    "endless": endless,
    "empty": Path.touch,
    "nothing": lambda path: None,
}
