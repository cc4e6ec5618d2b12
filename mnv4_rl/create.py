"""Build any variant, with trained weights where asked for."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Literal, overload

from mnv4_rl.models.network import Network, build, set_drop_path
from mnv4_rl.models.pyramid import FeaturePyramid
from mnv4_rl.models.registry import get_spec
from mnv4_rl.models.specs import NetworkSpec, Size
from mnv4_rl.weights import Pretrained, load_pretrained


@overload
def create_model(
    name: str | NetworkSpec,
    in_channels: int = ...,
    num_classes: int | None = ...,
    image_size: int | Size | None = ...,
    pretrained: Pretrained | Literal[False] = ...,
    features_only: Literal[False] = ...,
    frame_channels: int | None = ...,
    out_indices: Sequence[int] | None = ...,
    drop_path_rate: float = ...,
) -> Network: ...


@overload
def create_model(
    name: str | NetworkSpec,
    in_channels: int = ...,
    num_classes: int | None = ...,
    image_size: int | Size | None = ...,
    pretrained: Pretrained | Literal[False] = ...,
    *,
    features_only: Literal[True],
    frame_channels: int | None = ...,
    out_indices: Sequence[int] | None = ...,
    drop_path_rate: float = ...,
) -> FeaturePyramid: ...


def create_model(
    name: str | NetworkSpec,
    in_channels: int = 3,
    num_classes: int | None = None,
    image_size: int | Size | None = None,
    pretrained: Pretrained | Literal[False] = False,
    features_only: bool = False,
    frame_channels: int | None = None,
    out_indices: Sequence[int] | None = None,
    drop_path_rate: float = 0.0,
) -> Network | FeaturePyramid:
    """Build a variant.

    Args:
        name: One of :func:`list_models`, or a spec, for example of :func:`mnv4_rl.models.width.scale_width`.
        in_channels: Image channels.
        num_classes: Classes, 0 for the features before the classifier. None for ImageNet's 1000, and for the features
            of an RL variant.
        image_size: Side, or height and width, in pixels that the head of an RL variant is sized for; other variants
            ignore it. Every model accepts every size.
        pretrained: A file to start from, timm's or this package's own; ``True`` downloads timm's default weights of
            a paper model. See :func:`mnv4_rl.weights.load_pretrained` for what it does to other numbers of channels
            and classes.
        features_only: Return the maps of every size instead of classes, see
            :class:`mnv4_rl.models.pyramid.FeaturePyramid`.
        frame_channels: Channels of one frame where the image is a stack of them: 1 for grey, 3 for RGB. None takes a
            multiple of 3 for RGB, any other number for grey. It only sets how RL variants start.
        out_indices: With ``features_only``, which maps to return; None for all.
        drop_path_rate: Peak rate of stochastic depth, see :func:`mnv4_rl.models.network.set_drop_path`.

    Shape:
        The model maps (N, in_channels, H, W) float to (N, num_classes), or to a list of maps.

    Raises:
        ValueError: For an unknown name (with the close matches), a size below 1, frames that do not divide the
            channels, or a file that does not fit.
        OSError, ImportError: If pretrained weights cannot be had; the message says what to do.
    """
    size = (image_size, image_size) if isinstance(image_size, int | Integral) else image_size
    if out_indices is not None and not features_only:
        raise ValueError("out_indices chooses among maps: pass features_only=True too.")
    spec = get_spec(name)
    if num_classes is None:
        num_classes = 0 if spec.family == "rl" else 1000
    network = build(spec, in_channels, num_classes, size, frame_channels)
    if drop_path_rate:
        set_drop_path(network, drop_path_rate)
    if pretrained or pretrained == "":  # which is refused, not taken for False
        load_pretrained(network, pretrained)
    return FeaturePyramid(network, out_indices) if features_only else network
