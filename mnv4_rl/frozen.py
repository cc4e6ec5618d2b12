"""A rollout that keeps what a frozen encoder made of the images, in place of the images.

    policy_kwargs = dict(variant="mnv4_conv_s", features_extractor_kwargs=dict(pretrained=path, frozen=True))
    model = keep_features(PPO(MNV4Policy, env, policy_kwargs=policy_kwargs))

PPO acts on an image once and learns from it in every epoch. Where stem and stages never change, their part of all but
the first is the same work again. Nothing else about the agent changes: it acts on images, is saved and exported so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor, nn

from mnv4_rl.extractors import MNV4Extractor
from mnv4_rl.policies import PixelActorCriticPolicy
from mnv4_rl.rollout import DeviceRolloutBuffer

ALGORITHMS = ("PPO", "A2C", "TRPO")
Model = TypeVar("Model", bound=OnPolicyAlgorithm)


def keep_features(model: Model) -> Model:
    """Let a new agent's rollouts keep the maps of its frozen encoder, computed once a step, and learn from these.

    Args:
        model: SB3's PPO or A2C, sb3-contrib's TRPO, or a subclass that collects and trains as these; with a policy of
            :mod:`mnv4_rl.policies`, one encoder for policy and value, uint8 images, and ``frozen=True``.

    Returns:
        The same agent. One that is loaded from a file learns from images again, until it goes through this.

    Raises:
        TypeError: For another algorithm, policy, encoder or rollout buffer, or an agent that went through this.
        ValueError: If the encoder is not frozen.
    """
    extractor = _frozen(model)
    maps_of = _LastMaps(cast("PixelActorCriticPolicy", model.policy), extractor)
    blank = np.zeros((1, *extractor.layout.shape), np.uint8)
    extractor.kept_shape = tuple(maps_of(blank).shape[1:])
    model.rollout_buffer = _buffer(model, extractor.kept_shape, maps_of)
    return model


class _LastMaps:
    """The maps of images, without computing them where the policy has just acted on these very images.

    SB3 acts, lets callbacks do what they like, with the policy too, and only then adds the images to the rollout.
    """

    def __init__(self, policy: PixelActorCriticPolicy, extractor: MNV4Extractor) -> None:
        self._policy = policy
        self._maps: Tensor | None = None  # of whatever the head read last, minibatches too
        self._acted: tuple[Any, Any] = (None, None)  # images, maps
        pool: Any = extractor.network.head.pool  # the head behind it is what learns
        pool.register_forward_hook(self._look)
        policy.register_forward_hook(self._remember, with_kwargs=True)

    def _look(self, _: nn.Module, __: Any, maps: Tensor) -> None:
        self._maps = maps

    def _remember(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: Any) -> None:
        self._acted = (args[0] if args else kwargs.get("obs"), self._maps)

    def __call__(self, observations: np.ndarray) -> Tensor:
        """(n, *image) uint8 -> (n, channels, height, width) float."""
        images = th.as_tensor(observations, device=self._policy.device)
        acted, maps = self._acted
        if isinstance(acted, Tensor) and acted.shape == images.shape and th.equal(acted, images):
            return maps
        with th.no_grad():
            self._policy.extract_features(images)
        assert self._maps is not None  # the head has just read them
        return self._maps


class FeatureRolloutBuffer(DeviceRolloutBuffer):
    """A rollout that keeps the maps of the images that it is given."""

    maps_of: Callable[[np.ndarray], Tensor]

    def add(self, obs: Any, *rest: Any) -> None:
        """As SB3's; ``obs`` are images."""
        self.stage(self.maps_of(obs))
        super().add(obs, *rest)


def _frozen(model: OnPolicyAlgorithm) -> MNV4Extractor:
    """The agent's encoder, if its features can be kept."""
    policy = getattr(model, "policy", None)
    if not _collects_and_trains_as_sb3s(model) or not isinstance(policy, PixelActorCriticPolicy):
        raise TypeError(
            f"Rollouts of {', '.join(ALGORITHMS)} with a policy of mnv4_rl.policies can keep features, got "
            f"{type(model).__name__} with {type(policy).__name__}; a subclass may have neither a collect_rollouts nor "
            "a train of its own, which would find features where it expects images."
        )
    if isinstance(model.rollout_buffer, FeatureRolloutBuffer):
        raise TypeError("This agent's rollouts keep features already.")
    if type(model.rollout_buffer) not in (RolloutBuffer, DeviceRolloutBuffer):
        raise TypeError(f"Features would take the place of a {type(model.rollout_buffer).__name__}; leave it out.")
    extractor = policy.features_extractor
    if not isinstance(extractor, MNV4Extractor) or not extractor.accepts_uint8 or not policy.share_features_extractor:
        raise TypeError(
            "One MNV4Extractor for policy and value, on uint8 images, can have its features kept, got "
            f"{type(extractor).__name__} on {model.observation_space}."
        )
    trunk = [part for name, part in extractor.network.named_children() if name != "head"]
    if any(parameter.requires_grad for part in trunk for parameter in part.parameters()):
        raise ValueError("The encoder learns, so its features change: build it with pretrained=... and frozen=True.")
    return extractor


def _collects_and_trains_as_sb3s(model: object) -> bool:
    theirs = next((base for base in type(model).__mro__ if base.__name__ in ALGORITHMS), None)
    return theirs is not None and all(
        getattr(type(model), step) is getattr(theirs, step) for step in ("collect_rollouts", "train")
    )


def _buffer(model: Any, shape: tuple[int, ...], maps_of: Callable[[np.ndarray], Tensor]) -> FeatureRolloutBuffer:
    space = spaces.Box(-math.inf, math.inf, shape, np.float32)
    buffer = FeatureRolloutBuffer(
        model.n_steps, space, model.action_space, model.device, model.gae_lambda, model.gamma, model.n_envs
    )
    buffer.maps_of = maps_of
    return buffer


__all__ = ["keep_features"]
