"""The baselines have the papers' sizes, and stand behind the same contract as our encoders."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.envs import FakeImageEnv
from torch import nn

from agents.encoders import policy_kwargs
from mnv4_rl.baselines import ImpalaCNN, ImpoolaCNN, ResidualBlock, impala_section
from mnv4_rl.models.complexity import measure

BASELINES = [ImpalaCNN, ImpoolaCNN]


def uint8_box(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


def conv_parameters(in_channels, out_channels):
    return 9 * in_channels * out_channels + out_channels


# One 3x3 convolution in and four in the two residual blocks, a section.
TRUNK = (
    conv_parameters(4, 16)
    + 4 * conv_parameters(16, 16)
    + conv_parameters(16, 32)
    + 4 * conv_parameters(32, 32)
    + conv_parameters(32, 32)
    + 4 * conv_parameters(32, 32)
)
# The first convolution of a section runs before the pool, the others after it: 84 -> 42 -> 21 -> 11.
TRUNK_MACS = 9 * (
    84**2 * 4 * 16 + 42**2 * 4 * 16 * 16 + 42**2 * 16 * 32 + 21**2 * 4 * 32 * 32 + 21**2 * 32 * 32 + 11**2 * 4 * 32 * 32
)


@pytest.mark.parametrize(("baseline", "positions"), [(ImpalaCNN, 11 * 11), (ImpoolaCNN, 1)])
def test_parameters_and_macs_are_those_counted_by_hand(baseline, positions):
    cost = measure(baseline(uint8_box(4, 84, 84)).network, 84, in_channels=4)
    assert cost.parameters == TRUNK + 32 * positions * 512 + 512
    assert cost.macs == TRUNK_MACS + 32 * positions * 512


def test_impala_has_the_size_that_is_quoted_for_it():
    cost = measure(ImpalaCNN(uint8_box(4, 84, 84)).network, 84, in_channels=4)
    assert cost.parameters == 2_080_720
    assert cost.macs == pytest.approx(55e6, rel=0.01)


def test_a_section_is_convolution_pool_and_two_residual_blocks():
    section = impala_section(4, 16)
    x = th.rand(2, 4, 21, 21)
    expected = nn.functional.max_pool2d(section[0](x), 3, 2, 1)
    for block in section[2:]:
        expected = expected + block.conv2(block.conv1(expected.clamp(min=0)).clamp(min=0))
    assert section(x).shape == (2, 16, 11, 11)
    th.testing.assert_close(section(x), expected)


def test_a_residual_block_leaves_its_input_alone():
    x = th.randn(1, 16, 5, 5)
    before = x.clone()
    ResidualBlock(16)(x)
    assert th.equal(x, before)


def test_impoola_does_not_grow_with_the_image_and_impala_does():
    sizes = {
        baseline: [sum(p.numel() for p in baseline(uint8_box(4, side, side)).parameters()) for side in (84, 128)]
        for baseline in BASELINES
    }
    assert sizes[ImpoolaCNN][0] == sizes[ImpoolaCNN][1]
    assert sizes[ImpalaCNN][1] - sizes[ImpalaCNN][0] == 32 * 512 * (16**2 - 11**2)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("shape", [(4, 84, 84), (3, 37, 61), (1, 8, 8)], ids=str)
def test_any_image_gives_features_of_the_width_asked_for(baseline, shape):
    extractor = baseline(uint8_box(*shape), features_dim=7)
    images = th.randint(0, 256, (2, *shape), dtype=th.uint8)
    features = extractor(images)
    assert features.shape == (2, 7) and features.isfinite().all() and (features >= 0).all()
    th.testing.assert_close(features, extractor(images / 255))  # uint8 and what SB3 makes of it


@pytest.mark.parametrize("baseline", BASELINES)
def test_bad_input_is_refused_as_by_our_own_encoder(baseline):
    with pytest.raises(ValueError, match="'MlpPolicy'"):
        baseline(spaces.Discrete(3))
    with pytest.raises(ValueError, match="features_dim must be a whole number of at least 1, got 0"):
        baseline(uint8_box(4, 84, 84), features_dim=0)
    with pytest.raises(ValueError, match=r"channels\[1\] must be a whole number of at least 1, got 0"):
        baseline(uint8_box(4, 84, 84), channels=(16, 0))
    with pytest.raises(ValueError, match="expects them divided by 255"):
        baseline(uint8_box(4, 84, 84))(th.full((1, 4, 84, 84), 200.0))


@pytest.mark.parametrize("encoder", ["impala", "impoola"])
@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_the_command_names_build_agents_with_pytorchs_initialisation(encoder, algorithm):
    """SB3's orthogonal rows would all have norm sqrt(2); PyTorch's are uniform within 1 / sqrt(fan in)."""
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=4, discrete=True)
    buffer = {"buffer_size": 10} if algorithm is DQN else {}
    model = algorithm("CnnPolicy", env, policy_kwargs=policy_kwargs(encoder, 32), device="cpu", **buffer)
    extractors = [m for m in model.policy.modules() if isinstance(m, ImpalaCNN)]
    assert extractors and all(isinstance(m, ImpoolaCNN) == (encoder == "impoola") for m in extractors)
    for conv in (m for m in extractors[0].modules() if isinstance(m, nn.Conv2d)):
        assert conv.weight.abs().max() <= (9 * conv.in_channels) ** -0.5


@pytest.mark.parametrize("encoder", ["impala", "impoola"])
def test_saved_agent_plays_the_same(encoder, tmp_path):
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=4, discrete=True)
    model = PPO("CnnPolicy", env, n_steps=8, batch_size=8, policy_kwargs=policy_kwargs(encoder, 32), device="cpu")
    model.learn(8)
    model.save(tmp_path / "agent")
    observations = np.stack([env.observation_space.sample() for _ in range(8)])
    loaded = PPO.load(tmp_path / "agent", device="cpu")
    assert (
        loaded.predict(observations, deterministic=True)[0] == model.predict(observations, deterministic=True)[0]
    ).all()


@pytest.mark.parametrize("channels", [(), 16])
def test_a_network_has_sections(channels):
    with pytest.raises(ValueError, match="channels must be those of one section or more"):
        ImpalaCNN(spaces.Box(0, 255, (3, 64, 64), np.uint8), channels=channels)
