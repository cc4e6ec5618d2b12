"""The same numbers on every device there is, and agents that move between them: `make test-gpu` runs these."""

import copy
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import Logger
from torch._dynamo.utils import counters

from agents.dqn import DQNHyperparameters, build_dqn
from agents.encoders import encoder_of
from agents.play.evaluate import evaluate
from agents.play.saliency import saliency
from agents.ppo import PPOHyperparameters, build_ppo
from agents.runs.callbacks import encoder_health
from agents.runs.checkpoints import restore_model, write_checkpoint
from agents.runs.state import Clock, capture, restore_counters, restore_session
from mnv4_rl import list_models
from mnv4_rl.agent_files import load_agent, save_agent
from mnv4_rl.agent_format import describe
from mnv4_rl.export.acting import fold
from mnv4_rl.extractors import MNV4Extractor
from mnv4_rl.performance import compile_encoders, set_precision
from mnv4_rl.replay import AtariReplayBuffer
from mnv4_rl.rollout import DeviceRolloutBuffer
from tests.mnv4_rl.replay_streams import assert_same_samples
from tests.tiny_env import ActionsAsImage, same, tiny_env

ENCODERS = (*list_models("rl"), "nature", "impala")
SPACE = ActionsAsImage.observation_space
PPO = PPOHyperparameters(n_steps=8, n_epochs=2, batch_size=8)
# Where PPO is trained, and by which loop of ours.
LOOPS = [("cpu", "device"), *([("cuda", "device"), ("cuda", "captured")] if th.cuda.is_available() else [])]
DQN = DQNHyperparameters(buffer_size=64, learning_starts=16, batch_size=8, train_freq=4)


@pytest.fixture(autouse=True)
def _full_precision():
    """TF32 has 10 bits; where it is meant, the benchmark asks for it."""
    with th.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def ppo(device, encoder="rl_s", loop="auto", **kwargs):
    h = replace(PPO, **kwargs)
    return build_ppo(tiny_env(), encoder, total_timesteps=64, hyperparameters=h, seed=0, device=device, loop=loop)


def dqn(device, encoder="rl_s"):
    return build_dqn(tiny_env(), encoder, hyperparameters=DQN, seed=0, device=device)


BUILDERS = {"ppo": ppo, "dqn": dqn}


def pictures(n=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *SPACE.shape), np.uint8)


def outputs(model, observations):
    """What actions are chosen by: logits and values, or Q values."""
    tensor = model.policy.obs_to_tensor(observations)[0]
    with th.no_grad():
        if hasattr(model.policy, "q_net"):
            return model.policy.q_net(tensor).cpu()
        logits = model.policy.get_distribution(tensor).distribution.logits
        return th.cat([logits, model.policy.predict_values(tensor)], 1).cpu()


def assert_close(ours, reference, rtol=1e-3):
    """To a share of the largest number, as kernels sum in other orders."""
    th.testing.assert_close(ours, reference, rtol=rtol, atol=rtol * float(reference.abs().max()))


def twin(model, device, build):
    """The same agent on another device."""
    other = build(device)
    other.policy.load_state_dict(model.policy.state_dict())
    return other


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_encoder_gives_the_features_and_gradients_of_the_cpu(device, encoder):
    reference = encoder_of(ppo("cpu", encoder))
    there = copy.deepcopy(reference).to(device)
    images = th.as_tensor(pictures())
    for extractor in (reference, there):
        batch = images.to(next(extractor.parameters()).device)
        extractor(batch if encoder.startswith("rl") else batch.float() / 255).square().mean().backward()
    assert next(there.parameters()).device.type == device
    for ours, theirs in zip(there.parameters(), reference.parameters(), strict=True):
        assert_close(ours.grad.cpu(), theirs.grad)


@pytest.mark.parametrize("algo", BUILDERS)
def test_a_policy_gives_the_numbers_of_the_cpu(device, algo):
    reference = BUILDERS[algo]("cpu")
    assert_close(outputs(twin(reference, device, BUILDERS[algo]), pictures()), outputs(reference, pictures()))


@pytest.mark.parametrize("algo", BUILDERS)
def test_training_moves_the_weights_and_keeps_them_finite(device, algo):
    model = BUILDERS[algo](device)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(64)
    after = list(model.policy.parameters())
    assert all(parameter.device.type == device and parameter.isfinite().all() for parameter in after)
    assert sum(not th.equal(*pair) for pair in zip(before, after, strict=True)) >= len(after) / 2  # not DQN's target
    assert encoder_health(model, pictures())["feature_std"] > 0


def test_a_ppo_step_is_that_of_the_cpu(device):
    """One minibatch of all: its order is the device's own."""
    reference = ppo("cpu")
    reference.batch_size, reference.n_epochs = 16, 1
    there = twin(reference, device, ppo)
    there.batch_size, there.n_epochs = 16, 1
    for model in (reference, there):
        fill(model.rollout_buffer)
        model.set_logger(Logger(None, []))
        model.train()
    assert_close(outputs(there, pictures()), outputs(reference, pictures()), rtol=1e-2)
    losses = [model.logger.name_to_value["train/value_loss"] for model in (reference, there)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


each_loop = pytest.mark.parametrize(("device", "loop"), LOOPS)


@each_loop
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_updates_are_sb3s_on_the_same_device(device, loop, precision, compiled):
    """Recorded from the fourth minibatch on, where it is captured."""
    ours, theirs = ppo(device, loop=loop), ppo(device, loop="sb3")
    for model in (ours, theirs):
        set_precision(model.policy, precision)
        model.set_logger(Logger(None, []))
    if compiled:
        assert compile_encoders(ours.policy, graphs=not ours.captures) == 1
    assert ours.captures == (loop == "captured")
    for update in range(4):
        for model in (ours, theirs):
            model._current_progress_remaining = 1 - update / 8
            fill(model.rollout_buffer, update)
            np.random.seed(update)
            model.train()
        assert_close(outputs(ours, pictures()), outputs(theirs, pictures()), rtol=1e-2 if precision == "fp32" else 0.1)
    assert ours.logger.name_to_value["train/n_updates"] == theirs.logger.name_to_value["train/n_updates"] == 8
    if ours.captures:
        assert ours._update.n_recorded == 1


@each_loop
def test_updates_follow_the_schedules(device, loop):
    model = ppo(device, loop=loop).learn(32)
    weights = copy.deepcopy(model.policy.state_dict())
    model.lr_schedule = lambda _: 0.0
    model.train()
    assert same(dict(weights), dict(model.policy.state_dict()))
    model.lr_schedule = lambda _: 1e-2
    model.clip_range = lambda _: 0.0
    model.train()
    assert not same(dict(weights), dict(model.policy.state_dict()))
    assert model.logger.name_to_value["train/clip_fraction"] > 0


@each_loop
def test_acting_is_by_the_policy_as_it_is(device, loop):
    """Of every rollout, the recorded ones among them: values and log-probabilities are those of its actions."""
    model = ppo(device, loop=loop, learning_rate=0.0).learn(64)
    if model.captures:
        assert model._act.n_recorded == 1
    np.random.seed(0)
    drawn = next(model.rollout_buffer.get())
    with th.no_grad():
        values, log_probs, _ = model.policy.evaluate_actions(drawn.observations, drawn.actions.flatten())
    assert_close(values.flatten().cpu(), drawn.old_values.cpu())
    assert_close(log_probs.cpu(), drawn.old_log_prob.cpu())
    assert set(drawn.actions.flatten().tolist()) == {0.0, 1.0}
    assert drawn.observations.float().std() > 0


@each_loop
def test_a_loop_lives_in_any_thread(device, loop):
    trained = []
    thread = threading.Thread(target=lambda: trained.append(ppo(device, loop=loop).learn(32)))
    thread.start()
    thread.join()
    assert trained[0].num_timesteps == 32


def test_a_goal_for_the_divergence_is_looked_at(device):
    model = ppo(device)
    model.target_kl = 1e-9
    model._setup_model()
    assert not model.learn(32).num_timesteps < 32 and not getattr(model, "captures", False)
    assert model._n_updates < 2 * 2 * 2


def fill(buffer, seed=0):
    rng = np.random.default_rng(seed)
    buffer.reset()
    for _ in range(buffer.buffer_size):
        values, log_probs = (th.as_tensor(rng.normal(size=(2,)), dtype=th.float32) for _ in range(2))
        observations, actions = pictures(2, rng.integers(99)), rng.integers(0, 2, (2, 1))
        buffer.add(observations, actions, rng.normal(size=2), np.zeros(2), values, log_probs)
    buffer.compute_returns_and_advantage(th.zeros(2), np.ones(2, bool))


def test_rollouts_lie_on_the_device_and_are_sampled_as_on_the_cpu(device):
    buffers = [DeviceRolloutBuffer(8, SPACE, ActionsAsImage.action_space, where, n_envs=2) for where in (device, "cpu")]
    drawn = []
    for buffer in buffers:
        fill(buffer)
        np.random.seed(0)
        drawn.append(next(buffer.get(6)))
    assert buffers[0].observations.device.type == drawn[0].observations.device.type == device
    assert drawn[0].observations.dtype == th.uint8
    for ours, theirs in zip(*drawn, strict=True):
        assert th.equal(ours.cpu(), theirs)


def test_replay_samples_are_those_of_the_cpu(device):
    drawn = []
    for where in (device, "cpu"):
        buffer = AtariReplayBuffer(64, SPACE, ActionsAsImage.action_space, where, n_envs=2)
        for step in range(40):
            done = np.array([step % 8 == 7] * 2)
            buffer.add(pictures(2, step), pictures(2, step + 1), np.zeros(2), np.ones(2), done, [{}, {}])
        np.random.seed(0)
        drawn.append(buffer.sample(16))
    assert drawn[0].observations.device.type == device
    assert_same_samples(type(drawn[1])(*(None if part is None else part.cpu() for part in drawn[0])), drawn[1])


@pytest.mark.parametrize("algo", BUILDERS)
def test_a_checkpoint_goes_on_on_either_device(device, algo, tmp_path):
    for source, target in ((device, "cpu"), ("cpu", device)):
        model = BUILDERS[algo](source).learn(32)
        checkpoint = write_checkpoint(model, tmp_path / source, state := capture(model, Clock()), describe(model))
        resumed = BUILDERS[algo](target)
        restore_model(resumed, checkpoint)
        restore_counters(resumed, state)
        resumed.set_logger(Logger(None, []))
        restore_session(resumed, state)
        assert_close(outputs(resumed, pictures()), outputs(model, pictures()))
        resumed.learn(32, reset_num_timesteps=False)
        assert resumed.num_timesteps == 64
        assert all(parameter.isfinite().all() for parameter in resumed.policy.parameters())


@pytest.mark.parametrize("algo", BUILDERS)
def test_an_agent_file_is_loaded_on_either_device(device, algo, tmp_path):
    model = BUILDERS[algo](device).learn(32)
    save_agent(model, tmp_path / "agent")
    for target in ("cpu", device):
        loaded = load_agent(tmp_path / "agent", device=target)
        assert loaded.device.type == target
        assert_close(outputs(loaded, pictures()), outputs(model, pictures()))


def test_whole_games_are_played(device):
    assert len(evaluate(ppo(device), tiny_env(), 4).scores) == 4


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_agent_is_folded_where_it_was_trained(device, encoder):
    reference = ppo("cpu", encoder)
    folded = fold(twin(reference, device, partial(ppo, encoder=encoder)))
    assert {parameter.device.type for parameter in folded.parameters()} == {"cpu"}
    logits = reference.policy.get_distribution(reference.policy.obs_to_tensor(pictures())[0]).distribution.logits
    scores, _ = folded(th.as_tensor(pictures()))
    assert_close(scores.log_softmax(1), logits)


def test_saliency_is_that_of_the_cpu(device):
    reference = ppo("cpu")
    maps = [saliency(model, pictures(1)[0]) for model in (twin(reference, device, ppo), reference)]
    assert maps[0].shape == (5, 5) and maps[1].max() > 0
    assert_close(*map(th.as_tensor, maps), rtol=1e-2)


def test_bf16_is_near_and_trains(device):
    model = ppo(device)
    exact = outputs(model, pictures())
    set_precision(model.policy, "bf16")
    rough = outputs(model, pictures())
    assert rough.dtype == th.float32 and not th.equal(rough, exact)
    assert_close(rough, exact, rtol=0.1)
    model.learn(32)


@pytest.mark.parametrize("encoder", ["rl_s", "rl_m"])
def test_construction_takes_the_default_device(device, encoder):
    with th.device(device):
        extractor = MNV4Extractor(SPACE, variant=encoder)
    assert {tensor.device.type for tensor in (*extractor.parameters(), *extractor.buffers())} == {device}
    assert extractor(th.as_tensor(pictures()).to(device)).isfinite().all()


def test_construction_without_arithmetic():
    with th.device("meta"):
        extractor = MNV4Extractor(SPACE)
        features = extractor(th.empty(2, *SPACE.shape, dtype=th.uint8))
    assert features.is_meta and features.shape == (2, extractor.features_dim)
    assert all(parameter.is_meta for parameter in extractor.parameters())


@pytest.mark.slow
def test_compiled_is_seen_to_be_compiled_and_agrees(device):
    """Graphs are counted: one for acting, one for training, and no more."""
    th.compiler.reset()
    counters.clear()
    model = ppo(device)
    exact = outputs(model, pictures())
    assert compile_encoders(model.policy, graphs=not getattr(model, "captures", False)) == 1
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert_close(outputs(model, pictures()), exact)
    model.learn(32)
    compiled = counters["stats"]["unique_graphs"]
    assert compiled >= 2 and counters["frames"]["ok"] == counters["frames"]["total"]  # with gradients too
    assert encoder_health(model, pictures())["std_stem"] > 0  # its hooks would compile anew, until PyTorch gives up
    model.learn(32)
    assert counters["stats"]["unique_graphs"] == compiled
