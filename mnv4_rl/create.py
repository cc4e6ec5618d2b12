"""Build any variant, with trained weights where asked for."""

from __future__ import annotations

from typing import Literal, overload

from mnv4_rl.models.network import Network, build
from mnv4_rl.models.pyramid import FeaturePyramid
from mnv4_rl.models.registry import get_spec
from mnv4_rl.models.specs import NetworkSpec, Size
from mnv4_rl.weights import Pretrained, load_pretrained


@overload
def create_model(
    name: str | NetworkSpec,
    in_channels: int = ...,
    num_classes: int = ...,
    image_size: int | Size | None = ...,
    pretrained: Pretrained | Literal[False] = ...,
    features_only: Literal[False] = ...,
    frame_channels: int | None = ...,
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
    frame_channels: int | None = ...,
) -> FeaturePyramid: ...


def create_model(
    name: str | NetworkSpec,
    in_channels: int = 3,
    num_classes: int = 1000,
    image_size: int | Size | None = None,
    pretrained: Pretrained | Literal[False] = False,
    features_only: bool = False,
    frame_channels: int | None = None,
) -> Network | FeaturePyramid:
    """Build a variant.

    Args:
        name: One of :func:`list_models`, or a spec, for example of :func:`mnv4_rl.models.width.scale_width`.
        in_channels: Image channels.
        num_classes: Classes, 0 for the features before the classifier.
        image_size: Side, or height and width, in pixels that the head of an RL variant is sized for; other variants
            ignore it. Every model accepts every size.
        pretrained: A file to start from, timm's or this package's own; ``True`` downloads timm's default weights of
            a paper model. See :func:`mnv4_rl.weights.load_pretrained` for what it does to other numbers of channels
            and classes.
        features_only: Return the maps of every size instead of classes, see
            :class:`mnv4_rl.models.pyramid.FeaturePyramid`.
        frame_channels: Channels of one frame where the image is a stack of them: 1 for grey, 3 for RGB. None takes a
            multiple of 3 for RGB, any other number for grey. It only sets how RL variants start.

    Shape:
        The model maps (N, in_channels, H, W) float to (N, num_classes), or to a list of maps.

    Raises:
        ValueError: For an unknown name (with the close matches), a size below 1, frames that do not divide the
            channels, or a file that does not fit.
        OSError, ImportError: If pretrained weights cannot be had; the message says what to do.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    network = build(get_spec(name), in_channels, num_classes, size, frame_channels)
    if pretrained:
        load_pretrained(network, pretrained)
    return FeaturePyramid(network) if features_only else network
