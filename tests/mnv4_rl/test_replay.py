"""The replay buffer against SB3's own: every stored transition, every sample."""

import os
import pickle
import resource
import statistics
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from mnv4_rl import memory
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
    monkeypatch.setattr(memory, "available_bytes", lambda *_: 8e9)
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
    monkeypatch.setattr(memory, "available_bytes", lambda *_: 1e9)
    with pytest.raises(
        ValueError, match=r"fills 7\.33 GB of memory and 1\.00 GB are available: buffer_size=(\d+)"
    ) as e:
        AtariReplayBuffer(1_000_000, ATARI, ACTIONS, n_envs=4)
    fitting = int(str(e.value).split("buffer_size=")[1].split()[0])
    ours = AtariReplayBuffer(fitting, ATARI, ACTIONS, n_envs=4)
    assert 0.999e9 < ours.nbytes <= 1e9
    with pytest.raises(ValueError, match="would fit"):
        AtariReplayBuffer(fitting + 100, ATARI, ACTIONS, n_envs=4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_what_a_forked_child_stores_is_its_own() -> None:
    ours, theirs = pair(plain_stream(20), size=30)
    transitions = list(plain_stream(20).transitions())
    for transition in transitions[:10]:
        ours.add(*transition)
        theirs.add(*transition)
    child = os.fork()
    if child == 0:
        try:
            for array in (ours.frames.ring, ours.frames.side):
                array[:] = 99
            for transition in transitions[10:]:
                ours.add(*transition)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert_same_buffers(ours, theirs)


def steps_of(frames: np.ndarray, stack: int) -> Any:
    """Transitions of one environment whose stacks, (stack * channels, H, W), move on by one of the frames each."""
    for t in range(len(frames) - stack):
        obs, next_obs = (np.concatenate(frames[i : i + stack])[None] for i in (t, t + 1))
        yield obs, next_obs, np.zeros(1), np.zeros(1), np.zeros(1), [{}]


@pytest.mark.parametrize(
    ("stack", "channels"), [(4, 1), (3, 1), (6, 1), (12, 1), (1, 3), (2, 3), (4, 3), (5, 1), (2, 5)], ids=str
)
@pytest.mark.filterwarnings("ignore:AtariReplayBuffer stores")  # (2, 5): no such frames are known
def test_one_frame_a_transition_is_stored_whatever_a_frame_has_for_channels(stack: int, channels: int) -> None:
    frames = np.random.default_rng(0).integers(256, size=(100 + stack, channels, 9, 10), dtype=np.uint8)
    space = spaces.Box(0, 255, (stack * channels, 9, 10), np.uint8)
    ours, theirs = (cls(100, space, ACTIONS, device="cpu") for cls in (AtariReplayBuffer, ReplayBuffer))
    for transition in steps_of(frames, stack):
        ours.add(*transition)
        theirs.add(*transition)
    assert np.array_equal(np.asarray(ours.observations), theirs.observations)
    assert np.array_equal(np.asarray(ours.next_observations), theirs.next_observations)
    if channels < 5:
        assert ours.frames.stack == stack
        assert ours.frames._n_side_used <= 1 + stack  # the first stack's, and the zeros


def test_black_pictures_do_not_decide_what_a_frame_is() -> None:
    frames = np.random.default_rng(0).integers(256, size=(60, 3, 9, 10), dtype=np.uint8)
    frames[:10] = 0
    ours = AtariReplayBuffer(100, spaces.Box(0, 255, (12, 9, 10), np.uint8), ACTIONS, device="cpu")
    for transition in steps_of(frames, 4):
        ours.add(*transition)
    assert ours.frames.stack == 4 and ours.frames._n_side_used <= 5


@pytest.mark.parametrize("n_black", [0, 30, 98])
@pytest.mark.parametrize("stack", [3, 6, 12])
def test_grey_stacks_that_begin_with_copies_are_known_for_grey(stack: int, n_black: int) -> None:
    """As gymnasium's FrameStackObservation begins them; what was stored before that was clear stays."""
    frames = np.random.default_rng(0).integers(256, size=(150, 1, 9, 10), dtype=np.uint8)
    frames[: n_black + stack] = frames[0]
    space = spaces.Box(0, 255, (stack, 9, 10), np.uint8)
    ours, theirs = (cls(200, space, ACTIONS, device="cpu") for cls in (AtariReplayBuffer, ReplayBuffer))
    for t, (obs, next_obs, *_) in enumerate(steps_of(frames, stack)):
        done = np.array([t in (5, 9)])
        rest = np.array([t % 3]), np.array([t / 7]), done, [{"TimeLimit.truncated": t == 9}]
        ours.add(obs, next_obs, *rest)
        theirs.add(obs, next_obs, *rest)
    assert_same_buffers(ours, theirs)
    assert ours.frames.stack == stack and ours.frames._n_side_used <= 1 + stack


def test_a_guess_stands_once_the_buffer_is_full() -> None:
    frames = np.zeros((60, 1, 9, 10), np.uint8)
    frames[40:] = np.random.default_rng(0).integers(256, size=(20, 1, 9, 10), dtype=np.uint8)
    space = spaces.Box(0, 255, (3, 9, 10), np.uint8)
    ours, theirs = (cls(20, space, ACTIONS, device="cpu") for cls in (AtariReplayBuffer, ReplayBuffer))
    for transition in steps_of(frames, 3):
        ours.add(*transition)
        theirs.add(*transition)
    assert_same_buffers(ours, theirs)
    assert ours.full and ours.frames.stack == 1


def test_a_store_that_outgrows_its_count_warns_once() -> None:
    frames = np.random.default_rng(0).integers(256, size=(300, 3, 9, 10), dtype=np.uint8)
    space = spaces.Box(0, 255, (12, 9, 10), np.uint8)
    told = AtariReplayBuffer(200, space, ACTIONS, device="cpu", frame_channels=1)
    with pytest.warns(UserWarning, match=r"frame_channels=\.\.\.") as warned:
        for transition in steps_of(frames, 4):
            told.add(*transition)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitting = AtariReplayBuffer(200, space, ACTIONS, device="cpu")
        for transition in steps_of(frames, 4):
            fitting.add(*transition)
    assert fitting.frames.nbytes < 0.4 * told.frames.nbytes


def test_observations_become_arrays_as_sb3s() -> None:
    ours, theirs = pair(plain_stream(20), size=30)
    for filled, transition in enumerate(plain_stream(20).transitions()):
        ours.add(*transition)
        theirs.add(*transition)
        if filled in (0, 10, 19):
            for name in ("observations", "next_observations"):
                array = np.asarray(getattr(ours, name))
                assert array.dtype == np.uint8 and np.array_equal(array, getattr(theirs, name))
    assert len(ours.observations) == len(theirs.observations)
    assert np.asarray(ours.observations, dtype=np.float32).dtype == np.float32


def test_an_agent_of_a_large_replay_is_loaded_to_play_without_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    agent = DQN("CnnPolicy", CueEnv((1, 36, 36)), buffer_size=100, replay_buffer_class=AtariReplayBuffer, device="cpu")
    agent.buffer_size = 1_000_000
    agent.save(tmp_path / "agent")
    monkeypatch.setattr(memory, "available_bytes", lambda *_: 1e9)
    with pytest.raises(ValueError, match=r"DQN.load\(path, buffer_size=1\)"):
        DQN.load(tmp_path / "agent", device="cpu")
    observation = agent.observation_space.sample()
    for kwargs in (dict(buffer_size=1), dict(custom_objects={"buffer_size": 1})):
        loaded = DQN.load(tmp_path / "agent", device="cpu", **kwargs)
        assert loaded.predict(observation, deterministic=True)[0] == agent.predict(observation, deterministic=True)[0]


@pytest.mark.parametrize(
    ("space", "options", "phrase"),
    [
        (spaces.Dict(image=ATARI), {}, "leave replay_buffer_class out"),
        (spaces.Discrete(4), {}, "leave replay_buffer_class out"),
        (spaces.Box(0, 255, (4,), np.uint8), {}, "leave replay_buffer_class out"),
        (spaces.Box(0, 1, (4, 84, 84), np.float32), {}, "a uint8 Box of shape"),
        (spaces.Box(0, 255, (84, 84, 4), np.uint8), {}, "VecTransposeImage"),
        (ATARI, {"frame_channels": 3}, "frame_channels=3 does not divide the 4 channels"),
        (ATARI, {"frame_channels": 0}, "frame_channels must be a whole number of at least 1, got 0"),
        (ATARI, {"frame_channels": 2.0}, "frame_channels must be a whole number"),
        (ATARI, {"n_steps": 0}, "n_steps must be a whole number of at least 1, got 0"),
        (ATARI, {"n_steps": 2.5}, r"n_steps must be a whole number of at least 1, got 2\.5"),
        (ATARI, {"gamma": float("nan")}, r"gamma must lie in \[0, 1\], got nan"),
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
