"""Report races: figures with intervals and a markdown table, from the CSVs that race.py collects.

python experiments/report.py --races experiments/results/race_pong.csv --name pong

NAME_games.png        raw score of every game against --clock, with intervals
NAME_scores.png       raw score of every game against agent timesteps, wall time and CPU time; a line a run
NAME_iqm.png          interquartile mean of the normalised score against all three, with intervals
NAME_improvement.png  probability that a run beats a run of the reference encoder, with intervals
NAME.md               the numbers at the end of the runs

Curves with intervals count times in whole runs of the reference, because seeds may have run on different machines.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.cli.command import parse, user_errors
from experiments.cli.results import shown
from experiments.racing.figures import draw_games, draw_improvement, draw_iqm, draw_scores
from experiments.racing.reporting import ReportConfig, read_matrix
from experiments.racing.table import table
from mnv4_rl.safe_files import make_folder, write_file


def main(args: list[str] | None = None) -> None:
    """Read the races, write the figures and the table, and say where they are."""
    config = parse(ReportConfig, args)
    with user_errors():
        config.check()
        races = read_matrix(config)
        text = table(races, config)  # before anything is written: it finds every fault of the data
        make_folder(config.results_dir)
    base = config.results_dir / config.name
    ends = ("_games.png", "_scores.png", "_iqm.png", "_improvement.png", ".md")
    paths = [base.with_name(f"{config.name}{end}") for end in ends]
    draw_games(races, config, paths[0])
    draw_scores(races, paths[1])
    draw_iqm(races, config, paths[2])
    draw_improvement(races, config, paths[3])
    write_file(paths[4], text.encode())
    print(text)
    print("\n".join(shown(path) for path in paths))


if __name__ == "__main__":
    main()
