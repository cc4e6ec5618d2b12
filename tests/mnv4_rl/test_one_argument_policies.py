"""``PPO(MNV4Policy, env)``: our defaults, every one of which gives way, in SB3's and sb3-contrib's algorithms."""

import sys

import numpy as np
import pytest
import torch as th
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN

from mnv4_rl import MNV4CombinedExtractor, MNV4Extractor
from mnv4_rl.contrib import MNV4MaskablePolicy, MNV4QRDQNPolicy, MNV4RecurrentPolicy
from mnv4_rl.models.registry import DEFAULT_VARIANT
from mnv4_rl.performance import set_precision
from mnv4_rl.policies import MNV4DQNPolicy, MNV4Policy, MNV4SACPolicy, MNV4TD3Policy, PixelActorCriticPolicy, PixelModel
from tests.mnv4_rl.seek_env import SeekEnv

ON = {"n_steps": 8, "batch_size": 8}
OFF = {"buffer_size": 64, "learning_starts": 8, "batch_size": 8}
POLICIES = {
    PPO: (MNV4Policy, ON),
    A2C: (MNV4Policy, {}),
    TRPO: (MNV4Policy, ON),
    DQN: (MNV4DQNPolicy, OFF),
    SAC: (MNV4SACPolicy, OFF),
    TD3: (MNV4TD3Policy, OFF),
    QRDQN: (MNV4QRDQNPolicy, OFF),
    RecurrentPPO: (MNV4RecurrentPolicy, ON),
    MaskablePPO: (MNV4MaskablePolicy, ON),
}
every_algorithm = pytest.mark.parametrize("algorithm", POLICIES, ids=lambda algorithm: algorithm.__name__)


def agent(algorithm, with_vector=False, **policy_kwargs):
    policy, settings = POLICIES[algorithm]
    env = SeekEnv(continuous=algorithm in (SAC, TD3), with_vector=with_vector)
    return algorithm(policy, env, seed=0, device="cpu", policy_kwargs=policy_kwargs or None, **settings)


def encoders(model):
    return [module for module in model.policy.modules() if isinstance(module, MNV4Extractor)]


def optimizers(model):
    policy = model.policy
    return [policy.actor.optimizer, policy.critic.optimizer] if hasattr(policy, "actor") else [policy.optimizer]


def some(model, n=4):
    """Random observations."""
    model.observation_space.seed(1)
    return [model.observation_space.sample() for _ in range(n)]


def actions(model, observations):
    return np.stack([model.predict(observation, deterministic=True)[0] for observation in observations])


@every_algorithm
@pytest.mark.parametrize("with_vector", [False, True], ids=["image", "dict"])
def test_learns_a_step_and_every_encoder_sees_uint8(algorithm, with_vector):
    model = agent(algorithm, with_vector)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    dtypes = set()
    for encoder in encoders(model):
        encoder.register_forward_pre_hook(lambda _, inputs: dtypes.add(inputs[0].dtype))
    model.learn(24)
    actions(model, some(model))
    assert dtypes == {th.uint8}
    changed = {name for name, value in model.policy.state_dict().items() if not th.equal(value, before[name])}
    assert any("stem" in name for name in changed)


@every_algorithm
def test_defaults(algorithm):
    model = agent(algorithm)
    assert {encoder.network.spec.name for encoder in encoders(model)} == {DEFAULT_VARIANT}
    assert {encoder.features_dim for encoder in encoders(model)} == {512}
    assert model.policy.net_arch == ([256, 256] if algorithm in (SAC, TD3) else [])
    fused = {optimizer.defaults.get("fused") for optimizer in optimizers(model)}
    assert fused == ({None} if algorithm is A2C else {True})  # A2C brings RMSprop


@pytest.mark.parametrize(("algorithm", "builtin"), [(PPO, "CnnPolicy"), (DQN, "CnnPolicy"), (QRDQN, "CnnPolicy")])
def test_adam_is_sb3s_own_but_fused(algorithm, builtin):
    ours = optimizers(agent(algorithm))[0].defaults
    sb3s = optimizers(algorithm(builtin, SeekEnv(), device="cpu", **POLICIES[algorithm][1]))[0].defaults
    assert type(ours["lr"]) is type(sb3s["lr"]) and ours == sb3s | {"fused": True}


@every_algorithm
def test_names_and_numbers_reach_the_encoder(algorithm):
    model = agent(algorithm, variant="rl_m", features_dim=24, features_extractor_kwargs={"grid": 2})
    assert {encoder.network.spec.name for encoder in encoders(model)} == {"rl_m"}
    assert {encoder.features_dim for encoder in encoders(model)} == {24}
    assert {encoder.network.head.grid for encoder in encoders(model)} == {(2, 2)}
    images = agent(algorithm, with_vector=True, features_dim=24)
    assert {encoder.features_dim for encoder in encoders(images)} == {24}


@every_algorithm
def test_everything_gives_way(algorithm):
    model = agent(
        algorithm, features_extractor_class=NatureCNN, net_arch=[8], optimizer_class=th.optim.SGD, optimizer_kwargs={}
    )
    assert encoders(model) == [] and model.policy.net_arch == [8]
    assert all(type(optimizer) is th.optim.SGD for optimizer in optimizers(model))


@pytest.mark.parametrize("given", [{"fused": False}, {"foreach": True}, {"foreach": False}, {"differentiable": True}])
def test_another_adam_can_be_asked_for(given):
    defaults = optimizers(agent(PPO, optimizer_kwargs=given))[0].defaults
    assert given.items() <= defaults.items() and not defaults["fused"] and defaults["eps"] == 1e-8


def test_no_policy_kwargs_are_changed():
    extractor, optimizer = {"grid": 2}, {"eps": 1e-3}
    agent(PPO, variant="rl_s", features_extractor_kwargs=extractor, optimizer_kwargs=optimizer)
    assert extractor == {"grid": 2} and optimizer == {"eps": 1e-3}


def test_same_numbers_as_the_long_form():
    kwargs = {
        "features_extractor_class": MNV4Extractor,
        "net_arch": [],
        "optimizer_kwargs": {"eps": 1e-5, "fused": True},
    }
    long = PPO(PixelActorCriticPolicy, SeekEnv(), policy_kwargs=kwargs, seed=0, device="cpu", **ON).learn(16)
    for (name, mine), theirs in zip(
        agent(PPO).learn(16).policy.state_dict().items(), long.policy.state_dict().values(), strict=True
    ):
        th.testing.assert_close(mine, theirs, rtol=0, atol=0, msg=name)


@every_algorithm
@pytest.mark.parametrize("with_vector", [False, True], ids=["image", "dict"])
def test_sb3s_zip_and_set_parameters_bring_it_back(algorithm, with_vector, tmp_path):
    model = agent(algorithm, with_vector, features_dim=16).learn(16)
    model.save(tmp_path / "model.zip")
    observations = some(model)
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    fresh = agent(algorithm, with_vector, features_dim=16)
    fresh.set_parameters(str(tmp_path / "model.zip"), device="cpu")
    for other in (loaded, fresh):
        assert type(other.policy) is POLICIES[algorithm][0]
        np.testing.assert_array_equal(actions(other, observations), actions(model, observations))
    loaded.set_env(SeekEnv(continuous=algorithm in (SAC, TD3), with_vector=with_vector))
    loaded.learn(16)


@every_algorithm
def test_policy_alone_comes_back(algorithm, tmp_path):
    model = agent(algorithm, features_dim=16)
    model.policy.save(tmp_path / "policy.pt")
    loaded = POLICIES[algorithm][0].load(tmp_path / "policy.pt", device="cpu")
    observation = some(model, 1)[0]
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], actions(model, [observation])[0])


def test_dict_images_give_the_numbers_of_sb3s_preprocessing():
    model = agent(PPO, with_vector=True, features_dim=16)
    batch = {"camera": th.as_tensor(np.stack([o["camera"] for o in some(model)])), "told": th.ones(4, 3)}
    extractor = model.policy.features_extractor
    assert isinstance(extractor, MNV4CombinedExtractor)
    scaled = extractor({**batch, "camera": batch["camera"].float() / 255})
    th.testing.assert_close(model.policy.extract_features(batch), scaled, rtol=1e-4, atol=1e-5)


def test_dict_with_sb3s_extractor_gets_scaled_images():
    model = agent(PPO, with_vector=True, features_extractor_class=CombinedExtractor)
    seen = []
    nature = model.policy.features_extractor.extractors["camera"]
    nature.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    actions(model, some(model))
    assert all(image.dtype == th.float32 and 0.5 < image.max() <= 1 for image in seen)


@pytest.mark.parametrize("algorithm", [SAC, TD3])
@pytest.mark.parametrize("shared", [False, True])
def test_who_trains_the_encoder(algorithm, shared):
    """Each by its own loss; a shared one by the actor's loss alone."""
    model = agent(algorithm, features_dim=16, share_features_extractor=shared)
    policy = model.policy
    assert (policy.actor.features_extractor is policy.critic.features_extractor) == shared
    action = th.zeros(4, 1)
    observations = th.as_tensor(np.stack(some(model)))
    stem = policy.critic.features_extractor.network.stem.conv.conv.weight
    sum(q.sum() for q in policy.critic(observations, action)).backward()
    assert (stem.grad is None) == shared
    stem = policy.actor.features_extractor.network.stem.conv.conv.weight
    policy.actor(observations).sum().backward()
    assert stem.grad is not None and any(
        stem is p for group in optimizers(model)[0].param_groups for p in group["params"]
    )


@every_algorithm
def test_bf16_reaches_every_network(algorithm):
    model = agent(algorithm, features_dim=16)
    layers = [encoder.network.head.fc for encoder in encoders(model)]
    dtypes = []
    for layer in layers:
        layer.register_forward_hook(lambda _layer, _inputs, output: dtypes.append(output.dtype))
    set_precision(model.policy, "bf16")
    for module in model.policy.modules():
        if isinstance(module, PixelModel) and isinstance(getattr(module, "features_extractor", None), MNV4Extractor):
            images, _ = model.policy.obs_to_tensor(some(model)[0])
            assert module.extract_features(images, module.features_extractor).dtype == th.float32
    assert len(dtypes) >= len(layers) and set(dtypes) == {th.bfloat16}


@pytest.mark.parametrize(
    ("algorithm", "policy", "right"),
    [
        (DQN, MNV4Policy, "MNV4DQNPolicy"),
        (PPO, MNV4DQNPolicy, "MNV4Policy"),
        (QRDQN, MNV4DQNPolicy, "not of QRDQN"),
        (TD3, MNV4DQNPolicy, "MNV4TD3Policy"),
        (TD3, MNV4MaskablePolicy, "MNV4TD3Policy"),
        (MaskablePPO, MNV4Policy, "not of MaskablePPO.*mnv4_rl.contrib"),
        (RecurrentPPO, MNV4Policy, "not of RecurrentPPO"),
        (PPO, MNV4SACPolicy, "MNV4Policy"),
        (TRPO, MNV4SACPolicy, "MNV4Policy"),
        (PPO, MNV4RecurrentPolicy, "MNV4Policy"),
        (A2C, MNV4RecurrentPolicy, "MNV4Policy"),
        (TRPO, MNV4RecurrentPolicy, "MNV4Policy"),
        (TQC, MNV4SACPolicy, "not of TQC"),
        (CrossQ, MNV4SACPolicy, "not of CrossQ"),
        (ARS, MNV4Policy, "not of ARS"),
    ],
)
def test_policy_of_another_algorithm_is_named(algorithm, policy, right):
    with pytest.raises(TypeError, match=right) as caught:
        env = SeekEnv(continuous=algorithm in (TQC, CrossQ, TD3))
        algorithm(policy, env, device="cpu", **POLICIES.get(algorithm, (None, {} if algorithm is ARS else OFF))[1])
    assert "\n" not in str(caught.value) and all(name in str(caught.value) for name in policy.algorithms)


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"varaint": "rl_s"}, TypeError, "variant"),
        ({"variant": "rl_x"}, ValueError, "rl_s"),
        ({"features_dim": 0}, ValueError, "at least 1"),
        ({"net_arch": 64}, TypeError, "net_arch must be a list or tuple or dict or None, got 64"),
        ({"features_extractor_kwargs": {"pretrained": 5}}, TypeError, "pretrained must be a bool or str"),
        ({"features_extractor_kwargs": {"channels_last": "no"}}, TypeError, "channels_last must be a bool or None"),
        ({"features_extractor_kwargs": {"normalized_image": "False"}}, TypeError, "normalized_image must be a bool"),
        ({"variant": "rl_s", "features_extractor_kwargs": {"variant": "rl_m"}}, TypeError, "rl_m"),
        ({"features_extractor_class": MNV4CombinedExtractor}, TypeError, "Dict"),
        ({"variant": "rl_s", "features_extractor_class": NatureCNN}, TypeError, "variant"),
    ],
)
def test_wrong_arguments_are_one_clear_line(kwargs, error, says):
    with pytest.raises(error, match=says) as caught:
        agent(PPO, **kwargs)
    assert "\n" not in str(caught.value)


def test_without_sb3_contrib_there_is_an_install_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "mnv4_rl.contrib")
    for name in [name for name in sys.modules if name.partition(".")[0] == "sb3_contrib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        import mnv4_rl.contrib  # noqa: F401
