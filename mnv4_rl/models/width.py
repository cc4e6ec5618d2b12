"""Wider and narrower versions of a variant: one pure function from spec to spec."""

from __future__ import annotations

import math
from dataclasses import replace

from mnv4_rl.models.specs import BlockSpec, MobileMQASpec, NetworkSpec, PoolSpec, SESpec, round_channels


def scale_width(spec: NetworkSpec, multiplier: float) -> NetworkSpec:
    """The same network with its channels multiplied, rounded to multiples of 8.

    Expanded channels keep their ratio to the channels that enter the block. The stem keeps its channels when the
    network gets narrower, and the head always does. Attention keeps its heads and their width.

    Args:
        spec: The row to start from.
        multiplier: Above 0; timm's published widths are 0.35 and 0.5 of Conv-S, 0.75 of the hybrids.

    Returns:
        A spec called ``<name>_<hundredths>``, for example ``mnv4_conv_s_050``; the same spec for a multiplier of 1.

    Raises:
        ValueError: For a multiplier that is not a positive number, or attention whose width is tied to its channels.

    Source:
        The MobileNets' width multiplier as in timm's ``EfficientNetBuilder``.
    """
    if not 0 < multiplier < math.inf:
        raise ValueError(f"multiplier must be a positive number such as 0.5, got {multiplier!r}.")
    if multiplier == 1:
        return spec
    stem = replace(spec.stem, out_channels=_scaled(spec.stem.out_channels, max(1.0, multiplier)))
    channels, scaled_channels = spec.stem.out_channels, stem.out_channels
    stages = []
    for stage in spec.stages:
        blocks = []
        for block in stage:
            scaled = _scale_block(block, channels, scaled_channels, multiplier)
            channels = getattr(block, "out_channels", channels)
            scaled_channels = getattr(scaled, "out_channels", scaled_channels)
            blocks.append(scaled)
        stages.append(tuple(blocks))
    name = f"{spec.name}_{round(100 * multiplier):03d}"
    return replace(spec, name=name, stem=stem, stages=tuple(stages))


def _scaled(channels: int, multiplier: float) -> int:
    return channels if multiplier == 1 else round_channels(channels * multiplier)


def _scale_block(block: BlockSpec, channels: int, scaled_channels: int, multiplier: float) -> BlockSpec:
    """One block, given the channels that enter it before and after scaling."""
    if isinstance(block, SESpec | PoolSpec):
        return block
    if isinstance(block, MobileMQASpec):
        if not block.output_projection:
            raise ValueError(
                "Attention without an output projection cannot be scaled: its num_heads * key_dim is the width of the "
                "map. Choose base_channels and num_heads instead, as in mobilenet_v4_custom."
            )
        return block
    changes = {"out_channels": _scaled(block.out_channels, multiplier)}
    if hasattr(block, "expanded_channels"):
        changes["expanded_channels"] = round_channels(scaled_channels * block.expanded_channels / channels)
    return replace(block, **changes)  # type: ignore[arg-type]
