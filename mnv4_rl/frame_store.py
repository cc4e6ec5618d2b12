"""Frames of stacked observations, each stored once, and stacks put together from them again."""

import mmap
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

# One frame beside the ring for every 32 in it. An episode (often: a life) needs one, its first frame; episodes shorter
# than 32 decisions on average make the side store grow.
RING_FRAMES_PER_SIDE_FRAME = 32
_MANY_FRAMES = 1.5  # a transition; half as much again as was counted
_FRAMES_BEFORE_WARNING = 100  # the first steps of all environments are first frames
# Arrays kept for samples: obs and next_obs of a batch in use and of the one drawn meanwhile. At batch 256 the page
# faults of new arrays can take longer than the copying.
_N_OUTPUTS = 4


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
        self.side = _lazy_zeros(n_steps * n_envs // RING_FRAMES_PER_SIDE_FRAME + 1, frame_bytes)
        self.step = 0  # steps stored since the start; never wraps
        self._n_side_used = 1  # place 0: zeros
        self._free: list[int] = []
        self._spare: deque[np.ndarray] = deque(maxlen=_N_OUTPUTS)
        self._has_warned = False
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
            A uint8 array of shape ``(*ids.shape, frame_bytes)`` that nobody else holds.
        """
        frames = self._output((*ids.shape, self.ring.shape[1]))
        self.ring.take(ids, axis=0, out=frames, mode="clip")  # clip: unlike raise, it writes straight to `out`
        beside = ids >= len(self.ring)
        if beside.any():
            frames[beside] = self.side[ids[beside] - len(self.ring)]
        return frames

    def _output(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array to gather into; its memory comes back when its last view or tensor goes."""
        memory = self._spare.pop() if self._spare else None
        if memory is None or memory.shape != shape:
            memory = np.empty(shape, dtype=np.uint8)
        loan = _Loan(memory)
        weakref.finalize(loan, self._spare.append, memory).atexit = False
        return np.asarray(loan)

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
                self._warn_of_growth()
                self.side = _with_rows(self.side, place + place // 4 + 1)
        self._lent.append((self.step, place))
        return place

    def _warn_of_growth(self) -> None:
        """Say once that far more memory fills than was counted."""
        filled = min(self.step + 1, self.n_rows) * self.n_envs
        frames = 1 + self._n_side_used / filled  # a transition
        if self._has_warned or filled < _FRAMES_BEFORE_WARNING or frames < _MANY_FRAMES:
            return
        self._has_warned = True
        warnings.warn(
            f"AtariReplayBuffer stores {frames:.1f} frames a transition where little more than 1 was counted; full, "
            f"it will take about {frames * self.ring.nbytes / 1e9:.2f} GB. Either episodes are very short, or "
            "observations are no stacks of such frames: then give the channels of one, 1 for grey and 3 for RGB, as "
            "replay_buffer_kwargs=dict(frame_channels=...).",
            stacklevel=2,
        )

    def _take_back_expired(self) -> None:
        """Free the places lent in a step whose row of the ring is about to be overwritten."""
        while self._lent and self._lent[0][0] <= self.step - self.n_rows:
            self._free.append(self._lent.popleft()[1])

    def __getstate__(self) -> dict[str, Any]:
        n_ring_used = min(self.step, self.n_rows) * self.n_envs
        used = {"ring": self.ring[:n_ring_used], "side": self.side[: self._n_side_used]}
        return self.__dict__ | used | {"_n_side": len(self.side), "_spare": deque(maxlen=_N_OUTPUTS)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        n_side = state.pop("_n_side")
        self.__dict__.update(state)
        self.ring = _with_rows(self.ring, self.n_rows * self.n_envs)
        self.side = _with_rows(self.side, n_side)


class _Loan:
    """Memory lent to an array: numpy keeps this object for as long as the array, a view or a tensor over it lives."""

    def __init__(self, memory: np.ndarray) -> None:
        self.__array_interface__ = memory.__array_interface__


class StackedFrames:
    """The part of an array's interface that SB3's buffers use, over stacks whose frames lie in a `FrameStore`.

    `stacks[step]` and `stacks[steps, envs]` give uint8 arrays of shape ``(..., *obs_shape)`` that nobody else holds;
    `stacks[step] = obs` hands the observations of all environments to `put`.
    """

    def __init__(self, store: FrameStore, put: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> None:
        self._store, self._put = store, put
        self.shape = shape  # (n_steps, n_envs, channels, height, width)
        self._ids = np.zeros((*shape[:2], store.stack), dtype=np.int32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All stacks, zeros where nothing was stored yet, as SB3's buffers have it."""
        if copy is False:
            raise ValueError("The stacks are put together from single frames; an array of them is always a copy.")
        stacks = self[:]
        stacks[self._store.step :] = 0
        return stacks if dtype is None else stacks.astype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the frame numbers alone."""
        return self._ids.nbytes

    def __getitem__(self, index: Any) -> np.ndarray:
        ids = self._ids[index]
        return self._store.gather(ids).reshape(*ids.shape[:-1], *self.shape[2:])

    def __setitem__(self, step: int, obs: np.ndarray) -> None:
        self._ids[step] = self._put(obs)


def _lazy_zeros(n_rows: int, row_bytes: int) -> np.ndarray:
    """Zeros, uint8 of shape (n_rows, row_bytes), straight from the kernel: a page takes memory when it is written.

    `np.zeros` asks the allocator, which may hand out freed memory and clear it, all of it at once.
    """
    # Private, where there is a choice: what a forked child writes stays its own.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return np.frombuffer(mmap.mmap(-1, n_rows * row_bytes, **private), dtype=np.uint8).reshape(n_rows, row_bytes)


def _with_rows(array: np.ndarray, n_rows: int) -> np.ndarray:
    """The frames themselves where there are `n_rows`, else a copy continued with rows of zeros."""
    if len(array) == n_rows:
        return array
    longer = _lazy_zeros(n_rows, array.shape[1])
    longer[: len(array)] = array
    return longer
