"""Whether something fits in memory: asked before it fills, as the system would end the process hours later."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape

_MEMINFO = Path("/proc/meminfo")  # of Linux
_GROUPS = Path("/sys/fs/cgroup")
# Of a control group, version 2 and version 1: the limit in bytes, or the word "max"; what is in use; and, in its
# statistics, how much of that are files which the system would give up.
_GROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def check_fits(what: str, needed_bytes: float, cure: Callable[[float], str], device: th.device | None = None) -> None:
    """Refuse what would be killed for memory while it fills.

    Args:
        what: Its name and size, the start of a sentence.
        needed_bytes: Bytes it fills.
        cure: What to do instead, given the bytes that are available; ends the sentence.
        device: Whose memory; the machine's by default.

    Raises:
        ValueError: With both numbers and the cure.
    """
    available = available_bytes(device)
    if needed_bytes > available:
        raise ValueError(
            f"{what} fills {needed_bytes / 1e9:,.2f} GB of memory and {available / 1e9:,.2f} GB are available: "
            f"{cure(available)}"
        )


def available_bytes(device: th.device | None = None) -> float:
    """Memory that can still be filled: what the system has available, within a container's limit; or what a GPU has."""
    if device is not None and device.type == "cuda":
        return th.cuda.mem_get_info(device)[0]
    # A size no machine has, where the system does not say (Windows).
    sizes = [float("inf")]
    if hasattr(os, "sysconf"):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if (system := _number(_MEMINFO, "MemAvailable: *", " kB")) is not None:
        sizes.append(system * 1024)
    for limit_file, usage_file, statistics_file, files in _GROUP_FILES:
        if (limit := _number(_GROUPS / limit_file)) is not None:
            used = (_number(_GROUPS / usage_file) or 0) - (_number(_GROUPS / statistics_file, f"{files} ") or 0)
            sizes.append(max(0, limit - max(0, used)))
    return min(sizes)


def observation_bytes(space: spaces.Space) -> int:
    """Bytes of one observation in SB3's buffers, all entries of a Dict together."""
    if isinstance(space, spaces.Dict):
        return sum(observation_bytes(entry) for entry in space.spaces.values())
    shape = get_obs_shape(space)
    assert isinstance(shape, tuple)  # a dict only of a Dict
    return math.prod(shape) * getattr(space.dtype, "itemsize", 1)


def _number(file: Path, before: str = "", after: str = "") -> int | None:
    """The whole number that is a line of its own, between two patterns; None without such a file or line."""
    match = re.search(rf"^{before}(\d+){after}$", file.read_text() if file.exists() else "", re.MULTILINE)
    return int(match[1]) if match else None
