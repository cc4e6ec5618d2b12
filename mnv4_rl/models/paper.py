"""The five models of the MobileNetV4 paper as rows of data, compatible with timm's checkpoints.

A stage is written as the paper's tables write it: the two depthwise kernels (0 for none) and the expanded channels of
each UIB; all blocks of a stage share their output channels and the first one halves the map. Comments give the side of
the map at the paper's image size.

Sources:
    MobileNetV4, arXiv:2404.10518, Tables 11 to 15 (appendix), and the authors' code, tensorflow/models
    ``official/vision/modeling/backbones/mobilenet.py``, which also says what the tables leave open: the heads, widths
    and strides of attention, the layer scale of the hybrids and the GELU of Hybrid-L.

    Where the two disagree these rows follow the code, as timm does. Hybrid-M differs from Table 13 in the order of its
    stride 16 and 32 blocks (the code's 10.49 Mi parameters are the 10.5 M the paper reports, the table's are not), and
    the first two "FusedIB" of Conv-S (Table 11) are pairs of plain convolutions with an activation after each.
"""

from __future__ import annotations

from typing import TypeAlias

from mnv4_rl.models.specs import (
    ActivationName,
    BlockSpec,
    ConvSpec,
    FusedIBSpec,
    MobileMQASpec,
    NetworkSpec,
    PooledHeadSpec,
    StageSpec,
    StemSpec,
    UIBSpec,
)

HYBRID_LAYER_SCALE = 1e-5

UIBRow: TypeAlias = tuple[int, int, int]  # start depthwise kernel, middle depthwise kernel, expanded channels


def paper_spec(
    name: str,
    stem_channels: int,
    stages: tuple[StageSpec, ...],
    image_size: int,
    activation: ActivationName = "relu",
    layer_scale: float | None = None,
) -> NetworkSpec:
    """What the five models share: a strided 3x3 stem, a last 1x1 convolution to 960, the 1280 wide head, BatchNorm."""
    return NetworkSpec(
        name=name,
        family="paper",
        stem=StemSpec(out_channels=stem_channels, kernel_size=3, stride=2),
        stages=(*stages, (ConvSpec(out_channels=960, kernel_size=1),)),
        head=PooledHeadSpec(hidden_features=1280, hidden_bias=False),
        norm="batch",
        inner_norm="batch",
        activation=activation,
        layer_scale=layer_scale,
        image_size=image_size,
    )


def conv_stage(channels: int, out_channels: int) -> StageSpec:
    """A 3x3 convolution that halves the map and a 1x1 convolution."""
    strided = ConvSpec(out_channels=channels, kernel_size=3, stride=2)
    return strided, ConvSpec(out_channels=out_channels, kernel_size=1)


def fused_stage(stem_channels: int) -> StageSpec:
    """The FusedIB to 48 channels that all models but Conv-S start with."""
    return (FusedIBSpec(out_channels=48, expanded_channels=4 * stem_channels, kernel_size=3, stride=2),)


def uib_stage(out_channels: int, *rows: UIBRow | MobileMQASpec) -> StageSpec:
    """A stage of UIBs, with attention between them; the first row has stride 2."""
    blocks: list[BlockSpec] = []
    for row in rows:
        if isinstance(row, MobileMQASpec):
            blocks.append(row)
            continue
        start, middle, expanded = row
        blocks.append(
            UIBSpec(
                out_channels=out_channels,
                expanded_channels=expanded,
                start_dw_kernel_size=start,
                middle_dw_kernel_size=middle,
                stride=1 if blocks else 2,
            )
        )
    return tuple(blocks)


# Attention of the hybrids; keys and values are read at half resolution where the map is large.
MQA_M_16 = MobileMQASpec(num_heads=4, key_dim=64, kv_stride=2)
MQA_M_8 = MobileMQASpec(num_heads=4, key_dim=64)
MQA_L_24 = MobileMQASpec(num_heads=8, key_dim=48, kv_stride=2)
MQA_L_12 = MobileMQASpec(num_heads=8, key_dim=64)

# fmt: off
CONV_S = paper_spec(  # Table 11
    name="mnv4_conv_s",
    image_size=224,
    stem_channels=32,  # 224 -> 112
    stages=(
        conv_stage(32, 32),  # 112 -> 56
        conv_stage(96, 64),  # 56 -> 28
        uib_stage(96, (5, 5, 192), *4 * [(0, 3, 192)], (3, 0, 384)),  # 28 -> 14
        uib_stage(128, (3, 3, 576), (5, 5, 512), (0, 5, 512), (0, 5, 384), *2 * [(0, 3, 512)]),  # 14 -> 7
    ),
)

CONV_M = paper_spec(  # Table 12
    name="mnv4_conv_m",
    image_size=256,
    stem_channels=32,  # 256 -> 128
    stages=(
        fused_stage(32),  # 128 -> 64
        uib_stage(80, (3, 5, 192), (3, 3, 160)),  # 64 -> 32
        uib_stage(  # 32 -> 16
            160, (3, 5, 480), *2 * [(3, 3, 640)], (3, 5, 640), (3, 3, 640), (3, 0, 640), (0, 0, 320), (3, 0, 640),
        ),
        uib_stage(  # 16 -> 8
            256, (5, 5, 960), (5, 5, 1024), *2 * [(3, 5, 1024)], (0, 0, 1024), (3, 0, 1024), (3, 5, 512),
            (5, 5, 1024), *2 * [(0, 0, 1024)], (5, 0, 512),
        ),
    ),
)

CONV_L = paper_spec(  # Table 14
    name="mnv4_conv_l",
    image_size=384,
    stem_channels=24,  # 384 -> 192
    stages=(
        fused_stage(24),  # 192 -> 96
        uib_stage(96, (3, 5, 192), (3, 3, 384)),  # 96 -> 48
        uib_stage(  # 48 -> 24
            192, (3, 5, 384), *3 * [(3, 3, 768)], (3, 5, 768), *5 * [(5, 3, 768)], (3, 0, 768),
        ),
        uib_stage(  # 24 -> 12
            512, (5, 5, 768), *3 * [(5, 5, 2048)], (5, 0, 2048), (5, 3, 2048), *2 * [(5, 0, 2048)], (5, 3, 2048),
            (5, 5, 2048), *3 * [(5, 0, 2048)],
        ),
    ),
)

HYBRID_M = paper_spec(  # not Table 13: see above
    name="mnv4_hybrid_m",
    image_size=256,
    stem_channels=32,  # 256 -> 128
    stages=(
        fused_stage(32),  # 128 -> 64
        uib_stage(80, (3, 5, 192), (3, 3, 160)),  # 64 -> 32
        uib_stage(  # 32 -> 16
            160, (3, 5, 480), (0, 0, 320), (3, 3, 640), (3, 5, 640), MQA_M_16, (3, 3, 640), MQA_M_16, (3, 0, 640),
            MQA_M_16, (3, 3, 640), MQA_M_16, (3, 0, 640),
        ),
        uib_stage(  # 16 -> 8
            256, (5, 5, 960), (5, 5, 1024), *2 * [(3, 5, 1024)], (0, 0, 512), (3, 5, 512), (0, 0, 512), (0, 0, 1024),
            MQA_M_8, (3, 0, 1024), MQA_M_8, (5, 5, 1024), MQA_M_8, (5, 0, 1024),
            MQA_M_8, (5, 0, 1024),
        ),
    ),
    layer_scale=HYBRID_LAYER_SCALE,
)

HYBRID_L = paper_spec(  # Table 15
    name="mnv4_hybrid_l",
    image_size=384,
    stem_channels=24,  # 384 -> 192
    stages=(
        fused_stage(24),  # 192 -> 96
        uib_stage(96, (3, 5, 192), (3, 3, 384)),  # 96 -> 48
        uib_stage(  # 48 -> 24
            192, (3, 5, 384), *3 * [(3, 3, 768)], (3, 5, 768), *2 * [(5, 3, 768)], MQA_L_24, (5, 3, 768),
            MQA_L_24, (5, 3, 768), MQA_L_24, (5, 3, 768), MQA_L_24, (3, 0, 768),
        ),
        uib_stage(  # 24 -> 12
            512, (5, 5, 768), *3 * [(5, 5, 2048)], (5, 0, 2048), (5, 3, 2048), *2 * [(5, 0, 2048)], (5, 3, 2048),
            (5, 5, 2048), MQA_L_12, (5, 0, 2048), MQA_L_12, (5, 0, 2048), MQA_L_12, (5, 0, 2048), MQA_L_12,
            (5, 0, 2048),
        ),
    ),
    activation="gelu",
    layer_scale=HYBRID_LAYER_SCALE,
)
# fmt: on

PAPER_FAMILY = (CONV_S, CONV_M, CONV_L, HYBRID_M, HYBRID_L)

# Our name -> timm's, whose checkpoints fit.
TIMM_NAMES = {
    "mnv4_conv_s": "mobilenetv4_conv_small",
    "mnv4_conv_m": "mobilenetv4_conv_medium",
    "mnv4_conv_l": "mobilenetv4_conv_large",
    "mnv4_hybrid_m": "mobilenetv4_hybrid_medium",
    "mnv4_hybrid_l": "mobilenetv4_hybrid_large",
    "mnv4_conv_s_035": "mobilenetv4_conv_small_035",
    "mnv4_conv_s_050": "mobilenetv4_conv_small_050",
    "mnv4_hybrid_m_075": "mobilenetv4_hybrid_medium_075",
    "mnv4_hybrid_l_075": "mobilenetv4_hybrid_large_075",
}
