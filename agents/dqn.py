"""DQN on images: rl-zoo's Atari hyperparameters as a dataclass, SB3's DQN (or QR-DQN) with a replay that fits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from stable_baselines3 import DQN
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch.optim import Adam

from agents.encoders import policy_kwargs
from mnv4_rl.agent_format import algorithm
from mnv4_rl.checks import Interval, check_choice, check_positive, check_ranges
from mnv4_rl.models.registry import DEFAULT_VARIANT
from mnv4_rl.plain import numbers_as_pythons
from mnv4_rl.policies import PixelDQNPolicy
from mnv4_rl.replay import AtariReplayBuffer

ALGOS = ("dqn", "qrdqn")
_RANGES = {
    "buffer_size": Interval(1),
    "learning_starts": Interval(0),
    "batch_size": Interval(1),
    "learning_rate": Interval(0),
    "adam_eps": Interval(0),
    "train_freq": Interval(1),
    "gradient_steps": Interval(1),
    "target_update_interval": Interval(1),
    "exploration_fraction": Interval(0, 1, includes_low=False),  # SB3 divides by it
    "exploration_final_eps": Interval(0, 1),
    "n_steps": Interval(1),
    "gamma": Interval(0, 1),
    "max_grad_norm": Interval(0, includes_low=False),
}


@dataclass(frozen=True, kw_only=True)
class DQNHyperparameters:
    """DQN's settings.

    Source: DLR-RM/rl-baselines3-zoo, hyperparams/dqn.yml, ``atari`` (10M timesteps, one environment).
    """

    buffer_size: int = 100_000
    """Transitions kept; a million of 4x84x84 take 7.3 GB."""
    learning_starts: int = 100_000
    """Agent timesteps of random play before the first update."""
    batch_size: int = 32
    """Transitions in a minibatch."""
    learning_rate: float = 1e-4
    """Adam's step size."""
    adam_eps: float | None = None
    """Added to the denominator of Adam's steps; None takes torch's 1e-8 for DQN and 0.01 / batch_size for QR-DQN."""
    train_freq: int = 4
    """Agent timesteps, over all environments, between two rounds of updates."""
    gradient_steps: int = 1
    """Updates in a round."""
    target_update_interval: int = 1_000
    """Agent timesteps between two copies of the network into the target network."""
    exploration_fraction: float = 0.1
    """Share of the run over which the rate of random actions falls from 1 to exploration_final_eps."""
    exploration_final_eps: float = 0.01
    """Rate of random actions afterwards."""
    n_steps: int = 1
    """Rewards summed before bootstrapping."""
    gamma: float = 0.99
    """Discount per agent timestep."""
    max_grad_norm: float = 10.0
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        numbers_as_pythons(self)

    def check(self) -> None:
        """Refuse settings that no training could have.

        Raises:
            ValueError: Naming the first, what it was and what is allowed.
        """
        check_ranges(self, _RANGES)
        if self.batch_size > self.buffer_size:
            raise ValueError(f"batch_size={self.batch_size} is more than buffer_size={self.buffer_size}; lower it.")


def update_rhythm(train_freq: int, gradient_steps: int, n_envs: int) -> tuple[int, int]:
    """The same updates per agent timestep whatever the number of environments.

    SB3 counts ``train_freq`` in steps of the whole vector, which would cut the updates by ``n_envs``.

    Args:
        train_freq: Agent timesteps between two rounds of updates.
        gradient_steps: Updates in a round.
        n_envs: Environments stepped together.

    Returns:
        Vector steps between two rounds, and updates in such a round; their ratio is exact.
    """
    check_positive(train_freq=train_freq, gradient_steps=gradient_steps, n_envs=n_envs)
    timesteps = math.lcm(train_freq, n_envs)
    return timesteps // n_envs, gradient_steps * timesteps // train_freq


# What SB3's DQN takes of them by the same name, as it is.
PASSED_ON = (
    "buffer_size", "learning_starts", "batch_size", "learning_rate", "gamma", "target_update_interval",
    "exploration_fraction", "exploration_final_eps", "max_grad_norm",
)  # fmt: skip


def build_dqn(
    env: VecEnv,
    encoder: str = DEFAULT_VARIANT,
    *,
    algo: str = "dqn",
    hyperparameters: DQNHyperparameters | None = None,
    seed: int | None = None,
    device: str = "auto",
) -> OffPolicyAlgorithm:
    """SB3's DQN with one of our encoders, no hidden layers behind it, and every frame stored once.

    Args:
        env: Vectorised environment with stacked grey frames, channels first.
        encoder: A key of :data:`agents.encoders.ENCODERS`: a baseline or a registered variant.
        algo: ``"dqn"``, or ``"qrdqn"`` from sb3-contrib.
        hyperparameters: Settings, rl-zoo's Atari values by default.
        seed: Seed of weights, exploration, sampling and the environment.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        ValueError: For an unknown encoder or algorithm, a setting out of its range, or a replay that this machine's
            memory cannot hold.
        ModuleNotFoundError: For QR-DQN without sb3-contrib; the message has the install line.
    """
    h = hyperparameters or DQNHyperparameters()
    h.check()
    train_freq, gradient_steps = update_rhythm(h.train_freq, h.gradient_steps, env.num_envs)
    made, policy = _algorithm(algo)
    return made(
        policy,
        env,
        **{name: getattr(h, name) for name in PASSED_ON},
        train_freq=train_freq,
        gradient_steps=gradient_steps,
        replay_buffer_class=AtariReplayBuffer,
        # SB3 ignores its own n_steps beside a replay_buffer_class.
        replay_buffer_kwargs={"n_steps": h.n_steps, "gamma": h.gamma},
        policy_kwargs={**policy_kwargs(encoder), **_optimizer(algo, h)},
        seed=seed,
        device=device,
    )


def _algorithm(algo: str) -> tuple[Any, Any]:
    """Class and policy."""
    check_choice("algo", algo, ALGOS)
    if algo == "dqn":
        return DQN, PixelDQNPolicy
    from mnv4_rl.contrib import PixelQRDQNPolicy  # says how sb3-contrib is installed where it is missing

    return algorithm("QRDQN"), PixelQRDQNPolicy


def _optimizer(algo: str, hyperparameters: DQNHyperparameters) -> dict[str, Any]:
    """What the policy is told of the optimiser."""
    h = hyperparameters
    eps = {} if h.adam_eps is None else {"eps": h.adam_eps}
    if algo == "dqn":
        return {"optimizer_kwargs": {"fused": True, **eps}}  # one fused step of Adam, not one a weight
    # QR-DQN sets Adam's eps only where it is told nothing of the optimiser.
    return {"optimizer_class": Adam, "optimizer_kwargs": eps} if eps else {}
