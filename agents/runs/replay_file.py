"""A replay buffer as a compressed file of plain arrays; what reading it allocates was checked before."""

from __future__ import annotations

import zipfile
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mnv4_rl.replay import AtariReplayBuffer
from mnv4_rl.safe_files import DamagedError, open_regular

_ROWS = ("actions", "rewards", "dones", "timeouts")
# Of the frames' store: what its own pickling keeps, but for scratch space.
_ARRAYS = ("ring", "side", "_newest_stacks", "_newest_ids")
_NUMBERS = ("n_envs", "stack", "n_rows", "step", "_n_side_used", "_n_side")
_PLACES = ("_free", "_lent")
_INTEGER: tuple[np.dtype, tuple[int, ...]] = (np.dtype(np.int64), ())
_HEADER_BYTES, _CHUNK_BYTES = 1024, 1 << 24

Arrays = dict[str, np.ndarray]


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
    arrays |= {f"frames.{name}": np.array([*frames[name]], np.int64) for name in _PLACES}
    np.savez_compressed(file, **arrays)


def read_replay(buffer: Any, path: Path) -> None:
    """Fill a buffer of the same size and observations with what a file holds.

    The newest transition is marked as cut off by time, as the next one comes from a freshly reset environment, unless
    a game ended with it.

    Raises:
        TypeError: For another kind of buffer.
        DamagedError: If the file is of a buffer of another size, or damaged; the buffer stays as it was.
    """
    _check_kind(buffer)
    try:
        arrays = _read_arrays(path, buffer)
        _check(arrays, buffer)
    except Exception as error:  # a broken archive sets off a kind of its own for each of its parts
        raise DamagedError(f"{path} is no replay of this run: {str(error) or type(error).__name__}") from error
    frames = {name.removeprefix("frames."): arrays.pop(name) for name in list(arrays) if name.startswith("frames.")}
    _fill_frames(buffer.frames, frames)
    used = len(arrays["actions"])
    for name in _ROWS:
        getattr(buffer, name)[:used] = arrays[name]
    buffer.observations._ids[:used], buffer.next_observations._ids[:used] = arrays["ids"], arrays["next_ids"]
    buffer.pos, buffer.full = int(arrays["pos"]), bool(arrays["full"])
    if used:
        newest = buffer.pos - 1
        buffer.timeouts[newest] = np.maximum(buffer.timeouts[newest], 1 - buffer.dones[newest])  # a real end stays one
        buffer.dones[newest] = 1.0


def _expected(buffer: Any) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Name -> dtype and largest shape of each array; a shorter first axis is allowed."""
    like = {name: getattr(buffer, name) for name in _ROWS}
    like |= {"ids": buffer.observations._ids, "next_ids": buffer.next_observations._ids}
    like |= {f"frames.{name}": getattr(buffer.frames, name) for name in _ARRAYS}
    expected = {name: (array.dtype, array.shape) for name, array in like.items()}
    n_side, frame_bytes = _most_side_frames(buffer), buffer.frames.ring.shape[1]
    expected["frames.side"] = (np.dtype(np.uint8), (n_side, frame_bytes))
    expected |= {f"frames.{name}": (np.dtype(np.int64), (2 * n_side, 2)) for name in _PLACES}
    expected |= {name: _INTEGER for name in ("pos", *(f"frames.{name}" for name in _NUMBERS))}
    return expected | {"full": (np.dtype(np.bool_), ())}


def _most_side_frames(buffer: Any) -> int:
    """Frames that can lie beside the ring: all of both stacks of every transition, and the place of zeros."""
    return 2 * buffer.frames.stack * buffer.buffer_size * buffer.n_envs + 1


def _read_arrays(path: Path, buffer: Any) -> Arrays:
    arrays: Arrays = {}
    with open_regular(path, below=path.parent) as file, zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if strange := {info.compress_type for info in members.values()} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError(f"it is compressed in a way that this program does not use ({strange})")
        _agree_on_stack(buffer, int(_read_array(archive, members["frames.stack"], *_INTEGER)))
        expected = _expected(buffer)
        if members.keys() != expected.keys():
            raise ValueError(f"it holds other arrays: {', '.join(sorted(members.keys() ^ expected.keys())[:3])}")
        for name, info in members.items():
            arrays[name] = _read_array(archive, info, *expected[name])
    return arrays


def _agree_on_stack(buffer: Any, stack: int) -> None:
    """Whether frames are grey or RGB is known from the first transitions only."""
    if buffer.size() == 0 and stack != buffer.frames.stack and stack > 0 and buffer.obs_shape[0] % stack == 0:
        buffer.set_stack(stack)


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, dtype: np.dtype, most: tuple[int, ...]) -> np.ndarray:
    with archive.open(info) as member:
        array = np.empty(_shape(member, info.filename, dtype, most), dtype)
        rest = array.reshape(-1).view(np.uint8)
        while rest.size and (content := member.read(min(rest.size, _CHUNK_BYTES))):
            rest[: len(content)] = np.frombuffer(content, np.uint8)
            rest = rest[len(content) :]
        if rest.size or member.read(1):
            raise ValueError(f"{info.filename} has other bytes than its shape says")
    return array


def _shape(member: Any, name: str, dtype: np.dtype, most: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in an array's header, if it may be of this dtype and no larger than that."""
    np.lib.format.read_magic(member)
    shape, fortran, found = np.lib.format.read_array_header_1_0(member, max_header_size=_HEADER_BYTES)
    fits = len(shape) <= len(most) and shape[1:] == most[1 : len(shape)] and all(map(int.__le__, shape, most))
    if found != dtype or not fits or fortran:
        raise ValueError(f"{name} has {found} of shape {shape}; in this run it has {dtype} of at most {most}")
    return shape


def _check(arrays: Arrays, buffer: Any) -> None:
    """Refuse arrays that do not belong together, or point out of the store."""
    own = (buffer.frames.n_rows, buffer.frames.n_envs, buffer.frames.stack)
    if (found := tuple(int(arrays[f"frames.{name}"]) for name in ("n_rows", "n_envs", "stack"))) != own:
        raise ValueError(f"it has (rows, environments, stack) {found}, this run has {own}")
    used = buffer.buffer_size if arrays["full"] else int(arrays["pos"])
    lengths = {len(arrays[name]) for name in (*_ROWS, "ids", "next_ids")}
    if not 0 <= arrays["pos"] < buffer.buffer_size or lengths != {used}:
        raise ValueError("its arrays have different numbers of transitions")
    n_side, n_side_used, step = (int(arrays[f"frames.{name}"]) for name in ("_n_side", "_n_side_used", "step"))
    filled = min(step, own[0]) * own[1]
    if not 1 <= n_side_used <= n_side <= _most_side_frames(buffer) or not used <= step < 2**62:
        raise ValueError("its counts are none")
    if (len(arrays["frames.ring"]), len(arrays["frames.side"])) != (filled, n_side_used):
        raise ValueError("it has fewer frames than it counts")
    n_frames = len(buffer.frames.ring) + n_side
    for name, most in (("ids", n_frames), ("next_ids", n_frames), ("frames._newest_ids", n_frames)):
        if arrays[name].size and not (0 <= arrays[name].min() and arrays[name].max() < most):
            raise ValueError(f"{name} points to frames that are not there")
    places = np.concatenate([arrays["frames._free"].reshape(-1), arrays["frames._lent"].reshape(-1, 2)[:, 1]])
    if places.size and not (0 <= places.min() and places.max() < n_side):
        raise ValueError("it lends places that are not there")


def _fill_frames(store: Any, saved: Arrays) -> None:
    state: dict[str, Any] = {name: saved[name] for name in _ARRAYS} | {name: int(saved[name]) for name in _NUMBERS}
    lent = saved["_lent"].reshape(-1, 2).tolist()
    state |= {"_free": saved["_free"].tolist(), "_lent": deque((step, place) for step, place in lent)}
    store.__setstate__(state)


def _check_kind(buffer: Any) -> None:
    if not isinstance(buffer, AtariReplayBuffer):
        raise TypeError(f"Only AtariReplayBuffer goes into a checkpoint, got {type(buffer).__name__}.")
