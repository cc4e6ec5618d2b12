"""A run folder explains itself: effective config, command line, versions, curves, model.

config.yml      every setting as used, the encoder's architecture included
command.txt     the line that started the run
versions.txt    packages, commit, machine
monitor.csv     one row a game: raw score r, length l in agent timesteps, seconds t
progress.csv    SB3's log, one row a dump
events.out.*    the same for TensorBoard, and more
checkpoints/    the newest states to resume from, see mnv4_rl/agent_files.py
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
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch as th
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.runs.lock import RunLock
from mnv4_rl.safe_files import make_folder, write_file

_PACKAGES = ("torch", "stable-baselines3", "ale-py", "gymnasium", "numpy")
_ROOT = Path(__file__).resolve().parents[2]
KEPT_AGENT = "agent"  # folder of a published agent's weights


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
        FileExistsError: If it already holds a run that is not to be resumed; nothing in it is touched.
        NotADirectoryError: If the path is a file, or below one.
        FolderInUseError: If a live process writes to it.
    """

    def __init__(self, path: Path, resume: bool = False, *, quiet: bool = False) -> None:
        self.path = path.expanduser().absolute()
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file; name a new folder with --run-dir.")
        make_folder(self.path)
        self._lock = RunLock(self.path / "run.lock", quiet)
        if self.config.exists() and not resume:
            self.close()
            raise FileExistsError(
                f"{self.path} already holds a run. Go on with it by --resume, name another folder with --run-dir, or "
                "delete it first."
            )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the folder to others."""
        self._lock.release()

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
        with (self.path / "command.txt").open("a", encoding="utf-8") as file:
            file.write(command + "\n")
        lines = [f"{name}: {value}" for name, value in versions().items()]
        write_file(self.path / "versions.txt", ("\n".join(lines) + "\n").encode())
        # Last: the config is what marks a folder as holding a run.
        write_file(self.config, yaml.safe_dump(config, sort_keys=False).encode())

    def save_model(self, model: BaseAlgorithm) -> None:
        """Export the agent as SB3's zip; an earlier one is replaced once the new one is complete.

        Raises:
            UnsavedError: If it cannot be written; an earlier one stays.
        """
        partial = self.model.with_name("model.partial.zip")
        try:
            model.save(partial)
            os.replace(partial, self.model)
        except (OSError, RuntimeError) as error:  # PyTorch's zip writer turns a full disk into a RuntimeError
            partial.unlink(missing_ok=True)
            raise UnsavedError(f"{self.model} cannot be written: {error}".splitlines()[0]) from error

    def write_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Write the final evaluation as JSON."""
        write_file(self.evaluation, (json.dumps(evaluation, indent=1) + "\n").encode())


def read_config(path: Path) -> dict[str, Any]:
    """The settings of the run in a folder.

    Raises:
        ValueError: If the folder holds no run, or its config is no table.
    """
    config = path.expanduser() / "config.yml"
    if not config.is_file():
        raise ValueError(f"{path} holds no run: there is no config.yml in it.")
    try:
        data = yaml.safe_load(config.read_bytes())
    except yaml.YAMLError as error:
        raise ValueError(f"{config} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{config} is no table of settings.")
    return data


def replayable_command(run: Path) -> str:
    """The command that started a run, for others to repeat: no interpreter and no folders of the machine it ran on.

    A resumed run has a line for every session; the first says what was trained.

    Raises:
        OSError: If the folder has no command.txt.
        ValueError: If no command is in it.
    """
    lines = (run / "command.txt").read_text(encoding="utf-8").splitlines()
    words = shlex.split(lines[0])[1:] if lines else []
    if not words:
        raise ValueError(f"{run / 'command.txt'} does not hold the command that started the run.")
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
