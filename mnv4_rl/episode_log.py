"""Scores of whole games: kept per environment while they run, handed out and written down when they end."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from stable_baselines3.common.monitor import Monitor, ResultsWriter

from mnv4_rl.safe_files import open_regular

_COLUMNS = "r,l,t,env"
_HEADER_BYTES = 4096


class EpisodeLog:
    """Raw score and length of the game running in each environment, and SB3's monitor file of the finished ones.

    The file is SB3's `Monitor` format (a JSON comment line, then CSV, one flushed row per game) with one more column,
    the environment's index; `stable_baselines3.common.monitor.load_results` reads it. A file that already holds rows is
    continued, on its own clock, so that a resumed run keeps one curve.

    Args:
        n_envs: Environments that step together.
        game: Name of the game, for the file's header.
        monitor_path: The file, or None. `.monitor.csv` is added unless the name ends so: SB3 looks for that.

    Attributes:
        scores: (n_envs,) float64, raw score so far.
        lengths: (n_envs,) int64, agent timesteps so far.
        t_start: Unix time from which `t` counts, in seconds.

    Raises:
        ValueError: The file holds something other than such rows; it is left as it is.
    """

    def __init__(self, n_envs: int, game: str, monitor_path: str | Path | None = None) -> None:
        self.scores = np.zeros(n_envs)  # a whole score is exact in it
        self.lengths = np.zeros(n_envs, dtype=np.int64)
        self.t_start = time.time()
        self._game = game
        self._path: Path | None = None
        self._writer: ResultsWriter | None = None
        if monitor_path is not None:
            self._path = _with_suffix(monitor_path)
            if self._continues():
                self.t_start = _read_start(self._path)

    def restart(self) -> None:
        """Forget the running games: all environments were reset."""
        self._open()
        self.scores[:] = 0
        self.lengths[:] = 0

    def add(self, rewards: np.ndarray) -> None:
        """Count one timestep with its raw rewards, (n_envs,)."""
        self.scores += rewards
        self.lengths += 1

    def finish(self, index: int) -> dict[str, float]:
        """End the game in environment `index`: write its row and return it as SB3's `info["episode"]`.

        Returns:
            `r` raw score, `l` length in agent timesteps, `t` seconds since `t_start`.
        """
        episode = {
            "r": float(self.scores[index]),
            "l": int(self.lengths[index]),
            "t": round(time.time() - self.t_start, 6),
        }
        self._open()
        if self._writer is not None:
            # What a full disk refuses stays in the file's buffer and is written with the next row.
            with self._told():
                self._writer.write_row({**episode, "env": index})
        self.scores[index] = self.lengths[index] = 0
        return episode

    def close(self) -> None:
        """Close the monitor file."""
        if self._writer is not None:
            with self._told():
                self._writer.close()

    def _open(self) -> None:
        """Not before the first game: until then nothing has to be in the file, and nothing of it changes."""
        if self._path is not None and self._writer is None:
            header: dict[str, float | str] = {"t_start": self.t_start, "env_id": self._game}
            fresh = not self._continues()
            self._writer = ResultsWriter(str(self._path), header, extra_keys=("env",), override_existing=fresh)

    def _continues(self) -> bool:
        return self._path is not None and self._path.exists() and self._path.stat().st_size > 0

    @contextmanager
    def _told(self) -> Iterator[None]:
        """A disk that is full costs a warning, not the run."""
        try:
            yield
        except OSError as error:
            warnings.warn(f"{self._path} could not be written for now: {error}", RuntimeWarning, stacklevel=3)


def _with_suffix(path: str | Path) -> Path:
    path = Path(path)
    return path if path.name.endswith(Monitor.EXT) else path.with_name(f"{path.name}.{Monitor.EXT}")


def _read_start(path: Path) -> float:
    """`t_start` of an existing monitor file, after a check that our rows fit it."""
    try:
        with open_regular(path) as file:
            header, columns = file.read(_HEADER_BYTES).decode(errors="replace").splitlines()[:2]
        if header[:1] == "#" and columns == _COLUMNS:
            return float(json.loads(header[1:])["t_start"])
    except (ValueError, KeyError, TypeError):  # fewer lines, not text, not JSON, no number
        pass
    raise ValueError(
        f"{path} is not a monitor file with the columns {_COLUMNS}, so no rows can be added. Choose another path."
    )
