"""Where results are kept, and how a table is read, written and shown."""

from __future__ import annotations

import csv
import io
import os
import shlex
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mnv4_rl.games import family_of, reference_scores
from mnv4_rl.safe_files import write_file

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"
AGENTS = RESULTS / "agents"  # a folder for each published agent


def shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def typed(path: Path) -> str:
    """A path as it is typed into a command from here."""
    return shlex.quote(shown(path))


def script(name: str) -> str:
    """How one of the commands is started from here."""
    return f"python {typed(ROOT / 'experiments' / f'{name}.py')}"


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made, before hours of work for it.

    Raises:
        OSError: With the reason.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"Nothing can be written in {folder} ({error.strerror}); name another folder.") from error


def check_file_name(name: str) -> None:
    """Refuse a name that would land in another folder, or in none.

    Raises:
        ValueError: With the name.
    """
    if not name or name.startswith(".") or "\0" in name or Path(name).name != name:
        raise ValueError(f"name must be usable as a file name, got {name!r}.")


def check_cells(**names: Sequence[object]) -> None:
    """Refuse an axis of a matrix that names nothing, or the same thing twice.

    Raises:
        ValueError: Naming the flag, and what it has.
    """
    for flag, values in names.items():
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{flag} must name at least one and none twice, got {', '.join(map(str, values))!r}.")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV, without its comment lines.

    Raises:
        ValueError: If it is no text of rows.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(line for line in file if not line.startswith("#")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV ({error}).") from error


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """A table, no line end behind it.

    Args:
        headings: Of the columns.
        rows: A cell for each heading.
        numbers: Align all columns but the first to the right.
    """
    rule = "|---" + "|---:" * (len(headings) - 1) if numbers else "|---" * len(headings)
    lines = (f"| {' | '.join(cells)} |" for cells in rows)
    return "\n".join([f"| {' | '.join(headings)} |", f"{rule}|", *lines])


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as a PNG, whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    write_file(path, picture.getvalue())


SCALES = {"atari": "human-normalised", "procgen": "normalised"}  # what the field calls its scale
_ENDS = {  # what 0 and 1 are on it
    "atari": ("random play", "a human tester"),
    "procgen": ("the lowest return in Procgen's paper", "the highest"),
}


def places(folder: Path) -> str:
    """Where a run and its curves are."""
    return f"run folder   {shown(folder)}\ncurves       tensorboard --logdir {typed(folder.parent)}"


def scales(games: Iterable[str]) -> list[str]:
    """The scales of games, each once: "human-normalised score (0 random play, 1 a human tester)"."""
    kinds = dict.fromkeys(family_of(game) for game in games)
    return ["{} score (0 {}, 1 {})".format(SCALES[kind], *_ENDS[kind]) for kind in kinds]


def normalised_text(game: str, score: float, mode: str = "easy") -> str:
    """A raw score on the field's scale for a game, and what its 0 and 1 are."""
    ends = reference_scores(game, mode)
    if ends is None:
        return "no reference scores for this game"
    (low, high), (lowest, highest) = ends, _ENDS[family_of(game)]
    return f"{(score - low) / (high - low):.2f} (0 is {lowest} at {low:g}, 1 {highest} at {high:g})"
