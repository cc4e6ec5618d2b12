"""SB3's PPO is the reference: rollouts, losses, weights and what is logged are its own, to the bit where nothing is
recorded, and to the rounding of the learning rate where an update is a recording."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import device_ppo
from agents.device_ppo import DeviceCategorical, DevicePPO, PinnedSteps, why_not_captured
from agents.ppo import PPOHyperparameters, build_ppo
from agents.runs.callbacks import EnvTimer
from mnv4_rl.agent_files import load_agent, save_agent
from mnv4_rl.agent_format import describe
from mnv4_rl.performance import set_precision
from mnv4_rl.policies import MNV4Policy
from mnv4_rl.rollout import DeviceRolloutBuffer
from tests.agents.runs.test_resume import session, stopped_at
from tests.tapes import Tape, TapedPPO
from tests.tiny_env import same, tiny_env

IMAGE = spaces.Box(0, 255, (4, 36, 36), np.uint8)
SETTINGS = {
    "n_steps": 8,
    "batch_size": 6,
    "n_epochs": 2,
    "seed": 0,
    "device": "cpu",
    "rollout_buffer_class": DeviceRolloutBuffer,
}  # 16 samples: 6, 6 and 4


@pytest.fixture
def on_tape(monkeypatch):
    """Let a CPU pass for a device that records."""

    def others(model):
        reason = why_not_captured(model)
        return None if reason and "only a GPU" in reason else reason

    monkeypatch.setattr(device_ppo, "why_not_captured", others)


def make(kind, env=None, policy=MNV4Policy, **kwargs):
    return kind(policy, env or tiny_env(), **(SETTINGS | kwargs))


def logged(model):
    return {name: value for name, value in model.logger.name_to_value.items() if name.startswith("train/")}


def assert_same_training(ours, theirs):
    assert logged(ours) == logged(theirs) and len(logged(ours)) >= 9
    assert {name: type(value) for name, value in logged(ours).items()} == {
        name: type(value) for name, value in logged(theirs).items()
    }
    assert same(dict(ours.policy.state_dict()), dict(theirs.policy.state_dict()))
    assert same(ours.policy.optimizer.state_dict(), theirs.policy.optimizer.state_dict())
    assert ours._n_updates == theirs._n_updates


@settings(max_examples=6, deadline=None)
@given(
    normalize_advantage=st.booleans(),
    clip_range_vf=st.none() | st.floats(0.01, 0.5),
    target_kl=st.none() | st.floats(1e-9, 1e-3),
    batch_size=st.sampled_from([2, 5, 6, 16]),
    n_epochs=st.integers(1, 3),
    clip_range=st.floats(0.01, 0.4),
    learning_rate=st.floats(1e-4, 1e-2),
    max_grad_norm=st.floats(0.01, 10),
    ent_coef=st.floats(0, 0.1),
)
def test_training_is_sb3s_to_the_bit(**kwargs):
    ours, theirs = (make(kind, **kwargs).learn(48) for kind in (DevicePPO, PPO))
    assert_same_training(ours, theirs)


def test_a_minibatch_of_one_is_not_normalised():
    ours, theirs = (make(kind, batch_size=5, n_steps=8).learn(32) for kind in (DevicePPO, PPO))  # 5, 5, 5 and 1
    assert_same_training(ours, theirs)


@pytest.mark.parametrize(
    ("observation", "action"),
    [("image", "box"), ("image", "several"), ("dict", "discrete")],
)
def test_other_spaces_are_sb3s_too(observation, action):
    observations = {"image": IMAGE, "dict": spaces.Dict(picture=IMAGE, joint=spaces.Box(-1, 1, (2,), np.float32))}
    actions = {
        "box": spaces.Box(-1, 1, (2,), np.float32),
        "several": spaces.MultiDiscrete([2, 3]),
        "discrete": spaces.Discrete(3),
    }
    trained = []
    for kind in (DevicePPO, PPO):
        env = DummyVecEnv([lambda: Random(observations[observation], actions[action])] * 2)
        trained.append(make(kind, env).learn(32))
    assert_same_training(*trained)


class Random(FakeImageEnv):
    """Observations of any space, the same at every run."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.observation_space, self.action_space, self.ep_length = observation_space, action_space, 5
        self.observation_space.seed(0)


def test_sb3s_own_buffer_will_do():
    ours, theirs = (make(kind, rollout_buffer_class=None).learn(32) for kind in (DevicePPO, PPO))
    assert type(ours.rollout_buffer) is RolloutBuffer
    assert_same_training(ours, theirs)


def test_no_number_is_looked_at_in_an_update():
    """SB3's own looks at six a minibatch, and each look waits for a GPU."""
    looks = {}
    for kind in (DevicePPO, PPO):
        model = make(kind).learn(16)
        with Looks() as mode:
            model.train()
        looks[kind] = mode.count
    # One of the six is a distribution's check, which torch.compile turns off for the whole process.
    assert looks[PPO] >= 5 * 5 and looks[DevicePPO] == 0


class Looks(Tape):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() == "aten::_local_scalar_dense"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy", [MNV4Policy, "CnnPolicy"])
def test_all_of_it_stays_on_one_device(policy):
    """On the meta device nothing can be looked at, and a tensor of the CPU is an error."""
    model = make(DevicePPO, policy=policy, policy_kwargs={"optimizer_kwargs": {"fused": True}}).learn(16)
    samples = [part.to("meta") for part in next(model.rollout_buffer.get(6))]
    model.policy.to("meta")
    model._rates, model.captures = model._rates.to("meta"), True
    with th.no_grad():
        assert all(part.is_meta for part in type(model.policy).forward(model.policy, samples[0]))
    (statistics,) = model._minibatch(*samples)
    assert statistics.is_meta and statistics.shape == (6,)
    assert all(parameter.grad.is_meta for parameter in model.policy.parameters() if parameter.requires_grad)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), n_actions=st.integers(1, 18), seed=st.integers(0, 2**31))
def test_actions_are_drawn_as_sb3_draws_them(n, n_actions, seed):
    logits = 5 * th.randn(n, n_actions, generator=th.Generator().manual_seed(seed))
    drawn = []
    for kind in (DeviceCategorical, CategoricalDistribution):
        th.manual_seed(seed)
        distribution = kind(n_actions).proba_distribution(logits)
        drawn.append((actions := distribution.sample(), distribution.log_prob(actions), distribution.entropy()))
    assert all(th.equal(*pair) for pair in zip(*drawn, strict=True))


def test_recorded_training_is_sb3s(on_tape):
    """To the bit: the recorded rate is float32, so the reference gets such rates too."""
    kwargs = {
        "learning_rate": lambda left: float(np.float32(1e-2 * left)),
        "clip_range": lambda left: 0.3 * left,
        "clip_range_vf": 0.2,
        "n_epochs": 3,
    }
    ours, theirs = (make(kind, **kwargs).learn(96) for kind in (TapedPPO, PPO))
    assert ours.captures and ours._act.n_recorded == 1 and ours._update.n_recorded == 2  # minibatches of 6, and of 4
    assert_same_training(ours, theirs)
    assert np.array_equal(ours.rollout_buffer.actions, theirs.rollout_buffer.actions)


def test_recorded_rollouts_copy_observations_once(on_tape, monkeypatch):
    copied = []
    put = DeviceRolloutBuffer._put
    monkeypatch.setattr(DeviceRolloutBuffer, "_put", lambda *arguments: copied.append(1) or put(*arguments))
    ours = make(TapedPPO, learning_rate=0.0).learn(16)
    assert ours._act.n_recorded == 1 and not copied
    assert "forward" not in vars(ours.policy)  # SB3's again
    theirs = make(PPO, learning_rate=0.0).learn(16)
    assert len(copied) == 8
    for name in ("observations", "_values_there", "_log_probs_there"):
        assert th.equal(getattr(ours.rollout_buffer, name), getattr(theirs.rollout_buffer, name)), name


def recorded(on_tape, **kwargs):
    model = make(TapedPPO, **kwargs).learn(48)
    assert model._update.n_recorded
    return model


def test_recordings_follow_the_schedules(on_tape):
    model = recorded(on_tape)
    before = copy.deepcopy(model.policy.state_dict())
    model.lr_schedule = lambda _: 0.0
    model.train()
    assert same(dict(before), dict(model.policy.state_dict()))
    model.lr_schedule = lambda _: 1e-2
    model.train()
    assert not same(dict(before), dict(model.policy.state_dict()))
    model.clip_range = lambda _: 0.0  # whatever moved is clipped
    model.train()
    assert logged(model)["train/clip_fraction"] > 0.5
    model.clip_range = lambda _: 1e6
    model.train()
    assert logged(model)["train/clip_fraction"] == 0.0
    assert model._update.n_recorded == 2


def test_an_optimiser_between_two_steps_is_as_any_other(on_tape):
    ours, theirs = recorded(on_tape).policy.optimizer, make(PPO).learn(16).policy.optimizer
    assert [{**group, "lr": 0} for group in ours.state_dict()["param_groups"]] == [
        {**group, "lr": 0} for group in theirs.state_dict()["param_groups"]
    ]
    assert all(type(group["lr"]) is float for group in ours.param_groups)


def test_loaded_state_is_trained_on_not_what_was_recorded(on_tape):
    model = recorded(on_tape)
    saved = copy.deepcopy(model.policy.optimizer.state_dict())
    weights = copy.deepcopy(model.policy.state_dict())
    trained = []
    for _ in range(2):
        model.policy.load_state_dict(weights)
        model.policy.optimizer.load_state_dict(copy.deepcopy(saved))
        th.manual_seed(0), np.random.seed(0)
        model.train()
        trained.append(copy.deepcopy(dict(model.policy.state_dict())))
    assert same(*trained)
    steps = [int(state["step"]) for state in model.policy.optimizer.state.values()]
    assert set(steps) == {int(saved["state"][0]["step"]) + 6}


def test_a_recorded_run_goes_on_bit_for_bit(on_tape, tmp_path):
    """With all of a run's callbacks, and from a checkpoint that was written between two recorded updates."""

    def model():
        return make(TapedPPO, EnvTimer(tiny_env()), learning_rate=2.0**-10, batch_size=8)

    whole, _ = session(tmp_path / "whole", model=model())
    assert whole._update.n_recorded == whole._act.n_recorded == 1
    resumed, outcome = session(stopped_at(tmp_path / "whole", 48, tmp_path / "run"), resume=True, model=model())
    assert outcome.finished and resumed.num_timesteps == whole.num_timesteps
    assert same(dict(resumed.policy.state_dict()), dict(whole.policy.state_dict()))
    assert same(resumed.policy.optimizer.state_dict(), whole.policy.optimizer.state_dict())


def test_bf16_is_recorded(on_tape):
    models = []
    for kind in (TapedPPO, PPO):
        model = make(kind, learning_rate=2.0**-10)
        set_precision(model.policy, "bf16")
        models.append(model.learn(48))
    assert models[0]._update.n_recorded == 2
    assert_same_training(*models)


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({}, "GPU"),
        ({"target_kl": 0.1}, "target_kl"),
        ({"policy_kwargs": {"optimizer_class": th.optim.SGD}}, "fused"),
        ({"policy": "CnnPolicy"}, "fused"),
        ({"env": (IMAGE, spaces.Box(-1, 1, (2,), np.float32))}, "Discrete"),
        ({"env": (spaces.Dict(picture=IMAGE), spaces.Discrete(3))}, "several"),
        ({"env": (IMAGE, spaces.Box(-1, 1, (2,), np.float32)), "use_sde": True}, "Discrete"),
    ],
)
def test_what_cannot_be_recorded_is_refused_where_it_must_be(kwargs, word, request):
    if kwargs:
        request.getfixturevalue("on_tape")
    if found := kwargs.get("env"):
        kwargs = {**kwargs, "env": DummyVecEnv([lambda: Random(*found)])}
    with pytest.raises(ValueError, match=word):
        make(DevicePPO, captured=True, **kwargs)
    assert not make(DevicePPO, **kwargs).captures


def test_recording_can_be_left_out(on_tape):
    assert make(TapedPPO).captures and not make(TapedPPO, captured=False).captures


def test_an_agent_is_the_same_whoever_trained_it(tmp_path):
    ours, theirs = (make(kind).learn(32) for kind in (DevicePPO, PPO))
    assert describe(ours) == describe(theirs)
    save_agent(ours, tmp_path / "agent")
    loaded = load_agent(tmp_path / "agent")
    assert type(loaded) is PPO and same(dict(loaded.policy.state_dict()), dict(theirs.policy.state_dict()))
    ours.save(tmp_path / "model.zip")
    for kind in (PPO, DevicePPO):
        again = kind.load(tmp_path / "model.zip", env=tiny_env(), device="cpu")
        assert same(dict(again.policy.state_dict()), dict(ours.policy.state_dict()))
        again.learn(16)


def test_a_subclass_that_says_nothing_is_still_refused():
    class Other(PPO):
        pass

    with pytest.raises(ValueError, match="Other"):
        describe(make(Other))


def test_the_loop_is_chosen_by_name():
    h = PPOHyperparameters(n_steps=8, batch_size=8)
    kinds = {}
    for loop in ("auto", "sb3", "device"):
        model = build_ppo(tiny_env(), total_timesteps=64, hyperparameters=h, device="cpu", loop=loop)
        kinds[loop] = type(model)
    assert kinds == {"auto": PPO, "sb3": PPO, "device": DevicePPO}
    with pytest.raises(ValueError, match="GPU"):
        build_ppo(tiny_env(), total_timesteps=64, hyperparameters=h, device="cpu", loop="captured")
    with pytest.raises(ValueError, match="loop"):
        build_ppo(tiny_env(), total_timesteps=64, hyperparameters=h, device="cpu", loop="fast")


def test_pinned_observations_are_the_environments_in_memory_of_their_own(monkeypatch):
    pinned = []

    def pin(tensor):
        pinned.append(copy.deepcopy(tensor))
        return pinned[-1]

    monkeypatch.setattr(th.Tensor, "pin_memory", pin)
    env, twin = tiny_env(), tiny_env()
    env.reset(), twin.reset()
    steps = PinnedSteps(env)
    assert steps.num_envs == 2
    for _ in range(3):
        actions = np.array([0, 1])
        for ours, theirs in zip(steps.step(actions)[:3], twin.step(actions)[:3], strict=True):
            assert np.array_equal(ours, theirs)
    assert len({tensor.data_ptr() for tensor in pinned}) == 3


def test_recorder_is_one_of_the_gpu(monkeypatch):
    made = []
    monkeypatch.setattr(device_ppo, "CUDAGraphs", lambda device: made.append(device))
    make(DevicePPO)._recorder()
    assert made == [th.device("cpu")]
