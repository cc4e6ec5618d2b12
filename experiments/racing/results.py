"""The learning curves of a race as one small CSV: written by race.py, read by report.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments.cli.results import read_csv
from experiments.racing.curves import COLUMNS as CURVE_COLUMNS
from experiments.racing.curves import DIGITS
from mnv4_rl.safe_files import write_csv

COLUMNS = ("game", "encoder", "seed", *CURVE_COLUMNS)
SCORE = list(CURVE_COLUMNS).index("raw_score_mean_100_games")
# What a curve can be drawn against: column of CURVE_COLUMNS -> label of an axis.
CLOCKS = {
    "timesteps": "agent timesteps",
    "wall_seconds": "wall time (s)",
    "cpu_seconds": "CPU time of the process (s)",
}


@dataclass(frozen=True)
class RaceRun:
    """One finished run of a race.

    Attributes:
        game: Name, see :func:`mnv4_rl.games.resolve_game`.
        encoder: A key of :data:`agents.encoders.ENCODERS`.
        seed: Its seed.
        points: (n_points, 4) float64, the columns those of :data:`experiments.racing.curves.COLUMNS`.
    """

    game: str
    encoder: str
    seed: int
    points: np.ndarray

    @property
    def name(self) -> str:
        """See :func:`run_name`."""
        return run_name(self.game, self.encoder, self.seed)

    def clock(self, name: str) -> np.ndarray:
        """(n_points,) values of a key of :data:`CLOCKS`, never falling."""
        return self.points[:, list(CURVE_COLUMNS).index(name)]

    def rescaled(self, name: str, factor: float) -> RaceRun:
        """The same run with one of its clocks in another unit."""
        points = self.points.copy()
        points[:, list(CURVE_COLUMNS).index(name)] *= factor
        return replace(self, points=points)

    def until(self, timesteps: int) -> RaceRun:
        """The same run as it stood at an agent timestep, between two points on the line that joins them.

        Raises:
            ValueError: If it ended before that, or had no score yet.
        """
        clock = self.clock("timesteps")
        if clock[-1] < timesteps or clock[0] > timesteps:
            raise ValueError(
                f"{self.encoder} on {self.game} with seed {self.seed} has scores from timestep {clock[0]:,.0f} to "
                f"{clock[-1]:,.0f}, got --timesteps {timesteps:,}; take one between them, or --encoders that have it."
            )
        last = [np.interp(timesteps, clock, column) for column in self.points.T]
        return replace(self, points=np.vstack([self.points[clock < timesteps], last]))

    @property
    def scores(self) -> np.ndarray:
        """(n_points,) mean raw scores of the last 100 games."""
        return self.points[:, SCORE]


def run_name(game: str, encoder: str, seed: int) -> str:
    """What a run's folder is called, and the comment lines about it begin with."""
    return f"{game.replace('/', '_')}__{encoder}__s{seed}"


def write_race(path: Path, runs: Iterable[RaceRun], provenance: Iterable[str]) -> None:
    """Write all runs, with comment lines in front; an existing file is replaced once the new one is complete."""
    points = ((run.game, run.encoder, run.seed, *point.tolist()) for run in runs for point in run.points)
    write_csv(path, [dict(zip(COLUMNS, point, strict=True)) for point in points], comments=provenance, digits=DIGITS)


def add_to_race(path: Path, runs: Sequence[RaceRun], provenance: Sequence[str]) -> None:
    """Write runs behind those that the file holds already, their comment lines too; a run in both is replaced.

    Args:
        path: A race's CSV, which need not be there.
        runs: The new runs.
        provenance: Comment lines, of which each is kept once; those about one run begin with its name and a colon.

    Raises:
        ValueError: If a file that is no race is in the way; it stays as it is.
    """
    new = {run.name for run in runs}
    kept = [run for run in read_races([path]) if run.name not in new] if path.is_file() else []
    lines = [line for line in read_provenance(path) if line.split(":")[0] not in new] if kept else []
    write_race(path, [*kept, *runs], dict.fromkeys([*lines, *provenance]))


def read_provenance(path: Path) -> list[str]:
    """The comment lines of a race's CSV."""
    with path.open(encoding="utf-8") as file:
        return [line[1:].strip() for line in file if line.startswith("#")]


def read_races(paths: Sequence[Path]) -> list[RaceRun]:
    """All runs of several race CSVs.

    Raises:
        ValueError: For a file with other columns, a value that is no number, or the same run twice.
    """
    curves: dict[tuple[str, str, int], list[list[float]]] = {}
    owners: dict[tuple[str, str, int], Path] = {}
    for path in paths:
        for row in _rows(path):
            key, point = _parse(row, path)
            if owners.setdefault(key, path) != path:
                raise ValueError(f"{_name(key)} is in {owners[key]} and in {path}; leave one of the files out.")
            curves.setdefault(key, []).append(point)
    return [RaceRun(*key, np.array(points)) for key, points in curves.items()]


def _rows(path: Path) -> list[dict[str, str]]:
    needed = f"{path} is not a race: it needs rows under the columns {', '.join(COLUMNS)}."
    try:
        rows = read_csv(path)
    except ValueError as error:
        raise ValueError(needed) from error
    if not rows or tuple(rows[0]) != COLUMNS:
        raise ValueError(needed)
    return rows


def _parse(row: dict[str, str], path: Path) -> tuple[tuple[str, str, int], list[float]]:
    try:
        return (row["game"], row["encoder"], int(row["seed"])), [float(row[name]) for name in CURVE_COLUMNS]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has a row that is not a point of a curve: {list(row.values())}.") from error


def _name(key: tuple[str, str, int]) -> str:
    game, encoder, seed = key
    return f"{encoder} on {game} with seed {seed}"
