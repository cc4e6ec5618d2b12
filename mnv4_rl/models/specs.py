"""What a network variant is made of: frozen dataclasses, checked on construction.

A network is stem -> stages -> head. This module says what the pieces are; :mod:`mnv4_rl.models.network` builds them.
It imports no torch: a row is plain data. The rows are in the file of their family, all of them in
:mod:`mnv4_rl.models.registry`. Block names and settings follow MobileNetV4, arXiv:2404.10518.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from mnv4_rl.checks import Interval, check_choice, check_kernel, check_positive, check_range, check_ranges, check_type

NormName: TypeAlias = Literal["none", "batch", "group", "layer"]
ActivationName: TypeAlias = Literal["relu", "silu", "gelu", "simplex"]
PoolName: TypeAlias = Literal["max", "average"]
Family: TypeAlias = Literal["mobilenet_v4", "paper", "rl"]
Size: TypeAlias = tuple[int, int]

NORMS: tuple[NormName, ...] = ("none", "batch", "group", "layer")
ACTIVATIONS: tuple[ActivationName, ...] = ("relu", "silu", "gelu", "simplex")
POOLS: tuple[PoolName, ...] = ("max", "average")
RATIO = Interval(0, 1, includes_low=False)


@dataclass(frozen=True, kw_only=True)
class StemSpec:
    """First layer: pixels -> channels. A kernel as large as its stride cuts the image into patches.

    Attributes:
        norm: Norm after the convolution, None for the network's.
        activation: Whether the network's activation follows the norm.
    """

    out_channels: int
    kernel_size: int = 3
    stride: int = 1
    norm: NormName | None = None
    activation: bool = True

    def __post_init__(self) -> None:
        check_positive(out_channels=self.out_channels, kernel_size=self.kernel_size, stride=self.stride)
        if self.norm is not None:
            check_choice("norm", self.norm, NORMS)


@dataclass(frozen=True, kw_only=True)
class ConvSpec:
    """Dense convolution, norm, activation; never a residual."""

    out_channels: int
    kernel_size: int = 3
    stride: int = 1

    def __post_init__(self) -> None:
        check_positive(out_channels=self.out_channels, stride=self.stride)
        check_kernel("kernel_size", self.kernel_size)


@dataclass(frozen=True, kw_only=True)
class FusedIBSpec:
    """Fused inverted bottleneck: dense k x k expansion, then a linear 1x1 projection."""

    out_channels: int
    expanded_channels: int
    kernel_size: int = 3
    stride: int = 2

    def __post_init__(self) -> None:
        check_positive(out_channels=self.out_channels, expanded_channels=self.expanded_channels, stride=self.stride)
        check_kernel("kernel_size", self.kernel_size)


@dataclass(frozen=True, kw_only=True)
class GatedIBSpec(FusedIBSpec):
    """FusedIB whose expansion is the product of two branches, of ``expanded_channels`` each."""


@dataclass(frozen=True, kw_only=True)
class PoolSpec:
    """Max or average pooling between blocks; the channels stay."""

    pool: PoolName = "max"
    kernel_size: int = 3
    stride: int = 2

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, POOLS)
        check_positive(stride=self.stride)
        check_kernel("kernel_size", self.kernel_size)


@dataclass(frozen=True, kw_only=True)
class UIBSpec:
    """Universal inverted bottleneck; a kernel of 0 leaves that depthwise convolution out."""

    out_channels: int
    expanded_channels: int
    start_dw_kernel_size: int = 0
    middle_dw_kernel_size: int = 0
    stride: int = 1

    def __post_init__(self) -> None:
        check_positive(out_channels=self.out_channels, expanded_channels=self.expanded_channels, stride=self.stride)
        check_uib(self.start_dw_kernel_size, self.middle_dw_kernel_size, self.stride)


def check_uib(start_dw_kernel_size: int, middle_dw_kernel_size: int, stride: int) -> None:
    """Refuse depthwise kernels without a centre, and a stride that none of them carries.

    Raises:
        ValueError: Saying which, and what is allowed.
    """
    check_kernel("start_dw_kernel_size", start_dw_kernel_size, allow_zero=True)
    check_kernel("middle_dw_kernel_size", middle_dw_kernel_size, allow_zero=True)
    if stride > 1 and not (start_dw_kernel_size or middle_dw_kernel_size):
        raise ValueError(
            f"A UIB with stride {stride} needs a depthwise convolution to carry it: "
            "set start_dw_kernel_size or middle_dw_kernel_size to an odd number, or the stride to 1."
        )


@dataclass(frozen=True, kw_only=True)
class SESpec:
    """Squeeze and excitation: each channel scaled by a gate computed from all channel means."""

    squeeze_ratio: float = 0.25

    def __post_init__(self) -> None:
        check_range("squeeze_ratio", self.squeeze_ratio, RATIO)

    @property
    def stride(self) -> int:
        """Squeeze and excitation keeps the map."""
        return 1


@dataclass(frozen=True, kw_only=True)
class MobileMQASpec:
    """Attention over positions; see :class:`mnv4_rl.models.blocks.MobileMQA` for the fields."""

    num_heads: int
    key_dim: int
    kv_heads: int = 1
    kv_stride: int = 1
    kv_depthwise: bool = True
    bias: bool = False
    output_projection: bool = True
    normalized: bool = True

    def __post_init__(self) -> None:
        check_positive(num_heads=self.num_heads, key_dim=self.key_dim, kv_stride=self.kv_stride)
        check_kv_heads(self.kv_heads, self.num_heads)

    @property
    def stride(self) -> int:
        """Attention keeps the map: every position asks, whatever the stride of keys and values."""
        return 1


def check_kv_heads(kv_heads: int, num_heads: int) -> None:
    """Refuse key and value heads that are neither shared by all query heads nor one for each.

    Raises:
        ValueError: For anything but 1 and ``num_heads``.
    """
    if kv_heads not in (1, num_heads):
        raise ValueError(f"kv_heads must be 1 or num_heads ({num_heads}), got {kv_heads!r}.")


BlockSpec: TypeAlias = ConvSpec | FusedIBSpec | GatedIBSpec | UIBSpec | SESpec | MobileMQASpec | PoolSpec


@dataclass(frozen=True, kw_only=True)
class PooledHeadSpec:
    """Classifier of the MobileNets: mean over the map, hidden layer, classes. Forgets position."""

    hidden_features: int
    hidden_bias: bool
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_positive(hidden_features=self.hidden_features)
        check_range("dropout", self.dropout, Interval(0, 1, includes_high=False))


@dataclass(frozen=True, kw_only=True)
class GridHeadSpec:
    """Features for control: the map pooled to at most ``grid`` x ``grid``, flattened, one layer. Keeps position.

    Attributes:
        squeeze_channels: Channels of a 1x1 convolution before flattening; 0 leaves it out.
        norm: Norm on the feature vector.
        gain: What the features are multiplied by. Policy and value are linear in them, so it sets how far a step of
            Adam moves both: features of a LayerNorm are large, and at a gain of 1 PPO's updates overshoot.
        constant: Value of the features that are the same in every state.
        constant_share: Share of ``features_dim`` that these are, the last ones; 0 for none. Their sum lets policy and
            value shift in all states at once: where nothing has been rewarded yet, an agent then drifts towards holding
            an action, not towards another one in each state. One constant of that sum would do the same, but its
            gradient would fill the norm that PPO clips gradients to.
    """

    features_dim: int = 512
    grid: int = 6
    squeeze_channels: int = 0
    norm: NormName = "layer"
    activation: ActivationName = "relu"
    gain: float = 1.0
    constant: float = 0.4
    constant_share: float = 0.0

    def __post_init__(self) -> None:
        check_positive(features_dim=self.features_dim, grid=self.grid)
        check_range("gain", self.gain, Interval(0, includes_low=False))
        check_range("constant", self.constant, Interval(0))
        check_range("constant_share", self.constant_share, Interval(0, 1, includes_high=False))
        check_choice("norm", self.norm, NORMS)
        if self.norm == "batch":
            raise ValueError("The norm of features must have no train and eval mode: 'none', 'group' or 'layer'.")
        check_choice("activation", self.activation, ACTIVATIONS)

    @property
    def image_features(self) -> int:
        """Features that depend on the image."""
        return self.features_dim - int(self.constant_share * self.features_dim)


HeadSpec: TypeAlias = PooledHeadSpec | GridHeadSpec
StageSpec: TypeAlias = tuple[BlockSpec, ...]


@dataclass(frozen=True, kw_only=True)
class StartSpec:
    """How a network without norms starts; :func:`mnv4_rl.models.start.start` draws its weights so.

    Attributes:
        skip_gain: What a block with a skip adds at first, as a share of its input.
        static_gain: What the stem's filters keep at first of what all frames of a stack have in common, colour by
            colour (what stands still), and flat areas give no signal; None keeps everything.
        weight_rms: Root mean square at which the convolutions of stem and stages store their weights, nearly, so that
            Adam teaches all of them equally fast; None stores them as drawn.
    """

    skip_gain: float = 1.0
    static_gain: float | None = None
    weight_rms: float | None = None

    def __post_init__(self) -> None:
        check_range("skip_gain", self.skip_gain, Interval(0, includes_low=False))
        check_ranges(self, {"static_gain": Interval(0, 1), "weight_rms": Interval(0, includes_low=False)})


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """One variant: what :func:`mnv4_rl.models.network.build` turns into a network.

    Attributes:
        name: Registry name.
        family: Where the variant comes from: the MobileNet_v4 system, the paper, or made for RL.
        norm: Norm after the stem, unless it names its own, and after each block's last convolution.
        inner_norm: Norm after the other convolutions of a block; without one they have a bias.
        layer_scale: Initial per-channel scale of UIB and MobileMQA outputs, None for no scale.
        start: How the weights start, for a network whose ``norm`` is "none"; None for the plain :class:`StartSpec`, and
            where norms set the size of the signal.
        image_size: Side in pixels that published sizes refer to.
    """

    name: str
    family: Family
    stem: StemSpec
    stages: tuple[StageSpec, ...]
    head: HeadSpec
    norm: NormName
    inner_norm: NormName
    activation: ActivationName
    layer_scale: float | None = None
    start: StartSpec | None = None
    image_size: int

    def __post_init__(self) -> None:
        check_choice("norm", self.norm, NORMS)
        check_choice("inner_norm", self.inner_norm, NORMS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_positive(image_size=self.image_size)
        check_ranges(self, {"layer_scale": Interval(0, includes_low=False)})
        check_type("name", self.name, str)
        check_type("stem", self.stem, StemSpec)
        check_type("head", self.head, get_args(HeadSpec))
        self._check_stages()
        self._check_start()

    def _check_stages(self) -> None:
        check_type("stages", self.stages, tuple)
        for index, stage in enumerate(self.stages):
            check_type(f"stages[{index}]", stage, tuple)
            for block in stage:
                check_type(f"A block of stages[{index}]", block, get_args(BlockSpec))

    def _check_start(self) -> None:
        if self.start is None:
            return
        check_type("start", self.start, StartSpec)
        if self.norm != "none":
            raise ValueError(
                f"start={self.start} is for networks without norms, got norm={self.norm!r}: norms set the size of the "
                "signal, whatever the weights. Set start=None, or norm='none'."
            )

    @property
    def out_channels(self) -> int:
        """Channels of the map that the head sees."""
        channels = self.stem.out_channels
        for block in self.blocks():
            channels = getattr(block, "out_channels", channels)
        return channels

    def blocks(self) -> Iterator[BlockSpec]:
        """All blocks in order, stage borders forgotten."""
        for stage in self.stages:
            yield from stage

    def map_size(self, image_size: Size) -> Size:
        """Height and width of the last map: every strided layer keeps ``ceil(size / stride)`` positions."""
        height, width = image_size
        for stride in (self.stem.stride, *(block.stride for block in self.blocks())):
            height, width = -(-height // stride), -(-width // stride)
        return height, width

    def without_batch_norm(self) -> NetworkSpec:
        """The same architecture with every BatchNorm replaced by a norm that has no train and eval mode.

        GroupNorm with 8 channels a group takes its place, and layer scales are dropped: a scale of 1e-5 after a block
        without a residual relies on the next BatchNorm to restore the signal.
        """
        if "batch" not in (self.norm, self.inner_norm, self.stem.norm):
            return self
        stem_norm, norm, inner_norm = (
            "group" if name == "batch" else name for name in (self.stem.norm, self.norm, self.inner_norm)
        )
        stem = replace(self.stem, norm=stem_norm)
        return replace(self, layer_scale=None, stem=stem, norm=norm, inner_norm=inner_norm)  # type: ignore[arg-type]


TIMM_PREFIX = "timm:"


@dataclass(frozen=True, kw_only=True)
class TimmSpec:
    """A model of timm as an encoder; :class:`mnv4_rl.models.timm_network.TimmNetwork` builds it.

    Attributes:
        model: timm's name, which may end in the tag of its trained weights: ``"resnet18"``, ``"resnet18.tv_in1k"``.
        head: What reads its last map. A ``grid`` of 1 reads the features that the model itself pools.
        batch_norm: Whether it keeps its BatchNorm; else GroupNorm takes its place.
    """

    model: str
    head: GridHeadSpec
    batch_norm: bool = True

    def __post_init__(self) -> None:
        check_type("model", self.model, str)
        check_type("head", self.head, GridHeadSpec)
        check_type("batch_norm", self.batch_norm, bool)

    @property
    def name(self) -> str:
        """The variant's name."""
        return TIMM_PREFIX + self.model

    def without_batch_norm(self) -> TimmSpec:
        """The same model with GroupNorm, as :meth:`NetworkSpec.without_batch_norm`."""
        return replace(self, batch_norm=False)


def round_channels(channels: float, divisor: int = 8) -> int:
    """Nearest multiple of ``divisor``, at least ``divisor``, never more than 10 % below ``channels``.

    Source: the MobileNets' rule, tensorflow/models ``make_divisible``.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor
