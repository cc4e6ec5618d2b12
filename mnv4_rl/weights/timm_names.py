"""What timm calls our layers: renames of the leaves, one table for each kind of block.

A whole model's names follow from its module tree, so a new variant needs nothing here.

Source:
    Names of the modules of timm 1.0.31, ``timm/models/_efficientnet_blocks.py`` and ``mobilenetv3.py``.
"""

from __future__ import annotations

from torch import nn

from mnv4_rl.models.blocks import UIB, FusedIB, MobileMQA
from mnv4_rl.models.layers import ConvNorm

_STEM = {"conv.conv": "conv_stem", "conv.norm": "bn1"}
_HEAD = {"hidden.conv": "conv_head", "hidden.norm": "norm_head", "classifier": "classifier"}
_BLOCKS: dict[type[nn.Module], dict[str, str]] = {
    ConvNorm: {"conv": "conv", "norm": "bn1"},
    FusedIB: {"expand.conv": "conv_exp", "expand.norm": "bn1", "project.conv": "conv_pwl", "project.norm": "bn2"},
    UIB: {
        "start_dw.conv": "dw_start.conv",
        "start_dw.norm": "dw_start.bn",
        "expand.conv": "pw_exp.conv",
        "expand.norm": "pw_exp.bn",
        "middle_dw.conv": "dw_mid.conv",
        "middle_dw.norm": "dw_mid.bn",
        "project.conv": "pw_proj.conv",
        "project.norm": "pw_proj.bn",
        "layer_scale": "layer_scale",
    },
    MobileMQA: {
        "norm": "norm",
        "query": "attn.query.proj",
        "key_reduction.conv": "attn.key.down_conv",
        "key_reduction.norm": "attn.key.norm",
        "key": "attn.key.proj",
        "value_reduction.conv": "attn.value.down_conv",
        "value_reduction.norm": "attn.value.norm",
        "value": "attn.value.proj",
        "output": "attn.output.proj",
        "layer_scale": "layer_scale",
    },
}


def timm_layers(stages: nn.Module) -> dict[str, str]:
    """Our path of every layer of a paper model -> timm's path.

    Args:
        stages: The model's stages, a Sequential of Sequentials of blocks.

    Returns:
        Paths of the stem, of each block that timm has, and of the paper's head, whether or not the model has them all.
    """
    names = {f"stem.{ours}": theirs for ours, theirs in _STEM.items()}
    for s, stage in enumerate(stages.children()):
        for b, block in enumerate(stage.children()):
            for ours, theirs in _BLOCKS.get(type(block), {}).items():
                names[f"stages.{s}.{b}.{ours}"] = f"blocks.{s}.{b}.{theirs}"
    return names | {f"head.{ours}": theirs for ours, theirs in _HEAD.items()}


def rename(key: str, layers: dict[str, str]) -> str | None:
    """``layer.leaf`` with the layer renamed, None for a layer that is not in the table."""
    layer, _, leaf = key.rpartition(".")
    return f"{layers[layer]}.{leaf}" if layer in layers else None
