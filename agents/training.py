"""One training session: log into the run folder, show progress, survive Ctrl-C, save, evaluate."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv

from agents.callbacks import EncoderHealth, EnvTimer, GameScores, ProgressBar, TimeSplit, recent_score
from agents.evaluate import Evaluation, evaluate
from agents.run_folder import RunFolder


@dataclass(frozen=True)
class Outcome:
    """How a session ended.

    Attributes:
        finished: Whether all timesteps were trained; False after Ctrl-C or SIGTERM.
        timesteps: Agent timesteps trained.
        steps_per_second: Agent timesteps a wall second, evaluation not included.
        score: Mean raw score of the last 100 training games, None if no game ended.
        evaluation: Whole games of the final model, None if interrupted or not asked for.
    """

    finished: bool
    timesteps: int
    steps_per_second: float
    score: float | None
    evaluation: Evaluation | None


def train(
    model: BaseAlgorithm,
    timer: EnvTimer,
    run: RunFolder,
    total_timesteps: int,
    evaluation_env: Callable[[], VecEnv],
    evaluation_games: int,
) -> Outcome:
    """Train a model, save it, and play whole games with it.

    Args:
        model: A model whose environment is ``timer``.
        timer: The environment, wrapped for the time split.
        run: Where everything goes.
        total_timesteps: Agent timesteps.
        evaluation_env: Makes the environment for the final games.
        evaluation_games: Whole games after training, 0 for none.

    Returns:
        How it ended; after Ctrl-C or SIGTERM the model is saved all the same.
    """
    model.set_logger(configure(str(run.path), ["csv", "tensorboard"]))
    started = time.perf_counter()
    finished = _learn(model, timer, total_timesteps)
    seconds = time.perf_counter() - started
    model.save(run.model)
    evaluation = None
    if finished and evaluation_games:
        evaluation = _final_evaluation(model, run, evaluation_env, evaluation_games)
    return Outcome(finished, model.num_timesteps, model.num_timesteps / seconds, recent_score(model), evaluation)


def _learn(model: BaseAlgorithm, timer: EnvTimer, total_timesteps: int) -> bool:
    """Train to the end, or to the first Ctrl-C or SIGTERM."""
    bar = ProgressBar()
    callbacks = CallbackList([bar, GameScores(), TimeSplit(timer), EncoderHealth()])
    try:
        with sigterm_as_interrupt():
            model.learn(total_timesteps, callback=callbacks)
        return True
    except KeyboardInterrupt:
        return False
    finally:
        bar.close()


def _final_evaluation(
    model: BaseAlgorithm, run: RunFolder, evaluation_env: Callable[[], VecEnv], n_games: int
) -> Evaluation:
    env = evaluation_env()
    try:
        evaluation = evaluate(model, env, n_games)
    finally:
        env.close()
    run.write_evaluation(evaluation.to_dict())
    model.logger.record("eval/mean_reward", evaluation.mean)
    model.logger.dump(model.num_timesteps)
    return evaluation


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C inside, so that a stopped job saves its model."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
