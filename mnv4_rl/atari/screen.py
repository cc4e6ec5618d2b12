"""The console's screen beside an environment, which ALE's vector interface keeps to itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from mnv4_rl.atari.games import emulator_of
from mnv4_rl.native_env import NativeVecEnv


class Screen:
    """Screens in colour and in full size, by a twin that plays the same games.

    Args:
        twin: The environment again, with observations that are the screen: one RGB image in the console's size. A twin
            that drifts away is noticed and refused.
    """

    def __init__(self, twin: NativeVecEnv) -> None:
        self._twin = twin
        self._images: list[np.ndarray] = []

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Start the games that these seeds start."""
        self._twin._seeds = list(seeds)
        self._images = list(self._twin.reset())  # type: ignore[arg-type]  # n_envs times (3, height, width)

    def send(self, actions: np.ndarray) -> None:
        """Start the step that the environment starts."""
        self._twin.step_async(actions)

    def receive(self, step: VecEnvStepReturn) -> None:
        """Finish the step.

        Args:
            step: What the environment itself returns.

        Raises:
            RuntimeError: If the twin does not play the same game any more.
        """
        _, rewards, dones, infos = step
        screens, twin_rewards, twin_dones, twin_infos = self._twin.step_wait()
        lives = [(info["lives"], twin["lives"]) for info, twin in zip(infos, twin_infos, strict=True)]
        if (rewards != twin_rewards).any() or (dones != twin_dones).any() or any(a != b for a, b in lives):
            raise RuntimeError("The screen shows another game than the agent plays; please report the seed and game.")
        self._images = [
            info["terminal_observation"] if "episode" in info else screen
            for screen, info in zip(screens, twin_infos, strict=True)
        ]

    def images(self) -> list[np.ndarray]:
        """One (height, width, 3) uint8 RGB screen an environment; the last of the old game where one just ended."""
        return [np.ascontiguousarray(image.transpose(1, 2, 0)) for image in self._images]

    def close(self) -> None:
        """Close the twin."""
        self._twin.close()


def screen_size(game: str) -> tuple[int, int]:
    """(height, width) of a game's screen in pixels: (210, 160), a few games are taller."""
    height, width = emulator_of(game).getScreenDims()
    return height, width
