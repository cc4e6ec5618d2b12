"""Encoder name -> policy_kwargs, the same for every algorithm: same head, same features, only the encoder differs."""

from __future__ import annotations

import difflib
from typing import Any

from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN

from mnv4_rl import MNV4Extractor, list_models
from mnv4_rl.baselines import ImpalaCNN, ImpoolaCNN

FEATURES_DIM = 512

_EncoderRow = tuple[type[BaseFeaturesExtractor], dict[str, Any]]
ENCODERS: dict[str, _EncoderRow] = {
    "nature": (NatureCNN, {}),
    "impala": (ImpalaCNN, {}),
    "impoola": (ImpoolaCNN, {}),
    **{name: (MNV4Extractor, {"variant": name}) for name in list_models()},
}


def policy_kwargs(encoder: str, features_dim: int = FEATURES_DIM) -> dict[str, Any]:
    """What SB3's policies need for an encoder.

    ``net_arch=[]`` for all: by default SB3 gives NatureCNN no hidden layer and every other extractor two tanh layers of
    64, which would compare heads, not encoders.

    Args:
        encoder: A key of :data:`ENCODERS`.
        features_dim: Width of the features, at least 1.

    Raises:
        ValueError: For an unknown encoder, with the close matches.
    """
    if encoder not in ENCODERS:
        close = difflib.get_close_matches(encoder, ENCODERS, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(f"There is no encoder called {encoder!r}.{hint} Known: {', '.join(ENCODERS)}.")
    extractor_class, extractor_kwargs = ENCODERS[encoder]
    return {
        "features_extractor_class": extractor_class,
        "features_extractor_kwargs": {"features_dim": features_dim, **extractor_kwargs},
        "net_arch": [],
    }
