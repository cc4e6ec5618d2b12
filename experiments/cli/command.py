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
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USER_ERROR_CODE)


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
