"""A run is a function of its config: callable from any thread and process, silent on request, closed behind itself.

What runs in threads of one process share: Python's, numpy's and PyTorch's random generators, PyTorch's threads and the
allocator's settings. They train side by side, but only a run with a process of its own draws the same numbers twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from agents.runs.callbacks import EnvTimer
from agents.runs.config import RunConfig, command_line
from agents.runs.folder import RunFolder, evaluated_timesteps, exported_timesteps
from agents.runs.guards import memory_errors
from agents.runs.resuming import check_changes, recorded_config
from agents.runs.saving import CheckpointPlan, OnCheckpoint
from agents.runs.session import Outcome, Plan, Resume, find_resume, go_on, rewind, train, warn_of_refill
from mnv4_rl.performance import Tuning, compile_encoders, set_precision, tune
from mnv4_rl.safe_files import make_folder

RUNS = Path("runs")
_NOT_RECORDED = ("resume", "run_dir")


def train_run(config: RunConfig, on_checkpoint: OnCheckpoint | None = None, *, quiet: bool = False) -> Outcome:
    """Train one agent, from the first timestep or from where the run in ``config.resume`` stopped.

    In the main thread Ctrl-C and SIGTERM end the training after a checkpoint; other threads install no handlers.

    Args:
        config: A :class:`agents.runs.config.PPOConfig`, ``DQNConfig``, or one of another family of games.
        on_checkpoint: Called with folder, agent timesteps and mean raw score of the last 100 games (None before the
            first) whenever a checkpoint was written; if it returns False the run ends there, as after Ctrl-C.
        quiet: Show no progress bar and print nothing.

    Returns:
        How it ended, and where everything is.

    Raises:
        ValueError: If a setting cannot work, or the folder's run cannot go on; nothing was changed.
        OSError: If the folder cannot be made, holds a run already, or the agent cannot be saved in the end
            (:class:`agents.runs.folder.UnsavedError`), or the folder was taken away
            (:class:`agents.runs.lock.LostFolderError`).
        MemoryError: If the machine does not have the memory.
        NonFiniteError: If a loss or a weight became NaN or infinite; checkpoints before it stay.
    """
    with closing(open_run(config, quiet=quiet)) as run:
        return run.train(on_checkpoint)


@dataclass(frozen=True)
class OpenRun:
    """A run that is ready to train.

    Attributes:
        config: Its settings.
        folder: Its folder, which belongs to this process until :meth:`close`.
        model: The agent.
        timer: Its environments.
        resume: Where a resumed run goes on, None for a new one.
        tuning: Settings of the process.
        quiet: Whether nothing is shown.
    """

    config: RunConfig
    folder: RunFolder
    model: BaseAlgorithm
    timer: EnvTimer
    resume: Resume | None
    tuning: Tuning
    quiet: bool
    _opened: ExitStack

    def train(self, on_checkpoint: OnCheckpoint | None = None) -> Outcome:
        """Train to the end; arguments and errors are those of :func:`train_run`."""
        config = self.config
        checkpoints = CheckpointPlan(
            config.checkpoint_every, config.keep_checkpoints, config.keeps_replay, on_checkpoint
        )
        plan = Plan(config.total_timesteps, config.evaluation_games, checkpoints, config.eval_every, self.quiet)
        return train(
            self.model,
            self.timer,
            self.folder,
            plan,
            lambda: config.games.make_evaluation_env(config),
            self.resume,
            config.games.make_other_evaluation_envs(config),
        )

    def close(self) -> None:
        """Close the environments and leave the folder to others."""
        self._opened.close()


def open_run(config: RunConfig, *, quiet: bool = False) -> OpenRun:
    """Check a config, take its folder, and make environments and model; arguments and errors as :func:`train_run`."""
    config.check()
    recorded = None if config.resume is None else recorded_config(type(config), config.resume)
    if recorded is not None:
        check_changes(recorded, config)
    with ExitStack() as opened, memory_errors():
        path = config.resume or config.run_dir or opened.enter_context(new_folder(config.name))
        folder = opened.enter_context(RunFolder(path, resume=recorded is not None, quiet=quiet))
        tuning = tune(config.threads)
        resume = None if recorded is None else find_resume(folder)
        if resume is not None:
            check_unfinished(config, resume, folder)
        timer = opened.enter_context(closing(EnvTimer(config.games.make_env(config, folder.monitor))))
        model = _model(config, timer)
        if resume is not None:
            go_on(model, resume, config.total_timesteps)
            warn_of_refill(model, resume, config.total_timesteps)
            rewind(folder, resume)  # the first change: all that could be refused has been read
        folder.describe(_settings(config, tuning), command_line(config, recorded))
        return OpenRun(config, folder, model, timer, resume, tuning, quiet, opened.pop_all())


@contextmanager
def new_folder(name: str) -> Iterator[Path]:
    """Make runs/<name>__<date>_<time>, with a number behind it where that exists; what stays empty is removed.

    Raises:
        OSError: If it cannot be made.
    """
    path = _new_folder(RUNS / f"{name}__{time.strftime('%Y%m%d_%H%M%S')}")
    try:
        yield path
    finally:
        with suppress(OSError):  # of a folder that holds something
            path.rmdir()


def _new_folder(first: Path) -> Path:
    make_folder(first.parent)
    for number in count(1):
        path = first if number == 1 else first.with_name(f"{first.name}_{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:  # of a run that began in the same second
            continue
    raise AssertionError  # count has no end


def check_unfinished(config: RunConfig, resume: Resume, run: RunFolder) -> None:
    """Refuse to resume a run that has nothing left to do.

    Raises:
        ValueError: With what to do.
    """
    done = resume.timesteps
    evaluated = not config.evaluation_games or evaluated_timesteps(run.path) == done
    if done >= config.total_timesteps and evaluated and exported_timesteps(run.path) == done:
        raise ValueError(
            f"{run.path} has finished its {config.total_timesteps:,} timesteps; give more with --total-timesteps."
        )


def _model(config: RunConfig, timer: EnvTimer) -> BaseAlgorithm:
    model = config.build(timer)
    set_precision(model.policy, config.precision)
    if config.compile:
        compile_encoders(model.policy, graphs=not getattr(model, "captures", False))
    return model


def _settings(config: RunConfig, tuning: Tuning) -> dict[str, Any]:
    """What config.yml holds; the folder itself is no setting."""
    settings = {name: value for name, value in asdict(config).items() if name not in _NOT_RECORDED}
    return {"family": config.family, "algo": config.algo, **settings, "tuning": asdict(tuning)}
