"""The building blocks: plain arguments in, feature maps (N, C, H, W) float in and out, each usable alone.

Every convolution keeps ``ceil(size / stride)`` positions, so odd and tiny maps work. Maps stay in the
channels-last memory format that the stem brings them into; nothing depends on that but speed.

Source: MobileNetV4, arXiv:2404.10518, section 3 (UIB, FusedIB) and section 4 (Mobile MQA).
"""

from __future__ import annotations

from typing import Any

import torch as th
from torch import Tensor, nn
from torch.nn import functional as F

from mnv4_rl.checks import check_choice, check_heads, check_kernel, check_positive, check_range
from mnv4_rl.models.layers import ConvNorm, DropPath, LayerScale, inside_transform, make_activation, make_norm
from mnv4_rl.models.specs import POOLS, RATIO, ActivationName, NormName, PoolName, check_kv_heads, check_uib


class Stem(nn.Module):
    """Pixels to channels: one dense convolution, norm and (optionally) activation.

    A kernel as large as its stride cuts the image into patches. The image is brought into channels-last memory format
    here, once, and every later map stays in it. A uint8 image stays uint8 until the convolution reads it: that moves a
    quarter of the bytes, and backward keeps a quarter.

    Args:
        in_channels: Image channels, at least 1.
        out_channels: Filters.
        kernel_size: Side of the kernel in pixels, odd or even.
        stride: Pixels between positions.
        norm: Norm after the convolution.
        activation: Activation after the norm, None for none.

    Shape:
        (N, in_channels, H, W) float, or uint8 in [0, 255], which counts as divided by 255
        -> (N, out_channels, ceil(H / stride), ceil(W / stride)) float.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        norm: NormName = "batch",
        activation: ActivationName | None = "relu",
    ) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, out_channels, kernel_size, stride, norm=norm, activation=activation)
        self.conv.conv.reads_images = True

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of images to the first feature map."""
        if not th.jit.is_scripting():
            if inside_transform():  # a batch of batches has no such format
                return self.conv(x)
        return self.conv(x.contiguous(memory_format=th.channels_last))


class FusedIB(nn.Module):
    """Fused inverted bottleneck: x + project(expand(x)), where a dense k x k convolution expands.

    The projection is linear (no activation); the skip exists when the stride is 1 and the channels match.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        expanded_channels: Channels in between.
        kernel_size: Odd side of the dense kernel.
        stride: Stride of the dense convolution.
        norm: Norm after the projection.
        inner_norm: Norm after the expansion; None takes ``norm``.
        activation: Activation after the expansion.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Aliases:
        timm EdgeResidual, FusedMBConv.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expanded_channels: int,
        kernel_size: int = 3,
        stride: int = 2,
        norm: NormName = "batch",
        inner_norm: NormName | None = None,
        activation: ActivationName = "relu",
    ) -> None:
        super().__init__()
        check_kernel("kernel_size", kernel_size)
        inner = norm if inner_norm is None else inner_norm
        self.has_skip = stride == 1 and in_channels == out_channels
        self.expand = ConvNorm(in_channels, expanded_channels, kernel_size, stride, norm=inner, activation=activation)
        self.project = ConvNorm(expanded_channels, out_channels, 1, norm=norm)
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        """Expand with space, project without."""
        y = self.project(self.expanded(x))
        return x + self.drop_path(y) if self.has_skip else y

    def expanded(self, x: Tensor) -> Tensor:
        """What the projection reads."""
        return self.expand(x)


class GatedIB(FusedIB):
    """FusedIB whose expansion is a product: x + project(act(a(x)) * b(x)), with dense k x k convolutions a and b.

    A product answers where both branches do, which one layer of sums and ReLUs cannot say. The arguments are FusedIB's:
    ``expanded_channels`` and ``inner_norm`` are those of each branch, ``activation`` the first one's.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Source:
        The product of two branches of Hadamax, arXiv:2505.15345, section 4, and of arXiv:2406.09079. Here the second
        branch has no activation, so that the product keeps its sign, and a linear projection follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expanded_channels: int,
        kernel_size: int = 3,
        stride: int = 2,
        norm: NormName = "batch",
        inner_norm: NormName | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, expanded_channels, kernel_size, stride, norm, inner_norm, **kwargs)
        inner = norm if inner_norm is None else inner_norm
        self.gate = ConvNorm(in_channels, expanded_channels, kernel_size, stride, norm=inner)

    def expanded(self, x: Tensor) -> Tensor:
        """The product of both branches."""
        return self.expand(x) * self.gate(x)


class Pool(nn.Module):
    """Max or average pooling that keeps ``ceil(size / stride)`` positions; places outside the map do not count.

    Args:
        pool: ``"max"`` or ``"average"``.
        kernel_size: Odd side of the window.
        stride: Positions between windows.

    Shape:
        (N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)).
    """

    has_skip = False

    def __init__(self, pool: PoolName = "max", kernel_size: int = 3, stride: int = 2) -> None:
        super().__init__()
        check_choice("pool", pool, POOLS)
        check_kernel("kernel_size", kernel_size)
        check_positive(stride=stride)
        self.is_max, self.kernel_size, self.stride = pool == "max", kernel_size, stride

    def forward(self, x: Tensor) -> Tensor:
        """Pool."""
        if self.is_max:
            return F.max_pool2d(x, self.kernel_size, self.stride, self.kernel_size // 2)
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.kernel_size // 2, count_include_pad=False)


class UIB(nn.Module):
    """Universal inverted bottleneck: x + project(middle_dw(expand(start_dw(x)))).

    Two optional depthwise kernels give the paper's four settings: both ExtraDW, middle only IB, start only
    ConvNext-like, neither FFN. There is no activation after the start depthwise and after the projection. The middle
    depthwise carries the stride where it exists, else the start one. The skip exists when the stride is 1 and the
    channels match.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        expanded_channels: Channels in between.
        start_dw_kernel_size: Odd kernel before the expansion, 0 for none.
        middle_dw_kernel_size: Odd kernel between expansion and projection, 0 for none.
        stride: Stride; above 1 it needs one of the kernels.
        norm: Norm after the projection.
        inner_norm: Norm after the other convolutions; None takes ``norm``.
        activation: Activation after the expansion and the middle depthwise.
        layer_scale: Initial per-channel scale of the projection, None for none.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Raises:
        ValueError: For even kernels, or a stride with no depthwise to carry it.

    Source:
        arXiv:2404.10518 section 3. Aliases: timm UniversalInvertedResidual.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expanded_channels: int,
        start_dw_kernel_size: int = 0,
        middle_dw_kernel_size: int = 0,
        stride: int = 1,
        norm: NormName = "batch",
        inner_norm: NormName | None = None,
        activation: ActivationName = "relu",
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        check_positive(out_channels=out_channels, expanded_channels=expanded_channels, stride=stride)
        check_uib(start_dw_kernel_size, middle_dw_kernel_size, stride)
        inner = norm if inner_norm is None else inner_norm
        start_stride, middle_stride = (1, stride) if middle_dw_kernel_size else (stride, 1)
        self.has_skip = stride == 1 and in_channels == out_channels
        self.start_dw = _depthwise(in_channels, start_dw_kernel_size, start_stride, inner, None)
        self.expand = ConvNorm(in_channels, expanded_channels, 1, norm=inner, activation=activation)
        self.middle_dw = _depthwise(expanded_channels, middle_dw_kernel_size, middle_stride, inner, activation)
        self.project = ConvNorm(expanded_channels, out_channels, 1, norm=norm)
        self.layer_scale = LayerScale(out_channels, layer_scale) if layer_scale is not None else nn.Identity()
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        """Look around, widen, look around again, narrow."""
        y = self.middle_dw(self.expand(self.start_dw(x)))
        y = self.layer_scale(self.project(y))
        return x + self.drop_path(y) if self.has_skip else y


class ExtraDW(UIB):
    """The UIB with both depthwise kernels, by its own name; the arguments are UIB's."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expanded_channels: int,
        start_dw_kernel_size: int = 5,
        middle_dw_kernel_size: int = 3,
        **kwargs: object,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            expanded_channels,
            start_dw_kernel_size,
            middle_dw_kernel_size,
            **kwargs,  # type: ignore[arg-type]
        )


def _depthwise(
    channels: int, kernel_size: int, stride: int, norm: NormName, activation: ActivationName | None
) -> nn.Module:
    """A depthwise convolution, or nothing for a kernel of 0."""
    if kernel_size == 0:
        return nn.Identity()
    return ConvNorm(channels, channels, kernel_size, stride, groups=channels, norm=norm, activation=activation)


class SE(nn.Module):
    """Squeeze and excitation: x * sigmoid(excite(act(squeeze(mean of x over the map)))).

    Args:
        channels: Channels of the map.
        squeeze_ratio: Hidden channels as a share of ``channels``; at least one is kept.
        activation: Activation between the two 1x1 convolutions.

    Shape:
        (N, channels, H, W) -> the same.

    Source:
        arXiv:1709.01507. Not part of the paper's five models; the README family uses it.
    """

    def __init__(self, channels: int, squeeze_ratio: float = 0.25, activation: ActivationName = "relu") -> None:
        super().__init__()
        check_positive(channels=channels)
        check_range("squeeze_ratio", squeeze_ratio, RATIO)
        squeezed = max(1, int(channels * squeeze_ratio))
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.activation = make_activation(activation)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate each channel by a number in (0, 1) computed from all channel means."""
        gate = self.excite(self.activation(self.squeeze(x.mean((2, 3), keepdim=True))))  # (N, C, 1, 1)
        return x * th.sigmoid(gate)


class MobileMQA(nn.Module):
    """Mobile multi-query attention over positions: x + output(softmax(q k^T / sqrt(key_dim)) v).

    Softmax runs over positions, so parts of the picture are related, not channels. With ``kv_heads=1`` all query
    heads share one key and one value head (the paper's multi-query attention); with ``kv_heads=num_heads`` each has
    its own slice (multi-head attention, as in the README family). The shared head is expanded before
    :func:`torch.nn.functional.scaled_dot_product_attention`, which otherwise leaves its fused kernels on a CPU.

    Args:
        channels: Channels of the map, in and out.
        num_heads: Query heads.
        key_dim: Width of one head's query, key and value; None takes ``channels / num_heads``.
        kv_heads: 1 or ``num_heads``.
        kv_stride: 2 or more reads keys and values from a map reduced by that stride.
        kv_depthwise: Whether the reduction is depthwise with a norm (the paper's) or dense with a bias.
        bias: Whether the 1x1 projections have a bias.
        output_projection: Whether a 1x1 convolution follows; without one, heads times key_dim must be ``channels``.
        norm: Norm before the projections, "none" for none.
        layer_scale: Initial per-channel scale of the result, None for none.

    Shape:
        (N, channels, H, W) -> the same, any H and W.

    Raises:
        ValueError: For heads that do not divide the channels, or a kv_heads other than 1 and num_heads.

    Source:
        arXiv:2404.10518 section 4. Aliases: timm MobileAttention with MultiQueryAttention2d.
    """

    has_skip = True

    def __init__(
        self,
        channels: int,
        num_heads: int,
        key_dim: int | None = None,
        kv_heads: int = 1,
        kv_stride: int = 1,
        kv_depthwise: bool = True,
        bias: bool = False,
        output_projection: bool = True,
        norm: NormName = "batch",
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.kv_heads = num_heads, kv_heads
        self.key_dim = check_heads(channels, num_heads) if key_dim is None else key_dim
        check_positive(num_heads=num_heads, key_dim=self.key_dim, kv_stride=kv_stride)
        check_kv_heads(kv_heads, num_heads)
        width = num_heads * self.key_dim
        if not output_projection and width != channels:
            raise ValueError(
                f"Without an output projection num_heads * key_dim must equal channels ({channels}), got "
                f"{num_heads} * {self.key_dim} = {width}; set output_projection=True or change key_dim."
            )
        reduction_norm = norm if kv_depthwise else "none"
        self.norm = make_norm(norm, channels)
        self.query = nn.Conv2d(channels, width, 1, bias=bias)
        self.key_reduction = _kv_reduction(channels, kv_stride, kv_depthwise, reduction_norm)
        self.key = nn.Conv2d(channels, kv_heads * self.key_dim, 1, bias=bias)
        self.value_reduction = _kv_reduction(channels, kv_stride, kv_depthwise, reduction_norm)
        self.value = nn.Conv2d(channels, kv_heads * self.key_dim, 1, bias=bias)
        self.attention = Attention()
        self.output = nn.Conv2d(width, channels, 1, bias=bias) if output_projection else nn.Identity()
        self.layer_scale = LayerScale(channels, layer_scale) if layer_scale is not None else nn.Identity()
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        """Relate every position to every (reduced) position."""
        y = self.norm(x)
        q = _split_heads(self.query(y), self.num_heads)  # (N, heads, H*W, key_dim)
        k = _split_heads(self.key(self.key_reduction(y)), self.kv_heads)  # (N, kv_heads, M, key_dim)
        v = _split_heads(self.value(self.value_reduction(y)), self.kv_heads)
        k, v = k.expand(-1, self.num_heads, -1, -1), v.expand(-1, self.num_heads, -1, -1)
        y = self.attention(q, k, v)  # (N, heads, H*W, key_dim)
        y = y.transpose(2, 3).reshape(x.shape[0], -1, x.shape[2], x.shape[3])  # (N, heads*key_dim, H, W), head-major
        return x + self.drop_path(self.layer_scale(self.output(y)))


class Attention(nn.Module):
    """Scaled dot-product attention as a module, so that its multiply-adds can be counted by a hook."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: (N, heads, L, D), (N, heads, M, D), (N, heads, M, D) -> (N, heads, L, D)."""
        if not th.jit.is_scripting():
            if inside_transform():  # the fused kernels have no forward mode
                return (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(-1) @ v
        return F.scaled_dot_product_attention(q, k, v)


def _kv_reduction(channels: int, stride: int, depthwise: bool, norm: NormName) -> nn.Module:
    """The strided 3x3 convolution before keys or values, or nothing for stride 1."""
    if stride == 1:
        return nn.Identity()
    return ConvNorm(channels, channels, 3, stride, groups=channels if depthwise else 1, norm=norm)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, heads*D, H, W) -> (N, heads, H*W, D); channels are head-major, positions row-major.

    A head's D numbers end up side by side in memory, which the fused kernels need; a channels-last map already has
    them so and is not copied.
    """
    positions = x.flatten(2).transpose(1, 2).contiguous()  # (N, H*W, heads*D)
    return positions.view(positions.shape[0], positions.shape[1], heads, -1).transpose(1, 2)
