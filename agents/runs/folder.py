"""A run folder explains itself: effective config, command line, versions, curves, model.

config.yml      every setting as used
command.txt     the line that started the run
versions.txt    packages, commit, machine
monitor.csv     one row a game: raw score r, length l in agent timesteps, seconds t
progress.csv    SB3's log, one row a dump
events.out.*    the same for TensorBoard, and more
checkpoints/    the newest states to resume from, see mnv4_rl/agent_files.py
first_checkpoint.txt  when the first of them was written
run.lock        the process that writes here, while it lives
model.zip       the trained agent, for SB3's load
evaluation.json raw scores of whole games played by the final model

A published agent's folder has config.yml, evaluation.json and, in place of the rest, ``agent/`` with the weights alone.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import stat
import subprocess
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch as th
import yaml
from pydantic import BaseModel, ConfigDict
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.runs.lock import RunLock
from mnv4_rl.safe_files import (
    MAX_JSON_BYTES,
    PARTIAL,
    DamagedError,
    make_folder,
    open_regular,
    read_file,
    remove,
    write_file,
    write_synced,
)
from mnv4_rl.schemas import parse_json

CHECKPOINTS, FIRST_CHECKPOINT = "checkpoints", "first_checkpoint.txt"
MAX_TEXT_BYTES = 1_000_000
_LOCK = "run.lock"
_PACKAGES = ("torch", "stable-baselines3", "ale-py", "gymnasium", "numpy")
_ROOT = Path(__file__).resolve().parents[2]
KEPT_AGENT = "agent"  # folder of a published agent's weights
# What the environments showed last, which SB3 asks anew of an agent without it: 38 kB an Atari game.
_NOT_EXPORTED = ("_last_obs", "_last_original_obs", "_last_episode_starts")
_MAX_EXPORTED_BYTES = 64_000_000  # zips that do hold it, of hundreds of games


class UnsavedError(OSError):
    """The trained agent could not be exported."""


class RunFolder:
    """The files of one run.

    It belongs to this process until :meth:`close`, or the end of a ``with`` block.

    Args:
        path: The folder; it is made where it does not exist.
        resume: Whether it holds a run to go on with, instead of none.
        quiet: Whether nothing is printed.

    Raises:
        FileExistsError: If it already holds a run, or files of one, and is not to be resumed; nothing is touched.
        NotADirectoryError: If the path is a file, or below one.
        ValueError: For a new run in the current folder, which an empty path is too.
        FolderInUseError: If a live process writes to it.
        DamagedError: If something in it is a link, a pipe or a device: nothing in a run's folder leads out of it.
    """

    def __init__(self, path: Path, resume: bool = False, *, quiet: bool = False) -> None:
        if not resume and path == Path():  # an empty text too: --run-dir "$NOT_SET"
            raise ValueError("The run's folder is empty or '.', where other files are; name one with --run-dir.")
        self.path = path.expanduser().absolute()
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file; name a new folder with --run-dir.")
        self._is_new = not self.path.exists()
        make_folder(self.path)
        check_plain(self.path)
        self._lock = RunLock(self.path / _LOCK, quiet)
        try:
            if not resume:
                self._check_unused()
        except BaseException:
            self.close(untouched=True)
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, error: object, *_rest: object) -> None:
        self.close(untouched=error is not None)

    def close(self, untouched: bool = False) -> None:
        """Leave the folder to others.

        Args:
            untouched: Whether nothing came of it, so that it is to be as it was found.
        """
        self._lock.release(self._lock.previous if untouched else None)
        if untouched and self._is_new and not any(self.path.iterdir()):
            self.path.rmdir()

    def check_held(self) -> None:
        """Make sure that the folder is still this process's.

        Raises:
            LostFolderError: If its lock was removed, or another folder has come in its place.
        """
        self._lock.check()

    def _check_unused(self) -> None:
        if self.config.exists():
            raise FileExistsError(
                f"{self.path} already holds a run. Go on with it by --resume, name another folder with --run-dir, or "
                "delete it first."
            )
        first = self.path / FIRST_CHECKPOINT
        written = [self.monitor, self.progress, self.model, self.evaluation, self.checkpoints, first]
        # What a run that was killed before its config was written leaves, beside its lock: these two files, and an
        # empty folder of checkpoints.
        if self._lock.previous is None:
            written += [self.command, self.versions]
        if found := [path.name for path in written if path.exists() and not _is_empty_folder(path)]:
            raise FileExistsError(f"{self.path} already holds {found[0]}; name a new folder with --run-dir.")

    @property
    def checkpoints(self) -> Path:
        """States to resume from."""
        return self.path / CHECKPOINTS

    @property
    def command(self) -> Path:
        """The line that started it, and one for each time that it was resumed."""
        return self.path / "command.txt"

    @property
    def versions(self) -> Path:
        """Packages, commit, machine."""
        return self.path / "versions.txt"

    @property
    def config(self) -> Path:
        """Every setting as used."""
        return self.path / "config.yml"

    @property
    def monitor(self) -> Path:
        """One row a game."""
        return self.path / "monitor.csv"

    @property
    def progress(self) -> Path:
        """SB3's log, one row a dump."""
        return self.path / "progress.csv"

    @property
    def model(self) -> Path:
        """The trained agent."""
        return self.path / "model.zip"

    @property
    def evaluation(self) -> Path:
        """Raw scores of whole games."""
        return self.path / "evaluation.json"

    def describe(self, config: dict[str, Any], command: str) -> None:
        """Write what is known before a session's first timestep: config, versions, its command below earlier ones."""
        self._lock.previous = None
        earlier = read_file(self.command, MAX_TEXT_BYTES, below=self.path) if self.command.exists() else b""
        write_file(self.command, earlier + f"{command}\n".encode())
        lines = [f"{name}: {value}" for name, value in versions().items()]
        write_file(self.versions, ("\n".join(lines) + "\n").encode())
        make_folder(self.checkpoints)  # its absence later says that somebody removed it
        # Last: the config is what marks a folder as holding a run.
        write_file(self.config, yaml.safe_dump(config, sort_keys=False).encode())

    def save_model(self, model: BaseAlgorithm) -> None:
        """Export the agent as SB3's zip; an earlier one is replaced once the new one is complete.

        Raises:
            UnsavedError: If it cannot be written; an earlier one stays.
        """
        partial = self.model.with_name(self.model.name + PARTIAL)
        try:
            remove(partial)  # left by a killed process
            write_synced(partial, lambda file: model.save(file, _NOT_EXPORTED))  # type: ignore[arg-type]
            os.replace(partial, self.model)
        except BaseException as error:
            remove(partial)
            if isinstance(error, OSError | RuntimeError):  # PyTorch's zip writer turns a full disk into the latter
                raise UnsavedError(f"{self.model} cannot be written: {error}".splitlines()[0]) from error
            raise

    def write_evaluation(self, evaluation: dict[str, Any], timesteps: int) -> None:
        """Write whole games of the model at a timestep as JSON."""
        content = json.dumps({"timesteps": timesteps, **evaluation}, indent=1, allow_nan=False)
        write_file(self.evaluation, f"{content}\n".encode())


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


class _Dated(BaseModel):
    """The part of a result that says of which timestep it is."""

    model_config = ConfigDict(strict=True)

    timesteps: int


class _Zipped(BaseModel):
    """The part of what SB3's zip says of its model that counts here."""

    model_config = ConfigDict(strict=True)

    num_timesteps: int


def evaluated_timesteps(run: Path) -> int | None:
    """Agent timesteps of the model that a run's evaluation.json is of; None without one, or one that does not say."""
    path = run / "evaluation.json"
    try:
        return parse_json(_Dated, read_file(path, MAX_JSON_BYTES, below=run), path).timesteps
    except (OSError, DamagedError):
        return None


def exported_timesteps(run: Path) -> int | None:
    """Agent timesteps of a run's model.zip; None without one, or one that cannot be read."""
    path = run / "model.zip"
    try:
        with open_regular(path, below=run) as file, zipfile.ZipFile(file) as archive, archive.open("data") as data:
            return parse_json(_Zipped, data.read(_MAX_EXPORTED_BYTES), path).num_timesteps
    except Exception:  # a broken archive sets off many kinds; whoever loads it is told which
        return None


def check_plain(folder: Path) -> None:
    """Refuse a folder in which something is neither a file nor a folder: what is written there could land elsewhere.

    Raises:
        DamagedError: Naming it.
    """
    for entry in os.scandir(folder):
        kind = entry.stat(follow_symlinks=False).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise DamagedError(
                f"{entry.path} is a link, a pipe or a device, which a run's folder never holds; remove it."
            )
    if (folder / CHECKPOINTS).is_file():
        raise DamagedError(f"{folder / CHECKPOINTS} is a file, not the folder of the run's checkpoints; remove it.")


class _PlainYaml(yaml.SafeLoader):
    """YAML of plain values: no aliases, which can stand for more than memory holds, and few levels."""

    max_depth = 8

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As PyYAML's, with its depth counted."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias")
        self._depth = getattr(self, "_depth", 0) + 1
        if self._depth > self.max_depth:
            raise yaml.YAMLError(f"it has more than {self.max_depth} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def read_config(path: Path) -> dict[str, Any]:
    """The settings of the run in a folder, as they stand there: plain values under names.

    Raises:
        ValueError: If the folder holds no run, or its config is no table (DamagedError).
    """
    folder = path.expanduser()
    config = folder / "config.yml"
    if not os.path.lexists(config):
        raise ValueError(f"{path} holds no run: there is no config.yml in it.")
    try:
        data = yaml.load(read_file(config, MAX_TEXT_BYTES, below=folder), _PlainYaml)
    except (yaml.YAMLError, ValueError, TypeError) as error:  # the latter two of dates, numbers and keys that are none
        raise DamagedError(f"{config} cannot be read: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
        raise DamagedError(f"{config} is no table of settings.")
    return data


def replayable_command(run: Path) -> str:
    """The command that started a run, for others to repeat: no interpreter and no folders of the machine it ran on.

    A resumed run has a line for every session; the first says what was trained.

    Raises:
        OSError: If the folder has no command.txt.
        ValueError: If no command is in it.
    """
    said = run / "command.txt"
    lines = read_file(said, MAX_TEXT_BYTES, below=run).decode(errors="replace").splitlines()
    words = shlex.split(lines[0])[1:] if lines else []
    if not words:
        raise ValueError(f"{said} does not hold the command that started the run.")
    words[0] = f"experiments/{Path(words[0]).name}"
    for flag in ("--run-dir", "--result-file"):
        if flag in words:
            at = words.index(flag)
            del words[at : at + 2]
    return shlex.join(["python", *words])


def versions() -> dict[str, str]:
    """Python, packages, machine, and the commit of this checkout ("+changes" where it is not clean)."""
    found = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    device = th.cuda.get_device_name() if th.cuda.is_available() else "none"
    return {**found, "machine": platform.platform(), "gpu": device, "commit": _commit()}


def _commit() -> str:
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git checkout)"


def _git(*args: str) -> str:
    done = subprocess.run(["git", "-C", str(_ROOT), *args], check=True, capture_output=True, text=True)
    return done.stdout.strip()
