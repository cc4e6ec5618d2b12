"""PPO's settings as a space to search: every choice and its options as data, and the settings that picked options make.

Environments times steps make a rollout, a rollout divided by its minibatches the batch size, so every point is one
that PPO takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agents.ppo import PPOHyperparameters

SETTINGS: dict[str, dict[str, Any]] = {
    "n_envs": {"8": 8, "16": 16, "32": 32, "64": 64},
    "rollout": {"512": 512, "1024": 1024, "2048": 2048, "4096": 4096, "16384": 16384},  # timesteps of all environments
    "minibatches": {"2": 2, "4": 4, "8": 8},
    "n_epochs": {"2": 2, "3": 3, "4": 4, "6": 6},
    "learning_rate": {"1e-4": 1e-4, "2.5e-4": 2.5e-4, "5e-4": 5e-4, "1e-3": 1e-3},
    "schedule": {"constant": False, "falling": True},  # to 0 at the end of the study's runs
    "clip_range": {"0.1": 0.1, "0.2": 0.2, "0.3": 0.3},
    "ent_coef": {"0.003": 0.003, "0.01": 0.01, "0.02": 0.02},
    "gamma": {"0.98": 0.98, "0.99": 0.99, "0.995": 0.995, "0.999": 0.999},
    "gae_lambda": {"0.9": 0.9, "0.95": 0.95, "0.98": 0.98},
}


def settings_of(
    picked: Mapping[str, str], base: PPOHyperparameters, total_timesteps: int
) -> tuple[int, PPOHyperparameters]:
    """The environments and hyperparameters of picked options; what is not searched is the base's.

    Args:
        picked: Choice -> option, all of :data:`SETTINGS`.
        base: The settings that the search starts from.
        total_timesteps: Where a falling schedule ends.

    Raises:
        KeyError: For a choice that is missing, or an option that is not in the space.
    """
    value = {name: SETTINGS[name][option] for name, option in picked.items()}
    n_envs, rollout = value.pop("n_envs"), value.pop("rollout")
    schedule_timesteps = total_timesteps if value.pop("schedule") else None
    batch_size = rollout // value.pop("minibatches")
    settings = replace(
        base, n_steps=rollout // n_envs, batch_size=batch_size, schedule_timesteps=schedule_timesteps, **value
    )
    return n_envs, settings


def name_of(picked: Mapping[str, str]) -> str:
    """A name that these options alone have."""
    return f"settings_{hashlib.sha256(repr(sorted(picked.items())).encode()).hexdigest()[:8]}"


def relative_updates(settings: PPOHyperparameters, base: PPOHyperparameters) -> float:
    """Passes over each timestep, the base's being 1: what settings change of the cost of a timestep."""
    return settings.n_epochs / base.n_epochs
