"""Generated runs of vector envs, and the comparison of two replay buffers fed with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from hypothesis import strategies as st
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from mnv4_rl.replay import AtariReplayBuffer

ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
ACTIONS = spaces.Discrete(3)
Transition = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]

# What happens after a step. The last two are for the buffer alone: no env does them.
EVENTS = ("go on", "game over", "life lost", "time limit", "no terminal observation", "anything")


@dataclass(frozen=True)
class Stream:
    """One generated run of a vector env: what happens to each env after each step."""

    events: tuple[tuple[str, ...], ...]  # (steps, n_envs)
    stack: int
    frame_channels: int
    clear_on_life_loss: bool
    pad_with_first: bool  # a stack begins with copies of its first frame, else with zeros
    n_frames: int  # distinct frames; few make frames repeat within a stack
    seed: int

    @property
    def n_envs(self) -> int:
        return len(self.events[0])

    @property
    def space(self) -> spaces.Box:
        return spaces.Box(0, 255, (self.stack * self.frame_channels, 9, 10), np.uint8)

    def transitions(self) -> Iterator[Transition]:
        rng = np.random.default_rng(self.seed)
        frames = rng.integers(256, size=(self.n_frames, self.frame_channels, 9, 10), dtype=np.uint8)
        frames[0] = 0  # a black screen looks like the padding of a cleared stack

        def frame() -> np.ndarray:
            return frames[rng.integers(self.n_frames)]

        def cleared() -> np.ndarray:
            first = frame()
            padding = first if self.pad_with_first else np.zeros_like(first)
            return np.concatenate([padding] * (self.stack - 1) + [first])

        obs = np.stack([cleared() for _ in range(self.n_envs)])
        for events in self.events:
            final = np.stack([np.concatenate((old[self.frame_channels :], frame())) for old in obs])
            new = final.copy()
            for env, event in enumerate(events):
                if event in ("game over", "time limit") or (event == "life lost" and self.clear_on_life_loss):
                    new[env] = cleared()
                elif event == "no terminal observation":
                    new[env] = final[env] = cleared()
                elif event == "anything":
                    new[env], final[env] = rng.integers(256, size=(2, *obs[env].shape), dtype=np.uint8)
            done = np.array([event not in ("go on", "anything") for event in events])
            infos = [{"TimeLimit.truncated": True} if event == "time limit" else {} for event in events]
            yield obs, final, rng.integers(3, size=self.n_envs), rng.normal(size=self.n_envs), done, infos
            obs = new


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    n_envs = draw(st.integers(1, 3))
    # Mostly plain steps, so that stacks have time to fill between the ends.
    event = st.one_of(st.just("go on"), st.just("go on"), st.sampled_from(EVENTS))
    events = draw(st.lists(st.tuples(*[event] * n_envs), min_size=1, max_size=40))
    return Stream(
        events=tuple(events),
        stack=draw(st.integers(1, 4)),
        frame_channels=draw(st.sampled_from((1, 3))),
        clear_on_life_loss=draw(st.booleans()),
        pad_with_first=draw(st.booleans()),
        n_frames=draw(st.integers(1, 50)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def pair(stream: Stream, n_steps: int = 1, size: int = 7, **kwargs: Any) -> tuple[AtariReplayBuffer, ReplayBuffer]:
    """Our buffer and SB3's, for `size` steps of the stream's envs."""
    common = dict(device="cpu", n_envs=stream.n_envs, **kwargs)
    options = dict(n_steps=n_steps, gamma=0.9) if n_steps > 1 else {}
    theirs = NStepReplayBuffer if n_steps > 1 else ReplayBuffer
    args = (size * stream.n_envs, stream.space, ACTIONS)
    ours = AtariReplayBuffer(*args, frame_channels=stream.frame_channels, **options, **common)
    return ours, theirs(*args, **options, **common)


def assert_same_samples(ours: Any, theirs: Any) -> None:
    for name, a, b in zip(theirs._fields, ours, theirs, strict=True):
        if b is None:
            assert a is None, name
        else:
            assert a.dtype == b.dtype and a.shape == b.shape and th.equal(a, b), name


def assert_same_buffers(ours: AtariReplayBuffer, theirs: ReplayBuffer) -> None:
    """Every field of every stored transition, then a random batch."""
    assert (ours.pos, ours.full, ours.size()) == (theirs.pos, theirs.full, theirs.size())
    steps = np.arange(theirs.size())
    for env in range(theirs.n_envs):
        for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
            assert np.array_equal(getattr(ours, name)[steps, env], getattr(theirs, name)[steps, env]), name
    # The same seed draws the same envs (and, below, the same steps) from both.
    for draw in (lambda b: b._get_samples(np.tile(steps, 4)), lambda b: b.sample(16)):
        samples = []
        for buffer in (ours, theirs):
            np.random.seed(1)
            samples.append(draw(buffer))
        assert_same_samples(*samples)


def plain_stream(n_steps: int, n_envs: int = 2, end_every: int = 5, **kwargs: bool) -> Stream:
    """Envs whose episodes end in turn, in every way an env ends one."""
    ends = ("game over", "life lost", "time limit")
    events = [
        tuple(ends[t // end_every % 3] if (t + env) % end_every == 0 else "go on" for env in range(n_envs))
        for t in range(1, n_steps + 1)
    ]
    options = {"clear_on_life_loss": True, "pad_with_first": False} | kwargs
    return Stream(tuple(events), stack=4, frame_channels=1, n_frames=200, seed=0, **options)


class CueEnv(gym.Env):
    """Pictures from a fixed sequence; the rewarded action changes with the picture. Ends, and is cut off, often."""

    action_space = ACTIONS

    def __init__(self, shape: tuple[int, ...] = (1, 36, 36), seed: int = 0) -> None:
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.pictures = np.random.default_rng(seed).integers(256, size=(50, *shape), dtype=np.uint8)
        self.total_steps, self.episode_steps = 0, 0

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.episode_steps = 0
        return self.pictures[self.total_steps % 50], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.total_steps += 1
        self.episode_steps += 1
        reward = float(action == self.total_steps % 3)
        terminated, truncated = self.total_steps % 17 == 0, self.episode_steps == 11
        return self.pictures[self.total_steps % 50], reward, terminated, truncated, {}
