"""A rollout buffer for SB3's PPO and A2C that keeps observations where the policy is, and never copies them twice.

    PPO(MNV4Policy, env, rollout_buffer_class=DeviceRolloutBuffer)

SB3's buffer keeps everything in numpy: it puts a rollout's observations into another order before it trains on them,
and copies every minibatch of every epoch to the device. Here each observation goes to the device once, when it is
added, with the type it has; a minibatch is one gather there. The samples are SB3's, in SB3's order, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples
from torch import Tensor

from mnv4_rl.memory import check_fits, observation_bytes

_BEFORE_RETURNS = ("rewards", "episode_starts", "advantages", "returns")
_SAMPLED = ("actions", "values", "log_probs", "advantages", "returns")  # in the order of SB3's samples


class DeviceRolloutBuffer(RolloutBuffer):
    """SB3's `RolloutBuffer` and `DictRolloutBuffer` with observations, values and log-probabilities on the device.

    Args:
        buffer_size: Timesteps of a rollout in each environment.
        observation_space: Of any kind that SB3's buffers take, a Dict too.
        action_space: Any that PPO or A2C takes.
        device: The policy's device.
        gae_lambda: Weight of longer returns in the advantage.
        gamma: Discount per timestep.
        n_envs: Environments that step together.

    Attributes:
        observations: (buffer_size, n_envs, *shape) tensor on the device, of the space's own type; a dict of them for a
            Dict.

    Raises:
        TypeError: If PyTorch has no tensors of the space's type.
    """

    observations: Tensor | dict[str, Tensor]  # type: ignore[assignment]

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
    ) -> None:
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.gae_lambda, self.gamma = gae_lambda, gamma
        self._dtypes = _dtypes(observation_space)
        self.generator_ready = False
        self._is_allocated = self._is_staged = False

    def reset(self) -> None:
        """Begin a new rollout; the first one takes the memory, which an agent that only plays never needs."""
        if not self._is_allocated:
            self._allocate()
        shape = (self.buffer_size, self.n_envs)
        for name in _BEFORE_RETURNS:
            setattr(self, name, np.zeros(shape, dtype=np.float32))
        self.actions = np.zeros((*shape, self.action_dim), dtype=self.action_space.dtype)
        self.generator_ready = self._is_staged = False
        BaseBuffer.reset(self)

    def stage(self, observations: Tensor) -> None:
        """Take the next timestep's observations, (n_envs, *shape), from a tensor: :meth:`add` copies none then.

        For algorithms that have them on the device already, to act on.
        """
        kept = self.observations[self.pos]  # type: ignore[index]
        kept.copy_(observations.reshape(kept.shape))
        self._is_staged = True

    def add(
        self,
        obs: np.ndarray | Mapping[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """Add one timestep of all environments; arguments as SB3's."""
        if not self._is_staged:
            self._each(self._put, self.observations, obs)
        self._is_staged = False
        self.actions[self.pos] = action.reshape(self.n_envs, self.action_dim)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self._values_there[self.pos] = value.detach().flatten()
        self._log_probs_there[self.pos] = log_prob.detach().flatten()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """Advantages and returns as SB3 computes them; until here no value had to leave the device."""
        self.values, self.log_probs = self._values_there.cpu().numpy(), self._log_probs_there.cpu().numpy()
        super().compute_returns_and_advantage(last_values, dones)

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """Minibatches in random order, by numpy's generator as SB3's.

        Args:
            batch_size: Samples in each but the last; None for one of all.
        """
        assert self.full, "a rollout has to be complete"
        total = self.buffer_size * self.n_envs
        indices = np.random.permutation(total)
        if not self.generator_ready:
            for name in _SAMPLED:
                self.__dict__[name] = self.swap_and_flatten(self.__dict__[name])
            self._there = [self._to_device(self.__dict__[name]) for name in _SAMPLED]
            self.generator_ready = True
        for batch in th.from_numpy(indices).to(self.device).split(batch_size or total):
            yield self._get_samples(batch)

    def _get_samples(self, batch_inds: Tensor, env: Any = None) -> Any:  # type: ignore[override]
        # SB3 counts samples environment by environment; observations lie timestep by timestep, as they came.
        rows = batch_inds % self.buffer_size * self.n_envs + batch_inds // self.buffer_size
        observations = self._each(lambda kept: kept.flatten(0, 1).index_select(0, rows), self.observations)
        samples = DictRolloutBufferSamples if isinstance(observations, dict) else RolloutBufferSamples
        return samples(observations, *(values.index_select(0, batch_inds) for values in self._there))

    def _to_device(self, values: np.ndarray) -> Tensor:
        """(samples, 1) or (samples, action_dim) -> (samples,) or the actions, float32."""
        flat = values if values is self.actions else values.flatten()
        return th.as_tensor(flat.astype(np.float32, copy=False), device=self.device)

    def _put(self, kept: Tensor, new: np.ndarray) -> None:
        rows = np.ascontiguousarray(new).reshape(kept.shape[1:])
        kept[self.pos].copy_(th.from_numpy(rows), non_blocking=True)

    def _empty(self, shape: tuple[int, ...], dtype: th.dtype) -> Tensor:
        return th.empty((self.buffer_size, self.n_envs, *shape), dtype=dtype, device=self.device)

    @staticmethod
    def _each(function: Callable[..., Any], *parts: Any) -> Any:
        """Apply to the parts, or entry by entry where they are dicts."""
        if isinstance(parts[0], dict):
            return {key: function(*(part[key] for part in parts)) for key in parts[0]}
        return function(*parts)

    def _allocate(self) -> None:
        self.check_memory()
        self.observations = self._each(self._empty, self.obs_shape, self._dtypes)
        self._values_there, self._log_probs_there = self._empty((), th.float32), self._empty((), th.float32)
        self._is_allocated = True

    def check_memory(self) -> None:
        """Refuse a rollout whose observations the device's memory cannot hold; a first rollout begins with it.

        Raises:
            ValueError: With what would fit.
        """
        per_step = observation_bytes(self.observation_space) * self.n_envs
        check_fits(
            f"A rollout of n_steps={self.buffer_size} in {self.n_envs} environments",
            self.buffer_size * per_step,
            lambda available: f"n_steps={int(available / per_step)} would fit.",
            self.device,
        )


def _dtypes(space: spaces.Space) -> th.dtype | dict[str, th.dtype]:
    if isinstance(space, spaces.Dict):
        return {key: _dtype(entry) for key, entry in space.spaces.items()}
    return _dtype(space)


def _dtype(space: spaces.Space) -> th.dtype:
    try:
        dtype = th.from_numpy(np.zeros(1, space.dtype)).dtype
        th.zeros(1, dtype=dtype).index_select(0, th.zeros(1, dtype=th.int64))
        return dtype
    except (TypeError, NotImplementedError, RuntimeError) as error:
        raise TypeError(
            f"PyTorch cannot gather {space.dtype} in a buffer on the device ({space}); leave rollout_buffer_class out."
        ) from error
