"""Report races: figures with intervals and a markdown table, from the CSVs that race.py collects.

python experiments/report.py --races experiments/results/race_pong.csv --name pong

NAME_games.png        raw score of every game against --clock, with intervals
NAME_scores.png       raw score of every game against agent timesteps, wall time and CPU time; a line a run
NAME_iqm.png          interquartile mean of the human-normalised score against all three, with intervals
NAME_improvement.png  probability that a run beats a run of the reference encoder, with intervals
NAME.md               the numbers at the end of the runs

Curves with intervals count times in whole runs of the reference, because seeds may have run on different machines.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):  # run as a script: the checkout's packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from experiments.cli.atari import SEED, shown
from experiments.cli.command import check_file_name, parse, user_errors
from experiments.publish import RESULTS
from experiments.racing.estimates import (
    Estimate,
    bootstrap,
    interquartile_mean,
    mean_over_runs,
    probability_of_improvement,
)
from experiments.racing.matrix import (
    Races,
    common_grid,
    cost_to_reach,
    cost_to_reach_iqm,
    final_normalised,
    final_scores,
    full_matrix,
    in_whole_runs,
    last_score,
    mean_clock,
    mean_curve,
    normalised_curves,
    relative_speed,
    scores_at,
)
from experiments.racing.published_scores import NATURE_PPO_SCORES, NATURE_PPO_SOURCE, PUBLISHED_TIMESTEPS
from experiments.racing.results import CLOCKS, read_races
from mnv4_rl.atari.games import resolve_game
from mnv4_rl.checks import check_positive, check_range
from mnv4_rl.safe_files import make_folder

Clock = Literal["timesteps", "wall_seconds", "cpu_seconds"]
UNITS: dict[Clock, str] = {"timesteps": "timesteps", "wall_seconds": "wall time", "cpu_seconds": "CPU time"}
SCORE_LABEL = "raw score, mean of the last 100 games"
_NOTE = (
    "Scores: mean of the last 100 training games of each run. IQM: interquartile mean of the human-normalised score "
    "(0 random play, 1 a human tester), seeds and games pooled. P: probability that a run beats one of {reference}. "
    "Costs are relative to {reference}: needed is what it takes to come up to its last score, its whole run being 1."
)
_SEEDS_NOTE = (
    "Scores are means over {n_seeds} seeds, with the lowest and the highest; brackets are 95 % stratified-bootstrap "
    "intervals ({n_resamples} resamples)."
)
_ONE_SEED_NOTE = "One seed: there are no intervals, and a small difference means nothing."


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Make figures and a table from race CSVs."""

    races: tuple[Path, ...]
    """CSVs that race.py collected; together they must hold every encoder on every game with every seed reported."""
    name: str
    """Beginning of the names of all files written."""
    encoders: tuple[str, ...] = ()
    """Encoders to report; all that ran unless some are named."""
    games: tuple[str, ...] = ()
    """Games to report, by any common spelling; all that were played unless some are named."""
    seeds: tuple[int, ...] = ()
    """Seeds to report; all unless some are named."""
    reference: str = "nature"
    """Encoder that the others are compared with."""
    clock: Clock = "cpu_seconds"
    """What NAME_games.png is drawn against and the table counts costs in. Runs that shared a machine are compared on
    CPU time, which is the wall time of a run on one thread with a core of its own; where the runs of a seed come from
    different machines, only timesteps compare."""
    n_points: int = 100
    """Points at which the curves are averaged."""
    n_resamples: int = 2_000
    """Bootstrap resamples of each interval."""
    bootstrap_seed: int = 0
    """Seed of the resampling."""
    results_dir: Path = RESULTS
    """Folder for the files."""


def read_matrix(config: ReportConfig) -> Races:
    """The runs that the flags choose from the CSVs.

    Raises:
        ValueError: For a faulty CSV, a choice that did not run, or a matrix that is not full.
    """
    runs = read_races(config.races)
    games = [resolve_game(game) for game in config.games]
    for field, chosen in (("encoder", config.encoders), ("game", games), ("seed", config.seeds)):
        found = list(dict.fromkeys(getattr(run, field) for run in runs))
        unknown = [value for value in chosen if value not in found]
        if unknown:
            raise ValueError(
                f"--{field}s has {', '.join(map(str, unknown))}, which did not run in these races with the other "
                f"choices; allowed: {', '.join(map(str, found))}."
            )
        runs = [run for run in runs if not chosen or getattr(run, field) in chosen]
    return full_matrix(runs, config.reference)


def iqm_curve(races: Races, encoder: str, config: ReportConfig) -> tuple[np.ndarray, Estimate]:
    """Timesteps and the interquartile mean at each with its interval, (n_points,) each."""
    timesteps, curves = normalised_curves(races, encoder, "timesteps", config.n_points)
    return timesteps, estimate(config, interquartile_mean, curves)


def estimate(config: ReportConfig, statistic: Callable[..., np.ndarray], *scores: np.ndarray) -> Estimate:
    """A statistic with its interval, resampled as the flags say."""
    return bootstrap(statistic, *scores, n_resamples=config.n_resamples, seed=config.bootstrap_seed)


def draw_scores(races: Races, path: Path) -> None:
    """A row a game, a column a clock; thin the seeds, thick their mean, on the one clock that all machines share."""
    shape = (len(races.games), len(CLOCKS))
    figure, axes = plt.subplots(*shape, figsize=(12, 3.5 * shape[0]), squeeze=False, sharey="row", layout="constrained")
    for row, game in zip(axes, races.games, strict=True):
        for axis, clock in zip(row, CLOCKS, strict=True):
            for index, encoder in enumerate(races.encoders):
                for run in races.of(encoder, game):
                    axis.plot(run.clock(clock), run.scores, color=f"C{index}", linewidth=0.6, alpha=0.7)
                if clock == "timesteps":
                    axis.plot(*mean_curve(races.of(encoder, game), clock), color=f"C{index}", label=encoder)
            if clock == "timesteps":
                draw_published(axis, game, max(run.clock(clock)[-1] for run in races.runs.values()))
            label_axis(axis, CLOCKS[clock], f"{game}\n{SCORE_LABEL}" if clock == "timesteps" else "")
    axes[0, 0].legend(frameon=False)
    save(figure, path)


def draw_published(axis: Axes, game: str, end: float) -> None:
    """Published scores of NatureCNN up to the end of the runs: a baseline below them would be a weak one."""
    points = {timesteps: score for timesteps, score in NATURE_PPO_SCORES.get(game, {}).items() if timesteps <= end}
    axis.plot(list(points), list(points.values()), "kx", label="nature, published")


def draw_games(races: Races, config: ReportConfig, path: Path) -> None:
    """A panel a game: the mean over seeds with its interval; one seed has none. Dotted: where the reference ends."""
    shape = (1, len(races.games))
    figure, axes = plt.subplots(*shape, figsize=(4 * shape[1], 3.6), squeeze=False, layout="constrained")
    races, clock_label = for_averages(races, config.clock, config)
    for axis, game in zip(axes[0], races.games, strict=True):
        for index, encoder in enumerate(races.encoders):
            grid, mean = game_curve(races, encoder, game, config.clock, config)
            axis.plot(grid, mean.point, color=f"C{index}", label=encoder)
            if len(races.seeds) > 1:
                axis.fill_between(grid, mean.low, mean.high, color=f"C{index}", alpha=0.2, linewidth=0)
        axis.axhline(last_score(races, config.reference, game), color="grey", linestyle=":", linewidth=1)
        axis.set_title(game)
        label_axis(axis, clock_label, SCORE_LABEL if axis is axes[0, 0] else "")
    axes[0, 0].legend(frameon=False)
    save(figure, path)


def for_averages(races: Races, clock: Clock, config: ReportConfig) -> tuple[Races, str]:
    """The runs on a clock that all seeds share, whatever their machines, and its label."""
    if clock == "timesteps":
        return races, CLOCKS[clock]
    return in_whole_runs(races, clock, config.reference), f"{UNITS[clock]} (1: a whole run of {config.reference})"


def game_curve(races: Races, encoder: str, game: str, clock: str, config: ReportConfig) -> tuple[np.ndarray, Estimate]:
    """A clock and the mean raw score over seeds with its interval at the same timesteps, (n_points,) each."""
    runs = races.of(encoder, game)
    grid = common_grid(runs, config.n_points)
    curves = np.stack([scores_at(run, grid) for run in runs], axis=-1)  # (n_points, n_seeds)
    mean = estimate(config, mean_over_runs, curves[..., None])  # one game: (n_points, n_seeds, 1)
    return mean_clock(runs, clock, grid), mean


def draw_iqm(races: Races, config: ReportConfig, path: Path) -> None:
    """Interquartile mean against each clock, with intervals."""
    figure, axes = plt.subplots(1, len(CLOCKS), figsize=(12, 4), sharey=True, layout="constrained")
    curves = {encoder: iqm_curve(races, encoder, config) for encoder in races.encoders}  # the same on every clock
    for axis, clock in zip(axes, UNITS, strict=True):
        on_clock, label = for_averages(races, clock, config)
        for encoder, (timesteps, iqm) in curves.items():
            grid = mean_clock(on_clock.all_of(encoder), clock, timesteps)
            axis.plot(grid, iqm.point, label=encoder)
            axis.fill_between(grid, iqm.low, iqm.high, alpha=0.2)
        label_axis(axis, label, "IQM of the human-normalised score" if clock == "timesteps" else "")
    axes[0].legend(frameon=False)
    save(figure, path)


def draw_improvement(races: Races, config: ReportConfig, path: Path) -> None:
    """Probability of improvement over the reference, an interval an encoder."""
    others = races.encoders[1:]
    figure, axis = plt.subplots(figsize=(6, 1 + 0.5 * max(1, len(others))), layout="constrained")
    for index, encoder in enumerate(others):
        better = improvement(races, encoder, config)
        axis.plot([better.low, better.high], [index, index], linewidth=6, alpha=0.4, color="C0")
        axis.plot(better.point, index, "o", color="C0")
    axis.axvline(0.5, color="grey", linewidth=0.8)
    axis.set(xlim=(-0.02, 1.02), yticks=range(len(others)), yticklabels=others)
    label_axis(axis, f"P(a run beats a run of {config.reference})", "")
    save(figure, path)


def improvement(races: Races, encoder: str, config: ReportConfig) -> Estimate:
    """Probability that a run of an encoder ends with a higher score than one of the reference."""
    scores, baseline = final_scores(races, encoder), final_scores(races, config.reference)
    return estimate(config, probability_of_improvement, scores, baseline)


def label_axis(axis: Axes, x: str, y: str) -> None:
    """Labels and a light grid."""
    axis.set(xlabel=x, ylabel=y)
    axis.grid(alpha=0.3)


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure and let it go."""
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(races: Races, config: ReportConfig) -> str:
    """The numbers at the end of the runs as markdown, an encoder a row."""
    unit, relative = UNITS[config.clock], in_whole_runs(races, config.clock, config.reference)
    header = ["encoder", *races.games, "IQM", f"P(beats {config.reference})"]
    header += [] if config.clock == "timesteps" else [f"timesteps per {unit}"]
    header += [f"{goal}: {unit} needed" for goal in (*races.games, "IQM")]
    rows = [header, ["---"] * len(header)]
    rows += [table_row(relative, encoder, config) for encoder in races.encoders]
    rows += published_row(races, len(header))
    seeds_note = _SEEDS_NOTE.format(n_resamples=config.n_resamples, n_seeds=len(races.seeds))
    note = f"{_NOTE.format(reference=config.reference)} {seeds_note if len(races.seeds) > 1 else _ONE_SEED_NOTE}"
    made_by = f"Made by `{command_line(config)}`."
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", note, "", made_by, ""])


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
    cells.append("" if is_reference else with_interval(improvement(races, encoder, config), len(races.seeds)))
    if config.clock != "timesteps":
        cells.append(f"{relative_speed(races, encoder, config.clock):.2f}x")
    shares = [cost_to_reach(races, encoder, game, config.clock, config.reference) for game in races.games]
    shares.append(cost_to_reach_iqm(races, encoder, config.clock, config.reference))
    shown_shares = ("not reached" if share is None else f"{share:.2f}x" for share in shares)
    return [*cells, *(["1.00x"] * len(shares) if is_reference else shown_shares)]


def with_range(seeds: np.ndarray) -> str:
    """Such as 7.9 (7.5 to 8.2); one seed has no range."""
    mean = f"{seeds.mean():.1f}"
    return mean if len(seeds) == 1 else f"{mean} ({seeds.min():.1f} to {seeds.max():.1f})"


def with_interval(value: Estimate, n_seeds: int) -> str:
    """Such as 0.61 [0.50, 0.72]; one seed has no interval."""
    return f"{value.point:.2f}" if n_seeds == 1 else f"{value.point:.2f} [{value.low:.2f}, {value.high:.2f}]"


def main(args: list[str] | None = None) -> None:
    """Read the races, write the figures and the table, and say where they are."""
    config = parse(ReportConfig, args)
    with user_errors():
        check_file_name(config.name)
        check_positive(n_points=config.n_points, n_resamples=config.n_resamples)
        check_range("bootstrap_seed", config.bootstrap_seed, SEED)
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
    paths[4].write_text(text, encoding="utf-8")
    print(text)
    print("\n".join(shown(path) for path in paths))


if __name__ == "__main__":
    main()
