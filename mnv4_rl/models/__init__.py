"""Rows of data -> networks: specs, layers, blocks, networks, and one file of rows a family. No SB3, no gymnasium."""

from mnv4_rl.models.named import (
    mobilenet_v4_custom,
    mobilenet_v4_hybrid_large,
    mobilenet_v4_large,
    mobilenet_v4_medium,
    mobilenet_v4_nano,
    mobilenet_v4_small,
)
from mnv4_rl.models.registry import list_models

__all__ = [
    "list_models",
    "mobilenet_v4_custom",
    "mobilenet_v4_hybrid_large",
    "mobilenet_v4_large",
    "mobilenet_v4_medium",
    "mobilenet_v4_nano",
    "mobilenet_v4_small",
]
