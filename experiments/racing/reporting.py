"""What a report computes from races: the runs that its flags choose, and curves and statistics with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from agents.runs.config import SEED
from experiments.cli.results import RESULTS, check_file_name
from experiments.racing.estimates import (
    Estimate,
    Statistic,
    bootstrap,
    interquartile_mean,
    mean_over_runs,
)
from experiments.racing.matrix import (
    Races,
    common_grid,
    final_normalised,
    full_matrix,
    in_whole_runs,
    mean_clock,
    normalised_curves,
    scores_at,
)
from experiments.racing.results import CLOCKS, read_races
from mnv4_rl.checks import check_positive, check_range
from mnv4_rl.games import resolve_game

Clock = Literal["timesteps", "wall_seconds", "cpu_seconds"]
UNITS: dict[Clock, str] = {"timesteps": "timesteps", "wall_seconds": "wall time", "cpu_seconds": "CPU time"}


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Make figures and a table from race CSVs."""

    races: tuple[Path, ...]
    """CSVs that race.py collected; together they must hold every encoder on every game with every seed reported."""
    name: str
    """Beginning of the names of all files written."""
    encoders: tuple[str, ...] = ()
    """Encoders to report; all that ran unless some are named."""
    games: tuple[str, ...] = ()
    """Games to report, by any common spelling; all that were played unless some are named."""
    seeds: tuple[int, ...] = ()
    """Seeds to report; all unless some are named."""
    timesteps: int | None = None
    """Report all runs as they stood at this agent timestep; at their end by default, which must be the same for all."""
    reference: str = "nature"
    """Encoder that the others are compared with."""
    clock: Clock = "cpu_seconds"
    """What NAME_games.png is drawn against and the table counts costs in. Runs that shared a machine are compared on
    CPU time, which is the wall time of a run on one thread with a core of its own; where the runs of a seed come from
    different machines, only timesteps compare."""
    n_points: int = 100
    """Points at which the curves are averaged."""
    n_resamples: int = 2_000
    """Bootstrap resamples of each interval."""
    bootstrap_seed: int = 0
    """Seed of the resampling."""
    results_dir: Path = RESULTS
    """Folder for the files."""

    def check(self) -> None:
        """Refuse flags that cannot work.

        Raises:
            ValueError: Naming the flag, what came and what is allowed.
        """
        check_file_name(self.name)
        check_positive(n_points=self.n_points, n_resamples=self.n_resamples)
        if self.timesteps is not None:
            check_positive(timesteps=self.timesteps)
        check_range("bootstrap_seed", self.bootstrap_seed, SEED)


def read_matrix(config: ReportConfig) -> Races:
    """The runs that the flags choose from the CSVs.

    Raises:
        ValueError: For a faulty CSV, a choice that did not run, a run that is too short, or a matrix that is not full.
    """
    runs = read_races(config.races)
    games = [resolve_game(game) for game in config.games]
    for field, chosen in (("encoder", config.encoders), ("game", games), ("seed", config.seeds)):
        found = list(dict.fromkeys(getattr(run, field) for run in runs))
        unknown = [value for value in chosen if value not in found]
        if unknown:
            raise ValueError(
                f"--{field}s has {', '.join(map(str, unknown))}, which did not run in these races with the other "
                f"choices; allowed: {', '.join(map(str, found))}."
            )
        runs = [run for run in runs if not chosen or getattr(run, field) in chosen]
    if config.timesteps is not None:
        runs = [run.until(config.timesteps) for run in runs]
    return full_matrix(runs, config.reference)


def iqm_curve(races: Races, encoder: str, config: ReportConfig) -> tuple[np.ndarray, Estimate]:
    """Timesteps and the interquartile mean at each with its interval, (n_points,) each."""
    timesteps, curves = normalised_curves(races, encoder, "timesteps", config.n_points)
    return timesteps, estimate(config, interquartile_mean, curves)


def estimate(config: ReportConfig, statistic: Statistic, *scores: np.ndarray) -> Estimate:
    """A statistic with its interval, resampled as the flags say."""
    return bootstrap(statistic, *scores, n_resamples=config.n_resamples, seed=config.bootstrap_seed)


def for_averages(races: Races, clock: Clock, config: ReportConfig) -> tuple[Races, str]:
    """The runs on a clock that all seeds share, whatever their machines, and its label."""
    if clock == "timesteps":
        return races, CLOCKS[clock]
    return in_whole_runs(races, clock, config.reference), f"{UNITS[clock]} (1: a whole run of {config.reference})"


def game_curve(races: Races, encoder: str, game: str, clock: str, config: ReportConfig) -> tuple[np.ndarray, Estimate]:
    """A clock and the mean raw score over seeds with its interval at the same timesteps, (n_points,) each."""
    runs = races.of(encoder, game)
    grid = common_grid(runs, config.n_points)
    curves = np.stack([scores_at(run, grid) for run in runs], axis=-1)  # (n_points, n_seeds)
    mean = estimate(config, mean_over_runs, curves[..., None])  # one game: (n_points, n_seeds, 1)
    return mean_clock(runs, clock, grid), mean


def against_reference(races: Races, encoder: str, config: ReportConfig, statistic: Statistic) -> Estimate:
    """A statistic of an encoder's scores at the end of the runs, human-normalised or alike, and of the reference's."""
    return estimate(config, statistic, final_normalised(races, encoder), final_normalised(races, config.reference))
