"""What is the same for every vector environment that steps all its environments in one native object."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from mnv4_rl.checks import check_count

SEED_LIMIT = 2**31  # the emulators' seeds are C ints


class NativeVecEnv(VecEnv):
    """SB3's contract for environments that live in one native object and cannot be told apart from outside.

    A subclass sets `game` before anything can be refused, and steps in `_send` and `_receive`.

    Attributes:
        game: Name of the game.
        scale: Name of the scale of `normalised`.
        frame_skip: Frames of a game at 60 a second that one timestep takes.
    """

    game: str
    scale: str
    frame_skip: int
    _pending = False
    _has_started = False  # `reset` sets it
    _questions: tuple[str, ...] = ()  # methods that change nothing: any of the environments may be asked

    @property
    @abstractmethod
    def action_meanings(self) -> tuple[str, ...]:
        """What each action presses."""

    @abstractmethod
    def normalised(self, score: float) -> float | None:
        """A raw score on the field's scale for these games; None for a game that has none."""

    @abstractmethod
    def _send(self, actions: np.ndarray) -> None:
        """Start a timestep with actions that were checked, (n_envs,) int64."""

    @abstractmethod
    def _receive(self) -> VecEnvStepReturn:
        """Finish the timestep that was started."""

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next `reset`: environment i gets `seed` + i; None draws a random one.

        Every whole number from 0 on will do, as in SB3; the emulator gets the remainder by 2**31.

        Raises:
            TypeError: `seed` is not a whole number.
            ValueError: `seed` is negative.
        """
        if seed is None:
            seed = int(np.random.randint(0, SEED_LIMIT - self.num_envs))
        check_count("seed", seed, 0)
        return super().seed(int(seed))

    def show_screens(self) -> None:
        """From the next `reset` on, `get_images()` has what a player sees; costs nothing where it always has."""

    def step_async(self, actions: np.ndarray) -> None:
        """Start a timestep in every environment.

        Args:
            actions: (n_envs,) integers below `action_space.n`.

        Raises:
            ValueError: Wrong shape, dtype or range; nothing is stepped.
            RuntimeError: A step is under way, or the environment was never reset, or is closed.
        """
        if not self._has_started:
            raise RuntimeError("step() was called before reset(). Call reset() first: it starts the games.")
        if self._pending:
            raise RuntimeError("A step is already under way. Call step_wait() before the next step_async().")
        self._send(self._checked_actions(actions))
        self._pending = True

    def step_wait(self) -> VecEnvStepReturn:
        """Finish the timestep.

        Returns:
            Observations (n_envs, channels, height, width) uint8, rewards (n_envs,) float32, dones (n_envs,) bool, and
            one info dict per environment.

        Raises:
            RuntimeError: If no step was begun.
        """
        if not self._pending:
            raise RuntimeError("No step is under way. Call step_async(actions) first.")
        self._pending = False
        return self._receive()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of this object, once per index: all environments share it."""
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of this object.

        Raises:
            ValueError: `indices` leaves out some environments: they share every attribute.
        """
        self._check_all(indices, f"set_attr({attr_name!r})")
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of this object once and return its result once per environment asked.

        Raises:
            ValueError: `indices` leaves out some environments, and the method may change them: they live in one native
                object.
        """
        if method_name not in self._questions:
            self._check_all(indices, f"env_method({method_name!r})")
        result = getattr(self, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for SB3's `Monitor` alone: with it, `evaluate_policy` reads `info["episode"]`, scores of whole games."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def _checked_actions(self, actions: np.ndarray) -> np.ndarray:
        actions = np.asarray(actions)
        n_actions = len(self.action_meanings)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be {self.num_envs} integers, one per environment, "
                f"got shape {actions.shape} of {actions.dtype}."
            )
        if actions.min() < 0 or actions.max() >= n_actions:
            raise ValueError(
                f"actions must lie in 0..{n_actions - 1} for {self.game} "
                f"({', '.join(self.action_meanings)}), got {actions}."
            )
        return actions.astype(np.int64, copy=False)

    def _check_all(self, indices: VecEnvIndices, what: str) -> None:
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(
                f"{what} reaches all {self.num_envs} environments at once, got indices={indices}. Leave it out."
            )
