"""Measure everything on a GPU within a few minutes: tests, encoders, PPO, DQN, then Pong with the time that is left.

python experiments/benchmark_gpu.py --budget-seconds 540 --device cuda

The most important comes first, every part in a process of its own that is ended when its time is over, and every CSV is
whole after each row: a run that is killed leaves what it measured.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.benchmarking import gpu
from experiments.benchmarking.gpu import default_setting, set_up
from experiments.benchmarking.gpu_goals import goals
from experiments.benchmarking.gpu_part import GPURow, Part, Sizes
from experiments.benchmarking.measuring import machine
from experiments.cli.command import INTERRUPTED_CODE, parse, sigterm_as_interrupt, user_errors
from experiments.cli.results import RESULTS, read_csv, shown
from mnv4_rl.checks import Interval, check_ranges
from mnv4_rl.safe_files import make_folder, write_file

PartName = Literal["tests", "ppo", "encoders", "dqn", "pong"]
# Share of the budget that is spent when a part ends; what it leaves is the next one's.
SHARES: dict[PartName, float] = {"tests": 0.16, "ppo": 0.42, "encoders": 0.57, "dqn": 0.61, "pong": 1.0}
_STOP_SECONDS = 5.0  # for a part that overran to be ended


@dataclass(frozen=True, kw_only=True)
class GPUConfig:
    """Measure tests, encoders, PPO, DQN and Pong on a GPU within a budget of time."""

    budget_seconds: float = 540.0
    """Wall seconds from start to end."""
    device: str = "cuda"
    """cuda, cuda:N, or cpu for a dry run."""
    parts: tuple[PartName, ...] = tuple(SHARES)
    """What to measure; one part alone runs in this process and has all of the time."""
    sizes: Sizes = field(default_factory=Sizes)
    """How much of it."""
    results_dir: Path = RESULTS / "gpu"
    """Folder for one CSV a part, and the machine beside them."""


def main(args: list[str] | None = None) -> None:
    """Run the parts one after the other."""
    words = sys.argv[1:] if args is None else args
    config = parse(GPUConfig, args)
    with user_errors():
        check_ranges(config, {"budget_seconds": Interval(0, includes_low=False)})
        set_up(config.device)
        make_folder(config.results_dir)
    if len(config.parts) == 1:
        run_part(config.parts[0], config)
        return
    lines = "\n".join(f"{key}: {value}" for key, value in machine().items())
    write_file(config.results_dir / "machine.txt", f"{lines}\n".encode())
    try:
        with sigterm_as_interrupt():
            run_parts(config, words)
    except KeyboardInterrupt:
        print(f"interrupted; what was measured is in {shown(config.results_dir)}")
        sys.exit(INTERRUPTED_CODE)
    lines = "\n".join(goals(config.results_dir))
    write_file(config.results_dir / "goals.txt", f"{lines}\n".encode())
    print(f"{lines}\nresults      {shown(config.results_dir)}")


def run_parts(config: GPUConfig, words: list[str]) -> None:
    """Each part in a process of its own: a crash or a compiler that hangs costs that part alone."""
    began = time.perf_counter()
    for name in SHARES:
        left = SHARES[name] * config.budget_seconds - (time.perf_counter() - began) - _STOP_SECONDS
        if name not in config.parts or left <= 0:
            continue
        print(f"{name}: {left:.0f} s", flush=True)
        # tyro takes the last of a flag that is given twice.
        flags = [*words, "--parts", name, "--budget-seconds", str(left)]
        if not finishes([sys.executable, str(Path(__file__).resolve()), *flags], left + _STOP_SECONDS):
            print(f"{name} was ended when its time was over", flush=True)


def finishes(command: list[str], seconds: float) -> bool:
    """Run a command; when its time is over, or this process is interrupted, end it and all that it started."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return True


def run_part(name: PartName, config: GPUConfig) -> None:
    """Measure one part in this process."""
    age = time.time() - psutil.Process().create_time()  # importing counts too
    seconds = config.budget_seconds - age if __name__ == "__main__" else config.budget_seconds
    part = Part(name, config.device, config.results_dir / f"{name}.csv", seconds, config.sizes)
    if name == "pong":
        gpu.run_pong(part, fastest(config.results_dir / "ppo.csv", config.sizes))
    else:
        {"tests": gpu.run_tests, "encoders": gpu.run_encoders, "ppo": gpu.run_ppo, "dqn": gpu.run_dqn}[name](part)


def fastest(path: Path, sizes: Sizes) -> GPURow:
    """The setting of our PPO and our encoder with the most agent timesteps a second."""
    measured = read_csv(path) if path.is_file() else []
    rows = [row for row in measured if row["model"] in sizes.encoders[:1] and row["per_second"]]
    if not rows:
        return default_setting(sizes)
    best = max(rows, key=lambda row: float(row["per_second"]))
    return GPURow(
        part="ppo",
        model=best["model"],
        task="ppo",
        dtype=best["dtype"],
        loop=best["loop"],
        compiled=best["compiled"] == "True",
        batch=int(best["batch"]),
        n_envs=int(best["n_envs"]),
    )


if __name__ == "__main__":
    main()
