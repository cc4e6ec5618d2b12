"""TensorBoard's files of a run: every point once and in order, whatever killed a session or set the clock back.

Each session adds to a file of its own. What a killed session had added after the checkpoint it is resumed from is cut
off its file, so that any reader finds one curve; TensorBoard's own ways to hide such points differ between its loaders.
"""

from __future__ import annotations

import io
import os
import re
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from google.protobuf.message import DecodeError
from stable_baselines3.common.logger import KVWriter, filter_excluded_keys
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter

from mnv4_rl.safe_files import DamagedError, append_file, open_regular

_NAME = re.compile(r"tfevents\.(\d{10})\.")  # the second in which it was begun; TensorBoard reads files by name
_HEADER_BYTES, _FOOTER_BYTES = 12, 4


class EventFile(KVWriter):
    """One session's points, each written as soon as it is added; a full disk costs points and a warning, not the run.

    Args:
        folder: Where it goes; after the files that are there, whatever the clock says.
    """

    def __init__(self, folder: Path) -> None:
        earlier = event_files(folder)
        second = max([int(time.time()), *(begun(path) + 1 for path in earlier)])
        self._path = folder / f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}.0"
        last, self._step, self._tags = 0.0, -1, set[str]()
        for event in (event for path in earlier for event, _ in _read(path)):
            last = max(last, event.wall_time)
            if event.HasField("summary"):
                self._new(event.summary, event.step)
        self._wall_start = max(time.time(), last) - time.monotonic()
        self._start = self._step + 1  # after all that is there: a session may only add to the last one's timestep

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Add the numbers that SB3 logs at a timestep."""
        values = filter_excluded_keys(key_values, key_excluded, "tensorboard")
        self.add({name: value for name, value in values.items() if is_number(value)}, step)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each of some curves; the first of a timestep stays the only one.

        Args:
            values: Curve -> value.
            step: Agent timesteps, never fewer than before.
        """
        points = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()]
        self.add_summary(Summary(value=points), step)

    def add_summary(self, summary: Summary, step: int) -> None:
        """Add anything that TensorBoard shows; what stands at the timestep already stays as it is.

        Args:
            summary: What to show.
            step: Agent timesteps, never fewer than before.
        """
        wall_time = self._wall_start + time.monotonic()
        events = [Event(wall_time=wall_time, step=step, summary=self._new(summary, step))]
        if not self._path.exists():
            start = SessionLog(status=SessionLog.START)  # a server that is running drops what it has from there on
            events = [
                Event(wall_time=wall_time, file_version="brain.Event:2"),
                Event(wall_time=wall_time, step=self._start, session_log=start),
                *events,
            ]
        try:
            append_file(self._path, _as_records(events), below=self._path.parent)
        except (OSError, DamagedError) as error:
            warnings.warn(f"TensorBoard's file {self._path} lost points: {error}", RuntimeWarning, stacklevel=3)

    def _new(self, summary: Summary, step: int) -> Summary:
        """The part of a summary that its timestep does not have yet; from now on it has it."""
        if step != self._step:
            self._step, self._tags = step, set()
        new = [value for value in summary.value if value.tag not in self._tags]
        self._tags.update(value.tag for value in new)
        return Summary(value=new)

    def close(self) -> None:
        """Nothing is open between points."""


def is_number(value: Any) -> bool:
    """Whether a value that was logged is one number, and no picture, text or distribution."""
    return np.ndim(value) == 0 and isinstance(value, int | float | np.number | np.bool_)


def event_files(folder: Path) -> list[Path]:
    """TensorBoard's files in a folder, in the order in which it reads them."""
    return sorted(path for path in folder.iterdir() if "tfevents" in path.name)


def begun(path: Path) -> int:
    """Unix second in a file's name, 0 where there is none."""
    match = _NAME.search(path.name)
    return int(match[1]) if match else 0


def bytes_until(path: Path, timesteps: int) -> int:
    """Size of the part of a file that was logged up to a timestep; what is cut short or damaged ends it too.

    Raises:
        DamagedError: If it is a link or no regular file.
        OSError: If it cannot be read.
    """
    size = 0
    for event, end in _read(path):
        if event.step > timesteps and not event.HasField("session_log"):  # which is ahead of its session's points
            break
        size = end
    return size


def _read(path: Path) -> Iterator[tuple[Event, int]]:
    """The whole records of a file, each with the byte at which it ends."""
    with open_regular(path, below=path.parent) as file:
        size = os.fstat(file.fileno()).st_size
        while (length := _record_length(file)) is not None and file.tell() + length + _FOOTER_BYTES <= size:
            try:
                event = Event.FromString(file.read(length))
            except DecodeError:
                return
            file.seek(_FOOTER_BYTES, os.SEEK_CUR)
            yield event, file.tell()


def _record_length(file: BinaryIO) -> int | None:
    header = file.read(_HEADER_BYTES)
    length, checksum = header[:8], int.from_bytes(header[8:], "little")
    whole = len(header) == _HEADER_BYTES and masked_crc32c(length) == checksum
    return int.from_bytes(length, "little") if whole else None


def _as_records(events: list[Event]) -> bytes:
    records = io.BytesIO()
    for event in events:
        RecordWriter(records).write(event.SerializeToString())
    return records.getvalue()
