"""A race's runs as processes of this machine: the commands that a person would type."""

from __future__ import annotations

import subprocess
import time
from collections import deque
from collections.abc import Callable
from typing import IO

from experiments.cli.command import sigterm_as_interrupt
from experiments.racing.planning import RaceConfig, Run

POLL_SECONDS = 1.0


def train_in_processes(
    waiting: list[Run], config: RaceConfig, lock: IO[str], watch: Callable[[int, int], None]
) -> list[Run]:
    """Train runs, ``config.jobs`` at a time.

    Args:
        waiting: Those that have not finished.
        config: The race.
        lock: Its folder's, which the runs inherit.
        watch: Called every so often with the numbers of runs begun and not begun.

    Returns:
        The runs that failed.

    Raises:
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once every run has stopped.
    """
    queue = deque(waiting)
    running: list[tuple[Run, subprocess.Popen[bytes]]] = []
    failed: list[Run] = []
    with sigterm_as_interrupt():
        try:
            while queue or running:
                while queue and len(running) < (config.jobs or 1):
                    run = queue.popleft()
                    running.append((run, start(run, lock)))
                time.sleep(POLL_SECONDS)
                polled = [(run, process, process.poll()) for run, process in running]  # once: it may end in between
                failed += [run for run, _, code in polled if code not in (None, 0)]
                running = [(run, process) for run, process, code in polled if code is None]
                watch(len(running), len(queue))
        finally:
            stop([process for _, process in running])
    return failed


def start(run: Run, lock: IO[str]) -> subprocess.Popen[bytes]:
    """Start a run or go on with it; its own command refuses a folder that cannot go on, and says what to do."""
    command = run.command()
    with run.log.open("ab") as log:
        # A session of its own: Ctrl-C reaches this process alone, which then stops the runs in order.
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, pass_fds=(lock.fileno(),))


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask the runs to save and end, and wait for them."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
