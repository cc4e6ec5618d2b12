"""Training runs: a function of a config, and the folder, logs and checkpoints that keep one alive."""

from typing import Any

_RUN = ("train_run", "open_run", "OpenRun", "Outcome")


def __getattr__(name: str) -> Any:
    if name not in _RUN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from agents.runs import run  # late: the agent files below a run use this package's guards

    return getattr(run, name)
