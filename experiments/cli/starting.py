"""Ctrl-C while a script still imports its libraries, which takes seconds: one line, and no traceback."""

from __future__ import annotations

import os
import signal
from typing import Any


def leave_on_interrupt() -> None:
    """End the process with a line on Ctrl-C and SIGTERM, until somebody else handles them."""
    for name in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(name) != signal.SIG_IGN:  # as in a shell's background
            signal.signal(name, _leave)


def _leave(*_: Any) -> None:
    os.write(2, b"interrupted before anything was begun\n")
    os._exit(130)
