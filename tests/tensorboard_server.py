"""TensorBoard's own server, as a person starts it, and the points it shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import tensorboard_data_server

LOADERS = ("python", "data server")
_SECONDS = 60


@dataclass(frozen=True)
class Point:
    """A point of a curve as TensorBoard shows it."""

    wall_time: float
    step: int
    value: float


@dataclass(frozen=True)
class TensorBoard:
    """A running server."""

    url: str

    def curves(self) -> dict[str, list[str]]:
        """Run -> names of its curves; the served folder's own is "."."""
        return {run: sorted(tags) for run, tags in self._get("tags").items()}

    def points(self, curve: str, run: str = ".") -> list[Point]:
        """A curve's points in the order in which they are drawn."""
        return [Point(*point) for point in self._get("scalars", run=run, tag=curve)]

    def _get(self, what: str, **query: str):
        with urlopen(f"{self.url}data/plugin/scalars/{what}?{urlencode(query)}", timeout=_SECONDS) as answer:
            return json.load(answer)


@contextmanager
def tensorboard(logdir: Path, loader: str) -> Iterator[TensorBoard]:
    """Serve a folder on the loopback until the end of the block; on entry everything is loaded.

    Args:
        logdir: A run's folder, or one of runs.
        loader: One of `LOADERS`; a test of the second is skipped where TensorBoard has no binary for the platform.
    """
    if loader == "data server" and not tensorboard_data_server.server_binary():
        pytest.skip("tensorboard_data_server has no binary for this platform")
    fast = ["--load_fast=true"] if loader == "data server" else ["--load_fast=false", "--reload_task=blocking"]
    flags = ["--host=127.0.0.1", "--port=0", "--reload_interval=0", "--samples_per_plugin=scalars=1000000", *fast]
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            server = TensorBoard(_address(process))
            _wait_until_loaded(server)
            yield server
        finally:
            process.terminate()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if found := re.search(r"http://\S+", line):
            return found[0]
    raise AssertionError(f"TensorBoard did not start: {said}")


def _wait_until_loaded(server: TensorBoard) -> None:
    """The data server loads behind its back: until two looks see the same."""
    end, before = time.monotonic() + _SECONDS, None
    while time.monotonic() < end:
        now = [len(server.points(curve, run)) for run, curves in server.curves().items() for curve in curves]
        if now and now == before:
            return
        before = now
        time.sleep(0.3)
    raise AssertionError(f"TensorBoard shows no curves, or no end of them: {before}")
