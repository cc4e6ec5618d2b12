"""Initial weights: the same healthy signal under every algorithm, on mostly static pictures too."""

from __future__ import annotations

import torch as th
from torch import Tensor, nn

from mnv4_rl.blocks import UIB, FusedIB, MobileMQA, Stem

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
    """Pictures (16, channels, 64, 64) float in [0, 1]: grey of any shade with rectangles, all channels alike."""
    generator = th.Generator().manual_seed(0)
    shades = 0.2 + 0.3 * th.rand(_PICTURES, generator=generator)  # games lie near 0.3, root mean square
    pictures = shades[:, None, None].repeat(1, _SIDE, _SIDE)
    for picture in pictures:
        for _ in range(6):
            top, left = th.randint(0, _SIDE - 8, (2,), generator=generator).tolist()
            height, width = th.randint(2, 9, (2,), generator=generator).tolist()
            picture[top : top + height, left : left + width] = th.rand((), generator=generator)
    return pictures[:, None].expand(-1, channels, -1, -1)
