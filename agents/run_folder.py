"""A run folder explains itself: effective config, command line, versions, curves, model.

config.yml      every setting as used, the encoder's architecture included
command.txt     the line that started the run
versions.txt    packages, commit, machine
monitor.csv     one row a game: raw score r, length l in agent timesteps, seconds t
progress.csv    SB3's log, one row a dump
events.out.*    the same for TensorBoard, and more
model.zip       the trained agent, for SB3's load
evaluation.json raw scores of whole games played by the final model
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch as th
import yaml

_PACKAGES = ("torch", "stable-baselines3", "ale-py", "gymnasium", "numpy")
_ROOT = Path(__file__).resolve().parents[1]


class RunFolder:
    """The files of one run.

    Args:
        path: The folder; it is made where it does not exist.

    Raises:
        FileExistsError: If it already holds a run; nothing in it is touched.
        NotADirectoryError: If the path is a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file; name a new folder with --run-dir.")
        if self.config.exists():
            raise FileExistsError(
                f"{self.path} already holds a run. Name another folder with --run-dir, or delete it first."
            )
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def config(self) -> Path:
        """Every setting as used."""
        return self.path / "config.yml"

    @property
    def monitor(self) -> Path:
        """One row a game."""
        return self.path / "monitor.csv"

    @property
    def model(self) -> Path:
        """The trained agent."""
        return self.path / "model.zip"

    @property
    def evaluation(self) -> Path:
        """Raw scores of whole games."""
        return self.path / "evaluation.json"

    def describe(self, config: dict[str, Any]) -> None:
        """Write what is known before the first timestep: config, command, versions."""
        (self.path / "command.txt").write_text(shlex.join([sys.executable, *sys.argv]) + "\n", encoding="utf-8")
        lines = [f"{name}: {value}" for name, value in versions().items()]
        (self.path / "versions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        # Last: the config is what marks a folder as holding a run.
        self.config.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def write_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Write the final evaluation as JSON."""
        self.evaluation.write_text(json.dumps(evaluation, indent=1) + "\n", encoding="utf-8")


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
