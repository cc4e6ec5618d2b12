"""The study behind ``rl_s`` and ``rl_m``: what every candidate costs, how soon it learns, and one table of it all.

    python experiments/encoder_study.py --steps time     # cost of every candidate; with nothing else running
    python experiments/encoder_study.py --steps catch    # all of them on a small catching game, a minute each
    python experiments/encoder_study.py --steps race --promising rl_s-mqa rl_s-se     # Pong
    python experiments/encoder_study.py --steps clone    # the published agents, copied; half a minute each
    python experiments/encoder_study.py                  # the table, from the files of the other four

The candidates are rows in ``experiments/study/candidates.py``. ``catch``, ``clone`` and ``race`` keep what is
there and do the rest; ``--promising`` says whom the last two try.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from tqdm import tqdm

from agents.encoders import policy_kwargs
from agents.runs.config import SEED, TIMESTEPS
from experiments.benchmarking import plan
from experiments.benchmarking.measuring import machine, write_rows
from experiments.cli.command import INTERRUPTED_CODE, parse, user_errors
from experiments.cli.results import RESULTS, ROOT, read_csv, shown
from experiments.custom_env import CatchEnv, build_agent
from experiments.racing.curves import COLUMNS, Curve
from experiments.racing.figures import draw_runs
from experiments.racing.planning import RaceConfig
from experiments.racing.results import RaceRun, read_races
from experiments.racing.running import run_race
from experiments.study.candidates import CANDIDATES, SPECS
from experiments.study.cloning import clone, published_agent, record
from experiments.study.table import (
    CATCH_TIMESTEPS,
    CLONED,
    NAME,
    RACED,
    REFERENCES,
    collect,
    figure_name,
    markdown,
    race_files,
    read_measured,
    row_of,
)
from mnv4_rl.checks import Interval, check_choice, check_ranges
from mnv4_rl.performance import THREADS, tune
from mnv4_rl.safe_files import make_folder, write_csv, write_file

Step = Literal["time", "catch", "clone", "race", "table"]
STEPS: tuple[Step, ...] = ("time", "catch", "clone", "race", "table")
ENCODERS = (*REFERENCES, *CANDIDATES)
RACE_GAME = "pong"  # what --steps race plays
TRAINER = ROOT / "experiments" / "study" / "train.py"
_RANGES = {"total_timesteps": TIMESTEPS, "jobs": Interval(1), "threads": THREADS, "seed": SEED}


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Time, train and race the candidates for rl_s and rl_m, and write the table."""

    steps: tuple[Step, ...] = ("table",)
    """What to do; the table needs the files of the other steps."""
    promising: tuple[str, ...] = ENCODERS
    """Encoders that race or clone; the default is all of them, for which a race takes days."""
    total_timesteps: int = RACED[RACE_GAME][-1]
    """Agent timesteps of each run of the race."""
    jobs: int = 1
    """Runs of the race side by side."""
    threads: int = 1
    """CPU threads of each measurement and run."""
    seed: int = 0
    """Seed of weights, actions and games."""
    race_dir: Path = Path("runs/races")
    """Folder for the run folders of the race."""
    results_dir: Path = RESULTS
    """Folder for the CSVs and the table."""

    def check(self) -> None:
        """Refuse flags that cannot work.

        Raises:
            ValueError: Naming the flag, what came and what is allowed.
        """
        check_ranges(self, _RANGES)
        for step in self.steps:
            check_choice("steps", step, STEPS)

    def path(self, what: str) -> Path:
        """A file of the study."""
        return self.results_dir / f"{NAME}{what}"


def time_all(config: StudyConfig) -> None:
    """Cost of every candidate against NatureCNN, as the benchmark measures it."""
    settings = plan.BenchmarkConfig(
        parts=("encoders",),
        encoders=ENCODERS,
        dtypes=("fp32",),
        devices=("cpu",),
        forward_batches=(8,),
        min_seconds=0.1,
    )
    comments = [f"{key}: {value}" for key, value in machine().items()]
    rows = plan.run(plan.plan_encoders(settings), [], settings, lambda rows: None)
    write_rows(config.path("_costs.csv"), rows, comments)


class CatchCurve(BaseCallback):
    """Notes the mean return of the last 20 training episodes at given timesteps."""

    def __init__(self, timesteps: Sequence[int], bar: tqdm) -> None:
        super().__init__()
        self.timesteps, self.bar = timesteps, bar
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps in self.timesteps:
            assert self.model.ep_info_buffer is not None
            self.returns.append(float(np.mean([episode["r"] for episode in self.model.ep_info_buffer])))


def kept_and_missing(path: Path, encoders: Iterable[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows that a step's CSV has already, and the encoders that have none."""
    rows: list[dict[str, Any]] = [*read_csv(path)] if path.is_file() else []
    return rows, [name for name in encoders if not row_of(name, rows)]


def catch_all(config: StudyConfig) -> None:
    """Train every candidate on the catching game; a CSV with a row each, those in it already are kept."""
    path = config.path("_catch.csv")
    rows, missing = kept_and_missing(path, ENCODERS)
    with tqdm(total=len(missing) * CATCH_TIMESTEPS[-1], unit="step", unit_scale=True, dynamic_ncols=True) as bar:
        for name in missing:
            bar.set_postfix_str(name)
            curve = CatchCurve(CATCH_TIMESTEPS, bar)
            agent = build_agent(make_vec_env(CatchEnv, 8), SPECS.get(name, name), config.seed)
            agent.learn(CATCH_TIMESTEPS[-1], callback=curve)
            returns = {f"return_{t}": f"{r:.3g}" for t, r in zip(CATCH_TIMESTEPS, curve.returns, strict=True)}
            rows.append({"encoder": name, "seed": config.seed, **returns})
            write_csv(path, rows)


def clone_promising(config: StudyConfig) -> None:
    """Let every promising encoder copy the published agents; a CSV with a row each, those in it already are kept."""
    path = config.path("_clone.csv")
    rows, missing = kept_and_missing(path, config.promising)
    for name in missing:  # before hours of work: an encoder nobody knows
        policy_kwargs(name)
    agents = {game: published_agent(game) for game in CLONED}
    lessons = [record(game, agent, config.seed) for game, agent in agents.items()] if missing else []
    for name in tqdm(missing, unit="encoder", dynamic_ncols=True):
        row = {"encoder": name, "seed": config.seed}
        for lesson in lessons:
            learnt = clone(name, lesson, config.seed)
            row |= {f"{lesson.game}_policy": f"{learnt.policy:.2f}", f"{lesson.game}_value": f"{learnt.value:.2f}"}
            row[f"{lesson.game}_agent"] = agents[lesson.game].parent.name
        rows.append(row)
        write_csv(path, rows)


def race_promising(config: StudyConfig) -> None:
    """Race the promising candidates; not those of the study's other races."""
    others = [path for path in race_files(config.results_dir) if path.name != f"race_{NAME}.csv"]
    raced = {run.encoder for run in read_races(others) if (run.game, run.seed) == (RACE_GAME, config.seed)}
    encoders = tuple(name for name in config.promising if name not in raced)
    if not encoders:
        return
    race = RaceConfig(
        name=NAME,
        encoders=encoders,
        games=(RACE_GAME,),
        seeds=(config.seed,),
        total_timesteps=config.total_timesteps,
        threads=config.threads,
        jobs=config.jobs,
        race_dir=config.race_dir,
        results_dir=config.results_dir,
    )
    outcome = run_race(race, TRAINER)
    if outcome.interrupted:
        sys.exit(INTERRUPTED_CODE)
    if outcome.failed:
        raise ValueError(f"{len(outcome.failed)} runs failed; see {shown(outcome.failed[0].log)}.")


def write_table(config: StudyConfig) -> None:
    """Write the study as CSV and as markdown, and draw its races, a figure a game."""
    measured = read_measured(config.results_dir)
    rows = collect(measured, config.seed, ENCODERS)
    games = [game for game in RACED if any(run.game == game for run in measured.runs)]
    write_csv(config.path(".csv"), rows)
    write_file(config.path(".md"), markdown(rows, games).encode())
    for game in games:
        runs = [run for run in measured.runs if (run.game, run.seed) == (game, config.seed)]
        draw_runs([as_curve(run) for run in runs], config.results_dir / figure_name(game))


def as_curve(run: RaceRun) -> Curve:
    """A run's curve as far as the study goes."""
    points = run.points[run.clock("timesteps") <= 1.2 * RACED[run.game][-1]]
    return Curve(run.encoder, (), tuple(dict(zip(COLUMNS, map(float, point), strict=True)) for point in points))


WORK = {"time": time_all, "catch": catch_all, "clone": clone_promising, "race": race_promising, "table": write_table}


def main(args: list[str] | None = None) -> None:
    """Do the steps that were asked for, and say where the results are."""
    config = parse(StudyConfig, args)
    with user_errors():
        config.check()
        make_folder(config.results_dir)
    tune(config.threads)
    for step in config.steps:
        with user_errors():
            WORK[step](config)
    print("\n".join(shown(path) for path in sorted(config.results_dir.glob(f"*{NAME}*"))))


if __name__ == "__main__":
    main()
