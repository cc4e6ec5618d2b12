"""The layers below the blocks: convolution with norm and activation, the norms, layer scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from mnv4_rl.checks import check_choice, check_positive
from mnv4_rl.models.specs import ACTIVATIONS, NORMS, ActivationName, NormName, Size

MAX_BYTE = 255


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position: no statistics, no modes, no mixing of positions.

    On a channels-last map this is a LayerNorm over the innermost axis and copies nothing.

    Args:
        channels: Channels of the map.

    Shape:
        (N, channels, H, W) or (N, channels) -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each position's channel vector."""
        y = F.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.movedim(-1, 1)


def group_size(channels: int, usual: int = 8) -> int:
    """Channels a group for GroupNorm: the divisor of ``channels`` nearest to ``usual``, the larger of two as near.

    Multiples of 8 get 8. Groups under 4 channels are avoided where they can be: on a 1x1 map a group of one channel
    would normalise every value to zero.
    """
    best = channels
    for n in range(min(4, channels), channels + 1):  # the larger of two as near comes later
        if channels % n == 0 and abs(n - usual) <= abs(best - usual):
            best = n
    return best


def make_norm(norm: NormName, channels: int) -> nn.Module:
    """Norm layer by name.

    Args:
        norm: ``"none"``, ``"batch"``, ``"group"`` (8 channels a group, adapted where 8 does not divide) or
            ``"layer"`` (over the channels of each position).
        channels: Channels of the map it follows.

    Raises:
        ValueError: For any other name.
    """
    check_choice("norm", norm, NORMS)
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(channels // group_size(channels), channels)
    return ChannelLayerNorm(channels)


class Simplex(nn.Module):
    """Softmax over groups of 8 channels, as far as 8 divides them: each group says which of its channels it sees.

    Shape:
        (N, channels) or (N, channels, H, W) -> the same, in [0, 1], each group adding up to 1.

    Source:
        Simplicial embeddings, arXiv:2204.00616, and for control arXiv:2510.13704; at a temperature of 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each group."""
        size = 8 if x.shape[1] % 8 == 0 else group_size(x.shape[1])
        return x.unflatten(1, [x.shape[1] // size, size]).softmax(2).flatten(1, 2)


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,  # not in place: hooks see what a layer put out, and backward keeps the same bytes
    "silu": nn.SiLU,
    "gelu": nn.GELU,  # the exact one, by the error function
    "simplex": Simplex,
}


def make_activation(activation: ActivationName | None) -> nn.Module:
    """Activation by name, identity for None.

    Raises:
        ValueError: For an unknown name.
    """
    if activation is None:
        return nn.Identity()
    check_choice("activation", activation, ACTIVATIONS)
    return _ACTIVATIONS[activation]()


class _ConvolveBytes(th.autograd.Function):
    """Convolution of a uint8 image divided by 255: backward keeps the bytes, a quarter of what floats would take."""

    @staticmethod
    def forward(image: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, groups: int) -> Tensor:
        # Zero padding commutes with the scale, so it can go to the weights, which are far fewer than the pixels.
        return F.conv2d(image.to(weight.dtype), weight / MAX_BYTE, bias, stride, padding, groups=groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, weight, _, *ctx.geometry = inputs
        ctx.save_for_backward(image, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, weight = ctx.saved_tensors
        stride, padding, groups = ctx.geometry
        _, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        _, grad_weight, grad_bias = th.ops.aten.convolution_backward(
            grad, image.to(grad.dtype), weight.to(grad.dtype),  # under autocast the gradient is bf16
            [len(weight)], stride, padding, (1, 1), False, (0, 0), groups, (False, wants_weight, wants_bias),
        )  # fmt: skip
        return None, grad_weight / MAX_BYTE if wants_weight else None, grad_bias, None, None, None


def inside_transform() -> bool:
    """Whether a function of :mod:`torch.func`, such as ``vmap``, or forward-mode differentiation is at work.

    What only saves time or memory is left out there. torch has no public way to ask.
    """
    if th.compiler.is_compiling():
        return False
    return th._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def has_values(x: Tensor) -> bool:
    """Whether the numbers of a tensor of any shape can be looked at, and looking changes nothing.

    Not while tracing, exporting or compiling, on the meta device, or for what only stands for a tensor: those of
    torch.fx, FakeTensorMode and :mod:`torch.func`.
    """
    if th.compiler.is_compiling() or th.jit.is_tracing() or inside_transform():
        return False
    return type(x) in (Tensor, nn.Parameter) and not x.is_meta and not is_in_torch_dispatch_mode()


# Wrapped functions stay one call in a graph of torch.fx, which cannot follow what they decide by dtypes and sizes.
@fx.wrap
def convolve_image(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    groups: int,
) -> Tensor:
    """Convolve an image (N, C, H, W) with zero padding; uint8 is read as divided by 255."""
    if image.dtype != th.uint8:
        return F.conv2d(image, weight, bias, stride, padding, groups=groups)
    if not th.jit.is_scripting():
        # Where there is no backward, the bookkeeping would take a fifth of the stem's time at 8 images; and a traced
        # network with a function from Python in it could not be saved.
        if th.is_grad_enabled() and not th.jit.is_tracing() and not inside_transform():
            return _ConvolveBytes.apply(image, weight, bias, stride, padding, groups)
    return F.conv2d(image.to(weight.dtype), weight / 255, bias, stride, padding, groups=groups)


def missing_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Zeros before and behind an axis, so that a kernel without padding finds ``ceil(size / stride)`` places."""
    # Nothing negative is divided: ONNX would round it towards 0.
    total = max(0, (size - 1) // stride * stride + kernel_size - size)
    return total // 2, total - total // 2


@fx.wrap
def pad_to_stride(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Zeros on all sides of (N, C, H, W), as :func:`missing_padding` says."""
    top, bottom = missing_padding(x.shape[2], kernel_size, stride)
    left, right = missing_padding(x.shape[3], kernel_size, stride)
    if bottom == 0 and right == 0:  # never less than at the other end
        return x
    return F.pad(x, [left, right, top, bottom])


@fx.wrap
def pool_to_grid(x: Tensor, height: int, width: int) -> Tensor:
    """Average a map (N, C, H, W) down to (N, C, height, width); a map of that size is returned as it is."""
    if x.shape[2] == height and x.shape[3] == width:
        return x
    if not th.jit.is_scripting():
        if th.onnx.is_in_onnx_export():  # ONNX has no pooling by windows of different sizes
            rows, columns = averages(int(x.shape[2]), height), averages(int(x.shape[3]), width)
            return rows.to(x) @ x @ columns.T.to(x)
    return F.adaptive_avg_pool2d(x, (height, width))


def averages(size: int, cells: int) -> Tensor:
    """The matrix (cells, size) that averages as :func:`torch.nn.functional.adaptive_avg_pool2d` does along an axis."""
    matrix = np.zeros((cells, size), np.float32)
    for cell in range(cells):
        start, end = cell * size // cells, ((cell + 1) * size + cells - 1) // cells
        matrix[cell, start:end] = 1 / (end - start)
    return th.from_numpy(matrix)


class GridPool(nn.Module):
    """Averages maps down to a grid; one of its size passes as it is.

    Args:
        grid: Rows and columns.

    Shape:
        (N, C, H, W) -> (N, C, *grid).
    """

    def __init__(self, grid: Size) -> None:
        super().__init__()
        self.rows, self.columns = grid

    def forward(self, x: Tensor) -> Tensor:
        """Average."""
        return pool_to_grid(x, self.rows, self.columns)


class Conv2d(nn.Conv2d):
    """As :class:`torch.nn.Conv2d` with zero padding, and with two abilities.

    Attributes:
        gain: None, or what the stored weight is multiplied by before it is used; see :meth:`set_gain`.
        reads_images: Whether a uint8 image is read as if it were divided by 255, as a stem's convolution does.

    Shape:
        (N, in_channels, H, W) float -> (N, out_channels, H', W') float.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("gain", None)
        self.reads_images = False

    @th.no_grad()
    def set_gain(self, gain: float) -> None:
        """Store the weight divided by a gain that its use multiplies it by: the output stays as it is.

        Adam moves every number by about its learning rate, whatever the gradient's size. A large weight, which a layer
        of few inputs needs, would hardly be moved: equal stored sizes make all layers learn equally fast.

        Source:
            Equalised learning rate, Karras et al. 2018, arXiv:1710.10196, section 4.1.
        """
        self.gain = self.weight.new_tensor(gain)
        self.weight.div_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        weight = self.weight if self.gain is None else self.weight * self.gain
        if self.reads_images:
            return convolve_image(x, weight, self.bias, self.stride, self.padding, self.groups)  # type: ignore[arg-type]
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, groups=self.groups)


class SamePadConv2d(Conv2d):
    """Convolution with an even kernel that keeps ``ceil(size / stride)`` positions by zero padding both sides.

    Args:
        in_channels: Channels that come in.
        out_channels: Filters.
        kernel_size: Side of the kernel.
        stride: Stride.
        bias: Whether a bias is added.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Pad where the kernel hangs over, then convolve."""
        return self._convolve(pad_to_stride(x, self.kernel_size[0], self.stride[0]))


def make_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int, bias: bool) -> Conv2d:
    """Convolution that keeps ``ceil(size / stride)`` positions, whatever its kernel."""
    if kernel_size % 2 == 0:
        return SamePadConv2d(in_channels, out_channels, kernel_size, stride, bias=bias)
    return Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=bias)


class ConvNorm(nn.Module):
    """Convolution, norm, activation; the last two optional.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        kernel_size: Side of the kernel.
        stride: Stride.
        groups: Groups of channels convolved apart; ``in_channels`` makes it depthwise.
        norm: Norm after the convolution.
        activation: Activation after the norm, None for none.
        bias: Whether the convolution has a bias; None gives it one where no norm follows.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm: NormName = "batch",
        activation: ActivationName | None = None,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride)
        has_bias = norm == "none" if bias is None else bias
        self.conv = make_conv(in_channels, out_channels, kernel_size, stride, groups, has_bias)
        self.norm = make_norm(norm, out_channels)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, activate."""
        return self.activation(self.norm(self.conv(x)))


class LayerScale(nn.Module):
    """A learned scale for each channel.

    Args:
        channels: Channels of the map.
        init: Value every scale starts with.

    Source:
        CaiT, arXiv:2103.17239.
    """

    def __init__(self, channels: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(th.full((channels,), init))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of (N, C, H, W)."""
        return x * self.gamma[:, None, None]


class DropPath(nn.Module):
    """Drops a residual branch for random images while training, and scales the others up; nothing otherwise.

    Attributes:
        rate: Probability of dropping, in [0, 1); 0 until :func:`mnv4_rl.models.network.set_drop_path` sets it.

    Source:
        Stochastic depth, arXiv:1603.09382.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Scale each image of (N, C, H, W) by 0 or 1 / (1 - rate)."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty([x.shape[0], 1, 1, 1]).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)
