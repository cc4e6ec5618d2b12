"""The models of the MobileNet_v4 system as functions.

Their parameters with 3 input channels and 1000 classes are exactly those its README published.
"""

from __future__ import annotations

from mnv4_rl.models.mobilenet_v4 import mobilenet_v4_spec
from mnv4_rl.models.network import Network, build
from mnv4_rl.models.registry import get_spec


def mobilenet_v4_nano(in_channels: int = 3, num_classes: int = 1000) -> Network:
    """590,344 parameters: small images and simple visual environments."""
    return build(get_spec("mobilenet_v4_nano"), in_channels, num_classes)


def mobilenet_v4_small(in_channels: int = 3, num_classes: int = 1000) -> Network:
    """1,303,904 parameters: moderate image tasks."""
    return build(get_spec("mobilenet_v4_small"), in_channels, num_classes)


def mobilenet_v4_medium(in_channels: int = 3, num_classes: int = 1000) -> Network:
    """2,276,384 parameters: medium data sets with more classes."""
    return build(get_spec("mobilenet_v4_medium"), in_channels, num_classes)


def mobilenet_v4_large(in_channels: int = 3, num_classes: int = 1000) -> Network:
    """9,740,680 parameters: complex tasks."""
    return build(get_spec("mobilenet_v4_large"), in_channels, num_classes)


def mobilenet_v4_hybrid_large(in_channels: int = 3, num_classes: int = 1000) -> Network:
    """35,886,888 parameters, 32 attention heads. Not the paper's MNv4-Hybrid-L: that one is ``mnv4_hybrid_l``."""
    return build(get_spec("mobilenet_v4_hybrid_large"), in_channels, num_classes)


def mobilenet_v4_custom(
    in_channels: int = 3,
    num_classes: int = 1000,
    base_channels: int = 16,
    expanded_channels: int = 32,
    squeeze_ratio: float = 0.25,
    num_heads: int = 2,
    hidden_dim_classifier: int = 64,
    dropout: float = 0.2,
    FusedIBs: int = 1,
    UIB_and_ExtraDWs: int = 1,
    SE_and_UIBs: int = 1,
    SE_and_MobileMQAs: int = 1,
) -> Network:
    """A member of the family with your own sizes.

    Args:
        in_channels: Image channels.
        num_classes: Classes, 0 for the features before the classifier.
        base_channels: Channels between blocks.
        expanded_channels: Channels inside a bottleneck.
        squeeze_ratio: Hidden share of squeeze and excitation, in (0, 1].
        num_heads: Attention heads; they must divide ``base_channels``.
        hidden_dim_classifier: Width of the classifier's hidden layer.
        dropout: Dropout of the classifier, in [0, 1).
        FusedIBs: FusedIB blocks, each halving the map.
        UIB_and_ExtraDWs: Pairs of a UIB and an ExtraDW.
        SE_and_UIBs: Pairs of an SE and a UIB.
        SE_and_MobileMQAs: Pairs of an SE and a MobileMQA.

    Raises:
        ValueError: For a size below 1, or heads that do not divide the channels (with the counts that do).
    """
    spec = mobilenet_v4_spec(
        name="mobilenet_v4_custom",
        base_channels=base_channels,
        expanded_channels=expanded_channels,
        squeeze_ratio=squeeze_ratio,
        fused_ibs=FusedIBs,
        uib_and_extra_dws=UIB_and_ExtraDWs,
        se_and_uibs=SE_and_UIBs,
        se_and_mqas=SE_and_MobileMQAs,
        num_heads=num_heads,
        hidden_dim_classifier=hidden_dim_classifier,
        dropout=dropout,
    )
    return build(spec, in_channels, num_classes)
