"""The learning curve of a run folder, thinned, with where it comes from."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from agents.runs.config import run_name
from agents.runs.folder import read_config, replayable_command
from agents.runs.loading import games_of
from mnv4_rl.safe_files import write_csv

# Our column -> SB3's and our keys in progress.csv.
COLUMNS = {
    "timesteps": "time/total_timesteps",
    "wall_seconds": "time/wall_seconds",
    "cpu_seconds": "time/cpu_seconds",
    "raw_score_mean_100_games": "rollout/ep_rew_mean",
}
DIGITS = 6  # significant ones of a number in a CSV
Row = dict[str, float]


@dataclass(frozen=True)
class Curve:
    """One run's learning curve.

    Attributes:
        label: <game>__<algo>__<encoder>__s<seed>.
        provenance: Command, commit and versions, as comment lines of the CSV.
        rows: One dict a point, the keys those of :data:`COLUMNS`.
    """

    label: str
    provenance: tuple[str, ...]
    rows: tuple[Row, ...]

    def write(self, folder: Path) -> Path:
        """Write it as <label>.csv, its provenance in front as comment lines."""
        path = folder / f"{self.label}.csv"
        write_csv(path, self.rows, comments=self.provenance, digits=DIGITS)
        return path


def read_run(run: Path, points: int) -> Curve:
    """Read a run folder's curve, thinned.

    Raises:
        ValueError: If the folder holds no run, or no game ended in it.
    """
    if not (run / "progress.csv").is_file():
        raise ValueError(f"{run} is not a run folder: it needs config.yml and progress.csv.")
    label = label_of(run)
    rows = _read_rows(run / "progress.csv")
    if not rows:
        raise ValueError(f"No whole game ended in {run}, so there is no curve yet.")
    n_kept = min(points, len(rows))
    kept = tuple(rows[round(i * (len(rows) - 1) / max(1, n_kept - 1))] for i in range(n_kept))  # first and last too
    return Curve(label, provenance(run), kept)


def label_of(run: Path) -> str:
    """<game>__<algo>__<encoder>__s<seed> of a run folder.

    Raises:
        ValueError: If it holds no run of a game.
    """
    config = read_config(run)
    if missing := {"game", "algo", "encoder", "seed"} - config.keys():
        raise ValueError(f"{run}/config.yml is not the config of a run on a game: no {', '.join(sorted(missing))}.")
    game = games_of(config).game.replace("/", "_")  # procgen/starpilot
    return run_name(game, config["algo"], config["encoder"], config["seed"])


def provenance(run: Path) -> tuple[str, ...]:
    """The command, with paths of the machine left out, and the versions."""
    versions = (run / "versions.txt").read_text(encoding="utf-8").split("\n")
    return (f"command: {replayable_command(run)}", *(line for line in versions if line))


def _read_rows(path: Path) -> list[Row]:
    """The log's rows that have every column of a curve."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            full = [row for row in csv.DictReader(file) if all(row.get(key) for key in COLUMNS.values())]
        return [{name: float(row[key]) for name, key in COLUMNS.items()} for row in full]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not the log of a run ({error}); leave this run out.") from error
