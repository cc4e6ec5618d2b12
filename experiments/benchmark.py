"""Benchmark the encoders and the loop around them against NatureCNN and plain stable-baselines3.

python experiments/benchmark.py
python experiments/benchmark.py --parts encoders --encoders nature rl_s --dtypes fp32

Run it with nothing else running. It measures in interleaved rounds and compares within a round, and writes a CSV, a
table and a figure, the machine and the versions in all three.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.benchmarking.measuring import machine, write_rows
from experiments.benchmarking.plan import BenchmarkConfig, check_config, plan_encoders, plan_training, run
from experiments.benchmarking.report import draw, markdown
from experiments.cli.command import INTERRUPTED_CODE, parse, user_errors
from experiments.cli.results import shown
from mnv4_rl.performance import tune
from mnv4_rl.safe_files import make_folder, write_file


def main(args: list[str] | None = None) -> None:
    """Measure, write, and say where the results are."""
    config = parse(BenchmarkConfig, args)
    with user_errors():
        check_config(config)
        groups, tasks = plan_encoders(config), plan_training(config)
        if not groups and not tasks and "export" not in config.parts:
            raise ValueError("There is nothing to measure; name other --parts, or install what is missing.")
        make_folder(config.results_dir)
    tuning = tune(config.threads)
    comments = [f"{key}: {value}" for key, value in machine().items()]
    comments.append(f"{tuning} (plain SB3 trains in processes without it)")
    paths = [config.results_dir / f"{config.name}{ending}" for ending in (".csv", ".md", ".png")]
    try:
        rows = run(groups, tasks, config, lambda rows: write_rows(paths[0], rows, comments))
    except KeyboardInterrupt:
        print(f"interrupted; what was measured is in {shown(paths[0])}")
        sys.exit(INTERRUPTED_CODE)
    text = markdown(rows, comments)
    write_file(paths[1], text.encode())
    draw(rows, paths[2])
    print(text)
    print("\n".join(shown(path) for path in paths))


if __name__ == "__main__":
    main()
