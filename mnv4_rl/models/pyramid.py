"""The maps of a network at every size they pass through, for detection, segmentation or control."""

from __future__ import annotations

from torch import Tensor, nn

from mnv4_rl.models.network import Network
from mnv4_rl.models.specs import NetworkSpec


class FeaturePyramid(nn.Module):
    """A network without its head that returns the last map of every size; the paper's models have strides 2 to 32.

    Attributes:
        channels: Channels of each map.
        reductions: Pixels of the image for one position of each map, along an axis.
        spec: The row of data it was built from.
        in_channels: Image channels it expects.

    Args:
        network: The network whose stem and stages it takes over.

    Shape:
        (N, in_channels, H, W) float -> a list of (N, channels[i], ceil(H / reductions[i]), ceil(W / reductions[i])).
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.spec = network.spec
        self.in_channels = network.in_channels
        self.channels, self.reductions = pyramid_shape(network.spec)
        self.stem = network.stem
        self.stages = network.stages
        # What a strided block reads is the last map of its size.
        self._halves = [block.stride > 1 for block in network.spec.blocks()]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Pixels to maps, largest first."""
        maps: list[Tensor] = []
        x = self.stem(x)
        index = 0
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                if self._halves[index]:
                    maps.append(x)
                x = block(x)
                index += 1
        maps.append(x)
        return maps


def pyramid_shape(spec: NetworkSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and reductions of the last map of every size, without building anything."""
    channels, reductions = [spec.stem.out_channels], [spec.stem.stride]
    for block in spec.blocks():
        if block.stride > 1:
            channels.append(channels[-1])
            reductions.append(reductions[-1] * block.stride)
        channels[-1] = getattr(block, "out_channels", channels[-1])
    return tuple(channels), tuple(reductions)
