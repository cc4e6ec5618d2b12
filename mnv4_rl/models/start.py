"""Initial weights: the same healthy signal under every algorithm, on mostly static pictures too."""

from __future__ import annotations

import torch as th
from torch import Tensor, nn

from mnv4_rl.models.blocks import UIB, FusedIB, MobileMQA, Stem
from mnv4_rl.models.layers import Conv2d

_PICTURES, _SIDE = 16, 64


def initialise(module: nn.Module) -> None:
    """Initialise every layer: He-normal over the fan-in for convolutions and hidden layers, zero biases.

    He's variance keeps the signal through ReLU-like activations at any width, depthwise layers included: an orthogonal
    matrix of the same shape would shrink a depthwise layer by sqrt(kernel area / channels). Classifiers start small so
    that all classes start equal.

    Source:
        arXiv:1502.01852 (He-normal).
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        if name.rpartition(".")[2] == "classifier":
            nn.init.normal_(layer.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@th.no_grad()
def favour_change(stem: Stem, stages: nn.Sequential, static_gain: float) -> None:
    """Draw a network's attention to what changes: its filters start almost blind to flat and to static areas.

    Most of a game's picture is background. With He's filters the ball of Breakout or Pong moves the features of a
    network without norms by 3 % of their length at first, and the rest is the same in every picture, so that a policy
    learns a preference for one action long before it learns where the ball is. Filters whose weights sum to zero answer
    a flat area with nothing; stem filters in which the frames of a stack nearly cancel answer a static one with little.
    The ball then moves the features by a quarter to a third of it (``static_gain`` 0.3). Training is free to undo it.

    Args:
        stem: The stem, initialised.
        stages: Stages of blocks, initialised.
        static_gain: Share kept of the mean over the image's channels; the differences between channels are kept whole.
    """
    for part in (stem, stages):
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d) and layer.groups == 1:  # a depthwise filter would see edges alone
                layer.weight.sub_(layer.weight.mean((1, 2, 3), keepdim=True))
    weight = stem.conv.conv.weight  # (filters, channels, side, side)
    if weight.shape[1] > 1:
        weight.sub_((1 - static_gain) * weight.mean(1, keepdim=True))


def equalise(module: nn.Module, rms: float) -> None:
    """Store the weight of every convolution with the same root mean square; what they compute stays as it is."""
    for layer in module.modules():
        if isinstance(layer, Conv2d):
            layer.equalise(rms)


@th.no_grad()
def calibrate(stem: Stem, stages: nn.Sequential, in_channels: int, skip_gain: float) -> None:
    """Scale stem and blocks so that each puts out a standard deviation of about 1 on plain pictures.

    For networks without norms. On the static pictures of a game a layer's output is mostly its answer to the
    background, whose size He's variance fixes only on average: over seeds the standard deviation after four blocks went
    from 0.9 to 3.5. Pictures of rectangles on grey stand in for the game, so no data is needed and the global random
    state is left alone.

    Args:
        stem: The stem, initialised.
        stages: Stages of blocks, initialised.
        in_channels: Image channels.
        skip_gain: Standard deviation that a block with a skip adds, as a share of its input's.

    Source:
        Layer-sequential unit-variance initialisation, arXiv:1511.06422, with made-up pictures for data.
    """
    if stem.conv.conv.weight.is_meta:  # nothing to scale before there are numbers
        return
    x = stem(plain_pictures(in_channels))
    x = x / _scale(stem.conv.conv, x, 1.0)
    for stage in stages.children():
        for block in stage.children():
            if isinstance(block, FusedIB | UIB | MobileMQA):
                added = block(x) - x if block.has_skip else block(x)
                last = block.value if isinstance(block, MobileMQA) else block.project.conv  # linear in both
                _scale(last, added, skip_gain * float(x.std()) if block.has_skip else 1.0)
            x = block(x)


def _scale(conv: nn.Conv2d, output: Tensor, target: float) -> float:
    """Scale a convolution so that its output's standard deviation becomes ``target``; return the divisor."""
    divisor = float(output.std()) / target
    conv.weight.div_(divisor)
    return divisor


def plain_pictures(channels: int) -> Tensor:
    """Pictures (16, channels, 64, 64) float in [0, 1]: rectangles on grey that move from channel to channel."""
    generator = th.Generator().manual_seed(0)
    shades = 0.2 + 0.3 * th.rand(_PICTURES, generator=generator)  # games lie near 0.3, root mean square
    pictures = shades[:, None, None, None].repeat(1, channels, _SIDE, _SIDE)
    for picture in pictures:
        for _ in range(6):
            top, left = th.randint(8, _SIDE - 16, (2,), generator=generator).tolist()
            height, width = th.randint(2, 9, (2,), generator=generator).tolist()
            down, right = th.randint(-2, 3, (2,), generator=generator).tolist()  # a channel
            shade = th.rand((), generator=generator)
            for index, channel in enumerate(picture):
                y, x = max(0, top + index * down), max(0, left + index * right)
                channel[y : y + height, x : x + width] = shade
    return pictures
