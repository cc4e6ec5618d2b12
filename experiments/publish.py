"""Publish runs: a small CSV of each learning curve and one figure of all of them, for experiments/results/.

python experiments/publish.py --runs runs/pong__ppo__rl_s__s0 --name pong_ppo_rl_s
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from agents.runs.folder import read_config, replayable_command
from experiments.cli.command import check_file_name, parse, user_errors
from mnv4_rl.checks import check_positive
from mnv4_rl.safe_files import make_folder

RESULTS = Path(__file__).resolve().parent / "results"
AGENTS = RESULTS / "agents"  # a folder for each published agent
# Our column -> SB3's and our keys in progress.csv.
COLUMNS = {
    "timesteps": "time/total_timesteps",
    "wall_seconds": "time/wall_seconds",
    "cpu_seconds": "time/cpu_seconds",
    "raw_score_mean_100_games": "rollout/ep_rew_mean",
}
N_COLOURS, LINES = 10, ("-", "--", ":")  # Matplotlib's colours come again after ten curves
Row = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """Turn finished runs into a small CSV each and one figure."""

    runs: tuple[Path, ...]
    """Run folders."""
    name: str
    """File name of the figure, without its ending; each CSV is called <game>__<algo>__<encoder>__s<seed>."""
    points: int = 200
    """Rows kept of each curve, evenly spaced."""
    results_dir: Path = RESULTS
    """Folder for the CSVs and the figure."""


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
        raise ValueError(f"{run}/config.yml is not the config of an Atari run: no {', '.join(sorted(missing))}.")
    return f"{config['game']}__{config['algo']}__{config['encoder']}__s{config['seed']}"


def _read_rows(path: Path) -> list[Row]:
    """The log's rows that have every column of a curve."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            full = [row for row in csv.DictReader(file) if all(row.get(key) for key in COLUMNS.values())]
        return [{name: float(row[key]) for name, key in COLUMNS.items()} for row in full]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not the log of a run ({error}); leave this run out.") from error


def provenance(run: Path) -> tuple[str, ...]:
    """The command, with paths of the machine left out, and the versions."""
    versions = (run / "versions.txt").read_text(encoding="utf-8").split("\n")
    return (f"command: {replayable_command(run)}", *(line for line in versions if line))


def write_csv(curve: Curve, folder: Path) -> Path:
    """Write one curve, its provenance in front as comment lines."""
    path = folder / f"{curve.label}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {line}\n" for line in curve.provenance)
        writer = csv.DictWriter(file, fieldnames=list(COLUMNS))
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in curve.rows)
    return path


def draw(curves: list[Curve], path: Path) -> None:
    """Score against agent timesteps and against the process's own CPU time, one line a run."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for index, curve in enumerate(curves):
        look = {"color": f"C{index % N_COLOURS}", "linestyle": LINES[index // N_COLOURS % len(LINES)]}
        score = [row["raw_score_mean_100_games"] for row in curve.rows]
        axes[0].plot(
            [row["timesteps"] / 1e6 for row in curve.rows], score, label=curve.label.replace("__", " "), **look
        )
        axes[1].plot([row["cpu_seconds"] / 60 for row in curve.rows], score, **look)
    axes[0].set(xlabel="agent timesteps (millions)", ylabel="raw score, mean of the last 100 games")
    axes[1].set(xlabel="CPU time of the process (minutes)")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)  # beside the lines, which fill the panels
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(args: list[str] | None = None) -> None:
    """Read the runs, write their CSVs and the figure."""
    config = parse(PublishConfig, args)
    with user_errors():
        check_file_name(config.name)
        check_positive(points=config.points)
        curves = [read_run(run, config.points) for run in config.runs]
        make_folder(config.results_dir)
    for curve in curves:
        print(write_csv(curve, config.results_dir))
    draw(curves, config.results_dir / f"{config.name}.png")
    print(config.results_dir / f"{config.name}.png")


if __name__ == "__main__":
    main()
