"""Encoder name -> policy_kwargs, the same for every algorithm: same head, same features, only the encoder differs."""

from __future__ import annotations

import difflib
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import nn

from mnv4_rl import MNV4Extractor, list_models
from mnv4_rl.baselines import ImpalaCNN, ImpoolaCNN
from mnv4_rl.checks import did_you_mean
from mnv4_rl.models.specs import NetworkSpec

FEATURES_DIM = 512

_EncoderRow = tuple[type[BaseFeaturesExtractor], dict[str, Any]]
ENCODERS: dict[str, _EncoderRow] = {
    "nature": (NatureCNN, {}),
    "impala": (ImpalaCNN, {}),
    "impoola": (ImpoolaCNN, {}),
    **{name: (MNV4Extractor, {"variant": name}) for name in list_models()},
}

_OWN: dict[str, _EncoderRow] = {}


def known_encoders() -> dict[str, _EncoderRow]:
    """:data:`ENCODERS`, and those this process added."""
    return ENCODERS | _OWN


def add_encoder(name: str, spec: NetworkSpec) -> None:
    """Let the agents and commands of this process know an encoder of your own by name.

    Args:
        name: What ``--encoder`` and :func:`policy_kwargs` will know it by.
        spec: Its row.

    Raises:
        ValueError: If another encoder has that name.
    """
    row: _EncoderRow = (MNV4Extractor, {"variant": spec})
    if known_encoders().get(name, row) != row:
        raise ValueError(f"There already is an encoder called {name!r}; choose another name.")
    _OWN[name] = row


def policy_kwargs(encoder: str, features_dim: int = FEATURES_DIM) -> dict[str, Any]:
    """What SB3's policies need for an encoder.

    ``net_arch=[]`` for all: by default SB3 gives NatureCNN no hidden layer and every other extractor two tanh layers of
    64, which would compare heads, not encoders.

    Args:
        encoder: A key of :data:`ENCODERS`, or a name given to :func:`add_encoder`.
        features_dim: Width of the features, at least 1.

    Raises:
        ValueError: For an unknown encoder, with the close matches.
    """
    encoders = known_encoders()
    if encoder not in encoders:
        close = difflib.get_close_matches(encoder, encoders, n=3, cutoff=0.5)
        raise ValueError(f"There is no encoder called {encoder!r}.{did_you_mean(close)} Known: {', '.join(encoders)}.")
    extractor_class, extractor_kwargs = encoders[encoder]
    return {
        "features_extractor_class": extractor_class,
        "features_extractor_kwargs": {"features_dim": features_dim, **extractor_kwargs},
        "net_arch": [],
    }


def encoder_of(model: BaseAlgorithm) -> nn.Module:
    """The features extractor that chooses actions, whatever the algorithm."""
    policy: Any = model.policy
    for owner in (policy, getattr(policy, "q_net", None), getattr(policy, "quantile_net", None)):
        extractor = getattr(owner, "features_extractor", None)
        if extractor is not None:
            return extractor
    raise ValueError(f"{type(policy).__name__} has no features extractor that chooses actions.")
