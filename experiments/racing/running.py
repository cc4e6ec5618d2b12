"""A race: its matrix of runs, encoder x game x seed, each a process that trains; the curves of all in one CSV."""

from __future__ import annotations

import csv
import fcntl
import itertools
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from agents.encoders import policy_kwargs
from agents.ppo import PRESETS, PPOHyperparameters, check_rollout
from agents.runs.checkpoints import newest_checkpoint
from agents.runs.config import N_ENVS, SEED, TIMESTEPS, check_device
from agents.runs.folder import read_config
from experiments.cli.command import sigterm_as_interrupt, user_errors
from experiments.cli.results import RESULTS, ROOT, check_file_name, shown
from experiments.racing.curves import provenance, read_run
from experiments.racing.results import RaceRun, add_to_race, read_races, run_name
from mnv4_rl.checks import Interval, check_range, check_ranges
from mnv4_rl.games import family_of, resolve_game
from mnv4_rl.performance import THREADS
from mnv4_rl.safe_files import make_folder

_RANGES = {
    "total_timesteps": TIMESTEPS,
    "n_envs": N_ENVS,
    "threads": THREADS,
    "jobs": Interval(1),
    "points": Interval(1),
}
POLL_SECONDS = 1.0
ROUNDING = 1e-5  # a CSV keeps six digits
_TRAINERS = {family: ROOT / "experiments" / f"{family}_ppo.py" for family in ("atari", "procgen")}


@dataclass(frozen=True, kw_only=True)
class RaceConfig:
    """Train every encoder on every game with every seed, and collect the curves in one CSV."""

    name: str
    """Name of the race: its folder under race_dir, and its CSV in results_dir."""
    encoders: tuple[str, ...] = ("nature", "rl_s")
    """Encoders: nature, impala, impoola, or names of mnv4_rl.list_models()."""
    games: tuple[str, ...] = ("pong",)
    """ALE's games, by any common spelling, or Procgen's, such as procgen/starpilot."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of weights, actions and games."""
    total_timesteps: int = 1_000_000
    """Agent timesteps of each run."""
    n_envs: int = 8
    """Games played side by side in each run; on Procgen 64 by default."""
    threads: int = 1
    """CPU threads of each run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    jobs: int = 1
    """Runs side by side, a process each."""
    points: int = 200
    """Rows kept of each curve, evenly spaced."""
    race_dir: Path = Path("runs/races")
    """Folder for the run folders."""
    results_dir: Path = RESULTS
    """Folder for the CSV."""
    ppo: PPOHyperparameters = field(default_factory=PPOHyperparameters)
    """PPO's settings, the same for all runs; on Procgen those of its paper by default."""

    @property
    def path(self) -> Path:
        """Folder of this race's runs."""
        return self.race_dir.expanduser().absolute() / self.name

    @property
    def csv(self) -> Path:
        """Where the curves go."""
        return self.results_dir / f"race_{self.name}.csv"


@dataclass(frozen=True)
class Run:
    """One cell of the matrix.

    Attributes:
        folder: Its run folder.
        settings: Flags of its trainer as the run's config.yml holds them, hyperparameters under "ppo".
        trainer: The script that trains it: experiments/atari_ppo.py, procgen_ppo.py, or one with the same flags.
    """

    folder: Path
    settings: dict[str, Any]
    trainer: Path = _TRAINERS["atari"]

    @property
    def log(self) -> Path:
        """What the command prints."""
        return self.folder.with_suffix(".log")

    def command(self) -> list[str]:
        """The command line that trains this run, or goes on with what its folder holds."""
        if (self.folder / "config.yml").is_file():
            return [sys.executable, str(self.trainer), "--resume", str(self.folder)]
        flat = {key: value for key, value in self.settings.items() if key != "ppo"}
        flat |= {f"ppo.{key}": value for key, value in self.settings["ppo"].items()}
        flags = [word for key, value in flat.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        return [sys.executable, str(self.trainer), "--run-dir", str(self.folder), *flags]

    def timesteps(self) -> int:
        """Agent timesteps logged so far; 0 before the first."""
        progress = self.folder / "progress.csv"
        if not progress.is_file():
            return 0
        with progress.open(newline="", encoding="utf-8") as file:
            logged = [row.get("time/total_timesteps") or "" for row in csv.DictReader(file)]
        return max((int(value) for value in logged if value.isdigit()), default=0)  # a row may be half written

    def finished(self) -> bool:
        """Whether all timesteps are logged and their result saved; a run that was stopped saves, but earlier ones."""
        total = self.settings["total_timesteps"]
        if self.timesteps() < total:
            return False
        checkpoint = newest_checkpoint(self.folder)
        return (self.folder / "model.zip").is_file() or (checkpoint is not None and int(checkpoint.name) >= total)


@dataclass(frozen=True)
class Outcome:
    """How a race ended.

    Attributes:
        n_runs: Cells of its matrix.
        n_finished: Those whose curves are in its CSV.
        failed: Those whose process failed.
        interrupted: Whether it was stopped before all had ended.
    """

    n_runs: int
    n_finished: int
    failed: list[Run]
    interrupted: bool


def family_defaults(config: Any) -> Any:
    """A config whose ``n_envs`` and ``ppo`` are the defaults, with those of its ``games``' kind instead."""
    if not config.games or family_of(config.games[0]) == "atari":
        return config
    return replace(config, n_envs=64, ppo=PRESETS["procgen"])


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
            failed = train_all(runs, config.jobs, lock)
        except KeyboardInterrupt:
            interrupted = True
        with user_errors():
            n_finished = collect(config, runs)
    return Outcome(len(runs), n_finished, failed, interrupted)


def plan(config: RaceConfig, trainer: Path | None = None) -> list[Run]:
    """Every run of the matrix, encoders innermost: those side by side share game, seed and the machine's load."""
    check_config(config)
    trainer = trainer or _TRAINERS[family_of(config.games[0])]
    shared = {
        "total_timesteps": config.total_timesteps,
        "n_envs": config.n_envs,
        "threads": config.threads,
        "device": config.device,
        "evaluation_games": 0,  # the curve is the result; a final evaluation would only take time
        "ppo": asdict(config.ppo),
    }
    runs = []
    for name, seed, encoder in itertools.product(config.games, config.seeds, config.encoders):
        game = resolve_game(name)
        folder = config.path / run_name(game, encoder, seed)
        runs.append(Run(folder, {"game": game, "encoder": encoder, "seed": seed, **shared}, trainer))
    for run in runs:
        check_settings(run)
    check_csv(config)
    return runs


def check_config(config: RaceConfig) -> None:
    """Refuse a matrix that cannot be run.

    Raises:
        ValueError: Naming the flag, what came and what is allowed.
    """
    check_ranges(config, _RANGES)
    for seed in config.seeds:
        check_range("seeds", seed, SEED)
    check_rollout(config.ppo, config.n_envs)
    check_device(config.device)
    games = [resolve_game(game) for game in config.games]
    if len({family_of(game) for game in games}) > 1:
        raise ValueError(f"A race is on Atari or on Procgen, got {', '.join(games)}; start one for each.")
    for encoder in config.encoders:
        policy_kwargs(encoder)
    for flag, values in (("encoders", config.encoders), ("games", games), ("seeds", config.seeds)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{flag} must name at least one and none twice, got {', '.join(map(str, values))!r}.")
    check_file_name(config.name)


def check_settings(run: Run) -> None:
    """Refuse to mix runs of other settings into a race.

    Raises:
        ValueError: If the run's folder holds one, with the first difference.
    """
    if not (run.folder / "config.yml").is_file():
        return
    found = read_config(run.folder)
    for key, value in run.settings.items():
        if found.get(key) != value:
            raise ValueError(
                f"{run.folder} holds a run with {key}={found.get(key)!r}, this race has {value!r}; "
                "give the race another --name, or delete the folder."
            )


def check_csv(config: RaceConfig) -> None:
    """Refuse to add runs to a CSV of another length, or to a file that is no race.

    Other settings are not compared: the CSV names each run's command.

    Raises:
        ValueError: With what the file holds.
    """
    if not config.csv.is_file():
        return
    for run in read_races([config.csv]):
        logged = run.clock("timesteps")[-1]
        longest = config.total_timesteps + config.n_envs * config.ppo.n_steps  # whole rollouts
        if not (1 - ROUNDING) * config.total_timesteps <= logged <= (1 + ROUNDING) * longest:
            raise ValueError(
                f"{config.csv} holds {run.name} with {logged:,.0f} timesteps, this race has "
                f"{config.total_timesteps:,}; give the race another --name, or move the file away."
            )


def lock_folder(folder: Path) -> IO[str]:
    """Lock a race's folder while the file returned is open.

    The runs inherit the lock, so that it outlives a killed race until they end.

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


def start(run: Run, lock: IO[str]) -> subprocess.Popen[bytes]:
    """Start a run or go on with it; its own command refuses a folder that cannot go on, and says what to do."""
    command = run.command()
    with run.log.open("ab") as log:
        # A session of its own: Ctrl-C reaches this process alone, which then stops the runs in order.
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, pass_fds=(lock.fileno(),))


def train_all(runs: list[Run], jobs: int, lock: IO[str]) -> list[Run]:
    """Train what has not finished, ``jobs`` at a time, with a bar over all timesteps.

    Returns:
        The runs that failed.

    Raises:
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once every run has stopped.
    """
    waiting = deque(run for run in runs if not run.finished())
    total = sum(run.settings["total_timesteps"] for run in runs)
    running: list[tuple[Run, subprocess.Popen[bytes]]] = []
    failed: list[Run] = []
    with sigterm_as_interrupt(), tqdm(total=total, unit="step", unit_scale=True, dynamic_ncols=True) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.popleft()
                    running.append((run, start(run, lock)))
                time.sleep(POLL_SECONDS)
                polled = [(run, process, process.poll()) for run, process in running]  # once: it may end in between
                failed += [run for run, _, code in polled if code not in (None, 0)]
                running = [(run, process) for run, process, code in polled if code is None]
                show(bar, runs, len(running), len(waiting))
        finally:
            stop([process for _, process in running])
    return failed


def show(bar: tqdm, runs: list[Run], n_running: int, n_waiting: int) -> None:
    """Move the bar to the timesteps of all runs together."""
    bar.set_postfix_str(f"{n_running} running, {n_waiting} waiting", refresh=False)
    bar.update(sum(min(run.timesteps(), run.settings["total_timesteps"]) for run in runs) - bar.n)


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask the runs to save and end, and wait for them."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


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
    make_folder(config.results_dir)
    add_to_race(config.csv, curves, sources)
    return len(finished)


def run_sources(run: Run) -> list[str]:
    """Where a run comes from: with its name what the runs of one race may differ in."""
    named = ("command:", "commit:", "machine:")
    return [f"{run.folder.name}: {line}" if line.startswith(named) else line for line in provenance(run.folder)]
