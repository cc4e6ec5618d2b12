"""A rollout that keeps what a frozen encoder made of the images, in place of the images.

    policy_kwargs = dict(variant="mnv4_conv_s", features_extractor_kwargs=dict(pretrained=path, frozen=True))
    model = keep_features(PPO(MNV4Policy, env, policy_kwargs=policy_kwargs))

PPO acts on an image once and learns from it in every epoch. Where stem and stages never change, their part of all but
the first is the same work again. Nothing else about the agent changes: it acts on images, is saved and exported so.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

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
        model: SB3's PPO or A2C, or sb3-contrib's TRPO, with a policy of :mod:`mnv4_rl.policies`, one encoder for policy
            and value, uint8 images, and ``frozen=True``.

    Returns:
        The same agent. One that is loaded from a file learns from images again, until it goes through this.

    Raises:
        TypeError: For another algorithm, policy, encoder or rollout buffer, or an agent that went through this.
        ValueError: If the encoder is not frozen.
    """
    extractor = _frozen(model)
    pool: Any = extractor.network.head.pool  # the head behind it is what learns
    seen: list[Tensor] = []

    def look(_: nn.Module, __: Any, maps: Tensor) -> None:
        seen[:] = [maps]

    pool.register_forward_hook(look)
    with th.no_grad():
        extractor(th.zeros(1, *extractor.layout.shape, dtype=th.uint8, device=model.device))
    extractor.kept_shape = tuple(seen[0].shape[1:])
    buffer = _buffer(model, extractor.kept_shape)
    model.policy.register_forward_hook(lambda *_: buffer.stage(seen[0]))  # which acting alone calls, once a step
    model.rollout_buffer = buffer
    return model


def _frozen(model: OnPolicyAlgorithm) -> MNV4Extractor:
    """The agent's encoder, if its features can be kept."""
    policy = getattr(model, "policy", None)
    if type(model).__name__ not in ALGORITHMS or not isinstance(policy, PixelActorCriticPolicy):
        raise TypeError(
            f"Rollouts of {', '.join(ALGORITHMS)} with a policy of mnv4_rl.policies can keep features, got "
            f"{type(model).__name__} with {type(policy).__name__}."
        )
    if type(model.rollout_buffer) not in (RolloutBuffer, DeviceRolloutBuffer):
        raise TypeError(f"Features would take the place of a {type(model.rollout_buffer).__name__}; leave it out.")
    extractor = policy.features_extractor
    if getattr(extractor, "kept_shape", None):
        raise TypeError("This agent's rollouts keep features already.")
    if not isinstance(extractor, MNV4Extractor) or not extractor.accepts_uint8 or not policy.share_features_extractor:
        raise TypeError(
            "One MNV4Extractor for policy and value, on uint8 images, can have its features kept, got "
            f"{type(extractor).__name__} on {model.observation_space}."
        )
    trunk = [part for name, part in extractor.network.named_children() if name != "head"]
    if any(parameter.requires_grad for part in trunk for parameter in part.parameters()):
        raise ValueError("The encoder learns, so its features change: build it with pretrained=... and frozen=True.")
    return extractor


def _buffer(model: Any, shape: tuple[int, ...]) -> DeviceRolloutBuffer:
    space = spaces.Box(-math.inf, math.inf, shape, np.float32)
    return DeviceRolloutBuffer(
        model.n_steps, space, model.action_space, model.device, model.gae_lambda, model.gamma, model.n_envs
    )


__all__ = ["keep_features"]
