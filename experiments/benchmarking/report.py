"""The benchmark's rows as a markdown table and as one figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.benchmarking.measuring import Row
from experiments.cli.results import markdown_table, save_figure

_HEADER = (
    "model", "task", "device", "dtype", "batch", "image", "n_envs", "a second", "ratio", "lowest to highest",
    "best dtypes", "of peak", "parameters", "MMACs", "kB saved", "of uint8",
)  # fmt: skip
_LEGEND = (
    "A second: images, or agent timesteps for ppo and dqn; median over rounds. Ratio: to NatureCNN (training: to plain "
    "SB3 with NatureCNN; export: to NatureCNN in ONNX Runtime) in the same round, median. Best dtypes: to "
    "NatureCNN in its faster dtype. Of peak: share of "
    "the rate of a large matrix product in the same round. kB saved: by autograd for backward, an image that comes as "
    "float; of uint8: one that comes as uint8, where the encoder takes it. Encoders are timed from a uint8 batch, as a "
    "policy gets it: those that take uint8 get it as it is, the others after float() / 255, which is in their time."
)


def markdown(rows: Sequence[Row], comments: Sequence[str]) -> str:
    """One table a part, what is measured below, and machine and versions at the end."""
    blocks = []
    for part in dict.fromkeys(row.part for row in rows):
        table = markdown_table(_HEADER, [cells(row) for row in rows if row.part == part])
        blocks.append(f"## {part}\n\n{table}")
    ending = "\n".join(f"- {line}" for line in comments)
    return "\n\n".join([*blocks, _LEGEND, ending]) + "\n"


def cells(row: Row) -> list[str]:
    """A row's cells; a note takes the place of the numbers that are missing."""
    spread = "" if row.ratio_low is None else f"{row.ratio_low:.2f} to {row.ratio_high:.2f}"
    return [
        row.model,
        row.task,
        row.device,
        row.dtype,
        shown(row.batch, "{}"),
        shown(row.size, "{}"),
        shown(row.n_envs, "{}"),
        row.note or shown(row.per_second, "{:,.0f}"),
        shown(row.ratio, "{:.2f}x"),
        spread,
        shown(row.best_dtype_ratio, "{:.2f}x"),
        shown(row.peak_fraction, "{:.0%}"),
        shown(row.parameters, "{:,}"),
        shown(None if row.macs is None else row.macs / 1e6, "{:.1f}"),
        shown(None if row.saved_bytes is None else row.saved_bytes / 1e3, "{:,.0f}"),
        shown(None if row.saved_bytes_uint8 is None else row.saved_bytes_uint8 / 1e3, "{:,.0f}"),
    ]


def shown(value: float | None, style: str) -> str:
    """A number in a style, nothing for None."""
    return "" if value is None else style.format(value)


def draw(rows: Sequence[Row], path: Path) -> None:
    """One panel a part and device."""
    measured = [row for row in rows if row.ratio is not None]
    panels = [panel for panel in dict.fromkeys((row.part, row.device) for row in measured) if panel[0] in _DRAW]
    figure = Figure(figsize=(5, 5 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)
    for axis, (part, device) in zip(axes[:, 0], panels, strict=True):
        title, draw_panel = _DRAW[part]
        draw_panel(axis, [row for row in measured if (row.part, row.device) == (part, device)])
        axis.set_title(f"{title}, {device}")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    save_figure(figure, path)


def draw_encoders(axis: Axes, rows: Sequence[Row]) -> None:
    """Training throughput over NatureCNN's, a bar a model and dtype."""
    training = [row for row in rows if row.task == "forward+backward"] or rows
    bars(axis, training, lambda row: row.dtype, f"images a second (NatureCNN: 1), {training[0].task}")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}x")
    axis.xaxis.set_minor_formatter(NullFormatter())


def draw_end_to_end(axis: Axes, rows: Sequence[Row]) -> None:
    """Training speed over plain SB3's, a bar a set-up and algorithm."""
    bars(axis, rows, lambda row: row.task, "agent timesteps a second (plain SB3: 1)")


def bars(axis: Axes, rows: Sequence[Row], group: Callable[[Row], str], label: str) -> None:
    """Horizontal bars: models down, groups in colours, whiskers from the lowest to the highest round."""
    models, groups = list(dict.fromkeys(row.model for row in rows)), list(dict.fromkeys(map(group, rows)))
    # A model that was measured at two batch sizes keeps the first.
    kept = {(row.model, group(row)): row for row in reversed(rows)}
    height = 0.8 / len(groups)
    for index, name in enumerate(groups):
        found = [(models.index(row.model), row) for (_, owner), row in kept.items() if owner == name]
        values = [row.ratio or 0.0 for _, row in found]
        low = [value - (row.ratio_low or 0.0) for value, (_, row) in zip(values, found, strict=True)]
        high = [(row.ratio_high or 0.0) - value for value, (_, row) in zip(values, found, strict=True)]
        places = [place + (index - (len(groups) - 1) / 2) * height for place, _ in found]
        axis.barh(places, values, height, xerr=(low, high), label=name)
    axis.axvline(1, color="grey", linewidth=0.8)
    axis.set(yticks=range(len(models)), yticklabels=models, xlabel=label)
    axis.invert_yaxis()


def draw_growth(axis: Axes, rows: Sequence[Row]) -> None:
    """Agent timesteps a second against the number of environments, a line a set-up."""
    for model in dict.fromkeys(row.model for row in rows):
        line = [(row.n_envs, row.per_second) for row in rows if row.model == model]
        axis.plot(*zip(*line, strict=True), "o-", label=model)
    axis.set(xlabel="environments stepped together", ylabel="agent timesteps a second")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")


def draw_frames(axis: Axes, rows: Sequence[Row]) -> None:
    """Images trained a second against their side, a line a model and dtype."""
    for model, dtype in dict.fromkeys((row.model, row.dtype) for row in rows):
        line = [(row.size, row.per_second) for row in rows if (row.model, row.dtype) == (model, dtype)]
        axis.plot(*zip(*line, strict=True), "o-" if dtype == "fp32" else "o--", label=f"{model}, {dtype}")
    axis.set(xlabel="side of the image (pixels)", ylabel="images a second, forward+backward", yscale="log")
    for formatted in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        formatted("{x:,.0f}")


def draw_export(axis: Axes, rows: Sequence[Row]) -> None:
    """Observations acted on over NatureCNN's in ONNX Runtime, a bar a set-up and batch."""
    bars(axis, rows, lambda row: f"batch {row.batch}", "observations a second\n(NatureCNN in ONNX Runtime: 1)")


_DRAW: dict[str, tuple[str, Callable[[Axes, Sequence[Row]], None]]] = {
    "encoders": ("Speed of encoders", draw_encoders),
    "end-to-end": ("Speed of training", draw_end_to_end),
    "n-envs": ("More environments", draw_growth),
    "frames": ("Larger images", draw_frames),
    "export": ("Acting once exported", draw_export),
}
