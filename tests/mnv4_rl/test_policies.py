"""The policies that leave images uint8: SB3's numbers, and SB3's own behaviour for everything else."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import NatureCNN

from agents.encoders import policy_kwargs
from mnv4_rl import MNV4Extractor, list_models
from mnv4_rl.agent_files import load_agent, save_agent
from mnv4_rl.policies import PixelActorCriticPolicy, PixelDQNPolicy
from tests.tiny_env import EPISODE, ActionsAsImage, tiny_env

SPACE, ACTIONS = ActionsAsImage.observation_space, ActionsAsImage.action_space
FAST = {PPO: PixelActorCriticPolicy, DQN: PixelDQNPolicy}
# All RL encoders, the smallest of either other family, and a baseline.
ENCODERS = [*list_models("rl"), "mobilenet_v4_nano", "mnv4_conv_s", "impala"]


def pixels(n, shape=SPACE.shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def agent(algorithm, policy, encoder="rl_s", **settings):
    """An agent that makes one update of plain gradient descent on everything it has seen."""
    kwargs = {**policy_kwargs(encoder, features_dim=16), "optimizer_class": th.optim.SGD}
    if algorithm is PPO:
        settings = {"n_steps": EPISODE, "batch_size": 2 * EPISODE, "n_epochs": 1, **settings}
    else:
        settings = {"buffer_size": 64, "batch_size": 16, "learning_starts": 0, **settings}
    env = tiny_env()
    model = algorithm(policy, env, policy_kwargs=kwargs, seed=0, device="cpu", **settings)
    model.set_logger(Logger(None, []))
    return model


def fill_rollout(model):
    """Random pictures, so that no two samples are alike."""
    buffer, n_envs = model.rollout_buffer, model.n_envs
    buffer.reset()
    for step in range(buffer.buffer_size):
        values, log_probs = th.full((n_envs,), 0.1 * step), th.full((n_envs,), -0.7)
        actions = np.full((n_envs, 1), step % 2)
        buffer.add(pixels(n_envs, seed=step), actions, np.full(n_envs, step), np.zeros(n_envs), values, log_probs)
    buffer.compute_returns_and_advantage(values, np.zeros(n_envs))


def fill_replay(model):
    """Random pictures, so that no two samples are alike."""
    for step in range(8):
        pictures, actions = pixels(4, seed=step), np.full((2, 1), step % 2)
        model.replay_buffer.add(pictures[:2], pictures[2:], actions, np.full(2, step), np.zeros(2), [{}, {}])


def update(model):
    """Loss and gradients of one update."""
    np.random.seed(0)  # the order of the samples
    if isinstance(model, PPO):
        fill_rollout(model)
        model.train()
    else:
        fill_replay(model)
        model.train(gradient_steps=1, batch_size=16)
    loss = {key: value for key, value in model.logger.name_to_value.items() if key.endswith("loss")}
    return loss, {name: p.grad for name, p in model.policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_features_losses_and_gradients_are_those_of_cnn_policy(algorithm, encoder):
    plain, fast = (agent(algorithm, policy, encoder) for policy in ("CnnPolicy", FAST[algorithm]))
    fast.policy.load_state_dict(plain.policy.state_dict())
    batch = th.as_tensor(pixels(3, seed=99))
    features = [encoder_owner(model).extract_features(batch, encoder_of(model)) for model in (plain, fast)]
    th.testing.assert_close(*features, rtol=1e-4, atol=1e-5)
    (loss, gradients), (fast_loss, fast_gradients) = update(plain), update(fast)
    assert loss and fast_loss == pytest.approx(loss, rel=1e-4)
    assert gradients.keys() == fast_gradients.keys() and any("features_extractor" in name for name in gradients)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        th.testing.assert_close(fast_gradients[name], gradient, rtol=1e-3, atol=1e-4 * largest, msg=name)


def encoder_owner(model):
    """The module whose `extract_features` sees the observations."""
    return model.policy if isinstance(model, PPO) else model.policy.q_net


def encoder_of(model):
    return encoder_owner(model).features_extractor


def inputs_of(module):
    """A list that collects what a module is called with."""
    seen = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return seen


@pytest.mark.parametrize("algorithm", [PPO, DQN])
@pytest.mark.parametrize("encoder", ["rl_s", "nature"])
def test_images_stay_uint8_for_our_encoder_and_are_scaled_floats_for_naturecnn(algorithm, encoder):
    """While acting, and in an update."""
    model = agent(algorithm, FAST[algorithm], encoder)
    seen = inputs_of(encoder_of(model))
    images = pixels(3)
    model.predict(images)
    update(model)
    assert len(seen) >= 2
    if encoder == "rl_s":
        assert {x.dtype for x in seen} == {th.uint8}
        assert np.array_equal(seen[0].numpy(), images)
    else:
        assert {x.dtype for x in seen} == {th.float32}
        assert all(0 <= x.min() and 0.9 < x.max() <= 1 for x in seen)


def test_every_way_into_the_actor_critic_leaves_images_uint8():
    """Encoders that are not shared, and A2C, are SB3's own cases."""
    kwargs = {**policy_kwargs("rl_s", features_dim=16), "share_features_extractor": False}
    model = A2C(PixelActorCriticPolicy, tiny_env(), policy_kwargs=kwargs, device="cpu")
    actor, critic = inputs_of(model.policy.pi_features_extractor), inputs_of(model.policy.vf_features_extractor)
    images = th.as_tensor(pixels(3))
    model.policy.evaluate_actions(images, th.zeros(3))
    model.policy.get_distribution(images)
    model.policy.predict_values(images)
    model.learn(10)
    assert len(actor) >= 3 and len(critic) >= 3
    assert {x.dtype for x in actor + critic} == {th.uint8}


def policy(space, extractor=MNV4Extractor, base=PixelActorCriticPolicy, **kwargs):
    th.manual_seed(0)
    return base(space, ACTIONS, lambda _: 1e-3, net_arch=[], features_extractor_class=extractor, **kwargs)


@pytest.mark.parametrize("base", [PixelActorCriticPolicy, PixelDQNPolicy])
def test_channels_last_images(base):
    """A policy by itself, without SB3's environment that moves the channels."""
    last = policy(spaces.Box(0, 255, (36, 40, 3), np.uint8), base=base)
    first = policy(spaces.Box(0, 255, (3, 36, 40), np.uint8), base=base)
    first.load_state_dict(last.state_dict())
    images = th.as_tensor(pixels(2, (36, 40, 3)))
    owners = [p.q_net if base is PixelDQNPolicy else p for p in (last, first)]
    features = [
        owner.extract_features(x, owner.features_extractor)
        for owner, x in zip(owners, (images, images.permute(0, 3, 1, 2).contiguous()), strict=True)
    ]
    assert th.equal(*features)


def test_float_images_are_left_to_sb3():
    seen = inputs_of((model := policy(spaces.Box(0, 1, (4, 36, 36), np.float32))).features_extractor)
    images = th.rand(2, 4, 36, 36)
    model.extract_features(images)
    assert th.equal(seen[0], images)


def test_uint8_that_sb3_would_not_divide_is_left_to_sb3():
    """A mask of zeros and ones."""
    model = policy(spaces.Box(0, 1, (4, 36, 36), np.uint8), features_extractor_kwargs={"normalized_image": True})
    seen = inputs_of(model.features_extractor)
    model.extract_features(th.ones(2, 4, 36, 36, dtype=th.uint8))
    assert seen[0].dtype == th.float32 and seen[0].max() == 1


def test_floats_of_a_uint8_space_are_scaled_by_sb3():
    """Saliency blurs a picture, which is float then, in [0, 255] still."""
    model, images = policy(SPACE), th.as_tensor(pixels(2))
    th.testing.assert_close(model.extract_features(images.float()), model.extract_features(images))


def test_normalize_images_false_keeps_sb3s_meaning():
    """SB3 then hands over floats from 0 to 255: our encoder says what is wrong, one told to trust them takes them."""
    images = th.as_tensor(pixels(2))
    with pytest.raises(ValueError, match="Drop normalize_images=False"):
        policy(SPACE, normalize_images=False).extract_features(images)
    trusting = policy(SPACE, normalize_images=False, features_extractor_kwargs={"normalized_image": True})
    seen = inputs_of(trusting.features_extractor)
    trusting.extract_features(images)
    assert seen[0].dtype == th.float32 and seen[0].max() > 200


def test_extractor_of_somebody_else_gets_scaled_floats():
    class Mean(NatureCNN):
        def forward(self, observations):
            return observations.mean((2, 3)).repeat(1, 128)

    images = th.full((2, 4, 36, 36), 51, dtype=th.uint8)
    assert policy(SPACE, Mean).extract_features(images) == pytest.approx(0.2)


def test_bf16_autocast_trains():
    model = policy(SPACE)
    with th.autocast("cpu", th.bfloat16):
        values, log_probs, _ = model.evaluate_actions(th.as_tensor(pixels(4)), th.zeros(4))
        (values.mean() + log_probs.mean()).float().backward()
    gradient = model.features_extractor.network.stem.conv.conv.weight.grad
    assert gradient.dtype == th.float32 and gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_sb3s_own_zip_and_a_saved_agent_act_alike(algorithm, tmp_path):
    settings = {"n_steps": EPISODE, "batch_size": 8} if algorithm is PPO else {"buffer_size": 64, "learning_starts": 8}
    kwargs = policy_kwargs("rl_s", features_dim=16)
    model = algorithm(FAST[algorithm], tiny_env(), policy_kwargs=kwargs, seed=0, device="cpu", **settings).learn(32)
    model.save(tmp_path / "model.zip")
    save_agent(model, tmp_path / "agent")
    images = pixels(32)
    expected = model.predict(images, deterministic=True)[0]
    for loaded in (algorithm.load(tmp_path / "model.zip", device="cpu"), load_agent(tmp_path / "agent", device="cpu")):
        assert type(loaded.policy) is FAST[algorithm]
        np.testing.assert_array_equal(loaded.predict(images, deterministic=True)[0], expected)


def test_agent_of_cnn_policy_comes_back_with_its_numbers(tmp_path):
    kwargs = policy_kwargs("rl_s")
    model = PPO("CnnPolicy", tiny_env(), n_steps=EPISODE, batch_size=8, policy_kwargs=kwargs, device="cpu")
    loaded = load_agent(save_agent(model, tmp_path / "agent"), device="cpu")
    images = th.as_tensor(pixels(8))
    th.testing.assert_close(loaded.policy.predict_values(images), model.policy.predict_values(images))
