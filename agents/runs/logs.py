"""The curves of a run across its sessions: every timestep once, whatever a killed session had logged beyond."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter, Logger, filter_excluded_keys

from agents.runs.event_file import EventFile, bytes_until, event_files, is_number
from agents.runs.folder import RunFolder
from mnv4_rl.safe_files import DamagedError, append_file, as_csv, cut_file, open_regular, write_csv, write_file

STEP, ITERATIONS = "time/total_timesteps", "time/iterations"

Row = dict[str, str]


def open_logs(run: RunFolder) -> Logger:
    """SB3's logger for a run: progress.csv and TensorBoard, after what :func:`rewind_logs` left."""
    return Logger(str(run.path), [ProgressCsv(run.progress), EventFile(run.path)])


def rewind_logs(run: RunFolder, timesteps: int, monitor_bytes: int) -> None:
    """Drop what was logged after a checkpoint. All files are read before the first is changed, each in one step.

    Args:
        run: The run.
        timesteps: The checkpoint's; -1 drops everything.
        monitor_bytes: Size of monitor.csv at the checkpoint; rows are only ever added to it.

    Raises:
        DamagedError: If a file is a link or no regular file; nothing is changed.
        OSError: If a file cannot be read or written; it stays as it was.
        ValueError: If progress.csv has rows of something else.
    """
    sizes = {path: bytes_until(path, timesteps) for path in event_files(run.path)}
    if os.path.lexists(run.monitor):
        open_regular(run.monitor, "r+b", below=run.path).close()
        sizes[run.monitor] = monitor_bytes
    rows = [row for row in read_rows(run.progress) if _step(row) <= timesteps]
    for path, size in sizes.items():
        cut_file(path, size, below=run.path)
    write_csv(run.progress, rows)


def read_rows(path: Path) -> list[Row]:
    """The rows of a progress.csv, none if there is no file; a last line that was cut short is left out."""
    if not os.path.lexists(path):
        return []
    with open_regular(path, below=path.parent) as file:
        text = file.read().decode()
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(whole)))


class ProgressCsv(KVWriter):
    """SB3's progress.csv, one row a timestep, which goes on after the rows it finds.

    SB3's own writer empties the file when it opens it, and rewrites it in place when a new column comes. Here a row is
    added in one write, and a new column (or a second dump at the same timestep, which joins the first) makes a new file
    that replaces the old. A disk that is full costs rows and a warning, not the run.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        rows = read_rows(path)
        self._columns = list(rows[0]) if rows else []
        self._last_step = _step(rows[-1]) if rows else -1
        # SB3 counts iterations from 1 in each session.
        self._iterations_before = int(rows[-1].get(ITERATIONS) or 0) if rows else 0

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Add the values logged at a timestep."""
        values = dict(_scalars(filter_excluded_keys(key_values, key_excluded, "csv")))
        if ITERATIONS in values:
            values[ITERATIONS] = str(int(values[ITERATIONS]) + self._iterations_before)
        try:
            self._add({**values, STEP: str(step)}, step)
        except (OSError, DamagedError) as error:
            warnings.warn(f"{self._path} did not get timestep {step:,}: {error}", RuntimeWarning, stacklevel=2)

    def _add(self, row: Row, step: int) -> None:
        if step > self._last_step and row.keys() <= set(self._columns):
            append_file(self._path, as_csv([row], self._columns, header=False), below=self._path.parent)
        else:
            rows = read_rows(self._path)
            joined = rows.pop() | row if rows and step == self._last_step else row
            columns = list(dict.fromkeys([*self._columns, *row]))
            write_file(self._path, as_csv([*rows, joined], columns))
            self._columns = columns
        self._last_step = step

    def close(self) -> None:
        """Nothing is open between rows."""


def _step(row: Row) -> int:
    step = row.get(STEP) or ""
    if not step.isdecimal():
        raise ValueError(f"A row of progress.csv has {step!r} as {STEP}, which is no number of timesteps.")
    return int(step)


def _scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What fits a cell; pictures and histograms are for TensorBoard."""
    for name, value in values.items():
        if isinstance(value, str) or is_number(value):
            yield name, str(value.item() if isinstance(value, np.generic) else value)
