"""The maps of a network at every size they pass through, for detection, segmentation or control."""

from __future__ import annotations

from collections.abc import Sequence

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
        out_indices: Which maps to return, 0 for the largest, -1 for the smallest; None for all.

    Shape:
        (N, in_channels, H, W) float -> a list of (N, channels[i], ceil(H / reductions[i]), ceil(W / reductions[i])).
    """

    def __init__(self, network: Network, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        self.spec = network.spec
        self.in_channels = network.in_channels
        self.image_statistics = network.image_statistics
        channels, reductions = pyramid_shape(network.spec)
        self.out_indices = check_indices(range(len(channels)) if out_indices is None else out_indices, len(channels))
        self.channels = tuple(channels[index] for index in self.out_indices)
        self.reductions = tuple(reductions[index] for index in self.out_indices)
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
        return [maps[index] for index in self.out_indices]


def check_indices(indices: Sequence[int], count: int) -> list[int]:
    """Which of ``count`` maps are meant, counted from the end where negative.

    Raises:
        ValueError: For a map that there is not, or none at all.
    """
    if not indices or any(not isinstance(i, int) or not -count <= i < count for i in indices):
        raise ValueError(f"out_indices must name some of the {count} maps, 0 to {count - 1}, got {indices!r}.")
    return [index % count for index in indices]


def pyramid_shape(spec: NetworkSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and reductions of the last map of every size, without building anything."""
    channels, reductions = [spec.stem.out_channels], [spec.stem.stride]
    for block in spec.blocks():
        if block.stride > 1:
            channels.append(channels[-1])
            reductions.append(reductions[-1] * block.stride)
        channels[-1] = getattr(block, "out_channels", channels[-1])
    return tuple(channels), tuple(reductions)
