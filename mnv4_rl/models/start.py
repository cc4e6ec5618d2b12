"""How a network starts: the same healthy signal under every algorithm, on mostly static pictures too.

:func:`start` draws all weights. What it draws for a network without norms is a row's :class:`StartSpec`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch as th
from torch import Tensor, nn

from mnv4_rl.models.blocks import UIB, FusedIB, GatedIB, MobileMQA
from mnv4_rl.models.layers import Conv2d
from mnv4_rl.models.specs import StartSpec

if TYPE_CHECKING:
    from mnv4_rl.models.network import Network

_PICTURES, _SIDE, _RECTANGLES = 16, 64, 6
# What is left of the power of a normal signal's ReLU when its mean is taken away.
_CHANGING = 1 - 1 / math.pi


@th.no_grad()
def start(network: Network) -> None:
    """Draw the weights of a new network.

    He's draw everywhere; without norms the filters are then turned to what changes, every block is scaled to the same
    signal on plain pictures, and the weights are stored at one size, each step as far as ``network.spec.start`` asks.
    """
    draw(network)
    if network.spec.norm != "none":
        return
    how = network.spec.start or StartSpec()
    if how.static_gain is not None:
        _favour_change(network, how.static_gain)
    if not network.stem.conv.conv.weight.is_meta:  # nothing to scale before there are numbers
        _calibrate(network, how.skip_gain)
    if how.weight_rms is not None:
        _equalise(network, how, how.weight_rms)


def draw(module: nn.Module, only: str = "") -> None:
    """Draw every layer, or only one: He-normal over the fan-in for convolutions and hidden layers, zero biases.

    He's variance keeps the signal through ReLU-like activations at any width, depthwise layers included: an orthogonal
    matrix of the same shape would shrink a depthwise layer by sqrt(kernel area / channels). Classifiers start small so
    that all classes start equal.

    Source:
        arXiv:1502.01852 (He-normal).
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or (only and name != only):
            continue
        if name.rpartition(".")[2] == "classifier":
            nn.init.normal_(layer.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _favour_change(network: Network, static_gain: float) -> None:
    """Draw a network's attention to what changes: its filters start almost blind to flat and to static areas.

    Most of a game's picture is background. With He's filters the ball of Breakout or Pong moves the features of a
    network without norms by 3 % of their length at first, and the rest is the same in every picture, so that a policy
    learns a preference for one action long before it learns where the ball is. Filters whose weights sum to zero answer
    a flat area with nothing; stem filters in which the frames of a stack nearly cancel, each colour with itself, answer
    a static one with little. The ball then moves the features by a quarter to a third of it (``static_gain`` 0.3).
    Training is free to undo it.
    """
    for layer in _convolutions(network):
        if layer.groups == 1 and layer.weight[0].numel() > 1:  # a depthwise filter would see edges alone
            layer.weight.sub_(layer.weight.mean((1, 2, 3), keepdim=True))
    weight = network.stem.conv.conv.weight  # (filters, channels, side, side)
    by_frame = weight.unflatten(1, (-1, network.frame_channels))  # (filters, frames, colours, side, side)
    if by_frame.shape[1] > 1:  # nothing stands still in a single frame
        weight.sub_((1 - static_gain) * by_frame.mean(1, keepdim=True).expand_as(by_frame).reshape(weight.shape))


def _calibrate(network: Network, skip_gain: float) -> None:
    """Scale stem and blocks so that each puts out a standard deviation of about 1 on plain pictures.

    On the static pictures of a game a layer's output is mostly its answer to the background, whose size He's variance
    fixes only on average: over seeds the standard deviation after four blocks went from 0.9 to 3.5. Pictures of
    rectangles on grey stand in for the game, so no data is needed and the global random state is left alone.

    Source:
        Layer-sequential unit-variance initialisation, arXiv:1511.06422, with made-up pictures for data.
    """
    stem = network.stem.conv.conv
    pictures = plain_pictures(network.in_channels, network.frame_channels)
    x = network.stem(th.tensor(pictures).to(stem.weight))
    if not _stem_has_norm(network):
        x = x / _scale(stem, x, 1.0)
    for block in _blocks(network):
        if isinstance(block, FusedIB | UIB | MobileMQA):
            added = block(x) - x if block.has_skip else block(x)
            last = block.value if isinstance(block, MobileMQA) else block.project.conv  # linear in both
            _scale(last, added, skip_gain * x.std() if block.has_skip else 1.0)
        x = block(x)


def _scale(conv: nn.Conv2d, output: Tensor, target: float | Tensor) -> Tensor:
    """Scale a convolution so that its output's standard deviation becomes ``target``; return the divisor."""
    divisor = output.std() / target
    divisor = th.where(divisor > 0, divisor, 1.0)  # a layer that answers nothing is left alone
    conv.weight.div_(divisor)
    return divisor


def _equalise(network: Network, how: StartSpec, rms: float) -> None:
    """Store the weights of all convolutions at nearly one root mean square, with gains that leave what they compute.

    The gains follow from the row alone, not from what was drawn: networks of one row have the same, and parameters
    copied from one to another compute the same there.
    """
    scales = _expected_scales(network, how)
    for layer in _convolutions(network):
        he = math.sqrt(2 / layer.weight[0].numel())
        layer.set_gain(he * scales.get(layer, 1.0) / rms)


def _expected_scales(network: Network, how: StartSpec) -> dict[nn.Module, float]:
    """What calibration multiplies He's weights by, on average over draws.

    He's factor of 2 makes up for the half that a ReLU takes away. A block's input has met no ReLU, so each block adds
    twice what came in, or the changing part of it where its filters are blind to a mean; a depthwise layer in front
    doubles that once more, but for the zeros at the borders.
    """
    scales: dict[nn.Module, float] = {}
    if not _stem_has_norm(network):
        left, response = (f(network, how.static_gain) for f in (_left_of_stem, _stem_response))
        scales[network.stem.conv.conv] = left / response
    for block in _blocks(network):
        if isinstance(block, FusedIB | UIB):
            power = 2.0 if how.static_gain is None else 2 * _CHANGING
            if isinstance(block, UIB) and not isinstance(block.start_dw, nn.Identity):
                power *= 1.6
            if isinstance(block, GatedIB):
                power = 20.0  # a product's power lies in the few places where both branches answer; as measured
            scales[block.project.conv] = (how.skip_gain if block.has_skip else 1.0) / math.sqrt(power)
    return scales


def _left_of_stem(network: Network, static_gain: float | None) -> float:
    """Root mean square of a stem's filters after what frames have in common is muted, as a share of that before."""
    frames = network.in_channels // network.frame_channels
    muted = 0.0 if static_gain is None or frames == 1 else 1 - static_gain**2
    return math.sqrt(1 - muted / frames)


def _stem_response(network: Network, static_gain: float | None) -> float:
    """Standard deviation with which He's draw of a stem answers plain pictures, on average over draws.

    A filter that is blind to something answers as one that is not, to a picture without it. To three digits, so that
    every machine finds the same number.
    """
    row = network.spec.stem
    pictures = plain_pictures(network.in_channels, network.frame_channels)
    side = min(row.kernel_size, _SIDE)
    patches = np.lib.stride_tricks.sliding_window_view(pictures, (side, side), axis=(2, 3))
    seen = patches[:, :, :: row.stride, :: row.stride].transpose(0, 2, 3, 1, 4, 5)  # (N, h, w, channels, side, side)
    if static_gain is not None:
        seen = seen - seen.mean((3, 4, 5), keepdims=True)
        by_frame = seen.reshape(*seen.shape[:3], -1, network.frame_channels, side, side)
        if by_frame.shape[3] > 1:
            seen = by_frame - (1 - static_gain) * by_frame.mean(3, keepdims=True)
    power = 2 * float(seen.var((0, 1, 2)).mean())
    return float(f"{math.sqrt(power * (_CHANGING / 2 if row.activation else 1)):.3g}")


def _stem_has_norm(network: Network) -> bool:
    return not isinstance(network.stem.conv.norm, nn.Identity)


def _blocks(network: Network) -> Iterator[nn.Module]:
    for stage in network.stages.children():
        yield from stage.children()


def _convolutions(network: Network) -> Iterator[Conv2d]:
    """The dense and depthwise convolutions of stem and blocks; attention's projections are none of them."""
    for part in (network.stem, network.stages):
        yield from (layer for layer in part.modules() if isinstance(layer, Conv2d))


@lru_cache(maxsize=8)
def plain_pictures(channels: int, frame_channels: int = 1) -> np.ndarray:
    """Stacks of plain pictures, always the same: coloured rectangles on grey that move from frame to frame.

    Args:
        channels: Image channels.
        frame_channels: Channels of one frame; 1 for grey pictures.

    Returns:
        (16, channels, 64, 64) float32 in [0, 1], read-only.
    """
    draw = np.random.RandomState(0)  # its numbers are the same for ever
    shades = 0.2 + 0.3 * draw.rand(_PICTURES, 1, 1, 1, 1)  # games lie near 0.3, root mean square
    pictures = np.tile(shades, (1, channels // frame_channels, frame_channels, _SIDE, _SIDE)).astype(np.float32)
    for picture in pictures:
        for _ in range(_RECTANGLES):
            top, left = draw.randint(8, _SIDE - 16, 2)
            height, width = draw.randint(2, 9, 2)
            down, right = draw.randint(-2, 3, 2)  # a frame
            colour = draw.rand(frame_channels, 1, 1)
            for index, frame in enumerate(picture):
                y, x = max(0, top + index * down), max(0, left + index * right)
                frame[:, y : y + height, x : x + width] = colour
    pictures = pictures.reshape(_PICTURES, channels, _SIDE, _SIDE)
    pictures.flags.writeable = False
    return pictures
