"""Test predictions -> accuracy, confusion table and picture, and a result that can be committed."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.classification.training import Evaluation
from mnv4_rl.safe_files import write_csv, write_file

MAX_NUMBERED_CLASSES = 20
MAX_NAMED_CLASSES = 50


def confusion_matrix(evaluation: Evaluation, n_classes: int) -> np.ndarray:
    """Counts (true class, predicted class), int64."""
    cells = evaluation.labels * n_classes + evaluation.predictions
    return np.bincount(cells.numpy(), minlength=n_classes**2).reshape(n_classes, n_classes)


def wilson_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share: what ``total`` images can say about all images.

    Source:
        Wilson, J. Am. Stat. Assoc. 22 (1927).
    """
    share = correct / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy_text(evaluation: Evaluation) -> str:
    """Accuracy with its interval, in one line."""
    total = len(evaluation.labels)
    low, high = wilson_interval(evaluation.correct, total)
    return (
        f"{100 * evaluation.accuracy:.2f} % ({evaluation.correct:,} of {total:,} images; "
        f"95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    )


def write_test(folder: Path, evaluation: Evaluation, class_names: tuple[str, ...], title: str) -> None:
    """Write test.json, confusion.csv and confusion.png.

    Args:
        folder: The run folder.
        evaluation: Of the test images.
        class_names: In label order.
        title: Above the picture.
    """
    matrix = confusion_matrix(evaluation, len(class_names))
    low, high = wilson_interval(evaluation.correct, len(evaluation.labels))
    found = {
        "accuracy": evaluation.accuracy,
        "correct": evaluation.correct,
        "images": len(evaluation.labels),
        "interval_95": [low, high],
        "loss": evaluation.loss,
    }
    write_file(folder / "test.json", json.dumps(found, indent=1).encode())
    rows = [
        {"true": name, **dict(zip(class_names, counts, strict=True))}
        for name, counts in zip(class_names, matrix.tolist(), strict=True)
    ]
    write_csv(folder / "confusion.csv", rows)
    draw_confusion(folder / "confusion.png", matrix, class_names, title)


def draw_confusion(path: Path, matrix: np.ndarray, class_names: tuple[str, ...], title: str) -> None:
    """Draw the counts; the colour is the share of the true class, so that small classes show too.

    Args:
        path: The PNG.
        matrix: Counts (true, predicted).
        class_names: In label order; left out where they would not be readable.
        title: Above the picture.
    """
    n = len(class_names)
    side = min(12.0, max(4.5, 1.8 + 0.42 * n))  # inches
    figure = Figure(figsize=(side + 0.7, side), layout="constrained", dpi=130)
    axes = figure.add_subplot()
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    if n <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(n), class_names)
        axes.set_yticks(range(n), class_names)
        if max(map(len, class_names)) > 2:
            axes.tick_params("x", labelrotation=90)
    if n <= MAX_NUMBERED_CLASSES:
        for row, column in np.argwhere(matrix):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.85)
    temporary = path.with_suffix(".partial.png")
    FigureCanvasAgg(figure).print_png(str(temporary))
    temporary.replace(path)


RESULT_COLUMNS = (
    "model", "parameters", "data", "image_size", "recipe", "seed", "epochs", "best_epoch", "test_images",
    "test_accuracy", "interval_low", "interval_high", "wall_seconds", "cpu_seconds", "threads", "commit", "command",
)  # fmt: skip


def add_result(path: Path, row: dict[str, Any], picture: Path) -> None:
    """Append a run to a results table, and write it as Markdown with the confusion picture beside it.

    Args:
        path: The CSV; made if it does not exist.
        row: A value for each of :data:`RESULT_COLUMNS`.
        picture: The run's confusion.png, copied beside the table.

    Raises:
        ValueError: If the file is there and is not such a table; it is not touched.
    """
    rows = [*read_results(path), row]
    write_csv(path, rows)
    write_file(path.with_suffix(".md"), _markdown(path, rows).encode())
    write_file(path.with_name(f"{path.stem}_confusion.png"), picture.read_bytes())


def read_results(path: Path) -> list[dict[str, Any]]:
    """Rows of a results table, none where there is no file.

    Raises:
        FileNotFoundError: If there is no folder to put it in.
        ValueError: If the file is not such a table.
    """
    if path.suffix != ".csv":
        raise ValueError(f"--result-file names a table that ends in .csv, got {str(path)!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} for the --result-file; make it first.")
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != RESULT_COLUMNS:
            raise ValueError(f"{path} is not a table of classification results; name another --result-file.")
        return list(reader)


def _markdown(path: Path, rows: list[dict[str, Any]]) -> str:
    shown = ("seed", "test_accuracy", "best_epoch", "wall_seconds", "cpu_seconds", "threads", "commit")
    first = rows[-1]
    accuracies = [float(row["test_accuracy"]) for row in rows]
    lines = [
        f"# {first['model']} on {first['data']}",
        "",
        f"Mean test accuracy {100 * sum(accuracies) / len(rows):.2f} % over {len(rows)} runs, "
        f"{100 * min(accuracies):.2f} to {100 * max(accuracies):.2f} %, {first['test_images']} test images each. "
        "The best epoch is chosen by validation images; the test images are looked at once. Wall seconds include "
        "whatever else the machine was doing; CPU seconds are the process's own, imports and test included.",
        "",
        f"| {' | '.join(shown)} |",
        f"|{'---|' * len(shown)}",
        *(f"| {' | '.join(str(row[name]) for name in shown)} |" for row in rows),
        "",
        f"Made by `{first['command']}`, with the seeds above; all columns are in [{path.name}]({path.name}).",
        "",
        f"![confusion of the last run]({path.stem}_confusion.png)",
        "",
    ]
    return "\n".join(lines)
