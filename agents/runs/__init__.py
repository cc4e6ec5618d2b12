"""Training runs: a function of a config, and the folder, logs and checkpoints that keep one alive."""

from agents.runs.run import OpenRun, open_run, train_run
from agents.runs.session import Outcome

__all__ = ["OpenRun", "Outcome", "open_run", "train_run"]
