"""Whole games played by a trained agent: raw scores, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch as th
from scipy import stats
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from mnv4_rl.checks import check_positive
from mnv4_rl.export import OnnxAgent

Player: TypeAlias = BaseAlgorithm | OnnxAgent  # what can choose actions


@dataclass(frozen=True)
class Evaluation:
    """Raw scores of whole games.

    Attributes:
        scores: One unclipped score a game.
        mean: Their mean.
        low: Lower end of the mean's 95 % interval (Student's t), nan for a single game.
        high: Upper end.
    """

    scores: tuple[float, ...]
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, scores: list[float]) -> Evaluation:
        """Mean and interval of some scores.

        Raises:
            ValueError: For no scores at all.
        """
        if not scores:
            raise ValueError("An evaluation needs at least one whole game, got none.")
        mean = float(np.mean(scores))
        if len(scores) == 1:
            return cls(tuple(scores), mean, float("nan"), float("nan"))
        half = float(stats.t.ppf(0.975, len(scores) - 1) * np.std(scores, ddof=1) / len(scores) ** 0.5)
        return cls(tuple(scores), mean, mean - half, mean + half)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a file; JSON has no nan, so that a single game's interval is None."""
        interval = {} if len(self.scores) > 1 else {"low": None, "high": None}
        return {**asdict(self), **interval, "games": len(self.scores)}

    def __str__(self) -> str:
        if len(self.scores) == 1:
            return f"{self.mean:.1f} in a single game"
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}] over {len(self.scores)} games"


def evaluate(
    model: Player,
    env: VecEnv,
    n_games: int,
    deterministic: bool = False,
    *,
    seed: int = 0,
    on_game: Callable[[float], None] | None = None,
) -> Evaluation:
    """Play whole games and return their raw scores.

    Each environment plays an equal share of the games: taking whichever games end first would favour short ones.
    Atari agents are evaluated with sampled actions by default, as rl-zoo does; DQN's epsilon is its own.

    Args:
        model: Any SB3 algorithm with a policy for these observations, or a file of one.
        env: Environments that report whole games in ``info["episode"]``.
        n_games: Games in all, rounded up to a multiple of the environments.
        deterministic: Take the likeliest action instead of sampling.
        seed: Seed of the sampled actions; a training under way keeps its own random numbers.
        on_game: Called with each score when its game ends.

    Raises:
        ValueError: For fewer than one game.
    """
    check_positive(n_games=n_games)
    share = -(-n_games // env.num_envs)
    scores: list[list[float]] = [[] for _ in range(env.num_envs)]
    with own_randomness(model, seed):
        observations = env.reset()
        while any(len(done) < share for done in scores):
            actions, _ = model.predict(observations, deterministic=deterministic)  # type: ignore[arg-type]
            observations, _, _, infos = env.step(actions)
            for done, info in zip(scores, infos, strict=True):
                if "episode" in info and len(done) < share:
                    done.append(float(info["episode"]["r"]))
                    if on_game is not None:
                        on_game(done[-1])
    return Evaluation.of([score for done in scores for score in done])


@contextmanager
def own_randomness(model: Player, seed: int) -> Iterator[None]:
    """Sample a model's actions from freshly seeded generators inside, and find the old ones unchanged outside.

    Without it, a look at the agent during training would change the rest of the training.

    Args:
        model: The model whose actions are sampled: PPO draws from PyTorch, DQN's epsilon from numpy and its space.
        seed: Seed of all three inside.
    """
    numpy_state, space_state = np.random.get_state(), model.action_space.np_random.bit_generator.state
    try:
        with th.random.fork_rng():
            th.manual_seed(seed)
            np.random.seed(seed)
            model.action_space.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)
        model.action_space.np_random.bit_generator.state = space_state
