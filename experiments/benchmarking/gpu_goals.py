"""What the GPU benchmark was for, in three lines: its goals, and what was measured of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from experiments.benchmarking import training
from experiments.benchmarking.gpu import SOLVED
from experiments.cli.results import read_csv
from mnv4_rl import list_models

Rows = list[dict[str, str]]


def goals(folder: Path) -> list[str]:
    """A line a goal.

    Args:
        folder: Where the benchmark's CSVs are, as far as it came.
    """
    parts: dict[str, tuple[str, Callable[[Rows], str | None]]] = {
        "ppo": ("PPO on Pong, goal 10,000 timesteps/s and 5x stock SB3", _speed),
        "encoders": ("training step of rl_m at 2,048, goal at most 1.2x NatureCNN's", _step),
        "pong": (f"Pong above {SOLVED:g}, goal 180 s", _pong),
    }
    return [
        f"{goal}: {found(_rows(folder / f'{name}.csv')) or 'not measured'}" for name, (goal, found) in parts.items()
    ]


def _rows(path: Path) -> Rows:
    return read_csv(path) if path.is_file() else []


def _rates(rows: Rows, **wanted: str) -> list[float]:
    """Rates of the rows that have these values."""
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return [float(row["per_second"]) for row in found if row["per_second"]]


def _speed(rows: Rows) -> str | None:
    ours = [rate for name in list_models("rl") for rate in _rates(rows, model=name)]
    if not ours:
        return None
    stock = _rates(rows, model=training.STOCK.name)
    return f"{max(ours):,.0f} timesteps/s" + (f", {max(ours) / stock[0]:.1f}x" if stock else ", stock not measured")


def _step(rows: Rows) -> str | None:
    """In the numbers that are the fastest for each."""
    train = [row for row in rows if row["task"] == "forward+backward" and row["batch"] == "2048"]
    ours, nature = _rates(train, model="rl_m"), _rates(train, model="nature")
    return f"{max(nature) / max(ours):.2f}x" if ours and nature else None


def _pong(rows: Rows) -> str | None:
    scores = [(float(row["seconds"]), float(row["score"])) for row in rows if row["score"]]
    if not scores:
        return None
    if solved := [seconds for seconds, score in scores if score >= SOLVED]:
        return f"{solved[0]:.0f} s"
    seconds, score = scores[-1]
    return f"{score:.1f} after {seconds:.0f} s"
