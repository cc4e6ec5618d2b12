"""Image environments small enough to train on in a test; what they show depends on nothing but the actions."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from agents.dqn import DQNHyperparameters, build_dqn
from agents.encoders import add_encoder
from agents.ppo import PPOHyperparameters, build_ppo
from agents.runs.callbacks import EnvTimer
from mnv4_rl.models.registry import get_spec
from mnv4_rl.models.specs import GridHeadSpec

EPISODE = 8
# A tenth of rl_s's parameters, for run folders that are copied and read hundreds of times.
SMALL = replace(get_spec("rl_s"), name="small", head=GridHeadSpec(grid=1, activation="silu"))
add_encoder(SMALL.name, SMALL)


class ActionsAsImage(gym.Env):
    """Shows the actions of the running episode as bands; pays for alternating. Episodes last `EPISODE` timesteps.

    With `EPISODE` timesteps a rollout, every rollout begins with a reset: the environment has no state that a resumed
    run would have to bring back.
    """

    observation_space = spaces.Box(0, 255, (4, 36, 36), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.actions = []
        return self.image(), {}

    def step(self, action):
        reward = float(not self.actions or self.actions[-1] != action)
        self.actions.append(int(action))
        return self.image(), reward, len(self.actions) == EPISODE, False, {}

    def image(self):
        image = np.zeros((4, 36, 36), np.uint8)
        for place, action in enumerate(self.actions):
            image[:, 4 * place : 4 * place + 4] = 100 + 100 * action
        return image


def tiny_env(n_envs=2):
    return VecMonitor(DummyVecEnv([ActionsAsImage] * n_envs))


def tiny_ppo(total_timesteps=16, encoder="nature", seed=0, loop="auto", **hyperparameters):
    h = PPOHyperparameters(**{"n_steps": EPISODE, "n_epochs": 2, "batch_size": 8, **hyperparameters})
    timer = EnvTimer(tiny_env())
    return build_ppo(
        timer, encoder, total_timesteps=total_timesteps, hyperparameters=h, seed=seed, device="cpu", loop=loop
    )


def dqn(algo):
    h = DQNHyperparameters(buffer_size=64, learning_starts=16, batch_size=8)
    model = build_dqn(tiny_env(), "nature", algo=algo, hyperparameters=h, seed=0, device="cpu")
    return model.learn(32)


def same(a, b):
    """Equality of nested state dicts, bit for bit."""
    if isinstance(a, th.Tensor):
        return th.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b
