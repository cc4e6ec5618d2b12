"""What every command shares: flags from a dataclass, one clear line for a user's mistake."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

import tyro

Config = TypeVar("Config")

USER_ERROR_CODE = 2
DIVERGED_CODE = 3
INTERRUPTED_CODE = 130


def parse(config_class: type[Config], args: list[str] | None = None, default: Config | None = None) -> Config:
    """Flags -> config. ``--help`` shows each field's docstring, type and default.

    Args:
        config_class: A dataclass; its docstring is the command's description.
        args: Flags, ``sys.argv`` by default.
        default: Values of the flags left out, the dataclass's own by default.
    """
    return tyro.cli(config_class, args=args, default=tyro.MISSING_NONPROP if default is None else default)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors about what the user asked for into one line and exit code 2.

    Wrap only the checks and set-up of a command: past that, an error is a bug and keeps its traceback.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, MemoryError, ModuleNotFoundError) as error:
        said = str(error)
        if isinstance(error, OSError) and error.strerror and error.filename:
            said = f"{error.filename}: {error.strerror}."  # in place of "[Errno 2] No such ..."
        print(f"error: {' '.join(said.split())}", file=sys.stderr)
        sys.exit(USER_ERROR_CODE)


@contextmanager
def interrupts(saying: str = "interrupted") -> Iterator[None]:
    """Ctrl-C and SIGTERM, wherever they are not waited for, end the command with one line; decorates functions too."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in a shell's background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with sigterm_as_interrupt():
            yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what follows is a moment's work
        print(saying, file=sys.stderr)
        sys.exit(INTERRUPTED_CODE)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C inside, so that a stopped job can save what it has."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
