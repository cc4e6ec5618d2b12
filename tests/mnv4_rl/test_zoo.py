"""The modules for rl-zoo name policies that exist, with settings their algorithms take; `make test-zoo` runs them."""

import inspect
from importlib import import_module

import pytest
from stable_baselines3 import DQN, PPO

from mnv4_rl.policies import MNV4Defaults

ZOO_ONLY = {"env_wrapper", "frame_stack", "n_envs", "n_timesteps", "optimize_memory_usage"}


@pytest.mark.parametrize(("name", "algorithm"), [("ppo", PPO), ("dqn", DQN)])
def test_settings_are_the_algorithms(name, algorithm):
    (settings,) = import_module(f"mnv4_rl.zoo.{name}").hyperparams.values()
    module, _, policy = settings["policy"].rpartition(".")
    made = getattr(import_module(module), policy)
    assert issubclass(made, MNV4Defaults) and algorithm.__name__ in made.algorithms
    assert settings.keys() - ZOO_ONLY <= set(inspect.signature(algorithm).parameters)
