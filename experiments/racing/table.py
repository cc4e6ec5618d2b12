"""A race's numbers at the end of the runs, as markdown."""

from __future__ import annotations

import shlex
from dataclasses import fields

import numpy as np

from experiments.cli.results import markdown_table, scales
from experiments.racing.estimates import Estimate, interquartile_mean, iqm_difference, probability_of_improvement
from experiments.racing.matrix import (
    Races,
    cost_to_reach,
    cost_to_reach_iqm,
    final_normalised,
    final_scores,
    in_whole_runs,
    relative_speed,
)
from experiments.racing.protocol import FROZEN_COMMIT, kept_for_test
from experiments.racing.published_scores import NATURE_PPO_SCORES, NATURE_PPO_SOURCE, PUBLISHED_TIMESTEPS
from experiments.racing.reporting import UNITS, ReportConfig, against_reference, estimate

_NOTE = (
    "Scores: mean of the last 100 training games of each run. IQM: interquartile mean of the {scale}, "
    "seeds and games pooled; above {reference}: the difference from {reference}'s. "
    "P: probability that a run beats one of {reference}. "
    "Costs are relative to {reference}: "
    "needed is what it takes to come up to its last score and keep it for a twentieth of a run, its whole run being 1. "
    "Where {reference} itself needed less than 1, its score had stopped rising, or chance moves it."
)
_SEEDS_NOTE = (
    "Scores are means over {n_seeds} seeds, with the lowest and the highest; brackets are 95 % stratified-bootstrap "
    "intervals ({n_resamples} resamples){caution}."
)
_ENOUGH_SEEDS = 5  # of so many nine of ten intervals hold the true value, see docs/protocol.md
_CAUTION = ", which so few seeds make too narrow"
_ONE_SEED_NOTE = "One seed: there are no intervals, and a small difference means nothing."


def table(races: Races, config: ReportConfig) -> str:
    """The numbers at the end of the runs as markdown, an encoder a row."""
    unit, relative = UNITS[config.clock], in_whole_runs(races, config.clock, config.reference)
    header = ["encoder", *races.games, "IQM", f"IQM above {config.reference}", f"P(beats {config.reference})"]
    header += [] if config.clock == "timesteps" else [f"timesteps per {unit}"]
    header += [f"{goal}: {unit} needed" for goal in (*races.games, "IQM")]
    rows = [table_row(relative, encoder, config) for encoder in races.encoders]
    rows += published_row(races, len(header))
    what = _NOTE.format(reference=config.reference, scale=" and ".join(scales(races.games)))
    note = f"{what} {seeds_note(len(races.seeds), config.n_resamples)}"
    if tested := freeze_note(races):
        note = f"{note} {tested}"
    made_by = f"Made by `{command_line(config)}`."
    return "\n".join([markdown_table(header, rows), "", note, "", made_by, ""])


def seeds_note(n_seeds: int, n_resamples: int) -> str:
    """How far a reader may trust the intervals."""
    if n_seeds == 1:
        return _ONE_SEED_NOTE
    caution = _CAUTION if n_seeds < _ENOUGH_SEEDS else ""
    return _SEEDS_NOTE.format(n_resamples=n_resamples, n_seeds=n_seeds, caution=caution)


def freeze_note(races: Races) -> str:
    """What a reader of test games has to know (docs/protocol.md); "" where there are none."""
    if not (games := kept_for_test(races.games)):
        return ""
    seeds = f"{', '.join(games)} with seeds {', '.join(map(str, races.seeds))}"
    if FROZEN_COMMIT is None:
        return f"No test: {seeds} ran before the encoders were frozen."
    return f"Test games: {seeds}, encoders and settings frozen by commit {FROZEN_COMMIT}."


def command_line(config: ReportConfig) -> str:
    """The command that reports the same again: every flag that is not at its default."""
    words = ["python", "experiments/report.py"]
    for field in fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def published_row(races: Races, n_columns: int) -> list[list[str]]:
    """NatureCNN's published scores at the timestep where the runs end, if all games have one."""
    ends = [run.clock("timesteps")[-1] for run in races.runs.values()]
    marks = [timesteps for timesteps in PUBLISHED_TIMESTEPS if abs(timesteps - ends[0]) < 0.01 * ends[0]]
    scores = [NATURE_PPO_SCORES.get(game, {}) for game in races.games]
    if not marks or not any(scores):
        return []
    cells = [f"{score[marks[0]]:.1f}" if score else "" for score in scores]
    row = [f"NatureCNN as published by {NATURE_PPO_SOURCE}", *cells]
    return [row + [""] * (n_columns - len(row))]


def table_row(races: Races, encoder: str, config: ReportConfig) -> list[str]:
    """One encoder's cells; the runs on the clock of :func:`in_whole_runs`."""
    iqm = estimate(config, interquartile_mean, final_normalised(races, encoder))
    scores = final_scores(races, encoder).T  # (n_games, n_seeds)
    cells = [encoder, *(with_range(seeds) for seeds in scores)]
    cells.append(with_interval(iqm, len(races.seeds)))
    is_reference = encoder == config.reference
    compared = (against_reference(races, encoder, config, how) for how in (iqm_difference, probability_of_improvement))
    cells += ["", ""] if is_reference else [with_interval(value, len(races.seeds)) for value in compared]
    if config.clock != "timesteps":
        cells.append(f"{relative_speed(races, encoder, config.clock):.2f}x")
    shares = [cost_to_reach(races, encoder, game, config.clock, config.reference) for game in races.games]
    shares.append(cost_to_reach_iqm(races, encoder, config.clock, config.reference))
    return [*cells, *("not reached" if share is None else f"{share:.2f}x" for share in shares)]


def with_range(seeds: np.ndarray) -> str:
    """Such as 7.9 (7.5 to 8.2); one seed has no range."""
    mean = f"{seeds.mean():.1f}"
    return mean if len(seeds) == 1 else f"{mean} ({seeds.min():.1f} to {seeds.max():.1f})"


def with_interval(value: Estimate, n_seeds: int) -> str:
    """Such as 0.61 [0.50, 0.72]; one seed has no interval."""
    return f"{value.point:.2f}" if n_seeds == 1 else f"{value.point:.2f} [{value.low:.2f}, {value.high:.2f}]"
