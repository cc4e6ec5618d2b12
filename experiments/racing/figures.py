"""Figures of runs and races."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from experiments.cli.results import save_figure
from experiments.racing.curves import Curve
from experiments.racing.matrix import Races, last_score, mean_clock, mean_curve
from experiments.racing.published_scores import NATURE_PPO_SCORES
from experiments.racing.reporting import UNITS, ReportConfig, for_averages, game_curve, improvement, iqm_curve
from experiments.racing.results import CLOCKS

SCORE_LABEL = "raw score, mean of the last 100 games"
N_COLOURS, LINES = 10, ("-", "--", ":")  # Matplotlib's colours come again after ten curves


def draw_runs(curves: Sequence[Curve], path: Path) -> None:
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
    save(figure, path)


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
        label_axis(axis, label, "IQM of the normalised score" if clock == "timesteps" else "")
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


def label_axis(axis: Axes, x: str, y: str) -> None:
    """Labels and a light grid."""
    axis.set(xlabel=x, ylabel=y)
    axis.grid(alpha=0.3)


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure and let it go."""
    save_figure(figure, path)
    plt.close(figure)
