"""A replay buffer for stacked frames that stores every frame once.

SB3's buffer keeps `obs` and `next_obs` of every transition: for stacks of four frames that is eight copies of each
frame, 56 GB for a million Atari transitions. Here a transition adds one frame, the newest of its `next_obs`, and a row
of frame numbers; sampling gathers the stacks from those numbers. How stacks begin is read off the data, so stacks
cleared at every `done` (SB3's `VecFrameStack`), stacks that carry on after a lost life (ALE's vector env) and anything
else come back byte for byte.
"""

import mmap
import os
import re
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

# One frame beside the ring for every 32 in it. An episode (often: a life) needs one, its first frame; episodes shorter
# than 32 decisions on average make the side store grow.
_RING_FRAMES_PER_SIDE_FRAME = 32
# Arrays kept for samples: obs and next_obs of a batch in use and of the one drawn meanwhile. At batch 256 the page
# faults of new arrays can take longer than the copying.
_N_OUTPUTS = 4

# Linux: MemAvailable in kB; the limits of control groups (version 2, version 1) in bytes, or the word "max".
_MEMORY_FILES = (
    Path("/proc/meminfo"),
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


class FrameStore:
    """Frames, each stored once, under numbers that stay valid as long as a transition can use them.

    The newest frame of every `next_obs` goes to a ring. Any other frame that is not already in the stack before it
    (the first frame of an episode, for example) goes to a side store, whose places are lent for as long as a frame of
    the ring lives. Both are mapped at once but take memory only as they fill.

    Args:
        n_steps: Vector steps whose transitions can be read back, at least 1.
        n_envs: Environments stepped together.
        stack: Frames per observation.
        frame_bytes: Bytes of one frame (height * width * channels).

    Attributes:
        ring: uint8 of shape (rows * n_envs, frame_bytes).
        side: uint8 of shape (places, frame_bytes); place 0 is the frame of zeros that pads a cleared stack.
    """

    def __init__(self, n_steps: int, n_envs: int, stack: int, frame_bytes: int) -> None:
        self.n_envs, self.stack = n_envs, stack
        # `stack` rows more than steps: the oldest transition still finds the frames of the steps before it.
        self.n_rows = n_steps + stack
        self.ring = _lazy_zeros(self.n_rows * n_envs, frame_bytes)
        self.side = _lazy_zeros(n_steps * n_envs // _RING_FRAMES_PER_SIDE_FRAME + 1, frame_bytes)
        self.step = 0  # steps stored since the start; never wraps
        self._n_side_used = 1  # place 0: zeros
        self._free: list[int] = []
        self._outputs: deque[np.ndarray] = deque(maxlen=_N_OUTPUTS)
        self._lent: deque[tuple[int, int]] = deque()  # (step, place), oldest first
        self._newest_stacks: np.ndarray = np.zeros((n_envs, stack, frame_bytes), dtype=np.uint8)
        self._newest_ids = np.full((n_envs, stack), self._side_id(0), dtype=np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes mapped, whether or not they are filled yet."""
        return self.ring.nbytes + self.side.nbytes

    def put_obs(self, obs: np.ndarray) -> np.ndarray:
        """Store what is new in the observations before a step.

        Args:
            obs: uint8, (n_envs, stack * channels, height, width). Kept until the next call, so not to be written to.

        Returns:
            Frame numbers, int32 of shape (n_envs, stack), oldest frame first.
        """
        self._take_back_expired()
        # As a rule this is the `next_obs` of the step before; after an episode's end it is not.
        return self._link(obs, self._newest_stacks, self._newest_ids)

    def put_next_obs(self, next_obs: np.ndarray) -> np.ndarray:
        """Store what is new in the observations after a step; call it once after each `put_obs`.

        Args:
            next_obs: uint8, (n_envs, stack * channels, height, width). Kept like `obs`.

        Returns:
            Frame numbers, int32 of shape (n_envs, stack), oldest frame first.
        """
        first = (self.step % self.n_rows) * self.n_envs
        newest_ids = np.arange(first, first + self.n_envs, dtype=np.int32)
        newest_frames = next_obs.reshape(self._newest_stacks.shape)[:, -1]
        self.ring[first : first + self.n_envs] = newest_frames
        stacks = np.concatenate((self._newest_stacks[:, 1:], newest_frames[:, None]), axis=1)
        ids = self._link(next_obs, stacks, np.concatenate((self._newest_ids[:, 1:], newest_ids[:, None]), axis=1))
        self.step += 1
        return ids

    def gather(self, ids: np.ndarray) -> np.ndarray:
        """Read frames back.

        Args:
            ids: Frame numbers of any shape.

        Returns:
            A uint8 array of shape (*ids.shape, frame_bytes) that nobody else holds.
        """
        frames = self._output((*ids.shape, self.ring.shape[1]))
        self.ring.take(ids, axis=0, out=frames, mode="clip")  # clip: unlike raise, it writes straight to `out`
        beside = ids >= len(self.ring)
        if beside.any():
            frames[beside] = self.side[ids[beside] - len(self.ring)]
        return frames

    def _output(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array to gather into: one whose last user let it go, else a new one."""
        for array in self._outputs:
            # Three references: the deque's, `array` and the argument. A view or a tensor over it holds a fourth.
            if array.shape == shape and sys.getrefcount(array) == 3:
                return array
        self._outputs.append(np.empty(shape, dtype=np.uint8))
        return self._outputs[-1]

    def _link(self, obs: np.ndarray, known: np.ndarray, known_ids: np.ndarray) -> np.ndarray:
        """Number the frames of `obs`: the known number where the bytes are the known ones, else a place beside.

        A number only ever stays in its position or moves towards the old end, one position a step. So no stack uses a
        number more than `stack` steps after the step that gave it out.
        """
        stacks = obs.reshape(known.shape)
        same = (stacks == known).all(axis=-1)  # (n_envs, stack)
        ids = np.where(same, known_ids, -1)
        for env, position in np.argwhere(~same)[::-1]:  # newest frame first
            ids[env, position] = self._id_of_other_frame(stacks[env], ids[env], position)
        self._newest_stacks, self._newest_ids = stacks, ids
        return ids

    def _id_of_other_frame(self, frames: np.ndarray, ids: np.ndarray, position: int) -> int:
        """Number one frame of a stack that does not continue the stack before it; newer positions have theirs."""
        if not frames[position].any():
            return self._side_id(0)
        if position + 1 < self.stack and np.array_equal(frames[position], frames[position + 1]):
            return ids[position + 1]  # a stack begun with copies of its first frame
        place = self._borrow_place()
        self.side[place] = frames[position]
        return self._side_id(place)

    def _side_id(self, place: int) -> int:
        return len(self.ring) + place

    def _borrow_place(self) -> int:
        if self._free:
            place = self._free.pop()
        else:
            place, self._n_side_used = self._n_side_used, self._n_side_used + 1
            if place == len(self.side):
                self.side = _with_rows(self.side, place + place // 4 + 1)
        self._lent.append((self.step, place))
        return place

    def _take_back_expired(self) -> None:
        """Free the places lent in a step whose row of the ring is about to be overwritten."""
        while self._lent and self._lent[0][0] <= self.step - self.n_rows:
            self._free.append(self._lent.popleft()[1])

    def __getstate__(self) -> dict[str, Any]:
        n_ring_used = min(self.step, self.n_rows) * self.n_envs
        used = {"ring": self.ring[:n_ring_used], "side": self.side[: self._n_side_used]}
        return self.__dict__ | used | {"_n_side": len(self.side), "_outputs": deque(maxlen=_N_OUTPUTS)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        n_side = state.pop("_n_side")
        self.__dict__.update(state)
        self.ring = _with_rows(self.ring, self.n_rows * self.n_envs)
        self.side = _with_rows(self.side, n_side)


class StackedFrames:
    """The part of an array's interface that SB3's buffers use, over stacks whose frames lie in a `FrameStore`.

    `stacks[step]` and `stacks[steps, envs]` give uint8 arrays of shape (..., *obs_shape) that nobody else holds;
    `stacks[step] = obs` hands the observations of all environments to `put`.
    """

    def __init__(self, store: FrameStore, put: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> None:
        self._store, self._put = store, put
        self.shape = shape  # (n_steps, n_envs, channels, height, width)
        self._ids = np.zeros((*shape[:2], store.stack), dtype=np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes of the frame numbers alone."""
        return self._ids.nbytes

    def __getitem__(self, index: Any) -> np.ndarray:
        ids = self._ids[index]
        return self._store.gather(ids).reshape(*ids.shape[:-1], *self.shape[2:])

    def __setitem__(self, step: int, obs: np.ndarray) -> None:
        self._ids[step] = self._put(obs)


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
        frame_channels: Channels of one frame: 1 for grey, 3 for RGB.

    Raises:
        ValueError: For another kind of observation space, `optimize_memory_usage`, a wrong `n_steps` or
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
        frame_channels: int = 1,
    ) -> None:
        _check_options(optimize_memory_usage, n_steps)
        shape = _image_shape(observation_space, frame_channels)
        # Past ReplayBuffer.__init__, which would allocate both copies of every stack.
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps, self.gamma = n_steps, gamma
        self._check_memory(shape[0] // frame_channels)
        self._allocate(shape, shape[0] // frame_channels)

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
        per_transition = frame * (1 + 1 / _RING_FRAMES_PER_SIDE_FRAME) + 2 * stack * 4 + actions + 3 * 4
        fixed = frame * (stack * self.n_envs + 1)
        needed, available = fixed + per_transition * self.buffer_size * self.n_envs, available_bytes()
        if needed > available:
            raise ValueError(
                f"a replay buffer of {self.buffer_size * self.n_envs} transitions of shape {self.obs_shape} fills "
                f"{needed / 1e9:.2f} GB of memory and {available / 1e9:.2f} GB are available: "
                f"buffer_size={max(int((available - fixed) / per_transition), 0)} would fit"
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


def _lazy_zeros(n_rows: int, row_bytes: int) -> np.ndarray:
    """Zeros, uint8 of shape (n_rows, row_bytes), straight from the kernel: a page takes memory when it is written.

    `np.zeros` asks the allocator, which may hand out freed memory and clear it, all of it at once.
    """
    return np.frombuffer(mmap.mmap(-1, n_rows * row_bytes), dtype=np.uint8).reshape(n_rows, row_bytes)


def _with_rows(array: np.ndarray, n_rows: int) -> np.ndarray:
    """The frames themselves where there are `n_rows`, else a copy continued with rows of zeros."""
    if len(array) == n_rows:
        return array
    longer = _lazy_zeros(n_rows, array.shape[1])
    longer[: len(array)] = array
    return longer


def _check_options(optimize_memory_usage: bool, n_steps: int) -> None:
    if optimize_memory_usage:
        raise ValueError(
            "optimize_memory_usage=True: AtariReplayBuffer already stores every frame once, and handles time limits, "
            "which SB3's option cannot; leave it False"
        )
    if n_steps < 1:
        raise ValueError(f"n_steps={n_steps}: give the number of rewards to sum per sample, 1 or more")


def _image_shape(space: spaces.Space, frame_channels: int) -> tuple[int, int, int]:
    """Shape (stack * frame_channels, height, width) of a space whose frames can be told apart."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        raise ValueError(
            f"AtariReplayBuffer stores stacked images, a uint8 Box of shape (channels, height, width), not {space}: "
            "leave replay_buffer_class out, so that SB3 picks the buffer for it"
        )
    if space.shape[2] < min(space.shape[:2]):
        raise ValueError(
            f"AtariReplayBuffer needs channels first, not shape {space.shape}: wrap the env in SB3's VecTransposeImage"
        )
    channels, height, width = space.shape
    if frame_channels < 1 or channels % frame_channels:
        raise ValueError(
            f"frame_channels={frame_channels} does not divide the {channels} channels of an observation: "
            "give the channels of one frame, 1 for grey and 3 for RGB"
        )
    return channels, height, width


def available_bytes() -> float:
    """Memory that can still be filled: what the system has available, within a container's limit."""
    # A size no machine has, where the system does not say (Windows).
    sizes = [float("inf")]
    if hasattr(os, "sysconf"):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in _MEMORY_FILES:
        if match := re.search(r"^(?:MemAvailable: *)?(\d+)( kB)?$", _read(file), re.MULTILINE):
            sizes.append(int(match[1]) * (1024 if match[2] else 1))
    return min(sizes)


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""
