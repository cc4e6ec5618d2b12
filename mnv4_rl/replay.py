"""A replay buffer for stacked frames that stores every frame once.

SB3's buffer keeps `obs` and `next_obs` of every transition: for stacks of four frames that is eight copies of each
frame, 56 GB for a million Atari transitions. Here a transition adds one frame, the newest of its `next_obs`, and a row
of frame numbers; sampling gathers the stacks from those numbers. How stacks begin is read off the data, so stacks
cleared at every `done` (SB3's `VecFrameStack`), stacks that carry on after a lost life (ALE's vector env) and anything
else come back byte for byte.
"""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from mnv4_rl.checks import Interval, check_positive, check_range
from mnv4_rl.frame_store import RING_FRAMES_PER_SIDE_FRAME, FrameStore, StackedFrames
from mnv4_rl.memory import check_fits
from mnv4_rl.models.network import usual_frame_channels
from mnv4_rl.observations import is_clearly_channels_last

_STEPS_OF_A_GUESS = 100  # for so many steps pictures may show nothing before a guess of the channels stands


class AtariReplayBuffer(NStepReplayBuffer):
    """Drop-in for SB3's `ReplayBuffer` and `NStepReplayBuffer` that stores every frame once.

    A million transitions of four 84x84 frames take 7.3 GB where SB3's buffers take 56 GB, and memory is touched only as
    the buffer fills. For the same stream and the same numpy seed, `sample` returns what SB3's buffer returns.

    `DQN("CnnPolicy", env, replay_buffer_class=AtariReplayBuffer, replay_buffer_kwargs=dict(n_steps=3, gamma=0.99))`:
    n-step returns are asked for here, since SB3 ignores its own `n_steps` beside a `replay_buffer_class`.

    Args:
        buffer_size: Transitions kept, over all environments.
        observation_space: uint8 Box (stack * frame_channels, height, width), as `VecTransposeImage` or ALE's vector env
            give it.
        action_space: Any action space SB3's buffer takes.
        device: Where samples go.
        n_envs: Environments stepped together.
        optimize_memory_usage: Must stay False; there is nothing left to save.
        handle_timeout_termination: Bootstrap from the last observation of an episode cut off by a time limit.
        n_steps: Rewards summed per sample. 1 samples as `ReplayBuffer` does, more as `NStepReplayBuffer` does.
        gamma: Discount per decision, of use only with `n_steps` > 1; give the algorithm the same.
        frame_channels: Channels of one frame: 1 for grey, 3 for RGB. None reads it off the first transitions where the
            channels can be either.

    Raises:
        ValueError: For another kind of observation space, `optimize_memory_usage`, a wrong `n_steps`, `gamma` or
            `frame_channels`, or a `buffer_size` that this machine's memory cannot hold.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_steps: int = 1,
        gamma: float = 0.99,
        frame_channels: int | None = None,
    ) -> None:
        _check_options(optimize_memory_usage, n_steps, gamma)
        shape = _image_shape(observation_space)
        channels = usual_frame_channels(shape[0]) if frame_channels is None else frame_channels
        _check_frame_channels(channels, shape[0])
        # Past ReplayBuffer.__init__, which would allocate both copies of every stack.
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps, self.gamma = n_steps, gamma
        self._is_guess = frame_channels is None and channels > 1
        self._check_memory(shape[0] // channels)
        self._allocate(shape, shape[0] // channels)

    def add(self, obs: np.ndarray, next_obs: np.ndarray, action: Any, reward: Any, done: Any, infos: Any) -> None:
        """As SB3's; arrays as :attr:`observations` and its like have them for one step."""
        self._is_guess &= self.pos < _STEPS_OF_A_GUESS and not self.full
        if self._is_guess:
            shape = (self.n_envs, *self.obs_shape)
            moves = _moves_by_one_channel(obs.reshape(shape), next_obs.reshape(shape), np.asarray(done))
            self._is_guess = moves is None
            if moves:
                self._store_again(shape[1])
        super().add(obs, next_obs, action, reward, done, infos)

    def set_stack(self, stack: int) -> None:
        """Forget everything, and store ``stack`` frames an observation from now on."""
        self._is_guess = False
        self._allocate(self.obs_shape, stack)
        self.reset()

    def _store_again(self, stack: int) -> None:
        """Store the few transitions there are as ``stack`` frames an observation."""
        arrays = (self.observations, self.next_observations, self.actions, self.rewards, self.dones, self.timeouts)
        steps = [tuple(array[step] for array in arrays) for step in range(self.pos)]
        self.set_stack(stack)
        for obs, next_obs, action, reward, done, timeouts in steps:
            infos = [{"TimeLimit.truncated": bool(timeout)} for timeout in timeouts]
            super().add(obs, next_obs, action, reward, done, infos)

    def _allocate(self, shape: tuple[int, ...], stack: int) -> None:
        """Map the arrays, under the names `ReplayBuffer.add` and `_get_samples` know them by."""
        steps = (self.buffer_size, self.n_envs)
        self.frames = FrameStore(*steps, stack, int(np.prod(shape)) // stack)
        # `ReplayBuffer.add` sets observations first, then next_observations, which is the order the store needs.
        self.observations = StackedFrames(self.frames, self.frames.put_obs, (*steps, *shape))  # type: ignore[assignment]
        self.next_observations = StackedFrames(self.frames, self.frames.put_next_obs, (*steps, *shape))  # type: ignore[assignment]
        self.actions = np.zeros((*steps, self.action_dim), dtype=self._maybe_cast_dtype(self.action_space.dtype))
        self.rewards, self.dones, self.timeouts = (np.zeros(steps, dtype=np.float32) for _ in range(3))

    def _check_memory(self, stack: int) -> None:
        """Refuse a size that would be killed for memory hours into training."""
        frame = int(np.prod(self.obs_shape)) // stack
        actions = self.action_dim * np.dtype(self.action_space.dtype).itemsize
        # Frames, the two rows of int32 frame numbers, the action, and three float32: reward, done, timeout.
        per_transition = frame * (1 + 1 / RING_FRAMES_PER_SIDE_FRAME) + 2 * stack * 4 + actions + 3 * 4
        fixed = frame * (stack * self.n_envs + 1)
        transitions = self.buffer_size * self.n_envs
        check_fits(
            f"a replay buffer of {transitions} transitions of shape {self.obs_shape}",
            fixed + per_transition * transitions,
            lambda available: (
                f"buffer_size={max(int((available - fixed) / per_transition), 0)} would fit. An agent that is loaded "
                "to play needs none: DQN.load(path, buffer_size=1) or mnv4_rl.agent_files.load_agent(path)"
            ),
        )

    @property
    def nbytes(self) -> int:
        """Bytes mapped, whether or not they are filled yet."""
        arrays = (self.observations, self.next_observations, self.actions, self.rewards, self.dones, self.timeouts)
        return self.frames.nbytes + sum(array.nbytes for array in arrays)

    def to_torch(self, array: np.ndarray, copy: bool = False) -> th.Tensor:
        """As SB3's, but without its second copy: nobody else holds what is sampled here."""
        return super().to_torch(array, copy=copy)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        if self.n_steps == 1:
            return ReplayBuffer._get_samples(self, batch_inds, env)
        return super()._get_samples(batch_inds, env)


def _check_options(optimize_memory_usage: bool, n_steps: int, gamma: float) -> None:
    if optimize_memory_usage:
        raise ValueError(
            "optimize_memory_usage=True: AtariReplayBuffer already stores every frame once, and handles time limits, "
            "which SB3's option cannot; leave it False"
        )
    check_positive(n_steps=n_steps)
    check_range("gamma", gamma, Interval(0, 1))


def _image_shape(space: spaces.Space) -> tuple[int, int, int]:
    """Shape (stack * frame_channels, height, width) of a space of stacked images."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        raise ValueError(
            f"AtariReplayBuffer stores stacked images, a uint8 Box of shape (channels, height, width), not {space}: "
            "leave replay_buffer_class out, so that SB3 picks the buffer for it"
        )
    if is_clearly_channels_last(space.shape):
        raise ValueError(
            f"AtariReplayBuffer needs channels first, not shape {space.shape}: wrap the env in SB3's VecTransposeImage"
        )
    channels, height, width = space.shape
    return channels, height, width


def _check_frame_channels(frame_channels: int, channels: int) -> None:
    check_positive(frame_channels=frame_channels)
    if channels % frame_channels:
        raise ValueError(
            f"frame_channels={frame_channels} does not divide the {channels} channels of an observation: "
            "give the channels of one frame, 1 for grey and 3 for RGB"
        )


def _moves_by_one_channel(obs: np.ndarray, next_obs: np.ndarray, done: np.ndarray) -> bool | None:
    """Whether a step pushed one channel out of the stacks that went on: frames are grey.

    None where all channels are alike, a black picture say, or a game's first frame many times: that shows nothing.
    """
    goes_on = ~done.reshape(-1).astype(bool)
    before, after = obs[goes_on], next_obs[goes_on]
    if np.array_equal(before[:, :-1], before[:, 1:]):
        return None
    return np.array_equal(after[:, :-1], before[:, 1:])
