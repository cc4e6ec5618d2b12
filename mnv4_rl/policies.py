"""stable-baselines3's policies for images, which leave the images uint8 until the encoder's first layer.

    PPO(mnv4_rl.policies.PixelActorCriticPolicy, env, policy_kwargs=dict(features_extractor_class=MNV4Extractor))
    DQN(mnv4_rl.policies.PixelDQNPolicy, env, policy_kwargs=dict(features_extractor_class=MNV4Extractor))

SB3's ``"CnnPolicy"`` makes every batch ``obs.float() / 255`` before the encoder sees it: two passes over four times the
bytes, which autograd then keeps. Here the numbers are the same, to rounding, and so are the names of the weights: they
can go from one policy to the other. Every other extractor, NatureCNN among them, gets what SB3 gives it.
"""

from __future__ import annotations

import torch as th
from stable_baselines3.common.policies import ActorCriticCnnPolicy, BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import CnnPolicy as DQNCnnPolicy
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn


def takes_uint8(extractor: nn.Module) -> bool:
    """Whether the policies here hand an encoder uint8 images; others get floats in [0, 1]."""
    return getattr(extractor, "accepts_uint8", False)


class PixelModel(BaseModel):
    """Mixin: uint8 images go straight to an extractor that has ``accepts_uint8``, and it is true.

    Name it after SB3's class, ``class MyQNetwork(QNetwork, PixelModel)``: it then comes between SB3's class and SB3's
    ``BaseModel``, whose preprocessing it passes by.
    """

    autocast_dtype: th.dtype | None = None  # set by mnv4_rl.performance.set_precision

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> Tensor:
        """Observations, as they come from the environment or a buffer, to features.

        Args:
            obs: A batch of observations. Only a uint8 tensor is handed on as it is, and not where SB3 was told not to
                divide images by 255, by ``normalize_images=False``.
            features_extractor: The encoder.

        Returns:
            (N, features_dim) float.
        """
        if self.autocast_dtype is None:
            return self._extract(obs, features_extractor)
        with th.autocast(self.device.type, self.autocast_dtype):
            return self._extract(obs, features_extractor).float()

    def _extract(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> Tensor:
        is_uint8 = isinstance(obs, Tensor) and obs.dtype == th.uint8
        if is_uint8 and self.normalize_images and takes_uint8(features_extractor):
            return features_extractor(obs)
        return super().extract_features(obs, features_extractor)


# SB3's own class already returns what its base's extract_features does not: two tensors if encoders are not shared.
class PixelActorCriticPolicy(ActorCriticCnnPolicy, PixelModel):  # type: ignore[misc]
    """SB3's ``"CnnPolicy"`` of PPO and A2C, arguments and numbers included, on uint8 images."""


class PixelQNetwork(QNetwork, PixelModel):
    """SB3's Q-network on uint8 images."""


class PixelDQNPolicy(DQNCnnPolicy):
    """SB3's ``"CnnPolicy"`` of DQN, arguments and numbers included, on uint8 images."""

    def make_q_net(self) -> PixelQNetwork:
        """A new Q-network with an encoder of its own."""
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return PixelQNetwork(**net_args).to(self.device)


__all__ = ["PixelActorCriticPolicy", "PixelDQNPolicy", "PixelModel", "PixelQNetwork", "takes_uint8"]
