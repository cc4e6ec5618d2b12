"""The encoders behind stable-baselines3's features-extractor contract; the only place that knows observation spaces.

    policy_kwargs = dict(features_extractor_class=MNV4Extractor, net_arch=[])

SB3 hands an extractor float images already divided by 255 (``preprocess_obs``); floats are never divided again here.
The policies of :mod:`mnv4_rl.policies` hand it the uint8 images themselves.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from mnv4_rl.checks import check_positive
from mnv4_rl.models.network import Network, build
from mnv4_rl.models.registry import get_spec
from mnv4_rl.models.specs import GridHeadSpec, NetworkSpec
from mnv4_rl.weights.files import Pretrained
from mnv4_rl.weights.pretrained import PretrainedWeights, freeze_trunk

MAX_NORMALIZED = 1.0


class ImageExtractor(BaseFeaturesExtractor):
    """What every image extractor shares: the checks of the space, the layout of the image, its own initialisation.

    A subclass sets ``self.network``, which maps (N, channels, H, W), float or uint8, to (N, features_dim).

    Args:
        observation_space: A 3-D Box: uint8 in [0, 255], or float in [-1, 1].
        features_dim: Width of the features.
        normalized_image: Trust that a float image is scaled, whatever its bounds (SB3's meaning of the word).
        channels_last: Whether the image is (H, W, C) when it arrives here: SB3 has by then moved the channels of a
            uint8 image to the front, and leaves those of a float image. None decides as SB3 does, by the smallest axis.

    Attributes:
        accepts_uint8: Whether the space is one of images that SB3 would divide by 255, uint8 in [0, 255]: the policies
            of :mod:`mnv4_rl.policies` then hand them over as they are.

    Raises:
        TypeError: If the space is not a gymnasium space.
        ValueError: If the space is no image; the message says what came, what is allowed and what to do.
    """

    network: nn.Module

    def __init__(
        self,
        observation_space: gym.Space,
        features_dim: int,
        normalized_image: bool = False,
        channels_last: bool | None = None,
    ) -> None:
        check_positive(features_dim=features_dim)
        box = check_image_space(observation_space, normalized_image)
        super().__init__(box, features_dim)
        self.channels_last = choose_channels_last(box, channels_last)
        self.accepts_uint8 = is_image_space(box)
        self._may_be_unscaled = box.dtype == np.uint8 and not normalized_image

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an observation."""
        shape = self._observation_space.shape
        assert shape is not None  # a Box has one
        a, b, c = shape
        return (c, a, b) if self.channels_last else (a, b, c)

    def forward(self, observations: Tensor) -> Tensor:
        """Observations to features.

        Args:
            observations: (N, C, H, W), or (N, H, W, C) for a channels-last space; float scaled by SB3, or uint8 in
                [0, 255], which gives the features of its ``float() / 255``.

        Returns:
            (N, features_dim) float.

        Raises:
            ValueError: If a uint8 space arrives as floats above 1, that is with SB3's ``normalize_images=False``.
        """
        is_float = observations.dtype != th.uint8
        if is_float and self._may_be_unscaled and not th.compiler.is_compiling():
            self._check_scale(observations)
        if self.channels_last:
            observations = observations.permute(0, 3, 1, 2)
        return self.network(observations)

    def apply(self, fn: Any) -> ImageExtractor:
        """As :meth:`torch.nn.Module.apply`, except that SB3's orthogonal initialisation passes this module by.

        PPO and A2C call ``features_extractor.apply(partial(init_weights, gain=sqrt(2)))`` after construction. That
        would shrink depthwise layers (x0.53 at 64 channels, x0.26 at 256) and overwrite pretrained weights, and DQN
        would still start elsewhere. Skipping it gives the same start under every algorithm; any other function is
        applied as always.
        """
        if isinstance(fn, partial) and fn.func is BasePolicy.init_weights:
            return self
        return super().apply(fn)

    def _check_scale(self, observations: Tensor) -> None:
        # Once, on the first batch that shows any light: afterwards the hot path pays nothing.
        peak = float(observations.max()) if observations.numel() else 0.0
        if peak > MAX_NORMALIZED:
            raise ValueError(
                f"{type(self).__name__} got float images with values up to {peak:g}, but expects them divided by 255. "
                "Drop normalize_images=False from policy_kwargs, or scale the images in the environment and pass "
                "features_extractor_kwargs=dict(normalized_image=True)."
            )
        self._may_be_unscaled = peak == 0.0


class MNV4Extractor(ImageExtractor):
    """MobileNetV4-style image encoder: ``policy_kwargs=dict(features_extractor_class=MNV4Extractor)``.

    Works with ``"CnnPolicy"`` in PPO, A2C, DQN, SAC and TD3, on images of any size and channel count. It has no
    dropout, and no BatchNorm unless it is pretrained, whose statistics then never change; so train and eval mode agree,
    and it keeps its own initialisation under every algorithm. For PPO, A2C and DQN on uint8 images the policies of
    :mod:`mnv4_rl.policies` do the same as ``"CnnPolicy"`` in less time and memory.

    SB3 puts two tanh layers of 64 behind every extractor but its own NatureCNN; pass ``net_arch=[]`` beside it.

    Args:
        observation_space: A 3-D Box: uint8 in [0, 255], or float in [-1, 1].
        features_dim: Width of the features, at least 1.
        variant: Any name of :func:`mnv4_rl.list_models`, or a :class:`mnv4_rl.models.specs.NetworkSpec` of your own.
        normalized_image: Trust that a float image is scaled, whatever its bounds.
        channels_last: Whether the image is (H, W, C) when it arrives here; None decides as SB3 does, by the smallest
            axis. SB3 itself moves the channels of uint8 images to the front.
        grid: The last map is averaged down to at most ``grid`` x ``grid`` before the fully connected layer, so the
            parameters do not grow with the image; 1 forgets position, 6 keeps it. None takes the variant's own.
        pretrained: Start stem and stages from trained weights, see :func:`mnv4_rl.weights.load_pretrained`. The file
            is not needed to load a saved agent. The image stays in [0, 1]. Without it a paper model gets GroupNorm for
            its BatchNorm.
        frozen: Never change the pretrained stem and stages; only the fully connected layer behind them is trained.
        frame_channels: Channels of one frame where the image is a stack of them: 1 for grey, 3 for RGB. None takes a
            multiple of 3 for RGB (3 channels for one frame, 12 for four), any other number for grey frames. RL variants
            start nearly blind to what all frames of a stack have in common, colour by colour.

    Raises:
        ValueError: If the space is no image, the variant unknown, the file does not fit, or frozen is not pretrained.
        FileNotFoundError: At the first batch, if the file was not there and no agent was loaded; it warns before.
    """

    network: Network
    weights: PretrainedWeights | None

    def __init__(
        self,
        observation_space: gym.Space,
        features_dim: int = 512,
        variant: str | NetworkSpec = "rl_s",
        normalized_image: bool = False,
        channels_last: bool | None = None,
        grid: int | None = None,
        pretrained: Pretrained | Literal[False] = False,
        frozen: bool = False,
        frame_channels: int | None = None,
    ) -> None:
        if frozen and not pretrained:
            raise ValueError("frozen=True would keep random weights: pass pretrained=<path> too, or leave it out.")
        super().__init__(observation_space, features_dim, normalized_image, channels_last)
        channels, height, width = self.image_shape
        spec = encoder_spec(get_spec(variant), features_dim, grid, keep_batch_norm=bool(pretrained))
        self.network = build(spec, channels, 0, (height, width), frame_channels)
        self.weights = PretrainedWeights(self.network, pretrained) if pretrained else None
        if frozen:
            freeze_trunk(self.network)
        self.train()

    def forward(self, observations: Tensor) -> Tensor:
        """As :meth:`ImageExtractor.forward`; FileNotFoundError if pretrained weights never came."""
        if self.weights is not None:
            self.weights.check()
        return super().forward(observations)

    def train(self, mode: bool = True) -> MNV4Extractor:
        """As :meth:`torch.nn.Module.train`, except that BatchNorm always uses the statistics it came with.

        SB3 collects in eval mode and updates in train mode; with statistics of the batch those would be two policies.
        """
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class MNV4CombinedExtractor(BaseFeaturesExtractor):
    """Dict observations: an :class:`MNV4Extractor` for each image, everything else flattened, all concatenated.

    For ``"MultiInputPolicy"``. SB3's own CombinedExtractor uses NatureCNN for images.

    Args:
        observation_space: A Dict with at least one 3-D Box; every 3-D Box is an image.
        cnn_output_dim: Features of each image; the name is that of SB3's CombinedExtractor.
        image_kwargs: Passed on to every :class:`MNV4Extractor`: ``variant``, ``normalized_image``, ``channels_last``,
            ``grid``, ``pretrained``, ``frozen``, ``frame_channels``.

    Raises:
        TypeError: If the space is not a Dict, or for an argument that :class:`MNV4Extractor` does not have.
        ValueError: If it holds no image, or one that :class:`MNV4Extractor` refuses (the key is named).
    """

    def __init__(self, observation_space: gym.Space, cnn_output_dim: int = 512, **image_kwargs: Any) -> None:
        check_positive(cnn_output_dim=cnn_output_dim)
        extractors: dict[str, nn.Module] = {}
        features_dim = 0
        for key, space in check_dict_space(observation_space).spaces.items():
            if is_image(space):
                extractors[key] = _named_extractor(key, space, cnn_output_dim, **image_kwargs)
                features_dim += cnn_output_dim
            else:
                extractors[key] = nn.Flatten()
                features_dim += get_flattened_obs_dim(space)
        super().__init__(observation_space, features_dim)
        self.extractors = nn.ModuleDict(extractors)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Dict of batches to (N, features_dim)."""
        return th.cat([extractor(observations[key]) for key, extractor in self.extractors.items()], dim=1)


def _named_extractor(key: str, space: gym.Space, features_dim: int, **image_kwargs: Any) -> MNV4Extractor:
    """An extractor whose errors name the key of the Dict."""
    try:
        return MNV4Extractor(space, features_dim, **image_kwargs)
    except ValueError as error:
        raise ValueError(f"Observation {key!r}: {error}") from error


def encoder_spec(
    spec: NetworkSpec, features_dim: int, grid: int | None = None, keep_batch_norm: bool = False
) -> NetworkSpec:
    """The row of an RL encoder: a head that keeps position and ends in ``features_dim`` features.

    BatchNorm is swapped for a norm without modes, unless its trained statistics are wanted. Untrained, it would act on
    statistics that describe nothing: the hybrids' features would not even depend on the image.
    """
    head = spec.head if isinstance(spec.head, GridHeadSpec) else GridHeadSpec()
    head = replace(head, features_dim=features_dim, grid=head.grid if grid is None else grid)
    return replace(spec if keep_batch_norm else spec.without_batch_norm(), head=head)


def check_dict_space(space: gym.Space) -> spaces.Dict:
    """The space, if it is a Dict with an image in it.

    Raises:
        TypeError: If the space is not a Dict.
        ValueError: If no entry is a 3-D Box.
    """
    if not isinstance(space, spaces.Dict):
        raise TypeError(f"MNV4CombinedExtractor needs a Dict space, got {space}; use MNV4Extractor for a single image.")
    if not any(is_image(sub) for sub in space.spaces.values()):
        raise ValueError(f"No entry of {space} is an image (a 3-D Box); use SB3's own CombinedExtractor for vectors.")
    return space


def is_image(space: gym.Space) -> bool:
    """Whether an entry of a Dict is taken for an image: a 3-D Box."""
    return isinstance(space, spaces.Box) and len(space.shape) == 3


def check_image_space(space: gym.Space, normalized_image: bool) -> spaces.Box:
    """The space, if it is an image.

    Raises:
        TypeError: If it is not a gymnasium space.
        ValueError: If it is not a 3-D Box with at least one pixel, or its numbers are not those of an image.
    """
    if not isinstance(space, gym.Space):
        raise TypeError(f"observation_space must be a gymnasium space, got {type(space).__name__}.")
    if not isinstance(space, spaces.Box):
        is_dict = isinstance(space, spaces.Dict)
        hint = "MNV4CombinedExtractor with 'MultiInputPolicy'" if is_dict else "'MlpPolicy'"
        raise ValueError(f"The encoder needs an image, a 3-D Box, got {space}; use {hint}.")
    if len(space.shape) != 3:
        raise ValueError(f"The encoder needs an image with 3 axes, got shape {space.shape}: {_axes_hint(space.shape)}")
    if 0 in space.shape:
        raise ValueError(f"The image has no pixels: shape {space.shape}; every axis must be at least 1.")
    _check_numbers(space, normalized_image)
    return space


def _axes_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return "this is a vector; use 'MlpPolicy'."
    if len(shape) == 2:
        return "add a channel axis, for example with gymnasium.wrappers.ReshapeObservation."
    return "fold the frame axis into the channels, for example with SB3's VecFrameStack."


def _check_numbers(space: spaces.Box, normalized_image: bool) -> None:
    """Refuse pixels whose scale is unknown: SB3 divides by 255 what is uint8 in [0, 255], and passes all else on."""
    if space.dtype != np.uint8 and not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"Pixels must be uint8 in [0, 255] or floats, got {space.dtype}; declare the Box as np.uint8.")
    if normalized_image or is_image_space(space):
        return
    low, high = float(space.low.min()), float(space.high.max())
    if space.dtype == np.uint8:
        raise ValueError(
            f"A uint8 image must have the bounds [0, 255], got [{low:g}, {high:g}]: SB3 would not divide it by 255. "
            "Declare the Box as np.uint8 in [0, 255]."
        )
    if low < -MAX_NORMALIZED or high > MAX_NORMALIZED:
        raise ValueError(
            f"A float image must have bounds within [-1, 1], got [{low:g}, {high:g}]: SB3 divides only uint8 images by "
            "255. Declare the Box as np.uint8 in [0, 255], or scale the image and pass "
            "features_extractor_kwargs=dict(normalized_image=True)."
        )


def choose_channels_last(space: spaces.Box, wanted: bool | None) -> bool:
    """Whether the last axis holds the channels: as ``wanted``, else by SB3's rule.

    SB3's rule is that the smallest axis holds the channels, the first one if several are as small.

    Raises:
        ValueError: If channels-last is wanted for a uint8 image whose channels SB3 has moved to the front.
    """
    channels, *sides = space.shape
    if wanted and is_image_space(space) and channels < min(sides):
        raise ValueError(
            f"channels_last=True, but the channels of this uint8 image come first: shape {space.shape}. SB3 moves them "
            "to the front before the encoder sees them; leave channels_last at None."
        )
    return int(np.argmin(space.shape)) != 0 if wanted is None else wanted


__all__ = ["MNV4CombinedExtractor", "MNV4Extractor"]
