import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.envs import FakeImageEnv
from torch import nn

from agents.encoders import ENCODERS, policy_kwargs
from mnv4_rl import list_models


def test_every_registered_variant_and_nature_is_an_encoder():
    assert set(ENCODERS) >= {"nature", *list_models()}


@pytest.mark.parametrize("encoder", ["nature", "rl_s"])
@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_every_encoder_gets_the_same_head(encoder, algorithm):
    """SB3 would put two tanh layers of 64 behind every extractor but NatureCNN, and compare heads, not encoders."""
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=4, discrete=True)
    buffer = {"buffer_size": 10} if algorithm is DQN else {}
    model = algorithm("CnnPolicy", env, policy_kwargs=policy_kwargs(encoder, features_dim=32), device="cpu", **buffer)
    heads = [module for name, module in model.policy.named_modules() if "features_extractor" not in name]
    linear = [m for m in heads if isinstance(m, nn.Linear)]
    assert {layer.in_features for layer in linear} == {32}
    assert not any(isinstance(m, nn.Tanh) for m in model.policy.modules())


def test_features_have_the_same_width_for_every_encoder():
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    for name in ("nature", "rl_s"):
        kwargs = policy_kwargs(name)
        extractor = kwargs["features_extractor_class"](space, **kwargs["features_extractor_kwargs"])
        assert extractor.features_dim == 512


def test_unknown_encoder_suggests_the_close_ones():
    with pytest.raises(ValueError, match=r"no encoder called 'rl-s'.*'rl_s'.*Known: nature"):
        policy_kwargs("rl-s")
