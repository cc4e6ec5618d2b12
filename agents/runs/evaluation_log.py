"""Evaluations in TensorBoard: scores with their interval, and a short GIF of play. Keys: docs/tensorboard.md."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from tensorboard.compat.proto.summary_pb2 import Summary

from agents.play.evaluate import Evaluation, evaluate, own_randomness
from agents.play.video import SMALL, Show, gif
from agents.runs.callbacks import tensorboard_files
from mnv4_rl.native_env import NativeVecEnv

CLIP_TIMESTEPS = 150  # 10 seconds of play at 4 emulator frames each
CLIP_BYTES = 1_000_000


class PeriodicEvaluation(BaseCallback):
    """Whole games every so many timesteps, between two rollouts; the training itself stays as it would be without.

    There is none after the last rollout: the final model is evaluated anyway.

    Args:
        make_env: Makes the environment for the games.
        n_games: Games of one evaluation.
        every_timesteps: Agent timesteps between two evaluations.
    """

    def __init__(self, make_env: Callable[[], NativeVecEnv], n_games: int, every_timesteps: int) -> None:
        super().__init__()
        self._make_env, self._n_games, self._every = make_env, n_games, every_timesteps

    def _on_training_start(self) -> None:
        self._done = self.num_timesteps // self._every  # a resumed run goes on at the same marks

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps // self._every > self._done and self.num_timesteps < self.locals["total_timesteps"]:
            self._done = self.num_timesteps // self._every
            evaluate_and_log(self.model, self._make_env, self._n_games)


def evaluate_and_log(
    model: BaseAlgorithm, make_env: Callable[[], NativeVecEnv], n_games: int, tag: str = "eval"
) -> Evaluation:
    """Play whole games, and write scores and a GIF of play at the model's timestep.

    DQN takes the share of random actions that it is trained to end with.

    Args:
        model: A model with a logger.
        make_env: Makes the environment; it is closed afterwards.
        n_games: Whole games.
        tag: Where the values go in TensorBoard.
    """
    env = make_env()
    try:
        with _final_exploration(model):
            evaluation = evaluate(model, env, n_games)
            clip = record_clip(model, env, CLIP_TIMESTEPS)
    finally:
        env.close()
    moving = gif(clip, env.frame_skip, height=SMALL, max_bytes=CLIP_BYTES)
    scalars = {f"{tag}/{name}": value for name, value in evaluation_scalars(evaluation, env).items()}
    for file in tensorboard_files(model):
        file.add(scalars, model.num_timesteps)
        file.add_summary(_as_image(f"{tag}/play", moving), model.num_timesteps)
    return evaluation


@contextmanager
def _final_exploration(model: Any) -> Iterator[None]:
    """Let DQN take the share of random actions inside that it is trained to end with, as watching a run does."""
    if not hasattr(model, "exploration_final_eps"):
        yield
        return
    now, model.exploration_rate = model.exploration_rate, model.exploration_final_eps
    try:
        yield
    finally:
        model.exploration_rate = now


def evaluation_scalars(evaluation: Evaluation, env: NativeVecEnv) -> dict[str, float]:
    """Name -> value, without those that do not exist: the interval of one game, the scale of an unknown game."""
    values = {
        "mean_reward": evaluation.mean,
        "low": evaluation.low,
        "high": evaluation.high,
        env.scale: env.normalised(evaluation.mean),
    }
    return {name: value for name, value in values.items() if value is not None and not math.isnan(value)}


def record_clip(model: BaseAlgorithm, env: NativeVecEnv, n_timesteps: int, seed: int = 0) -> list[np.ndarray]:
    """The first screens of a game, as the model plays it now.

    Args:
        model: The agent.
        env: Its environment, which is reset; the first game is shown.
        n_timesteps: Agent timesteps.
        seed: Seed of the game and of sampled actions.

    Returns:
        ``n_timesteps + 1`` screens, (height, width, 3) uint8.
    """
    screens: list[np.ndarray] = []
    env.seed(seed)  # first: without a seed, show_screens draws one from the training's generator
    env.show_screens()
    show = Show(env, [screens.append])
    with own_randomness(model, seed):
        observations: Any = show.reset()
        for _ in range(n_timesteps):
            actions, _ = model.predict(observations)
            observations, _, _, _ = show.step(actions)
    return screens


def _as_image(tag: str, gif: bytes) -> Summary:
    """What TensorBoard shows under Images, where a GIF moves."""
    width, height = Image.open(io.BytesIO(gif)).size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
