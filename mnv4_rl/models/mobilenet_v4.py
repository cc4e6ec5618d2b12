"""The five models of the MobileNet_v4 system that this package carries on, as rows of data.

Source:
    The system's README published only the parameter counts, which the rows below reproduce exactly.
"""

from __future__ import annotations

from dataclasses import replace

from mnv4_rl.checks import check_heads, check_positive
from mnv4_rl.models.specs import (
    BlockSpec,
    FusedIBSpec,
    MobileMQASpec,
    NetworkSpec,
    PooledHeadSpec,
    SESpec,
    StemSpec,
    UIBSpec,
)


def mobilenet_v4_spec(
    *,
    name: str,
    base_channels: int,
    expanded_channels: int,
    squeeze_ratio: float,
    fused_ibs: int,
    uib_and_extra_dws: int,
    se_and_uibs: int,
    se_and_mqas: int,
    num_heads: int,
    hidden_dim_classifier: int,
    dropout: float,
    kv_stride: int = 1,
) -> NetworkSpec:
    """One row of the family: stem, then four stages that repeat a pattern.

    Args:
        name: Registry name.
        base_channels: Channels between blocks.
        expanded_channels: Channels inside a bottleneck.
        squeeze_ratio: Share of the base channels in the bottleneck of squeeze and excitation.
        fused_ibs: FusedIB blocks, each halving the map.
        uib_and_extra_dws: Pairs of a UIB and an ExtraDW.
        se_and_uibs: Pairs of an SE and a UIB.
        se_and_mqas: Pairs of an SE and a MobileMQA.
        num_heads: Attention heads; they must divide ``base_channels``.
        hidden_dim_classifier: Width of the classifier's hidden layer.
        dropout: Probability of dropping a hidden feature of the classifier while training.
        kv_stride: Stride at which attention reads its keys and values.

    Raises:
        ValueError: For sizes below 1, a ratio outside (0, 1] or heads that do not divide the channels.
    """
    check_positive(base_channels=base_channels, expanded_channels=expanded_channels)
    uib = UIBSpec(out_channels=base_channels, expanded_channels=expanded_channels, start_dw_kernel_size=5)
    extra_dw = replace(uib, middle_dw_kernel_size=3)
    se = SESpec(squeeze_ratio=squeeze_ratio)
    mqa = MobileMQASpec(
        num_heads=num_heads,
        key_dim=check_heads(base_channels, num_heads),
        kv_heads=num_heads,
        kv_stride=kv_stride,
        kv_depthwise=False,
        bias=True,
        output_projection=False,
        normalized=False,
    )
    fused = FusedIBSpec(out_channels=base_channels, expanded_channels=expanded_channels)
    return NetworkSpec(
        name=name,
        family="mobilenet_v4",
        stem=StemSpec(out_channels=base_channels),
        stages=(
            _repeat((fused,), "FusedIBs", fused_ibs),
            _repeat((uib, extra_dw), "UIB_and_ExtraDWs", uib_and_extra_dws),
            _repeat((se, uib), "SE_and_UIBs", se_and_uibs),
            _repeat((se, mqa), "SE_and_MobileMQAs", se_and_mqas),
        ),
        head=PooledHeadSpec(hidden_features=hidden_dim_classifier, hidden_bias=True, dropout=dropout),
        norm="group",
        inner_norm="group",
        activation="silu",
        image_size=512,
    )


def _repeat(pattern: tuple[BlockSpec, ...], name: str, times: int) -> tuple[BlockSpec, ...]:
    if not isinstance(times, int) or times < 0:
        raise ValueError(f"{name} must be a whole number of at least 0, got {times!r}.")
    return pattern * times


_COLUMNS = (
    "name", "base_channels", "expanded_channels", "fused_ibs", "uib_and_extra_dws", "se_and_uibs", "se_and_mqas",
    "num_heads", "hidden_dim_classifier", "dropout", "kv_stride",
)  # fmt: skip
_ROWS = (
    ("mobilenet_v4_nano", 24, 64, 2, 2, 3, 1, 4, 512, 0.2, 1),
    ("mobilenet_v4_small", 48, 96, 2, 3, 4, 2, 6, 1024, 0.2, 1),
    ("mobilenet_v4_medium", 96, 192, 2, 5, 6, 3, 8, 1024, 0.2, 1),
    ("mobilenet_v4_large", 224, 512, 3, 6, 5, 3, 14, 1280, 0.2, 1),
    ("mobilenet_v4_hybrid_large", 384, 768, 3, 7, 6, 4, 32, 1280, 0.3, 2),
)
MOBILENET_V4_FAMILY = tuple(
    mobilenet_v4_spec(squeeze_ratio=0.25, **dict(zip(_COLUMNS, row, strict=True)))  # type: ignore[arg-type]
    for row in _ROWS
)
