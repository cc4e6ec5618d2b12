"""The rollout buffer on the device gives what SB3's gives, to the bit."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from mnv4_rl.policies import MNV4Policy
from mnv4_rl.rollout import DeviceRolloutBuffer
from tests.tiny_env import tiny_env

IMAGE = spaces.Box(0, 255, (4, 6, 5), np.uint8)
OBSERVATIONS = {
    "bytes": IMAGE,
    "floats": spaces.Box(-1, 1, (3,), np.float32),
    "doubles": spaces.Box(-1, 1, (2, 3), np.float64),
    "integers": spaces.Box(-5, 5, (3,), np.int16),
    "discrete": spaces.Discrete(5),
    "several": spaces.MultiDiscrete([3, 4]),
    "switches": spaces.MultiBinary(4),
    "dict": spaces.Dict(image=IMAGE, joint=spaces.Box(-1, 1, (2,), np.float32), level=spaces.Discrete(3)),
}
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "several": spaces.MultiDiscrete([2, 3]),
    "switches": spaces.MultiBinary(3),
}


def batch_of(space, n_envs):
    if isinstance(space, spaces.Dict):
        return {key: batch_of(entry, n_envs) for key, entry in space.spaces.items()}
    return np.stack([space.sample() for _ in range(n_envs)])


def fill(buffers, observation_space, action_space, n_steps, n_envs, seed):
    observation_space.seed(seed), action_space.seed(seed)
    rng = np.random.default_rng(seed)
    for buffer in buffers:
        buffer.reset()
    for _ in range(n_steps):
        step = (
            batch_of(observation_space, n_envs),
            batch_of(action_space, n_envs).reshape(n_envs, -1),
            rng.normal(size=n_envs),
            rng.random(n_envs) < 0.3,
            th.as_tensor(rng.normal(size=(n_envs, 1)), dtype=th.float32),
            th.as_tensor(rng.normal(size=n_envs), dtype=th.float32),
        )
        for buffer in buffers:
            buffer.add(*step)
    last = th.as_tensor(rng.normal(size=(n_envs, 1)), dtype=th.float32), rng.random(n_envs) < 0.3
    for buffer in buffers:
        buffer.compute_returns_and_advantage(*last)


def assert_same(ours, theirs):
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same(ours[key], theirs[key])
        return
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert th.equal(ours, theirs)


@settings(max_examples=60, deadline=None)
@given(
    observation=st.sampled_from(sorted(OBSERVATIONS)),
    action=st.sampled_from(sorted(ACTIONS)),
    n_steps=st.integers(1, 6),
    n_envs=st.integers(1, 4),
    batch_size=st.none() | st.integers(1, 30),
    seed=st.integers(0, 2**31),
)
def test_samples_are_those_of_sb3_in_its_order(observation, action, n_steps, n_envs, batch_size, seed):
    observation_space, action_space = OBSERVATIONS[observation], ACTIONS[action]
    theirs = DictRolloutBuffer if isinstance(observation_space, spaces.Dict) else RolloutBuffer
    arguments = (n_steps, observation_space, action_space, "cpu", 0.9, 0.95, n_envs)
    buffers = [DeviceRolloutBuffer(*arguments), theirs(*arguments)]
    for rollout in range(2):  # the second in the memory of the first
        fill(buffers, observation_space, action_space, n_steps, n_envs, seed + rollout)
        for _epoch in range(2):
            drawn = []
            for buffer in buffers:
                np.random.seed(seed % 2**31)
                drawn.append(list(buffer.get(batch_size)))
            for ours, sb3 in zip(*drawn, strict=True):
                assert type(ours) is type(sb3)
                for name in sb3._fields:
                    assert_same(getattr(ours, name), getattr(sb3, name))
        for name in ("values", "returns", "advantages"):  # what SB3 logs the explained variance of
            assert np.array_equal(getattr(buffers[0], name), getattr(buffers[1], name))


@pytest.mark.parametrize("kind", [kind for kind in OBSERVATIONS if kind != "dict"])
def test_staged_observations_are_those_that_would_have_been_added(kind):
    space, steps = OBSERVATIONS[kind], []
    space.seed(0)
    buffers = [DeviceRolloutBuffer(3, space, ACTIONS["discrete"], "cpu", n_envs=2) for _ in range(2)]
    for buffer in buffers:
        buffer.reset()
    for _ in range(3):
        steps.append(batch_of(space, 2))
        rest = np.zeros((2, 1)), np.zeros(2), np.zeros(2), th.zeros(2), th.zeros(2)
        buffers[0].stage(th.as_tensor(steps[-1]))
        buffers[0].add(np.zeros_like(steps[-1]), *rest)
        buffers[1].add(steps[-1], *rest)
    assert th.equal(buffers[0].observations, buffers[1].observations)
    buffers[0].reset()
    buffers[0].stage(th.as_tensor(steps[0]))
    buffers[0].reset()
    buffers[0].add(steps[1], *rest)  # a rollout that was given up leaves nothing staged
    assert th.equal(buffers[0].observations[0], buffers[1].observations[1])


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_training_is_the_same_to_the_bit(algorithm):
    models = []
    for buffer in (DeviceRolloutBuffer, None):
        kwargs = {"n_steps": 8, **({"batch_size": 8, "n_epochs": 2} if algorithm is PPO else {})}
        model = algorithm(MNV4Policy, tiny_env(), rollout_buffer_class=buffer, seed=0, device="cpu", **kwargs)
        models.append(model.learn(48))
    states = [model.policy.state_dict() for model in models]
    assert all(th.equal(states[0][name], states[1][name]) for name in states[1])
    logged = [{k: v for k, v in m.logger.name_to_value.items() if k.startswith("train")} for m in models]
    assert logged[0] == logged[1] and logged[0]


def test_an_agent_with_it_is_saved_and_loaded_as_ever(tmp_path):
    model = PPO(MNV4Policy, tiny_env(), rollout_buffer_class=DeviceRolloutBuffer, n_steps=8, batch_size=8, seed=0)
    model.learn(16).save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", env=tiny_env())
    observation = tiny_env().reset()
    actions = [agent.predict(observation, deterministic=True)[0].tolist() for agent in (model, loaded)]
    assert actions[0] == actions[1]
    loaded.learn(16)


def test_a_rollout_that_does_not_fit_is_refused_before_the_first_step(monkeypatch):
    monkeypatch.setattr("mnv4_rl.memory.available_bytes", lambda device: 1e6)  # a timestep takes 10,368
    model = PPO(MNV4Policy, tiny_env(), rollout_buffer_class=DeviceRolloutBuffer, n_steps=1000, batch_size=50)
    with pytest.raises(ValueError, match="n_steps=96 would fit"):
        model.learn(2000)
    assert model.num_timesteps == 0
