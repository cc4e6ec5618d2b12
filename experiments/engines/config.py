"""The flags that say where runs are trained; every command that trains many has them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from mnv4_rl.checks import Interval, check_ranges

INSTALL_LINE = 'python -m pip install -c constraints.txt -e ".[tune]" -r requirements.txt'
_RANGES = {"jobs": Interval(1), "gpus_per_run": Interval(0)}
_OF_RAY = ("address", "gpus_per_run")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where runs are trained."""

    engine: Literal["processes", "ray"] = "processes"
    """Processes of this machine, or tasks on Ray, of this machine or of a cluster."""
    jobs: int | None = None
    """Runs side by side; one by default, on a cluster as many as fit."""
    address: str | None = None
    """With --engine ray: a cluster that exists, such as 10.0.0.1:6379 or auto; None begins one on this machine."""
    gpus_per_run: float = 0.0
    """With --engine ray: share of a GPU that each run gets; --device auto then finds it."""

    def check_engine(self) -> None:
        """Refuse flags of another engine, or one that is not installed.

        Raises:
            ValueError: Naming the flag.
            ModuleNotFoundError: With the command that installs Ray.
        """
        check_ranges(self, _RANGES)
        if self.gpus_per_run > 1 and self.gpus_per_run % 1:
            raise ValueError(f"--gpus-per-run {self.gpus_per_run}: Ray gives a share of one GPU, or whole GPUs.")
        if self.engine == "ray":
            import_ray()
        elif given := [name for name in _OF_RAY if getattr(self, name)]:
            flag = given[0].replace("_", "-")
            raise ValueError(f"--{flag} {getattr(self, given[0])} is of Ray; give --engine ray too, or leave it out.")


def import_ray() -> Any:
    """Ray, which reports its use to nobody unless the environment says so.

    Raises:
        ModuleNotFoundError: With the command that installs it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return import_module("ray")
    except ImportError as error:
        raise ModuleNotFoundError(f"--engine ray needs Ray: {INSTALL_LINE} ({error}).") from error
