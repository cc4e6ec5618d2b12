"""The replay buffer in training: a DQN on it learns what a DQN on SB3's buffer learns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from mnv4_rl.replay import AtariReplayBuffer
from tests.mnv4_rl.replay_streams import ATARI, CueEnv, Transition, assert_same_buffers


def stacked_env() -> VecFrameStack:
    return VecFrameStack(DummyVecEnv([lambda: CueEnv(seed=0), lambda: CueEnv(seed=1)]), 4)


def trained(algorithm: Any, **kwargs: Any) -> Any:
    settings = dict(buffer_size=120, learning_starts=40, batch_size=16, train_freq=2, target_update_interval=20)
    model = algorithm("CnnPolicy", stacked_env(), seed=0, device="cpu", **settings, **kwargs)
    return model.learn(300)


def assert_same_weights(a: Any, b: Any) -> None:
    assert a._n_updates == b._n_updates > 50
    for name, weight in a.policy.state_dict().items():
        assert th.equal(weight, b.policy.state_dict()[name]), name


def test_dqn_learns_the_same_weights_as_with_sb3s_buffer() -> None:
    assert_same_weights(trained(DQN, replay_buffer_class=AtariReplayBuffer), trained(DQN))


def test_n_step_dqn_learns_the_same_weights_as_with_sb3s_buffer() -> None:
    n_step = dict(n_steps=3, gamma=0.99)
    ours = trained(DQN, replay_buffer_class=AtariReplayBuffer, replay_buffer_kwargs=n_step)
    assert_same_weights(ours, trained(DQN, n_steps=3))


def test_sb3_ignores_its_own_n_steps_beside_a_buffer_class() -> None:
    with pytest.warns(UserWarning, match="n_steps=3` is ignored"):
        model = DQN("CnnPolicy", stacked_env(), n_steps=3, buffer_size=50, replay_buffer_class=AtariReplayBuffer)
    assert model.replay_buffer.n_steps == 1


def test_qrdqn_learns_the_same_weights_as_with_sb3s_buffer() -> None:
    qrdqn = pytest.importorskip("sb3_contrib", reason="needs the qrdqn extra").QRDQN
    assert_same_weights(trained(qrdqn, replay_buffer_class=AtariReplayBuffer), trained(qrdqn))


def test_rgb_channels_last_env_is_transposed_by_sb3_and_stored_exactly() -> None:
    def rgb_env() -> VecFrameStack:
        return VecFrameStack(DummyVecEnv([lambda: CueEnv((36, 40, 3))]), 4)

    options = dict(replay_buffer_class=AtariReplayBuffer, replay_buffer_kwargs=dict(frame_channels=3))
    models = [
        DQN("CnnPolicy", rgb_env(), seed=0, buffer_size=60, learning_starts=1000, **kwargs).learn(100)
        for kwargs in (options, {})
    ]
    assert_same_buffers(models[0].replay_buffer, models[1].replay_buffer)
    assert len(models[0].replay_buffer.frames.ring) == 64  # one RGB frame a transition
    assert models[0].replay_buffer.frames._n_side_used < 10


def test_replay_is_saved_and_loaded_by_sb3(tmp_path: Path) -> None:
    model = trained(DQN, replay_buffer_class=AtariReplayBuffer)
    model.save_replay_buffer(tmp_path / "replay.pkl")
    other = DQN("CnnPolicy", stacked_env(), buffer_size=50, replay_buffer_class=AtariReplayBuffer)
    other.load_replay_buffer(tmp_path / "replay.pkl")
    assert_same_buffers(other.replay_buffer, model.replay_buffer)


def ale_transitions(n_steps: int) -> Iterator[Transition]:
    """Breakout by ALE's vector env: a lost life is a done after which the stack carries on."""
    from ale_py.vector_env import AtariVectorEnv

    env = AtariVectorEnv(
        "breakout", num_envs=2, num_threads=1, life_loss_info=True, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
    )
    obs, info = env.reset(seed=0)
    for actions in np.random.default_rng(0).integers(4, size=(n_steps, 2)):
        new_obs, rewards, terminated, truncated, new_info = env.step(actions)
        next_obs = new_obs.copy()
        game_over = new_info["episode_frame_number"] < info["episode_frame_number"]
        if game_over.any():
            next_obs[game_over] = new_info["final_obs"][game_over]
        yield obs, next_obs, actions, rewards, terminated | truncated, [{}, {}]
        obs, info = new_obs.copy(), new_info
    env.close()


def test_ale_vector_env_comes_back_as_from_sb3() -> None:
    args = (2 * 250, ATARI, spaces.Discrete(4), "cpu", 2)
    ours, theirs = AtariReplayBuffer(*args), ReplayBuffer(*args)
    n_lives_lost = 0
    for transition in ale_transitions(600):
        ours.add(*transition)
        theirs.add(*transition)
        n_lives_lost += transition[4].sum()
    assert_same_buffers(ours, theirs)
    assert n_lives_lost > 10
    # A first frame for each new game of the last 254 steps; nothing for a lost life.
    assert ours.frames._n_side_used <= 6
