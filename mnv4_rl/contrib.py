"""One-argument policies of sb3-contrib's algorithms, which has to be installed; TRPO takes ``policies.MNV4Policy``.

    QRDQN(MNV4QRDQNPolicy, env)
    RecurrentPPO(MNV4RecurrentPolicy, env)
    MaskablePPO(MNV4MaskablePolicy, env)

Arguments and defaults are those of :class:`mnv4_rl.policies.MNV4Defaults`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from mnv4_rl.policies import MNV4Defaults, PixelModel

CONTRIB_INSTALL_LINE = 'pip install "sb3-contrib>=2.9,<3.0"'

try:
    from sb3_contrib.common.maskable.policies import MaskableActorCriticCnnPolicy
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticCnnPolicy
    from sb3_contrib.qrdqn.policies import CnnPolicy as QRDQNCnnPolicy
    from sb3_contrib.qrdqn.policies import QuantileNetwork
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"mnv4_rl.contrib needs sb3-contrib ({error}); install it with: {CONTRIB_INSTALL_LINE}"
    ) from error


class PixelQuantileNetwork(QuantileNetwork, PixelModel):
    """sb3-contrib's quantile network on uint8 images."""


class PixelQRDQNPolicy(QRDQNCnnPolicy):
    """sb3-contrib's ``"CnnPolicy"`` of QR-DQN, arguments and numbers included, on uint8 images."""

    def make_quantile_net(self) -> PixelQuantileNetwork:
        """A new network with an encoder of its own."""
        kwargs = self._update_features_extractor(self.net_args, features_extractor=None)
        return PixelQuantileNetwork(**kwargs).to(self.device)


class MNV4QRDQNPolicy(MNV4Defaults, PixelQRDQNPolicy):
    """The policy of QR-DQN: ``QRDQN(MNV4QRDQNPolicy, env)``. QR-DQN sets Adam's eps by its batch size, as always."""

    algorithms = ("QRDQN",)


# As in mnv4_rl.policies: sb3-contrib's class returns two tensors if encoders are not shared.
class MNV4RecurrentPolicy(MNV4Defaults, RecurrentActorCriticCnnPolicy, PixelModel):  # type: ignore[misc]
    """The policy of RecurrentPPO: ``RecurrentPPO(MNV4RecurrentPolicy, env)``; its LSTM follows the encoder."""

    algorithms = ("RecurrentPPO",)
    default_optimizer_kwargs: ClassVar[Mapping[str, float]] = {"eps": 1e-5}


class MNV4MaskablePolicy(MNV4Defaults, MaskableActorCriticCnnPolicy, PixelModel):  # type: ignore[misc]
    """The policy of MaskablePPO: ``MaskablePPO(MNV4MaskablePolicy, env)``."""

    algorithms = ("MaskablePPO",)
    default_optimizer_kwargs: ClassVar[Mapping[str, float]] = {"eps": 1e-5}


__all__ = ["MNV4MaskablePolicy", "MNV4QRDQNPolicy", "MNV4RecurrentPolicy", "PixelQRDQNPolicy"]
