"""PPO on images: hyperparameters as a dataclass, the field's values as rows, and SB3's PPO built from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule, get_device
from stable_baselines3.common.vec_env import VecEnv

from agents.device_ppo import DevicePPO
from agents.encoders import policy_kwargs
from mnv4_rl.checks import Interval, check_choice, check_positive, check_ranges
from mnv4_rl.models.registry import DEFAULT_VARIANT
from mnv4_rl.plain import numbers_as_pythons
from mnv4_rl.policies import PixelActorCriticPolicy
from mnv4_rl.rollout import DeviceRolloutBuffer

_RANGES = {
    "n_steps": Interval(1),
    "n_epochs": Interval(1),
    "batch_size": Interval(2),  # advantages are normalised over a minibatch
    "learning_rate": Interval(0),
    "clip_range": Interval(0, 1),
    "schedule_timesteps": Interval(1),
    "gamma": Interval(0, 1),
    "gae_lambda": Interval(0, 1),
    "ent_coef": Interval(0),
    "vf_coef": Interval(0),
    "max_grad_norm": Interval(0, includes_low=False),
}
# SB3's own eps for Adam in PPO, which it sets only where nothing is passed; one fused step, not one a weight.
_ADAM = {"eps": 1e-5, "fused": True}


@dataclass(frozen=True, kw_only=True)
class PPOHyperparameters:
    """PPO's settings; the defaults are those for Atari, see :data:`PRESETS`."""

    n_steps: int = 128
    """Agent timesteps per environment and rollout."""
    n_epochs: int = 4
    """Passes over each rollout."""
    batch_size: int = 256
    """Samples in a minibatch."""
    learning_rate: float = 2.5e-4
    """Adam's step size at the start; falls linearly to 0 over the schedule."""
    clip_range: float = 0.1
    """Allowed change of the probability ratio at the start; falls linearly to 0 over the schedule."""
    schedule_timesteps: int | None = 10_000_000
    """Agent timesteps over which learning rate and clip range fall to 0, however long the run is; None keeps both."""
    gamma: float = 0.99
    """Discount per agent timestep."""
    gae_lambda: float = 0.95
    """Weight of longer returns in the advantage."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        numbers_as_pythons(self)

    def check(self) -> None:
        """Refuse settings that no training could have.

        Raises:
            ValueError: Naming the first, what it was and what is allowed.
        """
        check_ranges(self, _RANGES)


# atari: DLR-RM/rl-baselines3-zoo, hyperparams/ppo.yml, ``atari`` (8 environments, 10M timesteps).
# procgen: Cobbe et al. 2020 (arXiv:1912.01588), appendix C (64 environments, rewards normalised).
PRESETS: dict[str, PPOHyperparameters] = {
    "atari": PPOHyperparameters(),
    "procgen": PPOHyperparameters(
        n_steps=256,
        n_epochs=3,
        batch_size=2048,  # 8 minibatches
        learning_rate=5e-4,
        clip_range=0.2,
        schedule_timesteps=None,
        gamma=0.999,
    ),
}


# What SB3's PPO takes of them by the same name, as it is.
PASSED_ON = ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm")
# Who trains. All have the same numbers; "auto" is SB3 on a CPU, and on a GPU graphs wherever they can be recorded.
LOOPS: dict[str, Callable[..., PPO]] = {
    "sb3": PPO,
    "device": partial(DevicePPO, captured=False),
    "captured": partial(DevicePPO, captured=True),
}
Loop = Literal["auto", "sb3", "device", "captured"]


def check_loop(loop: str, device: str) -> None:
    """Refuse a loop that is none, or that the device cannot run.

    Raises:
        ValueError: With what there is.
    """
    check_choice("loop", loop, ("auto", *LOOPS))
    if loop == "captured" and get_device(device).type != "cuda":
        raise ValueError(f"loop='captured' is CUDA graphs, which need a GPU, got device={device!r}; use 'auto'.")


def check_rollout(hyperparameters: PPOHyperparameters, n_envs: int) -> None:
    """Refuse minibatches larger than what a rollout collects: SB3 would quietly cut them.

    Raises:
        ValueError: With the largest that fits.
    """
    h = hyperparameters
    h.check()
    collected = h.n_steps * n_envs
    if h.batch_size > collected:
        raise ValueError(
            f"batch_size={h.batch_size} is more than the {collected} samples of a rollout "
            f"(n_steps={h.n_steps} in {n_envs} environments); lower it to at most {collected}, or collect more."
        )


def linear_schedule(start: float, schedule_timesteps: int | None, total_timesteps: int) -> LinearSchedule:
    """``start`` falling linearly to 0 after ``schedule_timesteps``, for a run of ``total_timesteps``.

    SB3's schedules see only the share of the run that remains, so a short run of a long schedule ends part way down.

    Args:
        start: Value at timestep 0.
        schedule_timesteps: Agent timesteps until 0; None to stay at ``start``.
        total_timesteps: Agent timesteps of the run.

    Raises:
        ValueError: For timesteps below 1.
    """
    check_positive(total_timesteps=total_timesteps)
    if schedule_timesteps is None:
        return LinearSchedule(start, start, 1.0)
    check_positive(schedule_timesteps=schedule_timesteps)
    if total_timesteps >= schedule_timesteps:
        return LinearSchedule(start, 0.0, schedule_timesteps / total_timesteps)
    return LinearSchedule(start, start * (1 - total_timesteps / schedule_timesteps), 1.0)


def build_ppo(
    env: VecEnv,
    encoder: str = DEFAULT_VARIANT,
    *,
    total_timesteps: int,
    hyperparameters: PPOHyperparameters | None = None,
    seed: int | None = None,
    device: str = "auto",
    loop: Loop = "auto",
) -> PPO:
    """SB3's PPO with one of our encoders and no hidden layers behind it.

    Args:
        env: Vectorised environment with image observations.
        encoder: A key of :data:`agents.encoders.ENCODERS`: a baseline or a registered variant.
        total_timesteps: Agent timesteps the run will have; the schedules depend on it.
        hyperparameters: Settings, rl-zoo's Atari values by default.
        seed: Seed of weights, action sampling and the environment.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        loop: A key of :data:`LOOPS`: SB3's own PPO, or :class:`agents.device_ppo.DevicePPO` with or without CUDA
            graphs; ``"auto"`` is SB3's on a CPU and graphs on a GPU.

    Raises:
        ValueError: For an unknown encoder, timesteps below 1, a setting out of its range, CUDA graphs where there are
            none, or a rollout that the device's memory cannot hold.
    """
    check_loop(loop, device)
    h = hyperparameters or PPOHyperparameters()
    h.check()
    on_gpu = get_device(device).type == "cuda"
    made = LOOPS.get(loop, DevicePPO if on_gpu else PPO)
    model = made(
        PixelActorCriticPolicy,
        env,
        learning_rate=linear_schedule(h.learning_rate, h.schedule_timesteps, total_timesteps),
        clip_range=linear_schedule(h.clip_range, h.schedule_timesteps, total_timesteps),
        **{name: getattr(h, name) for name in PASSED_ON},
        policy_kwargs={**policy_kwargs(encoder), "optimizer_kwargs": dict(_ADAM)},
        rollout_buffer_class=DeviceRolloutBuffer,
        seed=seed,
        device=device,
    )
    model.rollout_buffer.check_memory()  # type: ignore[attr-defined]
    return model
