"""The layers below the blocks: convolution with norm and activation, the norms, layer scale."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch as th
from torch import Tensor, nn
from torch.nn import functional as F

from mnv4_rl.checks import check_choice, check_positive
from mnv4_rl.models.specs import ACTIVATIONS, NORMS, ActivationName, NormName

GROUP_SIZE = 8
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
        if x.dim() == 2:
            return super().forward(x)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def group_size(channels: int) -> int:
    """Channels a group for GroupNorm: the divisor of ``channels`` nearest to 8, the larger of two as near.

    Multiples of 8 get 8. Groups under 4 channels are avoided where they can be: on a 1x1 map a group of one channel
    would normalise every value to zero.
    """
    divisors = [n for n in range(1, channels + 1) if channels % n == 0 and n >= min(4, channels)]
    return min(divisors, key=lambda n: (abs(n - GROUP_SIZE), -n))


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


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "silu": nn.SiLU,
    "gelu": nn.GELU,  # the exact one, by the error function
}


def make_activation(activation: ActivationName | None) -> nn.Module:
    """Activation by name, identity for None. ReLU works in place: it always follows a layer that made its input.

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


class Conv2d(nn.Conv2d):
    """As :class:`torch.nn.Conv2d` with zero padding, and a uint8 image is read as if it were divided by 255.

    Attributes:
        gain: None, or what the stored weight is multiplied by before it is used; see :meth:`set_gain`.

    Shape:
        (N, in_channels, H, W), float or uint8 -> (N, out_channels, H', W') float.
    """

    gain: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("gain", None)

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
        weight = self.weight if self.gain is None else self.weight * self.gain
        if x.dtype != th.uint8:
            return self._conv_forward(x, weight, self.bias)
        arguments = (x, weight, self.bias, self.stride, self.padding, self.groups)
        # Where there is no backward, the bookkeeping would take a fifth of the stem's time at 8 images; and a traced
        # network with a function from Python in it could not be saved.
        has_backward = th.is_grad_enabled() and not th.jit.is_tracing()
        return _ConvolveBytes.apply(*arguments) if has_backward else _ConvolveBytes.forward(*arguments)


class SamePadConv2d(Conv2d):
    """Convolution with an even kernel that keeps ``ceil(size / stride)`` positions by zero padding both sides.

    Args:
        in_channels: Channels that come in.
        out_channels: Filters.
        kernel_size: Side of the kernel.
        stride: Stride.
        bias: Whether a bias is added.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Pad where the kernel hangs over, then convolve."""
        vertical, horizontal = self._missing(x.shape[2]), self._missing(x.shape[3])
        if any(vertical + horizontal):
            x = F.pad(x, (*horizontal, *vertical))
        return super().forward(x)

    def _missing(self, size: int) -> tuple[int, int]:
        kernel, stride = int(self.kernel_size[0]), int(self.stride[0])
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        return total // 2, total - total // 2


def make_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int, bias: bool) -> nn.Conv2d:
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
        kept = x.new_empty((len(x), 1, 1, 1)).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)
