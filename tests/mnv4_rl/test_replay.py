"""The replay buffer against SB3's own: every stored transition, every sample."""

import os
import pickle
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from mnv4_rl import replay
from mnv4_rl.replay import AtariReplayBuffer
from tests.mnv4_rl.replay_streams import (
    ACTIONS,
    ATARI,
    CueEnv,
    Stream,
    assert_same_buffers,
    assert_same_samples,
    pair,
    plain_stream,
    streams,
)


@settings(max_examples=150, deadline=None)
@given(
    stream=streams(),
    size=st.integers(1, 12),
    n_steps=st.integers(1, 4),
    handle_timeouts=st.booleans(),
)
def test_any_stream_comes_back_as_from_sb3(stream: Stream, size: int, n_steps: int, handle_timeouts: bool) -> None:
    ours, theirs = pair(stream, n_steps, size, handle_timeout_termination=handle_timeouts)
    for transition in stream.transitions():
        ours.add(*transition)
        theirs.add(*transition)
        assert_same_buffers(ours, theirs)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("clear_on_life_loss", [True, False])
def test_a_long_stream_through_many_wraps_comes_back_as_from_sb3(n_steps: int, clear_on_life_loss: bool) -> None:
    stream = plain_stream(2000, n_envs=3, end_every=23, clear_on_life_loss=clear_on_life_loss)
    ours, theirs = pair(stream, n_steps, size=64)
    for t, transition in enumerate(stream.transitions()):
        ours.add(*transition)
        theirs.add(*transition)
        if t % 50 == 49:
            assert_same_buffers(ours, theirs)


def test_caller_may_reuse_its_arrays() -> None:
    ours, theirs = pair(plain_stream(20))
    for obs, next_obs, *rest in plain_stream(20).transitions():
        theirs.add(obs, next_obs, *rest)
        scratch = obs.copy(), next_obs.copy()
        ours.add(*scratch, *rest)
        for array in scratch:
            array[:] = 77
    assert_same_buffers(ours, theirs)


def test_samples_do_not_share_memory_with_the_buffer() -> None:
    ours, theirs = pair(plain_stream(20))
    for transition in plain_stream(20).transitions():
        ours.add(*transition)
        theirs.add(*transition)
    for tensor in ours.sample(64)[:5]:
        tensor.zero_()
    assert_same_buffers(ours, theirs)


def test_samples_stay_whole_while_they_are_held() -> None:
    ours, _ = pair(plain_stream(20))
    for transition in plain_stream(20).transitions():
        ours.add(*transition)
    held = [ours.sample(8) for _ in range(10)]
    # Views hold the memory too, after the tensor they were taken from is gone.
    views = [ours.sample(8).observations[2:, :1] for _ in range(10)]
    copies = [sample.observations.clone() for sample in held], [view.clone() for view in views]
    for _ in range(20):
        ours.sample(8)
    assert all(th.equal(sample.observations, copy) for sample, copy in zip(held, copies[0], strict=True))
    assert all(th.equal(view, copy) for view, copy in zip(views, copies[1], strict=True))


def test_memory_of_samples_let_go_is_used_again() -> None:
    ours, _ = pair(plain_stream(20))
    for transition in plain_stream(20).transitions():
        ours.add(*transition)
    addresses = set()
    for _ in range(20):
        sample = ours.sample(8)  # as in DQN.train, the sample before is let go only now
        addresses |= {sample.observations.data_ptr(), sample.next_observations.data_ptr()}
    assert len(addresses) == 4


def test_samples_are_normalised_by_vec_normalize() -> None:
    stream = plain_stream(20, n_envs=1)
    env = VecNormalize(DummyVecEnv([lambda: CueEnv(stream.space.shape)]))
    env.obs_rms.mean += 100.0
    env.ret_rms.var *= 9.0
    for n_steps in (1, 3):
        buffers = pair(stream, n_steps)
        samples = []
        for buffer in buffers:
            for transition in stream.transitions():
                buffer.add(*transition)
            np.random.seed(0)
            samples.append(buffer.sample(32, env=env))
        assert samples[0].observations.dtype == th.float32
        assert_same_samples(*samples)


def test_reset_forgets_and_starts_over() -> None:
    ours, theirs = pair(plain_stream(20))
    for transition in plain_stream(20).transitions():
        ours.add(*transition)
    ours.reset()
    assert ours.size() == 0
    for transition in plain_stream(5).transitions():
        ours.add(*transition)
        theirs.add(*transition)
    assert_same_buffers(ours, theirs)


@pytest.mark.parametrize("pad_with_first", [False, True])
def test_one_frame_per_transition_and_one_more_per_episode(pad_with_first: bool) -> None:
    stream = plain_stream(4000, n_envs=2, end_every=10, pad_with_first=pad_with_first)
    ours, _ = pair(stream, size=320)
    used = []
    for transition in stream.transitions():
        ours.add(*transition)
        used.append(ours.frames._n_side_used)
    # 2 envs * (320 + 4 steps) / 10 first frames at a time, and the zeros: reused from the first wrap on.
    assert used[-1] == max(used[:330]) == pytest.approx(2 * 324 / 10 + 1, abs=2)
    assert len(ours.frames.ring) == 2 * 324


def test_stacks_that_never_continue_stay_bounded_and_exact() -> None:
    stream = replace(plain_stream(1), events=(("anything",),) * 300)
    ours, theirs = pair(stream, size=10)
    for transition in stream.transitions():
        ours.add(*transition)
        theirs.add(*transition)
    assert_same_buffers(ours, theirs)
    # At most stack frames of obs and stack - 1 of next_obs, for each of the 10 + 4 steps, and the zeros.
    assert ours.frames._n_side_used <= 7 * 14 + 1


@pytest.mark.parametrize("n_envs", [1, 8])
def test_a_million_atari_transitions_fit_in_7_5_gb(n_envs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "available_bytes", lambda: 8e9)
    ours = AtariReplayBuffer(1_000_000, ATARI, spaces.Discrete(18), n_envs=n_envs)
    assert ours.buffer_size * n_envs == 1_000_000
    assert ours.nbytes <= 7.5e9


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from Linux's /proc")
def test_memory_is_touched_only_as_the_buffer_fills() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    obs = np.ones((1, *ATARI.shape), np.uint8)
    frame_bytes, before = 84 * 84, resident()
    ours = AtariReplayBuffer(40_000, ATARI, ACTIONS, device="cpu")  # 290 MB mapped
    assert resident() - before < 500 * frame_bytes
    for filled in (2000, 4000):
        while ours.size() < filled:
            ours.add(obs, obs, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
        # Never more than the frames stored, and room for pages the system hands out together.
        assert filled * frame_bytes * 0.9 < resident() - before < (filled + 1500) * frame_bytes


def test_a_size_beyond_memory_is_refused_with_the_size_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "available_bytes", lambda: 1e9)
    with pytest.raises(
        ValueError, match=r"fills 7\.33 GB of memory and 1\.00 GB are available: buffer_size=(\d+)"
    ) as e:
        AtariReplayBuffer(1_000_000, ATARI, ACTIONS, n_envs=4)
    fitting = int(str(e.value).split("buffer_size=")[1].split()[0])
    ours = AtariReplayBuffer(fitting, ATARI, ACTIONS, n_envs=4)
    assert 0.999e9 < ours.nbytes <= 1e9
    with pytest.raises(ValueError, match="would fit"):
        AtariReplayBuffer(fitting + 100, ATARI, ACTIONS, n_envs=4)


def test_available_memory_respects_a_container_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal:        2000 kB\nMemFree:           10 kB\nMemAvailable:     1000 kB\nCached: 5 kB\n")
    monkeypatch.setattr(replay, "_MEMORY_FILES", (meminfo, limit))
    assert replay.available_bytes() == 1_024_000  # no limit file
    limit.write_text("max\n")
    assert replay.available_bytes() == 1_024_000
    limit.write_text("4096\n")
    assert replay.available_bytes() == 4096
    meminfo.unlink()
    limit.unlink()
    assert replay.available_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("space", "options", "phrase"),
    [
        (spaces.Dict(image=ATARI), {}, "leave replay_buffer_class out"),
        (spaces.Discrete(4), {}, "leave replay_buffer_class out"),
        (spaces.Box(0, 255, (4,), np.uint8), {}, "leave replay_buffer_class out"),
        (spaces.Box(0, 1, (4, 84, 84), np.float32), {}, "a uint8 Box of shape"),
        (spaces.Box(0, 255, (84, 84, 4), np.uint8), {}, "VecTransposeImage"),
        (ATARI, {"frame_channels": 3}, "frame_channels=3 does not divide the 4 channels"),
        (ATARI, {"frame_channels": 0}, "1 for grey and 3 for RGB"),
        (ATARI, {"n_steps": 0}, "n_steps=0"),
        (ATARI, {"optimize_memory_usage": True}, "leave it False"),
    ],
)
def test_what_cannot_be_stored_is_refused(space: spaces.Space, options: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase):
        AtariReplayBuffer(100, space, ACTIONS, **options)


@pytest.mark.parametrize("filled", [3, 7, 40])
def test_pickle_round_trip_goes_on_as_if_never_saved(filled: int) -> None:
    ours, theirs = pair(plain_stream(60), n_steps=2, size=20)
    for t, transition in enumerate(plain_stream(60).transitions()):
        if t == filled:
            ours = pickle.loads(pickle.dumps(ours))
            assert_same_buffers(ours, theirs)
        ours.add(*transition)
        theirs.add(*transition)
    assert_same_buffers(ours, theirs)


def test_only_filled_frames_are_saved() -> None:
    ours, _ = pair(plain_stream(10, n_envs=1), size=100_000)
    for transition in plain_stream(10, n_envs=1).transitions():
        ours.add(*transition)
    ours.sample(500)  # its 1.4 MB are no part of the file
    unfilled = ours.nbytes - ours.frames.nbytes
    assert len(pickle.dumps(ours)) < unfilled + 20_000
    assert pickle.loads(pickle.dumps(ours)).nbytes == ours.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [32, 256])
def test_sampling_is_not_slower_than_sb3s(batch_size: int) -> None:
    buffers = [cls(4000, ATARI, ACTIONS, device="cpu") for cls in (AtariReplayBuffer, ReplayBuffer)]
    obs = np.random.default_rng(0).integers(256, size=(4001, 1, *ATARI.shape), dtype=np.uint8)
    obs[1:, :, :3] = obs[:-1, :, 1:]
    for buffer in buffers:
        for t in range(4000):
            buffer.add(obs[t], obs[t + 1], np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    seconds: list[list[float]] = [[], []]
    for _ in range(200):  # interleaved, so that a busy machine slows both
        for buffer, times in zip(buffers, seconds, strict=True):
            start = time.perf_counter()
            buffer.sample(batch_size)
            times.append(time.perf_counter() - start)
    ours, theirs = (statistics.median(times) for times in seconds)
    assert ours < 1.5 * theirs
