"""A replay buffer as a compressed file of plain arrays; reading it unpickles nothing."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mnv4_rl.replay import AtariReplayBuffer

_ROWS = ("actions", "rewards", "dones", "timeouts")
# Of the frames' store: what its own pickling keeps, but for scratch space.
_ARRAYS = ("ring", "side", "_newest_stacks", "_newest_ids")
_NUMBERS = ("n_envs", "stack", "n_rows", "step", "_n_side_used", "_n_side")


def write_replay(buffer: Any, file: BinaryIO) -> None:
    """Write the transitions a buffer holds.

    Raises:
        TypeError: For another kind of buffer.
    """
    _check_kind(buffer)
    used = buffer.buffer_size if buffer.full else buffer.pos
    arrays = {name: getattr(buffer, name)[:used] for name in _ROWS}
    arrays |= {"ids": buffer.observations._ids[:used], "next_ids": buffer.next_observations._ids[:used]}
    arrays |= {"pos": np.array(buffer.pos), "full": np.array(buffer.full)}
    frames = buffer.frames.__getstate__()  # only what is filled
    arrays |= {f"frames.{name}": np.asarray(frames[name]) for name in (*_ARRAYS, *_NUMBERS)}
    arrays |= {f"frames.{name}": np.array([*frames[name]], np.int64) for name in ("_free", "_lent")}
    np.savez_compressed(file, **arrays)


def read_replay(buffer: Any, path: Path) -> None:
    """Fill a buffer of the same size and observations with what a file holds.

    The newest transition is marked as cut off by time, as the next one comes from a freshly reset environment.

    Raises:
        TypeError: For another kind of buffer.
        ValueError: If the file is of a buffer of another size.
    """
    _check_kind(buffer)
    with np.load(path, allow_pickle=False) as saved:
        arrays = {name: saved[name] for name in saved.files}
    frames = {name.removeprefix("frames."): arrays.pop(name) for name in list(arrays) if name.startswith("frames.")}
    stack = int(frames["stack"])
    if buffer.size() == 0 and buffer.obs_shape[0] % stack == 0 and stack != buffer.frames.stack:
        buffer.set_stack(stack)  # whether frames are grey or RGB is known from the first transition only
    own = (buffer.frames.n_rows, buffer.frames.n_envs, buffer.frames.stack)
    if (found := tuple(int(frames[name]) for name in ("n_rows", "n_envs", "stack"))) != own:
        raise ValueError(f"{path} is of a replay with (rows, environments, stack) {found}, this one has {own}.")
    _fill_frames(buffer.frames, frames)
    used = len(arrays["actions"])
    for name in _ROWS:
        getattr(buffer, name)[:used] = arrays[name]
    buffer.observations._ids[:used], buffer.next_observations._ids[:used] = arrays["ids"], arrays["next_ids"]
    buffer.pos, buffer.full = int(arrays["pos"]), bool(arrays["full"])
    if used:
        buffer.dones[buffer.pos - 1] = buffer.timeouts[buffer.pos - 1] = 1.0


def _fill_frames(store: Any, saved: dict[str, np.ndarray]) -> None:
    state: dict[str, Any] = {name: saved[name] for name in _ARRAYS} | {name: int(saved[name]) for name in _NUMBERS}
    lent = saved["_lent"].reshape(-1, 2).tolist()
    state |= {"_free": saved["_free"].tolist(), "_lent": deque((step, place) for step, place in lent)}
    store.__setstate__(state)


def _check_kind(buffer: Any) -> None:
    if not isinstance(buffer, AtariReplayBuffer):
        raise TypeError(f"Only AtariReplayBuffer goes into a checkpoint, got {type(buffer).__name__}.")
