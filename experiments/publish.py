"""Publish runs: a small CSV of each learning curve and one figure of all of them, for experiments/results/.

python experiments/publish.py --runs runs/pong__ppo__rl_s__s0 --name pong_ppo_rl_s
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.cli.command import parse, user_errors
from experiments.cli.results import RESULTS, check_file_name
from experiments.racing.curves import Curve, read_run
from experiments.racing.figures import draw_runs
from mnv4_rl.checks import check_positive
from mnv4_rl.safe_files import make_folder


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


def main(args: list[str] | None = None) -> None:
    """Read the runs, write their CSVs and the figure."""
    config = parse(PublishConfig, args)
    with user_errors():
        check_file_name(config.name)
        check_positive(points=config.points)
        curves = read_runs(config)
        make_folder(config.results_dir)
    for curve in curves:
        print(curve.write(config.results_dir))
    figure = config.results_dir / f"{config.name}.png"
    draw_runs(curves, figure)
    print(figure)


def read_runs(config: PublishConfig) -> list[Curve]:
    """The curves, each of which gets a file.

    Raises:
        ValueError: Without runs, for a folder that holds none, or for two whose file would be the same.
    """
    if not config.runs:
        raise ValueError("runs names no run folder; give at least one.")
    curves: dict[str, Curve] = {}
    for run in config.runs:
        curve = read_run(run, config.points)
        if curve.label in curves:
            raise ValueError(
                f"{run} would be written to {curve.label}.csv, as another of the runs; publish it elsewhere."
            )
        curves[curve.label] = curve
    return list(curves.values())


if __name__ == "__main__":
    main()
