"""The study's table: what was measured of every candidate, joined with its question and verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.cli.results import markdown_table, read_csv
from experiments.racing.results import RaceRun, read_races
from experiments.study.candidates import CANDIDATES

NAME = "encoder_study"
REFERENCE_RACE = "race_atari.csv"  # nature and rl_s ran in it
REFERENCES = ("nature", "rl_s", "rl_s-as_drawn", "rl_m")
CATCH_TIMESTEPS = (8_192, 16_384)  # whole rollouts of 8 x 128
CLONED = ("pong", "breakout", "enduro")  # games whose published agents are copied
# Game -> agent timesteps of the table's columns.
RACED = {"pong": (250_000, 500_000), "breakout": (100_000, 175_000), "enduro": (500_000,)}
_MARKS = tuple((game, timesteps) for game, marks in RACED.items() for timesteps in marks)
HEADINGS = (
    "encoder", "what differs", "params", "MMACs", "kB saved", "train", "forward 8",
    *(f"Catch {t // 1000}k" for t in CATCH_TIMESTEPS), *(f"{game.capitalize()} cloned" for game in CLONED),
    *(f"{game.capitalize()} {t // 1000}k" for game, t in _MARKS), "verdict",
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
Row = Mapping[str, Any]


class Measured(NamedTuple):
    """Rows of the study's three CSVs, and the runs of its races."""

    costs: Sequence[Row]
    catch: Sequence[Row]
    cloned: Sequence[Row]
    runs: list[RaceRun]


def race_files(results: Path) -> list[Path]:
    """CSVs of all races whose runs the study shows."""
    return sorted([*results.glob(f"race_{NAME}*.csv"), *results.glob(REFERENCE_RACE)])


def read_measured(results: Path) -> Measured:
    """What the other steps wrote.

    Raises:
        ValueError: If a file is not there, with the step that writes it.
    """
    paths = [results / f"{NAME}_{what}.csv" for what in ("costs", "catch", "clone")]
    for path, step in zip(paths, ("time", "catch", "clone"), strict=True):
        if not path.is_file():
            raise ValueError(f"{path} is not there; write it first with --steps {step}.")
    costs, catch, cloned = map(read_csv, paths)
    return Measured(costs, catch, cloned, read_races(race_files(results)))


def collect(measured: Measured, seed: int, encoders: Iterable[str] = (*REFERENCES, *CANDIDATES)) -> list[Row]:
    """What was measured of every encoder, with its question and verdict; empty where it was not."""
    return [{"encoder": name, **columns(name, measured, seed), **about(name)} for name in encoders]


def about(name: str) -> Row:
    """An encoder's question, what differs in it, and the verdict."""
    if name not in CANDIDATES:
        return {"question": "reference", "change": "", "verdict": ""}
    candidate = CANDIDATES[name]
    return {"question": candidate.question, "change": candidate.change, "verdict": candidate.verdict}


def columns(name: str, measured: Measured, seed: int) -> Row:
    """The numbers of one encoder."""
    timed = {row["task"]: row for row in measured.costs if row["model"] == name}
    train, forward = timed.get("forward+backward", {}), timed.get("forward", {})
    caught, cloned = (row_of(name, rows) for rows in (measured.catch, measured.cloned))
    runs = {run.game: run for run in measured.runs if (run.encoder, run.seed) == (name, seed)}
    return {
        **{key: train.get(key, "") for key in ("parameters", "macs", "saved_bytes")},
        "train_ratio": train.get("ratio", ""),
        "forward_8_ratio": forward.get("ratio", ""),
        **{f"catch_{t}": caught.get(f"return_{t}", "") for t in CATCH_TIMESTEPS},
        **{f"clone_{game}": cloned.get(f"{game}_policy", "") for game in CLONED},
        **{f"{game}_{t}": score_at(runs[game], t) if game in runs else "" for game, t in _MARKS},
    }


def row_of(encoder: str, rows: Sequence[Row]) -> Row:
    """An encoder's row of a CSV, empty without one."""
    return next((row for row in rows if row["encoder"] == encoder), {})


def score_at(run: RaceRun, timesteps: int) -> str:
    """Mean raw score of the last 100 games at a timestep, empty if the run did not get there."""
    steps = run.clock("timesteps")
    if steps[-1] < 0.97 * timesteps:  # a rollout and the spacing of a curve's points
        return ""
    return f"{np.interp(timesteps, steps, run.scores):.1f}"


def markdown(rows: Sequence[Row], games: Sequence[str]) -> str:
    """The table, a part for every question, below the pictures of the games that were raced."""
    figures = [f"![{game.capitalize()}, one seed]({figure_name(game)})" for game in games]
    parts = ["# The encoder study\n", LEGEND, "", *figures]
    for question in dict.fromkeys(row["question"] for row in rows):
        asked = [cells(row) for row in rows if row["question"] == question]
        parts += [f"\n## {question}\n", markdown_table(HEADINGS, asked)]
    return "\n".join(parts) + "\n"


def figure_name(game: str) -> str:
    """File of a game's curves."""
    return f"{NAME}_{game}.png"


def cells(row: Row) -> list[str]:
    """One encoder's row for reading."""
    styles = {
        "parameters": lambda x: f"{x:,.0f}",
        "macs": lambda x: f"{x / 1e6:.1f}",
        "saved_bytes": lambda x: f"{x / 1e3:,.0f}",
        "train_ratio": lambda x: f"{x:.2f}x",
        "forward_8_ratio": lambda x: f"{x:.2f}x",
    }
    numbers = {key: value for key, value in row.items() if key not in ("encoder", "question", "change", "verdict")}
    shown = (styles[key](float(x)) if key in styles and x != "" else str(x) for key, x in numbers.items())
    return [row["encoder"], row["change"], *shown, row["verdict"]]
