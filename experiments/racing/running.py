"""A race: its matrix of runs, encoder x game x seed, trained by an engine; the curves of all in one CSV."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from experiments.cli.command import user_errors
from experiments.cli.results import shown
from experiments.racing.curves import provenance, read_run
from experiments.racing.on_ray import train_on_ray
from experiments.racing.planning import RaceConfig, Run, plan
from experiments.racing.processes import train_in_processes
from experiments.racing.results import RaceRun, add_to_race
from mnv4_rl.safe_files import make_folder

ENGINES = {"processes": train_in_processes, "ray": train_on_ray}


@dataclass(frozen=True)
class Outcome:
    """How a race ended.

    Attributes:
        n_runs: Cells of its matrix.
        n_finished: Those whose curves are in its CSV.
        failed: Those that could not be trained.
        interrupted: Whether it was stopped before all had ended.
    """

    n_runs: int
    n_finished: int
    failed: list[Run]
    interrupted: bool


def run_race(config: RaceConfig, trainer: Path | None = None) -> Outcome:
    """Train what is missing, and collect what has finished; flags that cannot work end the process with a line."""
    with user_errors():
        runs = plan(config, trainer)
        lock = lock_folder(config.path)
    print(f"{len(runs)} runs, {sum(run.finished() for run in runs)} of them finished, in {shown(config.path)}")
    failed: list[Run] = []
    interrupted = False
    with lock:
        try:
            failed = train_all(config, runs, lock)
        except KeyboardInterrupt:
            interrupted = True
        except ConnectionError:  # to a cluster
            with user_errors():
                raise
        with user_errors():
            n_finished = collect(config, runs)
    return Outcome(len(runs), n_finished, failed, interrupted)


def lock_folder(folder: Path) -> IO[str]:
    """Lock a race's folder while the file returned is open.

    Runs that are processes inherit the lock, so that it outlives a killed race until they end.

    Raises:
        ValueError: If a race, or what a killed one left running, holds it.
    """
    make_folder(folder)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ValueError(
            f"The race in {folder} is still running, or its runs are: wait for them, or stop them first."
        ) from None
    return lock


def train_all(config: RaceConfig, runs: list[Run], lock: IO[str]) -> list[Run]:
    """Train what has not finished by the race's engine, with a bar over all timesteps.

    Returns:
        The runs that failed.

    Raises:
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once every run has stopped.
    """
    waiting = [run for run in runs if not run.finished()]
    if not waiting:
        return []
    total = sum(run.settings["total_timesteps"] for run in runs)
    with tqdm(total=total, unit="step", unit_scale=True, dynamic_ncols=True) as bar:
        return ENGINES[config.engine](waiting, config, lock, lambda *numbers: show(bar, runs, *numbers))


def show(bar: tqdm, runs: list[Run], n_running: int, n_waiting: int) -> None:
    """Move the bar to the timesteps of all runs together."""
    bar.set_postfix_str(f"{n_running} running, {n_waiting} waiting", refresh=False)
    bar.update(sum(min(run.timesteps(), run.settings["total_timesteps"]) for run in runs) - bar.n)


def collect(config: RaceConfig, runs: list[Run]) -> int:
    """Write the curves of all finished runs into the race's CSV, beside the runs that it holds of other cells.

    Returns:
        How many there are; without any, nothing is written.

    Raises:
        ValueError: If no game ended in a run, or a file that is no race has come into the CSV's place.
    """
    finished = [run for run in runs if run.finished()]
    if not finished:
        return 0
    curves, sources = [], [f"race: {config.name}"]
    for run in finished:
        curve = read_run(run.folder, config.points)
        points = np.array([list(row.values()) for row in curve.rows])  # (n_points, columns of a curve)
        curves.append(RaceRun(run.settings["game"], run.settings["encoder"], run.settings["seed"], points))
        sources += run_sources(run)
    make_folder(config.csv.parent)
    add_to_race(config.csv, curves, sources)
    return len(finished)


def run_sources(run: Run) -> list[str]:
    """Where a run comes from: with its name what the runs of one race may differ in."""
    named = ("command:", "commit:", "machine:")
    return [f"{run.folder.name}: {line}" if line.startswith(named) else line for line in provenance(run.folder)]
