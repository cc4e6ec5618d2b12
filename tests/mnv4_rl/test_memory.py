"""What fits in memory, and what one observation takes."""

import os
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from mnv4_rl import memory

NAMES = ("meminfo", "memory.max", "memory.current", "memory.stat")


def test_available_memory_respects_a_container_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo, limit, used, statistics = (tmp_path / name for name in NAMES)
    meminfo.write_text("MemTotal:        2000 kB\nMemFree:           10 kB\nMemAvailable:     1000 kB\nCached: 5 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    assert memory.available_bytes() == 1_024_000  # no limit file
    limit.write_text("max\n")
    assert memory.available_bytes() == 1_024_000
    limit.write_text("4096\n")
    assert memory.available_bytes() == 4096
    used.write_text("4000\n")
    assert memory.available_bytes() == 96
    statistics.write_text("active_file 7\ninactive_file 1000\n")  # which makes room
    assert memory.available_bytes() == 1096
    used.write_text("6000\n")
    assert memory.available_bytes() == 0  # over a limit that was lowered
    meminfo.unlink()
    limit.unlink()
    assert memory.available_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (4, 84, 84), np.uint8),
        spaces.Box(0, 1, (3, 16, 16), np.float32),
        spaces.Box(-1, 1, (7,), np.float64),
        spaces.Discrete(5),
        spaces.MultiBinary([3, 4]),
        spaces.Dict(camera=spaces.Box(0, 255, (3, 16, 16), np.uint8), speed=spaces.Box(0, 1, (2,))),
    ],
    ids=str,
)
def test_bytes_of_an_observation_are_those_of_sb3s_buffers(space: spaces.Space) -> None:
    buffer = (DictReplayBuffer if isinstance(space, spaces.Dict) else ReplayBuffer)(10, space, spaces.Discrete(2))
    arrays = buffer.observations.values() if isinstance(space, spaces.Dict) else [buffer.observations]
    assert memory.observation_bytes(space) == sum(array.nbytes for array in arrays) / 10


def test_what_does_not_fit_is_refused_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda *_: 2e9)
    memory.check_fits("Two gigabytes", 2e9, str)
    with pytest.raises(ValueError, match=r"Three.*3\.00 GB.*2\.00 GB.*take 2e\+09"):
        memory.check_fits("Three gigabytes", 3e9, lambda available: f"take {available:g}")
