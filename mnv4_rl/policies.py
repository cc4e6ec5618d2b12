"""stable-baselines3's policies for images, which leave the images uint8 until the encoder's first layer.

    PPO(mnv4_rl.policies.PixelActorCriticPolicy, env, policy_kwargs=dict(features_extractor_class=MNV4Extractor))
    DQN(mnv4_rl.policies.PixelDQNPolicy, env, policy_kwargs=dict(features_extractor_class=MNV4Extractor))

With our encoder and what belongs to it as defaults, one argument is enough:

    PPO(MNV4Policy, env)        A2C and sb3-contrib's TRPO too
    DQN(MNV4DQNPolicy, env)
    SAC(MNV4SACPolicy, env)
    TD3(MNV4TD3Policy, env)     :mod:`mnv4_rl.contrib` has those of QR-DQN, RecurrentPPO and MaskablePPO

SB3's ``"CnnPolicy"`` makes every batch ``obs.float() / 255`` before the encoder sees it: two passes over four times the
bytes, which autograd then keeps. Here the numbers are the same, to rounding, and so are the names of the weights: they
can go from one policy to the other. Every other extractor, NatureCNN among them, gets what SB3 gives it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, cast

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, BaseModel, ContinuousCritic
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import CnnPolicy as DQNCnnPolicy
from stable_baselines3.dqn.policies import QNetwork
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.sac.policies import CnnPolicy as SACCnnPolicy
from stable_baselines3.td3.policies import Actor as TD3Actor
from stable_baselines3.td3.policies import CnnPolicy as TD3CnnPolicy
from torch import Tensor, nn

from mnv4_rl.checks import check_type, did_you_mean
from mnv4_rl.extractors import MNV4CombinedExtractor, MNV4Extractor, module_name
from mnv4_rl.observations import building_algorithm


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
            obs: A batch of observations, or a Dict of them. Only a uint8 tensor is handed on as it is, and not where
                SB3 was told not to divide images by 255, by ``normalize_images=False``.
            features_extractor: The encoder.

        Returns:
            (N, features_dim) float.
        """
        if self.autocast_dtype is None:
            return self._extract(obs, features_extractor)
        with th.autocast(self.device.type, self.autocast_dtype):
            return self._extract(obs, features_extractor).float()

    def _extract(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> Tensor:
        kept = getattr(features_extractor, "kept_shape", None)  # of mnv4_rl.frozen
        if kept is not None and isinstance(obs, Tensor) and obs.dtype != th.uint8 and obs.shape[1:] == kept:
            return cast("MNV4Extractor", features_extractor).network.head(obs)
        if not self.normalize_images:
            return super().extract_features(obs, features_extractor)
        if isinstance(obs, dict):
            return self._extract_dict(obs, features_extractor)
        if obs.dtype == th.uint8 and takes_uint8(features_extractor):
            return features_extractor(obs)
        return super().extract_features(obs, features_extractor)

    def _extract_dict(self, obs: dict[str, Tensor], features_extractor: BaseFeaturesExtractor) -> Tensor:
        space = self.observation_space
        assert isinstance(space, spaces.Dict)  # its observations are
        parts: Any = getattr(features_extractor, "extractors", {})
        kept = {
            key: value
            for key, value in obs.items()
            if value.dtype == th.uint8 and (name := module_name(key)) in parts and takes_uint8(parts[name])
        }
        rest = {key: value for key, value in obs.items() if key not in kept}
        scaled = cast("dict[str, Tensor]", preprocess_obs(rest, spaces.Dict({key: space[key] for key in rest})))
        return features_extractor({**scaled, **kept})


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


class PixelSACActor(SACActor, PixelModel):
    """SB3's actor of SAC on uint8 images."""


class PixelTD3Actor(TD3Actor, PixelModel):
    """SB3's actor of TD3 on uint8 images."""


class PixelContinuousCritic(ContinuousCritic, PixelModel):
    """SB3's critic of SAC and TD3 on uint8 images."""


DICT_NET_ARCH = (64, 64)


class MNV4Defaults:
    """Mixin: our encoder, and what belongs to it, as defaults of one of SB3's policies.

    Name it before the policy, ``class MyPolicy(MNV4Defaults, PixelDQNPolicy)``. Every default gives way to an argument
    of its name in ``policy_kwargs``.

    Args:
        observation_space: An image, or a Dict with images, which gets an :class:`mnv4_rl.MNV4CombinedExtractor`.
        action_space: What the algorithm allows.
        lr_schedule: SB3 passes it.
        variant: Encoder, a name of :func:`mnv4_rl.list_models`; :data:`mnv4_rl.models.registry.DEFAULT_VARIANT`
            by default.
        features_dim: Width of the features, of each image's in a Dict; 512 by default.
        **kwargs: Arguments of SB3's policy. ``features_extractor_class`` is ours by default; ``net_arch`` is
            :attr:`default_net_arch`; Adam is PyTorch's fused one (same formula, one step for all weights) with SB3's
            own ``eps``; ``optimizer_kwargs`` with ``fused`` or ``foreach`` says which it is instead.

    Attributes:
        algorithms: Names of the algorithms it is a policy of. Any other of SB3's and sb3-contrib's is refused: some
            would build it and fail in training alone.
        default_net_arch: Layers behind the encoder; none where one linear layer on the features is enough. A Dict gets
            SB3's two of 64 then, without which picture and numbers could only be added up.
        default_optimizer_kwargs: What SB3 sets where nothing is passed.

    Raises:
        TypeError: For an argument that the policy does not have, one that is given twice, or where another algorithm
            builds it.
    """

    algorithms: ClassVar[tuple[str, ...]]
    default_net_arch: ClassVar[tuple[int, ...]] = ()
    default_optimizer_kwargs: ClassVar[Mapping[str, float]] = {}

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, lr_schedule: Schedule | None = None, **kwargs: Any
    ) -> None:
        self._check_builder()
        if lr_schedule is None:  # ARS, which is refused above, passes none
            raise TypeError(f"{type(self).__name__} needs lr_schedule, as the algorithms pass it on.")
        self._check_arguments(kwargs)
        full = self.full_kwargs(observation_space, kwargs)
        super().__init__(observation_space, action_space, lr_schedule, **full)  # type: ignore[call-arg]

    @classmethod
    def full_kwargs(cls, observation_space: gym.Space, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """``policy_kwargs`` with the defaults filled in, as SB3's own policy takes them.

        Raises:
            TypeError: For ``variant`` or ``features_dim`` beside the same in ``features_extractor_kwargs``.
        """
        full = dict(kwargs)
        is_dict = isinstance(observation_space, spaces.Dict)
        full.setdefault("features_extractor_class", MNV4CombinedExtractor if is_dict else MNV4Extractor)
        full["features_extractor_kwargs"] = _extractor_kwargs(full, "cnn_output_dim" if is_dict else "features_dim")
        full.setdefault("net_arch", list(cls.default_net_arch or (DICT_NET_ARCH if is_dict else ())))
        if full.get("optimizer_class", th.optim.Adam) is th.optim.Adam:
            full["optimizer_kwargs"] = _adam_kwargs(full.get("optimizer_kwargs"), cls.default_optimizer_kwargs)
        return full

    @classmethod
    def _check_builder(cls) -> None:
        builder = type(building_algorithm())
        theirs = {base.__name__ for base in builder.__mro__ if base.__module__.partition(".")[0] in _SB3} - _ABSTRACT
        if theirs and theirs.isdisjoint(cls.algorithms):  # a user's own algorithm may do as it likes
            raise TypeError(f"{cls.__name__} is {cls._whose()}, not of {builder.__name__}. {_OF_OTHERS}")

    @classmethod
    def _whose(cls) -> str:
        return f"a policy of {', '.join(cls.algorithms)}"

    @classmethod
    def _check_arguments(cls, kwargs: Mapping[str, Any]) -> None:
        parents = cls.__mro__[cls.__mro__.index(MNV4Defaults) + 1 :]
        policy = next(parent for parent in parents if "__init__" in vars(parent))
        known = {*inspect.signature(policy).parameters, "variant", "features_dim"}
        check_type("net_arch", kwargs.get("net_arch"), (list, tuple, dict, NoneType))
        for name in kwargs:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                raise TypeError(
                    f"{cls.__name__}, {cls._whose()}, has no argument {name!r}.{did_you_mean(close)} {_OF_OTHERS}"
                )


_SB3 = ("stable_baselines3", "sb3_contrib")
_ABSTRACT = {"BaseAlgorithm", "OnPolicyAlgorithm", "OffPolicyAlgorithm"}
_OF_OTHERS = (
    "PPO, A2C and TRPO take MNV4Policy, DQN MNV4DQNPolicy, SAC MNV4SACPolicy, TD3 and DDPG MNV4TD3Policy; "
    "mnv4_rl.contrib has those of QR-DQN, RecurrentPPO and MaskablePPO."
)


def _extractor_kwargs(kwargs: dict[str, Any], width: str) -> dict[str, Any]:
    """The extractor's arguments, with the short ones, which are taken out of ``kwargs``."""
    found = dict(kwargs.get("features_extractor_kwargs") or {})
    for short, name in (("variant", "variant"), ("features_dim", width)):
        if (value := kwargs.pop(short, None)) is None:
            continue
        if name in found:
            raise TypeError(f"{short}={value!r} is also in features_extractor_kwargs, as {name}={found[name]!r}.")
        found[name] = value
    return found


def _adam_kwargs(given: Mapping[str, Any] | None, default: Mapping[str, Any]) -> dict[str, Any]:
    """Adam's arguments: fused, unless another of its implementations is asked for."""
    kwargs = dict(default if given is None else given)
    if kwargs.get("foreach") is None and not kwargs.get("differentiable"):
        kwargs.setdefault("fused", True)
    return kwargs


class MNV4Policy(MNV4Defaults, PixelActorCriticPolicy):  # type: ignore[misc]
    """The policy of PPO, A2C and TRPO: ``PPO(MNV4Policy, env)``; arguments as :class:`MNV4Defaults`.

    A2C brings an optimiser of its own, RMSprop, and keeps it.
    """

    algorithms = ("PPO", "A2C", "TRPO")
    default_optimizer_kwargs: ClassVar[Mapping[str, float]] = {"eps": 1e-5}


class MNV4DQNPolicy(MNV4Defaults, PixelDQNPolicy):
    """The policy of DQN: ``DQN(MNV4DQNPolicy, env)``; arguments as :class:`MNV4Defaults`."""

    algorithms = ("DQN",)


class MNV4ActorCriticDefaults(MNV4Defaults):
    """Mixin for SAC's and TD3's policies: actor and critic each see the pixels, and have two layers of 256."""

    if TYPE_CHECKING:  # what it is mixed into has these

        def __getattr__(self, name: str) -> Any: ...

    actor_class: ClassVar[type[SACActor | TD3Actor]]
    default_net_arch = (256, 256)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """A new actor, with an encoder of its own if none is given."""
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return self.actor_class(**kwargs).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> PixelContinuousCritic:
        """A new critic, likewise."""
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return PixelContinuousCritic(**kwargs).to(self.device)


class MNV4SACPolicy(MNV4ActorCriticDefaults, SACCnnPolicy):
    """The policy of SAC: ``SAC(MNV4SACPolicy, env)``; arguments as :class:`MNV4Defaults`.

    Two layers of 256 follow the encoder: a critic of one linear layer could not weigh an action by the picture. Actor
    and critic each have an encoder, trained by their own loss. With ``share_features_extractor=True`` there is one for
    both, which costs half and is trained by the actor's loss alone; so SB3 has it.
    """

    algorithms = ("SAC",)
    actor_class = PixelSACActor


class MNV4TD3Policy(MNV4ActorCriticDefaults, TD3CnnPolicy):
    """The policy of TD3 and DDPG: ``TD3(MNV4TD3Policy, env)``; layers and encoders as :class:`MNV4SACPolicy`'s."""

    algorithms = ("TD3", "DDPG")
    actor_class = PixelTD3Actor


__all__ = [
    "MNV4DQNPolicy",
    "MNV4Policy",
    "MNV4SACPolicy",
    "MNV4TD3Policy",
    "PixelActorCriticPolicy",
    "PixelDQNPolicy",
    "PixelModel",
    "PixelQNetwork",
    "takes_uint8",
]
