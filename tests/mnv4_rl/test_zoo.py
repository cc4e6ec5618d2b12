"""The modules for rl-zoo name policies that exist, with settings their algorithms take; `make test-zoo` runs them."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import ale_py
import gymnasium as gym
import pytest
import yaml
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.atari_wrappers import AtariWrapper

from mnv4_rl.policies import MNV4Defaults
from mnv4_rl.zoo import ppo

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "zoo.md").read_text(encoding="utf-8")
ZOO_ONLY = {"env_wrapper", "frame_stack", "n_envs", "n_timesteps", "optimize_memory_usage"}


@pytest.mark.parametrize(("name", "algorithm"), [("ppo", PPO), ("dqn", DQN)])
def test_settings_are_the_algorithms(name, algorithm):
    (settings,) = import_module(f"mnv4_rl.zoo.{name}").hyperparams.values()
    module, _, policy = settings["policy"].rpartition(".")
    made = getattr(import_module(module), policy)
    assert issubclass(made, MNV4Defaults) and algorithm.__name__ in made.algorithms
    assert settings.keys() - ZOO_ONLY <= set(inspect.signature(algorithm).parameters)


def test_a_step_of_the_pages_environments_is_four_frames():
    gym.register_envs(ale_py)
    for env_id in sorted(set(re.findall(r"--env (\S+)", PAGE))):
        env = AtariWrapper(gym.make(env_id))
        env.reset(seed=0)
        before = env.unwrapped.ale.getEpisodeFrameNumber()
        env.step(0)
        assert env.unwrapped.ale.getEpisodeFrameNumber() - before == 4
        assert env.unwrapped.ale.getFloat("repeat_action_probability") == 0


def test_the_pages_yaml_says_all_that_the_zoos_settings_say():
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (entry,) = yaml.safe_load(block).values()
    (settings,) = ppo.hyperparams.values()
    assert {key: entry[key] for key in settings} == settings
