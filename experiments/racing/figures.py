"""Figures of runs and races."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.cli.results import save_figure, scales
from experiments.racing.curves import Curve
from experiments.racing.estimates import probability_of_improvement
from experiments.racing.matrix import Races, last_score, mean_clock, mean_curve
from experiments.racing.published_scores import NATURE_PPO_SCORES
from experiments.racing.reporting import UNITS, ReportConfig, against_reference, for_averages, game_curve, iqm_curve
from experiments.racing.results import CLOCKS

WIDTH = 5  # inches; letters of 10 points can be read when a phone's screen is as wide
SCORE_LABEL = "raw score, mean of the last 100 games"
THOUSANDS = EngFormatter(sep="")
N_COLOURS, LINES = 10, ("-", "--", ":")  # Matplotlib's colours come again after ten curves


def draw_runs(curves: Sequence[Curve], path: Path) -> None:
    """Score against agent timesteps and, below, against the process's own CPU time, one line a run."""
    figure = Figure(figsize=(WIDTH, 6 + len(curves) / 8), layout="constrained")
    axes = figure.subplots(2, 1)
    for index, curve in enumerate(curves):
        look = {"color": f"C{index % N_COLOURS}", "linestyle": LINES[index // N_COLOURS % len(LINES)]}
        score = [row["raw_score_mean_100_games"] for row in curve.rows]
        timesteps = [row["timesteps"] / 1e6 for row in curve.rows]
        axes[0].plot(timesteps, score, label=curve.label.replace("__", " "), **look)
        axes[1].plot([row["cpu_seconds"] / 60 for row in curve.rows], score, **look)
    label_axis(axes[0], "agent timesteps (millions)", "")
    label_axis(axes[1], "CPU time of the process (minutes)", "")
    figure.supylabel(SCORE_LABEL, fontsize="medium")
    figure.legend(loc="outside lower center", ncols=min(2, len(curves)), frameon=False)
    save_figure(figure, path)


def draw_scores(races: Races, path: Path) -> None:
    """A row a game, a column a clock; thin the seeds, thick their mean, on the one clock that all machines share."""
    rows = len(races.games)
    figure = Figure(figsize=(1.4 * WIDTH, 0.6 + 2 * rows), layout="constrained")
    axes = figure.subplots(rows, len(CLOCKS), squeeze=False, sharex="col", sharey="row")
    for row, game in zip(axes, races.games, strict=True):
        for axis, clock in zip(row, CLOCKS, strict=True):
            for index, encoder in enumerate(races.encoders):
                for run in races.of(encoder, game):
                    axis.plot(run.clock(clock), run.scores, color=f"C{index}", linewidth=0.6, alpha=0.7)
                if clock == "timesteps":
                    axis.plot(*mean_curve(races.of(encoder, game), clock), color=f"C{index}", label=encoder)
            if clock == "timesteps":
                draw_published(axis, game, max(run.clock(clock)[-1] for run in races.runs.values()))
            axis.locator_params(nbins=3)
            label_axis(axis, CLOCKS[clock] if game == races.games[-1] else "", game if clock == "timesteps" else "")
    figure.supylabel(SCORE_LABEL)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    save_figure(figure, path)


def legend_columns(labels: Sequence[str]) -> int:
    """Columns of a legend that fit above a figure, whose width takes some 64 letters."""
    return max(1, min(4, 64 // (6 + max(map(len, labels)))))  # 6 for the line and what is between two


def draw_published(axis: Axes, game: str, end: float) -> None:
    """Published scores of NatureCNN up to the end of the runs: a baseline below them would be a weak one."""
    points = {timesteps: score for timesteps, score in NATURE_PPO_SCORES.get(game, {}).items() if timesteps <= end}
    axis.plot(list(points), list(points.values()), "kx", label="nature, published")


def draw_games(races: Races, config: ReportConfig, path: Path) -> None:
    """A panel a game: the mean over seeds with its interval; one seed has none. Dotted: where the reference ends."""
    columns = len(races.games)
    figure = Figure(figsize=(max(1, 0.4 * columns) * WIDTH, 3), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)
    races, clock_label = for_averages(races, config.clock, config)
    for axis, game in zip(axes[0], races.games, strict=True):
        for index, encoder in enumerate(races.encoders):
            grid, mean = game_curve(races, encoder, game, config.clock, config)
            axis.plot(grid, mean.point, color=f"C{index}", label=encoder)
            if len(races.seeds) > 1:
                axis.fill_between(grid, mean.low, mean.high, color=f"C{index}", alpha=0.2, linewidth=0)
        axis.axhline(last_score(races, config.reference, game), color="grey", linestyle=":", linewidth=1)
        axis.set_title(game)
        axis.locator_params(nbins=3)
        label_axis(axis, "", "")
    figure.supxlabel(clock_label, fontsize="medium")
    figure.supylabel("raw score, last 100 games", fontsize="medium")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=legend_columns(labels), frameon=False)
    save_figure(figure, path)


def draw_iqm(races: Races, config: ReportConfig, path: Path) -> None:
    """Interquartile mean against each clock, with intervals."""
    figure = Figure(figsize=(WIDTH, 8), layout="constrained")
    axes = figure.subplots(len(CLOCKS), 1)
    curves = {encoder: iqm_curve(races, encoder, config) for encoder in races.encoders}  # the same on every clock
    for axis, clock in zip(axes, UNITS, strict=True):
        on_clock, label = for_averages(races, clock, config)
        for encoder, (timesteps, iqm) in curves.items():
            grid = mean_clock(on_clock.all_of(encoder), clock, timesteps)
            axis.plot(grid, iqm.point, label=encoder)
            axis.fill_between(grid, iqm.low, iqm.high, alpha=0.2)
        label_axis(axis, label, "")
    figure.supylabel("interquartile mean of the\n" + "\nand ".join(scales(races.games)), fontsize="medium")
    axes[0].legend(frameon=False)
    save_figure(figure, path)


def draw_improvement(races: Races, config: ReportConfig, path: Path) -> None:
    """Probability of improvement over the reference, an interval an encoder."""
    others = races.encoders[1:]
    figure = Figure(figsize=(WIDTH, 1 + 0.5 * max(1, len(others))), layout="constrained")
    axis = figure.subplots()
    for index, encoder in enumerate(others):
        better = against_reference(races, encoder, config, probability_of_improvement)
        axis.plot([better.low, better.high], [index, index], linewidth=6, alpha=0.4, color="C0")
        axis.plot(better.point, index, "o", color="C0")
    axis.axvline(0.5, color="grey", linewidth=0.8)
    axis.set(xlim=(-0.02, 1.02), yticks=range(len(others)), yticklabels=others)
    label_axis(axis, f"probability that a run beats a run of {config.reference}", "")
    save_figure(figure, path)


def label_axis(axis: Axes, x: str, y: str) -> None:
    """Labels, a light grid, and 500k for half a million."""
    axis.set(xlabel=x, ylabel=y)
    axis.xaxis.set_major_formatter(lambda value, _: THOUSANDS(value) if value >= 1000 else f"{value:g}")
    axis.grid(alpha=0.3)
