"""Folded agents: plain layers with the policy's own numbers, for every algorithm, encoder and space."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn

from mnv4_rl import MNV4Extractor, list_models
from mnv4_rl.baselines import ImpalaCNN, ImpoolaCNN
from mnv4_rl.contrib import MNV4RecurrentPolicy
from mnv4_rl.export import fold
from mnv4_rl.models.network import build
from mnv4_rl.models.registry import get_spec
from mnv4_rl.policies import MNV4Policy
from tests.mnv4_rl.export.agents import ACTIONS, agent, batch_of, expected_scores, observations
from tests.variants import BY_SIZE


def assert_same(model, n=8):
    """Scores to 1e-5 of the largest, and the actions of predict."""
    folded, batch = fold(model), observations(model, n)
    scores, actions = folded(batch_of(batch))
    expected = expected_scores(model, batch_of(batch))
    th.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.abs().max())))
    theirs, _ = model.predict(batch, deterministic=True)
    np.testing.assert_allclose(actions.numpy(), theirs, rtol=1e-4, atol=1e-4)
    return folded


@pytest.mark.parametrize("with_vector", [False, True], ids=["image", "dict"])
@pytest.mark.parametrize(
    "algorithm", [PPO, A2C, TRPO, MaskablePPO, DQN, QRDQN, SAC, TD3], ids=lambda algorithm: algorithm.__name__
)
def test_every_algorithm(algorithm, with_vector):
    assert_same(agent(algorithm, with_vector=with_vector))


@pytest.mark.parametrize("variant", BY_SIZE)
def test_every_encoder_at_an_odd_size(variant):
    assert_same(agent(PPO, shape=(3, 50, 41), variant=variant, features_dim=16), n=3)


@pytest.mark.parametrize("extractor", [NatureCNN, ImpalaCNN, ImpoolaCNN])
def test_baselines(extractor):
    assert_same(agent(PPO, features_extractor_class=extractor))
    assert_same(agent(DQN, features_extractor_class=extractor))


def test_sb3s_combined_extractor():
    assert_same(agent(PPO, with_vector=True, features_extractor_class=CombinedExtractor))


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("kwargs", [{}, {"net_arch": [8, 8]}], ids=["linear", "hidden"])
def test_every_action_space(name, kwargs):
    assert_same(agent(PPO, action=name, **kwargs))


def test_state_dependent_exploration_with_squashed_actions():
    assert_same(agent(PPO, action="box", settings={"use_sde": True}, squash_output=True))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 1, (3, 40, 40), np.float32),
        spaces.Box(0, 255, (4, 40, 40, 3), np.uint8),
        spaces.Box(0, 255, (40, 48), np.uint8),
    ],
    ids=["floats", "stack", "matrix"],
)
def test_every_kind_of_image(space):
    assert_same(agent(PPO, space=space))


def test_numbers_that_are_taken_as_they_are():
    trusting = {"normalize_images": False, "features_extractor_kwargs": {"normalized_image": True}}
    assert_same(agent(PPO, **trusting))


def test_separate_encoders_use_the_actors():
    assert_same(agent(PPO, share_features_extractor=False))


@pytest.mark.parametrize("variant", list_models("rl"))
def test_layers_are_plain(variant):
    """Convolutions and linear layers of torch alone, and no gain, constant or position order left beside them."""
    folded = fold(agent(PPO, variant=variant))
    leaves = [module for module in folded.modules() if not list(module.children())]
    ours = {type(leaf).__name__ for leaf in leaves if type(leaf).__module__.startswith("mnv4_rl")}
    assert ours <= {"ReadImage", "ToGrid", "Largest", "Pool"}
    plain = (nn.Conv2d, nn.Linear, nn.LayerNorm)
    assert {type(leaf) for leaf in leaves if list(leaf.parameters())} <= set(plain)


def test_batch_norm_and_layer_scale_go_into_the_convolutions():
    network = build(get_spec("mnv4_hybrid_m"), 3, 0, (64, 64))
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.running_mean)
    path_free = agent(PPO, shape=(3, 64, 64), variant="mnv4_hybrid_m", features_dim=16)
    encoder = path_free.policy.features_extractor
    head = encoder.network.head
    encoder.network = network
    network.head = head
    encoder.train()
    folded = assert_same(path_free, n=2)
    names = {type(module).__name__ for module in folded.modules()}
    assert "LayerScale" not in names
    kept = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert kept < sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) / 4  # attention's own


def test_folding_changes_nothing_in_the_agent_and_shares_nothing():
    model = agent(PPO)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    folded = fold(model)
    assert not any(parameter.requires_grad for parameter in folded.parameters()) and not folded.training
    for parameter in folded.parameters():
        parameter.add_(1)
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, before[name]), name
    assert all(parameter.requires_grad for parameter in model.policy.parameters())


def test_policy_alone_is_enough():
    model = agent(PPO)
    batch = batch_of(observations(model, 4))
    for mine, other in zip(fold(model.policy)(batch), fold(model)(batch), strict=True):
        assert th.equal(mine, other)


class Foreign(FlattenExtractor):
    """Somebody's extractor."""


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: agent(PPO, features_extractor_class=Foreign), "Foreign"),
        (lambda: agent(RecurrentPPO, policy=MNV4RecurrentPolicy), "recurrent"),
        (lambda: nn.Linear(1, 1), "Linear"),
        (lambda: None, "NoneType"),
    ],
)
def test_what_cannot_be_folded_is_one_clear_line(make, says):
    with pytest.raises(TypeError, match=says) as caught:
        fold(make())
    assert "\n" not in str(caught.value)


def test_default_policy_is_ours():
    assert isinstance(agent(PPO).policy, MNV4Policy)
    assert isinstance(agent(PPO).policy.features_extractor, MNV4Extractor)


class Upside(MNV4Extractor):
    def forward(self, observations):
        return -super().forward(observations)


def test_an_encoder_with_a_forward_of_its_own_is_refused():
    with pytest.raises(TypeError, match="Upside has a forward of its own"):
        fold(agent(PPO, features_extractor_class=Upside))
