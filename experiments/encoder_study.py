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

import csv
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from tqdm import tqdm

from agents.encoders import policy_kwargs
from experiments import benchmark, race
from experiments.benchmarking.measuring import machine
from experiments.cli.atari import SEED, TIMESTEPS, shown
from experiments.cli.command import parse, user_errors
from experiments.custom_env import CatchEnv, build_agent
from experiments.publish import COLUMNS as CURVE_COLUMNS
from experiments.publish import RESULTS, Curve, draw
from experiments.racing.results import RaceRun, read_races
from experiments.study.candidates import CANDIDATES, SPECS
from experiments.study.cloning import clone, published_agent, record
from mnv4_rl.checks import Interval, check_choice, check_ranges
from mnv4_rl.performance import THREADS, tune
from mnv4_rl.safe_files import make_folder, write_csv, write_file

Step = Literal["time", "catch", "clone", "race", "table"]
STEPS: tuple[Step, ...] = ("time", "catch", "clone", "race", "table")
NAME = "encoder_study"
REFERENCE_RACE = "race_atari.csv"  # nature and rl_s ran in it
REFERENCES = ("nature", "rl_s", "rl_s-as_drawn", "rl_m")
CATCH_TIMESTEPS = (8_192, 16_384)  # whole rollouts of 8 x 128
RACED = {
    "pong": (250_000, 500_000),
    "breakout": (100_000, 175_000),
    "enduro": (500_000,),
}  # game -> agent timesteps of the table's columns
CLONED = ("pong", "breakout", "enduro")  # games whose published agents are copied
RACE_GAME = "pong"  # what --steps race plays
_RANGES = {"total_timesteps": TIMESTEPS, "jobs": Interval(1), "threads": THREADS, "seed": SEED}


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Time, train and race the candidates for rl_s and rl_m, and write the table."""

    steps: tuple[Step, ...] = ("table",)
    """What to do; the table needs the files of the other steps."""
    promising: tuple[str, ...] = (*REFERENCES, *CANDIDATES)
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
    settings = benchmark.BenchmarkConfig(
        parts=("encoders",),
        encoders=(*REFERENCES, *CANDIDATES),
        dtypes=("fp32",),
        devices=("cpu",),
        forward_batches=(8,),
        min_seconds=0.1,
    )
    comments = [f"{key}: {value}" for key, value in machine().items()]
    path = config.path("_costs.csv")
    rows = benchmark.run(benchmark.plan_encoders(settings), [], settings, lambda rows: None)
    benchmark.write_csv(path, rows, comments)


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
    rows = read_rows(path) if path.is_file() else []
    return rows, [name for name in encoders if not row_of(name, rows)]


def catch_all(config: StudyConfig) -> None:
    """Train every candidate on the catching game; a CSV with a row each, those in it already are kept."""
    path = config.path("_catch.csv")
    rows, missing = kept_and_missing(path, (*REFERENCES, *CANDIDATES))
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
    """Race the promising candidates, by the command everybody uses; not those of the study's other races."""
    others = [path for path in race_files(config) if path.name != f"race_{NAME}.csv"]
    raced = {run.encoder for run in read_races(others) if (run.game, run.seed) == (RACE_GAME, config.seed)}
    encoders = [name for name in config.promising if name not in raced]
    if not encoders:
        return
    flags = ["--name", NAME, "--games", RACE_GAME, "--encoders", *encoders, "--seeds", str(config.seed)]
    flags += ["--total-timesteps", str(config.total_timesteps)]
    flags += ["--jobs", str(config.jobs), "--threads", str(config.threads)]
    race.main([*flags, "--race-dir", str(config.race_dir), "--results-dir", str(config.results_dir)])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV, without its comment lines.

    Raises:
        ValueError: If the file is not there, with the step that writes it.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there; write it first with --steps time, catch, clone or race.")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def score_at(run: RaceRun, timesteps: int) -> float | None:
    """Mean raw score of the last 100 games at a timestep, None if the run did not get there."""
    steps = run.clock("timesteps")
    if steps[-1] < 0.97 * timesteps:  # a rollout and the spacing of a curve's points
        return None
    return float(np.interp(timesteps, steps, run.scores))


class Measured(NamedTuple):
    """Rows of the three CSVs, and the runs of the races."""

    costs: list[dict[str, Any]]
    catch: list[dict[str, Any]]
    cloned: list[dict[str, Any]]
    runs: list[RaceRun]


def race_files(config: StudyConfig) -> list[Path]:
    """CSVs of all races whose runs the study shows."""
    return sorted([*config.results_dir.glob(f"race_{NAME}*.csv"), *config.results_dir.glob(REFERENCE_RACE)])


def read_measured(config: StudyConfig) -> Measured:
    """What the other steps wrote."""
    costs, catch, cloned = (read_rows(config.path(f"_{what}.csv")) for what in ("costs", "catch", "clone"))
    return Measured(costs, catch, cloned, read_races(race_files(config)))


def columns(name: str, measured: Measured, seed: int) -> dict[str, Any]:
    """Everything measured of one encoder; empty where it was not."""
    mine = {row["task"]: row for row in measured.costs if row["model"] == name}
    caught, cloned = (row_of(name, rows) for rows in (measured.catch, measured.cloned))
    train, forward = mine.get("forward+backward", {}), mine.get("forward", {})
    return {
        "encoder": name,
        **{key: train.get(key, "") for key in ("parameters", "macs", "saved_bytes")},
        "train_ratio": train.get("ratio", ""),
        "forward_8_ratio": forward.get("ratio", ""),
        **{f"catch_{t}": caught.get(f"return_{t}", "") for t in CATCH_TIMESTEPS},
        **{f"clone_{game}": cloned.get(f"{game}_policy", "") for game in CLONED},
        **{f"{game}_{t}": raced(measured.runs, name, game, seed, t) for game, marks in RACED.items() for t in marks},
    }


def row_of(encoder: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """An encoder's row of a CSV, empty without one."""
    return next((row for row in rows if row["encoder"] == encoder), {})


def raced(runs: Sequence[RaceRun], encoder: str, game: str, seed: int, timesteps: int) -> str:
    """The score of a run at a timestep; empty if there is no such run, or it did not get there."""
    run = next((run for run in runs if (run.encoder, run.game, run.seed) == (encoder, game, seed)), None)
    score = None if run is None else score_at(run, timesteps)
    return "" if score is None else f"{score:.1f}"


HEADINGS = (
    "encoder", "what differs", "params", "MMACs", "kB saved", "train", "forward 8", "Catch 8k", "Catch 16k",
    *(f"{game.capitalize()} cloned" for game in CLONED),
    *(f"{game.capitalize()} {t // 1000}k" for game, marks in RACED.items() for t in marks), "verdict",
)  # fmt: skip
LEGEND = """Params, MMACs and bytes saved for backward (kB) of one 4x84x84 image. Train and forward 8: images a second
over NatureCNN's in the same round, forward and backward at batch 256 and forward at batch 8, fp32, median
of 7 rounds. Catch: mean return of the last 20 training episodes after so many steps of
`experiments/custom_env.py` (10 is the most, 2.3 chance), one seed. Cloned: how much of what a published agent's
policy depends on was copied after 160 steps of PPO's Adam (1 all of it, 0 its mean, below 0 not even that), one
seed; `encoder_study_clone.csv` names the agents, those of commit cecd0b6.
Pong, Breakout and Enduro: mean raw score of the last 100 training games after so many agent steps of
`experiments/atari_ppo.py` (Pong -21 to 21, Breakout 1.7 and Enduro 0 by chance), one seed, so small
differences mean nothing. Empty: not run. Made by `python experiments/encoder_study.py`, from what
`--steps time --threads 2`, `--steps catch`, `--steps clone --promising NAMES` and
`--steps race --promising NAMES` measured; the initial weights were chosen last, on Breakout and Enduro, and
all other rows have their weights as drawn."""


def markdown(rows: Sequence[dict[str, Any]], games: Sequence[str]) -> str:
    """The table, a part for every question."""
    questions = {row["question"]: None for row in rows}
    figures = [f"![{game.capitalize()}, one seed]({figure_name(game)})" for game in games]
    parts = ["# The encoder study\n", LEGEND, "", *figures]
    for question in questions:
        parts += [f"\n## {question}\n", *_lines(HEADINGS, [cells(row) for row in rows if row["question"] == question])]
    return "\n".join(parts) + "\n"


def raced_games(measured: Measured) -> list[str]:
    """The games of the table in which anything was raced."""
    return [game for game in RACED if any(run.game == game for run in measured.runs)]


def figure_name(game: str) -> str:
    """File of a game's curves."""
    return f"{NAME}_{game}.png"


def _lines(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = "|---" * len(headings) + "|"
    return [f"| {' | '.join(headings)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def cells(row: dict[str, Any]) -> list[str]:
    """One encoder's row for reading."""

    def number(key: str, style: str, scale: float = 1, unit: str = "") -> str:
        return format(float(row[key]) * scale, style) + unit if row[key] != "" else ""

    measured = [number("parameters", ",.0f"), number("macs", ".1f", 1e-6), number("saved_bytes", ",.0f", 1e-3)]
    measured += [number(key, ".2f", unit="x") for key in ("train_ratio", "forward_8_ratio")]
    measured += [str(row[f"catch_{t}"]) for t in CATCH_TIMESTEPS]
    measured += [str(row[f"clone_{game}"]) for game in CLONED]
    measured += [str(row[f"{game}_{t}"]) for game, marks in RACED.items() for t in marks]
    return [row["encoder"], row["change"], *measured, row["verdict"]]


def collect(measured: Measured, seed: int) -> list[dict[str, Any]]:
    """What was measured of every encoder, with its question and verdict."""
    rows = []
    for name in (*REFERENCES, *CANDIDATES):
        about = {"question": "reference", "change": "", "verdict": ""}
        if name in CANDIDATES:
            row = CANDIDATES[name]
            about = {"question": row.question, "change": row.change, "verdict": row.verdict}
        rows.append(columns(name, measured, seed) | about)
    return rows


def write_table(config: StudyConfig) -> None:
    """Write the study as CSV and as markdown, and draw its races, a figure a game."""
    measured = read_measured(config)
    rows = collect(measured, config.seed)
    write_csv(config.path(".csv"), rows)
    write_file(config.path(".md"), markdown(rows, raced_games(measured)).encode())
    for game in raced_games(measured):
        runs = [run for run in measured.runs if (run.game, run.seed) == (game, config.seed)]
        draw([as_curve(run) for run in runs], config.results_dir / figure_name(game))


def as_curve(run: RaceRun) -> Curve:
    """A run's curve as far as the study goes."""
    points = run.points[run.clock("timesteps") <= 1.2 * RACED[run.game][-1]]
    return Curve(run.encoder, (), tuple(dict(zip(CURVE_COLUMNS, map(float, point), strict=True)) for point in points))


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
