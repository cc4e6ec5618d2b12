"""What a run says is a courtesy: a terminal that is gone, a full disk or a closed pipe never ends it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

_UNWRITABLE = (OSError, ValueError)  # full or gone; closed, or without such letters


class _Courtesy:
    """A text stream that forgets what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or forget."""
        with suppress(*_UNWRITABLE):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Bring what was written on its way, or leave it for later."""
        with suppress(*_UNWRITABLE):
            self._stream.flush()


def courteous(stream: TextIO | None) -> TextIO:
    """A stream whose failures are ignored; Python has None for one that was closed when it started."""
    if isinstance(stream, _Courtesy):
        return cast(TextIO, stream)
    return cast(TextIO, _Courtesy(open(os.devnull, "w") if stream is None else stream))


@contextmanager
def courteous_output() -> Iterator[None]:
    """Let everything a command prints inside be a courtesy, its exit code included; decorates functions too."""
    _fill_standard_descriptors()
    with ExitStack() as opened:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            opened.callback(_settle, stream)
        opened.enter_context(redirect_stdout(courteous(sys.stdout)))
        opened.enter_context(redirect_stderr(courteous(sys.stderr)))
        yield


def tell_at_once(text: str) -> None:
    """Write to stderr past Python's buffers, from a signal handler that may have come in the middle of a print."""
    if sys.__stderr__ is not None:  # else the descriptor may be another file's
        with suppress(OSError):
            os.write(2, text.encode())


def _fill_standard_descriptors() -> None:
    """A closed one would go to the next file that is opened, and what C libraries print into that file."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free


def _settle(stream: TextIO) -> None:
    """What is still in the buffers would fail at the interpreter's end, and with it the exit code."""
    try:
        stream.flush()
    except _UNWRITABLE:
        with suppress(*_UNWRITABLE), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
            stream.flush()
