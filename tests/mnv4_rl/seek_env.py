"""A picture to act on at once: where the bright square stands, with what action space an algorithm has."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

SIDE, N_PLACES, EPISODE = 36, 3, 8
IMAGE = spaces.Box(0, 255, (2, SIDE, SIDE), np.uint8)


class SeekEnv(gym.Env):
    """Each timestep shows a square in one of three places; naming it pays 1.

    Args:
        continuous: The action is a number in [-1, 1], and pays 1 less its distance from the square's place.
        with_vector: Observations are a Dict, ``camera`` and ``told``: half of the time the picture is dark, and
            ``told`` says where the square would be.
    """

    def __init__(self, continuous=False, with_vector=False):
        self.continuous, self.with_vector = continuous, with_vector
        self.action_space = spaces.Box(-1, 1, (1,), np.float32) if continuous else spaces.Discrete(N_PLACES)
        told = spaces.Box(0, 1, (N_PLACES,), np.float32)
        self.observation_space = spaces.Dict(camera=IMAGE, told=told) if with_vector else IMAGE

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.timestep = 0
        return self.observe(), {}

    def step(self, action):
        reward = self.reward(action)
        self.timestep += 1
        return self.observe(), reward, self.timestep == EPISODE, False, {}

    def reward(self, action):
        if self.continuous:
            return 1.0 - abs(float(action[0]) - (self.place - 1))
        return float(action == self.place)

    def observe(self):
        self.place = int(self.np_random.integers(N_PLACES))
        image = np.zeros(IMAGE.shape, np.uint8)
        left = 2 + self.place * SIDE // N_PLACES
        is_told = self.with_vector and bool(self.np_random.integers(2))
        image[:, 14:22, left : left + 8] = 0 if is_told else 200
        told = np.eye(N_PLACES, dtype=np.float32)[self.place] * is_told
        return {"camera": image, "told": told} if self.with_vector else image

    def action_masks(self):
        """For MaskablePPO: one action that is wrong is not offered."""
        allowed = np.ones(N_PLACES, bool)
        allowed[(self.place + 1) % N_PLACES] = False
        return allowed
