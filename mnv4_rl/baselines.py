"""The encoders that RL papers compare with, behind the contract of :class:`mnv4_rl.MNV4Extractor`.

NatureCNN, the third baseline, is stable-baselines3's own.

Sources:
    IMPALA-CNN: Espeholt et al. 2018, arXiv:1802.01561, figure 3, the large network without its LSTM.
    Impoola-CNN: Trumpp et al. 2025, arXiv:2503.05546, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import torch as th
from torch import Tensor, nn

from mnv4_rl.checks import check_positive
from mnv4_rl.image_extractor import ImageExtractor

IMPALA_CHANNELS = (16, 32, 32)


class ResidualBlock(nn.Module):
    """Twice ReLU and 3x3 convolution, added to the input.

    Args:
        channels: Channels of the map.

    Shape:
        (N, channels, H, W) -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Pre-activated residual branch plus the input."""
        return x + self.conv2(th.relu(self.conv1(th.relu(x))))


def impala_section(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution, 3x3 max pool of stride 2, two residual blocks.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / 2), ceil(W / 2)).
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.MaxPool2d(3, stride=2, padding=1),
        ResidualBlock(out_channels),
        ResidualBlock(out_channels),
    )


def impala_network(
    in_channels: int, height: int, width: int, features_dim: int, channels: tuple[int, ...], pooled: bool
) -> nn.Sequential:
    """IMPALA-CNN, or Impoola-CNN where the last map is averaged over its positions.

    Args:
        in_channels: Image channels.
        height: Image height in pixels.
        width: Image width in pixels.
        features_dim: Width of the features.
        channels: Channels of the sections, each of which halves the map.
        pooled: Average over positions before the fully connected layer.

    Shape:
        (N, in_channels, height, width) -> (N, features_dim), not negative.

    Raises:
        ValueError: For no section, or a width below 1.
    """
    if not isinstance(channels, Sequence) or not channels:
        raise ValueError(f"channels must be those of one section or more, such as {IMPALA_CHANNELS}, got {channels!r}.")
    check_positive(**{f"channels[{i}]": section for i, section in enumerate(channels)})
    sections = nn.Sequential()
    for out_channels in channels:
        sections.append(impala_section(in_channels, out_channels))
        in_channels, height, width = out_channels, -(-height // 2), -(-width // 2)
    positions = 1 if pooled else height * width
    pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity()
    fc = nn.Linear(in_channels * positions, features_dim)
    return nn.Sequential(sections, nn.ReLU(), pool, nn.Flatten(), fc, nn.ReLU())


class ImpalaCNN(ImageExtractor):
    """IMPALA's deep residual network: three sections of 16, 32 and 32 channels, flattened through one layer.

    Starts from PyTorch's default initialisation, as the public code of its PyTorch versions does
    (https://github.com/raphajaner/impoola, https://github.com/vwxyzjn/cleanrl); SB3's orthogonal one passes it by.

    Args:
        observation_space: Images, as for :class:`mnv4_rl.MNV4Extractor`.
        features_dim: Width of the features; the paper has 256, SB3's NatureCNN 512.
        channels: Channels of the sections.
        normalized_image: Take the numbers as they are, as floats, whatever their type and bounds.
        channels_last: Whether the image is (H, W, C) when it arrives here; None finds out, and asks where nobody can
            know.

    Raises:
        ValueError: If the space is no image, or a width is below 1.
    """

    pooled = False
    takes_bytes = False  # the networks' public code divides first

    def __init__(
        self,
        observation_space: gym.Space,
        features_dim: int = 512,
        channels: tuple[int, ...] = IMPALA_CHANNELS,
        normalized_image: bool = False,
        channels_last: bool | None = None,
    ) -> None:
        super().__init__(observation_space, features_dim, normalized_image, channels_last)
        self.network = impala_network(*self.image_shape, self.features_dim, channels, self.pooled)


class ImpoolaCNN(ImpalaCNN):
    """IMPALA-CNN with global average pooling before the fully connected layer; arguments as :class:`ImpalaCNN`.

    Its size does not depend on the image, and what it keeps of a picture is what, not where.
    """

    pooled = True


__all__ = ["ImpalaCNN", "ImpoolaCNN"]
