"""Named models: the README family as functions, and :func:`create_model` for every registered variant.

The parameters of ``mobilenet_v4_*`` with 3 input channels and 1000 classes are exactly those its README published.
"""

from __future__ import annotations

from typing import Literal, overload

from mnv4_rl.network import Network, build
from mnv4_rl.pyramid import FeaturePyramid
from mnv4_rl.registry import get_spec, list_models, readme_spec
from mnv4_rl.specs import NetworkSpec, Size
from mnv4_rl.weight_files import Pretrained
from mnv4_rl.weights import load_pretrained

__all__ = [
    "create_model",
    "list_models",
    "mobilenet_v4_custom",
    "mobilenet_v4_hybrid_large",
    "mobilenet_v4_large",
    "mobilenet_v4_medium",
    "mobilenet_v4_nano",
    "mobilenet_v4_small",
]


@overload
def create_model(
    name: str | NetworkSpec,
    in_channels: int = ...,
    num_classes: int = ...,
    image_size: int | Size | None = ...,
    pretrained: Pretrained | Literal[False] = ...,
    features_only: Literal[False] = ...,
) -> Network: ...


@overload
def create_model(
    name: str | NetworkSpec,
    in_channels: int = ...,
    num_classes: int = ...,
    image_size: int | Size | None = ...,
    pretrained: Pretrained | Literal[False] = ...,
    *,
    features_only: Literal[True],
) -> FeaturePyramid: ...


def create_model(
    name: str | NetworkSpec,
    in_channels: int = 3,
    num_classes: int = 1000,
    image_size: int | Size | None = None,
    pretrained: Pretrained | Literal[False] = False,
    features_only: bool = False,
) -> Network | FeaturePyramid:
    """Build a variant.

    Args:
        name: One of :func:`list_models`, or a spec, for example of :func:`mnv4_rl.width.scale_width`.
        in_channels: Image channels.
        num_classes: Classes, 0 for the features before the classifier.
        image_size: Side, or height and width, in pixels that the head of an RL variant is sized for; other variants
            ignore it. Every model accepts every size.
        pretrained: A file to start from, timm's or this package's own; ``True`` downloads timm's default weights of
            a paper model. See :func:`mnv4_rl.weights.load_pretrained` for what it does to other numbers of channels
            and classes.
        features_only: Return the maps of every size instead of classes, see :class:`mnv4_rl.pyramid.FeaturePyramid`.

    Shape:
        The model maps (N, in_channels, H, W) float to (N, num_classes), or to a list of maps.

    Raises:
        ValueError: For an unknown name (with the close matches), a size below 1, or a file that does not fit.
        OSError, ImportError: If pretrained weights cannot be had; the message says what to do.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    network = build(get_spec(name), in_channels, num_classes, size)
    if pretrained:
        load_pretrained(network, pretrained)
    return FeaturePyramid(network) if features_only else network


def mobilenet_v4_nano(in_channels: int = 3, num_classes: int = 1000) -> Network:
    """590,344 parameters: small images and simple visual environments."""
    return create_model("mobilenet_v4_nano", in_channels, num_classes)


def mobilenet_v4_small(in_channels: int = 3, num_classes: int = 1000) -> Network:
    """1,303,904 parameters: moderate image tasks."""
    return create_model("mobilenet_v4_small", in_channels, num_classes)


def mobilenet_v4_medium(in_channels: int = 3, num_classes: int = 1000) -> Network:
    """2,276,384 parameters: medium data sets with more classes."""
    return create_model("mobilenet_v4_medium", in_channels, num_classes)


def mobilenet_v4_large(in_channels: int = 3, num_classes: int = 1000) -> Network:
    """9,740,680 parameters: complex tasks."""
    return create_model("mobilenet_v4_large", in_channels, num_classes)


def mobilenet_v4_hybrid_large(in_channels: int = 3, num_classes: int = 1000) -> Network:
    """35,886,888 parameters, 32 attention heads. Not the paper's MNv4-Hybrid-L: that one is ``mnv4_hybrid_l``."""
    return create_model("mobilenet_v4_hybrid_large", in_channels, num_classes)


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
    """A member of the README family with your own sizes.

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
    spec = readme_spec(
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
