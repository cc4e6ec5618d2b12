"""Test predictions -> accuracy, confusion table and picture, and a result that can be committed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binomtest

from experiments.classification.training import Evaluation
from experiments.cli.results import markdown_table, read_csv, save_figure
from mnv4_rl.safe_files import write_csv, write_file

MAX_NUMBERED_CLASSES, MAX_NAMED_CLASSES = 20, 50
CORNER = "true/predicted"  # of confusion.csv; no folder, and so no class, has such a name
RESULT_COLUMNS = (
    "model", "parameters", "data", "image_size", "seed", "epochs", "best_epoch", "test_images", "test_accuracy",
    "interval_low", "interval_high", "wall_seconds", "cpu_seconds", "threads", "commit", "command",
)  # fmt: skip


def interval(evaluation: Evaluation) -> tuple[float, float]:
    """Wilson's 95 % interval of the accuracy: what so many images can say about all images."""
    found = binomtest(evaluation.correct, len(evaluation.labels)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def accuracy_text(evaluation: Evaluation) -> str:
    """Accuracy with its interval, in one line."""
    low, high = interval(evaluation)
    return (
        f"{100 * evaluation.accuracy:.2f} % ({evaluation.correct:,} of {len(evaluation.labels):,} images; "
        f"95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    )


def write_test(folder: Path, evaluation: Evaluation, class_names: Sequence[str], title: str) -> None:
    """Write test.json, confusion.csv and confusion.png into a run folder; the title stands above the picture."""
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(evaluation.labels, evaluation.predictions, labels=range(len(class_names)))
    found = {
        "accuracy": evaluation.accuracy,
        "correct": evaluation.correct,
        "images": len(evaluation.labels),
        "interval_95": interval(evaluation),
        "loss": evaluation.loss,
    }
    write_file(folder / "test.json", json.dumps(found, indent=1).encode())
    columns = (CORNER, *class_names)
    rows = ((name, *counts) for name, counts in zip(class_names, matrix.tolist(), strict=True))
    write_csv(folder / "confusion.csv", [dict(zip(columns, row, strict=True)) for row in rows])
    draw_confusion(folder / "confusion.png", matrix, class_names, title)


def draw_confusion(path: Path, matrix: np.ndarray, class_names: Sequence[str], title: str) -> None:
    """Draw counts (true, predicted); numbers and names are left out where they could not be read."""
    from sklearn.metrics import ConfusionMatrixDisplay

    n = len(class_names)
    side = min(12.0, max(4.5, 1.8 + 0.42 * n))  # inches
    figure = Figure(figsize=(side + 0.7, side), layout="constrained")
    axes = figure.add_subplot()
    rotation = 90 if max(map(len, class_names)) > 2 else 0
    display = ConfusionMatrixDisplay(matrix, display_labels=class_names)
    display.plot(include_values=n <= MAX_NUMBERED_CLASSES, cmap="Blues", xticks_rotation=rotation, ax=axes)
    if n > MAX_NAMED_CLASSES:
        axes.set(xticks=[], yticks=[])
    axes.set(title=title)
    save_figure(figure, path, dpi=130)


def add_result(path: Path, row: Mapping[str, Any], picture: Path) -> None:
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


def read_results(path: Path) -> Sequence[Mapping[str, Any]]:
    """Rows of a results table, none where there is no file.

    Raises:
        FileNotFoundError: If there is no folder to put it in.
        ValueError: If the file is not such a table.
    """
    if path.suffix != ".csv":
        raise ValueError(f"--result-file names a table that ends in .csv, got {str(path)!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} for the --result-file; make it first.")
    rows = read_csv(path) if path.exists() else []
    if path.exists() and (not rows or tuple(rows[0]) != RESULT_COLUMNS):
        raise ValueError(f"{path} is not a table of classification results; name another --result-file.")
    return rows


def _markdown(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    shown = ("seed", "test_accuracy", "best_epoch", "wall_seconds", "cpu_seconds", "threads", "commit")
    last = rows[-1]
    accuracies = [100 * float(row["test_accuracy"]) for row in rows]
    return f"""# {last["model"]} on {last["data"]}

Mean test accuracy {np.mean(accuracies):.2f} % over {len(rows)} runs, {min(accuracies):.2f} to {max(accuracies):.2f} \
%, {last["test_images"]} test images each. The best epoch is chosen by validation images; the test images are looked \
at once. Wall seconds include whatever else the machine was doing; CPU seconds are the process's own, imports and test \
included.

{markdown_table(shown, [[str(row[name]) for name in shown] for row in rows])}

Made by `{last["command"]}`, with the seeds above; all columns are in [{path.name}]({path.name}).

![confusion of the last run]({path.stem}_confusion.png)
"""
