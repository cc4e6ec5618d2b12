"""A race's runs as tasks on Ray: resumable run folders on a shared path, and nothing else to keep."""

from __future__ import annotations

import time
from typing import IO

from agents.runs import train_run
from agents.runs.lock import FolderInUseError
from experiments.engines.on_ray import StoppedError, Watch, run_all
from experiments.racing.planning import RaceConfig, Run

WAIT_SECONDS = 600.0  # for a folder that a lost machine still holds: file servers let go of its locks after minutes
_RETRY_SECONDS = 1.0


def train_on_ray(waiting: list[Run], config: RaceConfig, _lock: IO[str], watch: Watch) -> list[Run]:
    """Train runs on Ray; arguments and errors are those of :func:`experiments.racing.processes.train_in_processes`."""
    results = run_all(config, train_here, waiting, config.path, n_cpus=config.threads, watch=watch)
    failed = [(run, result) for run, result in zip(waiting, results, strict=True) if isinstance(result, Exception)]
    for run, error in failed:
        with run.log.open("a", encoding="utf-8") as log:
            log.write(f"{error}\n")
    return [run for run, _ in failed]


def train_here(run: Run) -> None:
    """Train a run in this process, from where whoever had it before came to.

    Raises:
        StoppedError: If it was asked to stop; it is saved.
        ValueError, OSError: As :func:`agents.runs.train_run`.
    """
    until = time.monotonic() + WAIT_SECONDS
    while not run.finished():
        try:
            if not train_run(run.config(), quiet=True).finished:
                raise StoppedError(f"{run.folder} was stopped before its end.")
        except FolderInUseError:
            if time.monotonic() > until:
                raise
            time.sleep(_RETRY_SECONDS)
