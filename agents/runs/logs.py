"""The curves of a run across its sessions: every timestep once, whatever a killed session had logged beyond."""

from __future__ import annotations

import csv
import errno
import io
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat, filter_excluded_keys
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from agents.runs.folder import RunFolder
from mnv4_rl.safe_files import write_file

STEP, ITERATIONS = "time/total_timesteps", "time/iterations"

Row = dict[str, str]


def open_logs(run: RunFolder, resumed_at: int | None) -> Logger:
    """SB3's logger for a run: progress.csv and TensorBoard.

    Args:
        run: The run.
        resumed_at: Timestep at which the run goes on, None for a new one; nothing logged later is shown any more.
    """
    # 0 also clears away what a session killed before its first checkpoint had logged.
    purge_step = None if resumed_at is None else resumed_at + 1 if resumed_at else 0
    return Logger(str(run.path), [ProgressCsv(run.progress), TensorBoardWriter(run.path, purge_step)])


def rewind_logs(run: RunFolder, timesteps: int, monitor_bytes: int) -> None:
    """Drop what was logged after a checkpoint, each file in one step.

    Args:
        run: The run.
        timesteps: The checkpoint's.
        monitor_bytes: Size of monitor.csv at the checkpoint; rows are only ever added to it.

    Raises:
        OSError: If a file cannot be written; it stays as it was.
    """
    if run.monitor.exists():
        write_file(run.monitor, run.monitor.read_bytes()[:monitor_bytes])
    if run.progress.exists():
        rows = [row for row in read_rows(run.progress) if int(row[STEP]) <= timesteps]
        write_file(run.progress, _as_csv(rows))


def read_rows(path: Path) -> list[Row]:
    """The rows of a progress.csv; a last line that was cut short is left out."""
    text = path.read_text(encoding="utf-8")
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
        rows = read_rows(path) if path.exists() else []
        self._columns = list(rows[0]) if rows else []
        self._last_step = int(rows[-1][STEP]) if rows else -1
        # SB3 counts iterations from 1 in each session.
        self._iterations_before = int(rows[-1].get(ITERATIONS) or 0) if rows else 0
        self._whole = True

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Add the values logged at a timestep."""
        values = dict(_scalars(filter_excluded_keys(key_values, key_excluded, "csv")))
        if ITERATIONS in values:
            values[ITERATIONS] = str(int(values[ITERATIONS]) + self._iterations_before)
        try:
            self._add({**values, STEP: str(step)}, step)
        except OSError as error:
            self._whole = False
            warnings.warn(f"{self._path} did not get timestep {step:,}: {error}", RuntimeWarning, stacklevel=2)

    def _add(self, row: Row, step: int) -> None:
        if self._whole and step > self._last_step and row.keys() <= set(self._columns):
            self._append(_as_csv([row], self._columns, header=False))
        else:
            rows = read_rows(self._path) if self._path.exists() else []
            joined = rows.pop() | row if rows and step == self._last_step else row
            columns = list(dict.fromkeys([*self._columns, *row]))
            write_file(self._path, _as_csv([*rows, joined], columns))
            self._columns, self._whole = columns, True
        self._last_step = step

    def _append(self, line: bytes) -> None:
        with self._path.open("ab", buffering=0) as file:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Nothing is open between rows."""


class TensorBoardWriter(TensorBoardOutputFormat):
    """SB3's TensorBoard output in a new event file that takes the place of everything from a timestep on.

    Args:
        folder: Where the event files are.
        purge_step: First timestep of which earlier files' points are hidden, None to hide nothing.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        self.writer = SurvivingSummaryWriter(log_dir=str(folder), purge_step=purge_step)
        self._is_closed = False


class SurvivingSummaryWriter(SummaryWriter):
    """PyTorch's TensorBoard writer, whose full disk costs points and a warning, not the run."""

    def _get_file_writer(self) -> FileWriter:
        writer = super()._get_file_writer()
        if not isinstance(writer.event_writer, EventFile):
            writer.event_writer = EventFile(Path(self.log_dir), writer.event_writer)
        return writer


class EventFile:
    """What PyTorch uses of tensorboard's event file; after a failure a new one is begun, a minute later at the soonest.

    A failed file cannot be written to again: the thread that fills it has ended.

    Args:
        folder: Where event files go.
        file: The first one.
    """

    retry_seconds = 60.0  # a failed file leaves a descriptor open

    def __init__(self, folder: Path, file: EventFileWriter) -> None:
        self._folder = folder
        self._file: EventFileWriter | None = file
        self._retry_at = 0.0

    def add_event(self, event: Any) -> None:
        """Add a point."""
        if self._file is None and time.monotonic() >= self._retry_at:
            with self._told():
                self._file = EventFileWriter(str(self._folder))
        if self._file is not None:
            with self._told():
                self._file.add_event(event)

    def flush(self) -> None:
        """Bring what was added to the disk."""
        if self._file is not None:
            with self._told():
                self._file.flush()

    def close(self) -> None:
        """Flush and close the file."""
        if self._file is not None:
            with self._told():
                self._file.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._file, self._retry_at = None, time.monotonic() + self.retry_seconds
            warnings.warn(f"TensorBoard's file in {self._folder} lost points: {error}", RuntimeWarning, stacklevel=3)


def _scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What fits a cell; pictures and histograms are for TensorBoard."""
    for name, value in values.items():
        if isinstance(value, str) or (np.ndim(value) == 0 and isinstance(value, int | float | np.generic)):
            yield name, str(value.item() if isinstance(value, np.generic) else value)


def _as_csv(rows: list[Row], columns: list[str] | None = None, header: bool = True) -> bytes:
    if columns is None:
        columns = list(rows[0]) if rows else []
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if header and columns:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
