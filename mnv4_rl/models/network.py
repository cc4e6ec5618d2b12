"""Spec -> network: stem, stages, head. The forward pass is those three lines.

Sizes for ``rl_s`` on Atari: (N, 4, 84, 84) -> stem (N, 16, 21, 21) -> stages (N, 48, 6, 6) -> head (N, 512).
"""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

import torch as th
from torch import Tensor, fx, nn
from torch.nn import functional as F

from mnv4_rl.checks import Interval, check_positive, check_range
from mnv4_rl.models.blocks import SE, UIB, FusedIB, GatedIB, MobileMQA, Pool, Stem
from mnv4_rl.models.layers import ConvNorm, DropPath, GridPool, make_activation, make_norm
from mnv4_rl.models.specs import (
    BlockSpec,
    ConvSpec,
    FusedIBSpec,
    GatedIBSpec,
    GridHeadSpec,
    HeadSpec,
    MobileMQASpec,
    NetworkSpec,
    PooledHeadSpec,
    PoolSpec,
    SESpec,
    Size,
    UIBSpec,
)
from mnv4_rl.models.start import draw, start

# Of an image. Each takes 262 kB while a network without norms is started on pictures.
CHANNELS = Interval(1, 4096)


class Network(nn.Module):
    """A built variant: ``head(stages(stem(x)))``.

    Attributes:
        spec: The row of data it was built from.
        in_channels: Image channels it expects.
        frame_channels: Channels of one frame of the image.
        num_features: Channels of the map that the head reads, timm's name for them.
        num_classes: Classes; 0 without a classifier.
        image_statistics: Mean and deviation, of each channel, of the images that its weights were trained on, where
            they came from a file that says so; else None.

    Shape:
        (N, in_channels, H, W) float, or uint8 in [0, 255], which the stem reads as divided by 255
        -> (N, num_classes), or (N, features) when built without classes.
    """

    def __init__(
        self, spec: NetworkSpec, in_channels: int, frame_channels: int, stages: nn.Sequential, head: Head
    ) -> None:
        super().__init__()
        self.spec = spec
        self.in_channels = in_channels
        self.frame_channels = frame_channels
        self.num_features = spec.out_channels
        self.stem = build_stem(spec, in_channels)
        self.stages = stages
        self.head = head
        self.num_classes = head.num_classes
        self.image_statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        start(self)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels to classes or features.

        Args:
            x: (N, in_channels, H, W), float, or uint8 in [0, 255]: the same as its ``float() / 255``, faster, and with
                a quarter of the image's bytes kept for backward.

        Raises:
            ValueError: If ``x`` is not a batch of images with ``in_channels`` channels.
        """
        if not th.jit.is_scripting():
            check_image_batch(x, self.in_channels, self.spec.name)
        x = self.stem(x)
        x = self.stages(x)
        return self.head(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, (N, num_features, H', W'), of images as :meth:`forward` takes them."""
        return self.stages(self.stem(x))

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh classifier in place of the one there is, or none for 0 classes; the rest stays as it is."""
        check_classes(num_classes)
        self.head.set_classifier(num_classes)
        draw(self.head, only="classifier")
        self.num_classes = num_classes


def check_image_batch(x: Tensor, in_channels: int, name: str) -> None:
    """Refuse what is no batch of a network's images; what torch.fx traces with has no shape yet and passes.

    Raises:
        ValueError: If ``x`` is not (N, in_channels, H, W).
    """
    if isinstance(x, fx.Proxy) or (x.dim() == 4 and x.shape[1] == in_channels):
        return
    raise ValueError(
        f"{name} expects images (N, {in_channels}, H, W), got shape {tuple(x.shape)}; "
        "add a batch dimension with x[None], move the channels with x.permute(0, 3, 1, 2), or build the model "
        "with another in_channels."
    )


class Head(nn.Module):
    """What both heads share: features, and a classifier behind them where there are classes.

    Attributes:
        features: Width of the features.
        num_classes: Classes; 0 without a classifier.
        out_features: Width of what comes out.
    """

    if TYPE_CHECKING:  # TorchScript would read it
        features: int

    def set_classifier(self, num_classes: int) -> None:
        """A classifier as PyTorch draws it, or none for 0."""
        self.num_classes = num_classes
        self.out_features = num_classes or self.features
        like = next(self.parameters())
        classifier = (
            nn.Linear(self.features, num_classes, device=like.device, dtype=like.dtype) if num_classes else None
        )
        self.classifier = classifier or nn.Identity()


class PooledHead(Head):
    """Mean over the map, hidden layer, dropout, classes.

    Args:
        in_channels: Channels of the map.
        spec: Widths and dropout.
        network: The network it belongs to; gives norm and activation.
        num_classes: Classes; 0 returns the hidden features.
    """

    def __init__(self, in_channels: int, spec: PooledHeadSpec, network: NetworkSpec, num_classes: int) -> None:
        super().__init__()
        self.features = spec.hidden_features
        self.hidden = ConvNorm(
            in_channels,
            spec.hidden_features,
            norm=network.norm,
            activation=network.activation,
            bias=spec.hidden_bias,
        )
        self.dropout = nn.Dropout(spec.dropout)
        self.set_classifier(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_features)."""
        x = self.hidden(x.mean((2, 3), keepdim=True)).flatten(1)
        return self.classifier(self.dropout(x))


class GridHead(Head):
    """The map, pooled to a grid that keeps position, flattened through one layer.

    Maps larger than the grid are averaged down to it, so the parameters do not grow with the image.

    Args:
        in_channels: Channels of the map.
        spec: Grid, widths, norm and activation.
        map_size: Height and width of the map at the image size the head is for; other sizes are pooled to fit.
        num_classes: Classes; 0 returns the features.
    """

    def __init__(self, in_channels: int, spec: GridHeadSpec, map_size: Size, num_classes: int) -> None:
        super().__init__()
        self.grid = (min(map_size[0], spec.grid), min(map_size[1], spec.grid))
        self.features = spec.features_dim
        self.gain, self.constant = spec.gain, spec.constant
        self.constants = spec.features_dim - spec.image_features
        channels = spec.squeeze_channels or in_channels
        self.pool = GridPool(self.grid)
        self.squeeze = ConvNorm(in_channels, channels, norm="none") if spec.squeeze_channels else nn.Identity()
        self.fc = nn.Linear(channels * math.prod(self.grid), spec.image_features, bias=spec.norm == "none")
        # Over a vector, whose axes TorchScript's ONNX cannot move as it does a map's.
        is_layer = spec.norm == "layer"
        self.norm = nn.LayerNorm(spec.image_features) if is_layer else make_norm(spec.norm, spec.image_features)
        self.activation = make_activation(spec.activation)
        self.set_classifier(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_features)."""
        x = self.squeeze(self.pool(x))
        # Position-major, channels innermost: for a channels-last map flattening is then a view.
        x = x.permute(0, 2, 3, 1).flatten(1)
        features = self.gain * self.activation(self.norm(self.fc(x)))  # (N, image_features)
        if self.constants > 0:
            features = F.pad(features, [0, self.constants], value=self.constant)
        return self.classifier(features)


def build_block(block: BlockSpec, in_channels: int, network: NetworkSpec) -> nn.Module:
    """One block from its row.

    Args:
        block: The row.
        in_channels: Channels of the map that comes in.
        network: The network it belongs to; gives norms, activation and layer scale.

    Raises:
        TypeError: For a row of a kind nobody builds.
    """
    row = dict(vars(block)) if is_dataclass(block) else {}
    inner: dict[str, Any] = {"norm": network.norm, "inner_norm": network.inner_norm, "activation": network.activation}
    match block:
        case ConvSpec():
            return ConvNorm(in_channels, **row, norm=network.norm, activation=network.activation)
        case GatedIBSpec():  # before its parent
            return GatedIB(in_channels, **row, **inner)
        case FusedIBSpec():
            return FusedIB(in_channels, **row, **inner)
        case UIBSpec():
            return UIB(in_channels, **row, **inner, layer_scale=network.layer_scale)
        case PoolSpec():
            return Pool(**row)
        case SESpec():
            return SE(in_channels, **row, activation=network.activation)
        case MobileMQASpec():
            norm = network.norm if row.pop("normalized") else "none"
            return MobileMQA(in_channels, **row, norm=norm, layer_scale=network.layer_scale)
    raise TypeError(f"No block is built from {block!r}; known are the rows of mnv4_rl.models.specs.BlockSpec.")


def build_stem(network: NetworkSpec, in_channels: int) -> Stem:
    """The stem, with the network's norm unless its row names another."""
    row = network.stem
    norm = network.norm if row.norm is None else row.norm
    activation = network.activation if row.activation else None
    return Stem(in_channels, row.out_channels, row.kernel_size, row.stride, norm, activation)


def build_stages(network: NetworkSpec) -> nn.Sequential:
    """All stages as a Sequential of Sequentials, channels threaded through."""
    channels = network.stem.out_channels
    stages = nn.Sequential()
    for rows in network.stages:
        stage = nn.Sequential()
        for row in rows:
            stage.append(build_block(row, channels, network))
            channels = getattr(row, "out_channels", channels)
        stages.append(stage)
    return stages


def build_head(network: NetworkSpec, image_size: Size, num_classes: int) -> PooledHead | GridHead:
    """The head its spec names, on the map that ``image_size`` leads to."""
    head: HeadSpec = network.head
    if isinstance(head, PooledHeadSpec):
        return PooledHead(network.out_channels, head, network, num_classes)
    return GridHead(network.out_channels, head, network.map_size(image_size), num_classes)


def build(
    spec: NetworkSpec,
    in_channels: int,
    num_classes: int,
    image_size: Size | None = None,
    frame_channels: int | None = None,
) -> Network:
    """Build a variant.

    Args:
        spec: The row of data.
        in_channels: Image channels, at least 1.
        num_classes: Classes, 0 for the features before the classifier.
        image_size: Height and width in pixels that a grid head is sized for; the variant's own size by default.
            Every network accepts every size; this only sets the number of weights of a grid head.
        frame_channels: Channels of one frame where the image is a stack of them, oldest first: 1 for grey, 3 for RGB.
            It only sets how the weights start, see :class:`mnv4_rl.models.specs.StartSpec`. None takes a multiple of
            3 for RGB (3 channels for one frame, 12 for four) and any other number for grey frames.

    Raises:
        ValueError: For sizes below 1, more channels than a picture has, or frames that do not divide the channels.
    """
    check_positive(in_channels=in_channels)
    check_range("in_channels", in_channels, CHANNELS)
    check_classes(num_classes)
    height, width = image_size or (spec.image_size, spec.image_size)
    check_positive(height=height, width=width)
    frame = usual_frame_channels(in_channels) if frame_channels is None else frame_channels
    check_positive(frame_channels=frame)
    if in_channels % frame:
        raise ValueError(f"{in_channels} channels are no stack of frames of {frame}: frame_channels must divide them.")
    head = build_head(spec, (int(height), int(width)), int(num_classes))  # NumPy's whole numbers cannot be scripted
    return Network(spec, int(in_channels), int(frame), build_stages(spec), head)


def check_classes(num_classes: int) -> None:
    """Refuse numbers of classes that are neither 0, for features, nor a count."""
    if num_classes != 0:
        check_positive(num_classes=num_classes)


def usual_frame_channels(in_channels: int) -> int:
    """Channels of one frame, as far as their number tells: multiples of 3 are RGB, all else is grey."""
    return 1 if in_channels % 3 else 3


def set_drop_path(network: Network, rate: float) -> None:
    """Let residual branches drop out while training: never in the first block, then linearly more.

    Block ``i`` of ``n`` drops its branch with probability ``rate * i / n``; every block counts, only those with a skip
    drop. Evaluation and weights do not change.

    Args:
        network: Any network of this package.
        rate: Peak probability, in [0, 1); 0 turns it off.

    Raises:
        ValueError: For a rate outside [0, 1).

    Source:
        arXiv:1603.09382; the schedule is timm's for MobileNetV4.
    """
    check_range("The drop-path rate", rate, Interval(0, 1, includes_high=False))
    blocks = [block for stage in network.stages.children() for block in stage.children()]
    for index, block in enumerate(blocks):
        drop_path = getattr(block, "drop_path", None)
        if isinstance(drop_path, DropPath):
            drop_path.rate = rate * index / len(blocks)
