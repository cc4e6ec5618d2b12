"""Weights in and out: this package's own safetensors files, timm's checkpoints, trained weights for an encoder."""

from mnv4_rl.weights.files import Pretrained
from mnv4_rl.weights.loading import (
    load_pretrained,
    load_timm_state_dict,
    load_weights,
    save_weights,
    to_timm_state_dict,
)

__all__ = [
    "Pretrained",
    "load_pretrained",
    "load_timm_state_dict",
    "load_weights",
    "save_weights",
    "to_timm_state_dict",
]
