"""What every image extractor shares, ours and the baselines: the contract of SB3 for images, whatever the network.

SB3 hands an extractor float images already divided by 255 (``preprocess_obs``); floats are never divided again here.
The policies of :mod:`mnv4_rl.policies` hand it the uint8 images themselves.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, fx, nn

from mnv4_rl.checks import check_positive
from mnv4_rl.models.layers import has_values
from mnv4_rl.observations import MAX_NORMALIZED, SCALE_TOLERANCE, fold, read_layout

FAR_ABOVE = 10.0  # no image that was scaled, by whatever mean and deviation, is as bright


class ImageExtractor(BaseFeaturesExtractor):
    """What every image extractor shares: the checks of the space, the layout of the image, its own initialisation.

    A subclass sets ``self.network``, which maps (N, channels, H, W), float or uint8, to (N, features_dim).

    Args:
        observation_space: Images, see docs/observations.md: uint8 in [0, 255], or float in [-1, 1].
        features_dim: Width of the features.
        normalized_image: Take the numbers as they are, as floats, whatever their type and bounds. SB3 still divides
            what it takes for an image, uint8 in [0, 255].
        channels_last: Whether the image is (H, W, C) when it arrives here: SB3 has by then moved the channels of a
            uint8 image to the front, and leaves those of all others. None finds out, and asks where nobody can know.

    Attributes:
        layout: How an observation becomes an image.
        accepts_uint8: Whether the space is uint8 in [0, 255]: the policies of :mod:`mnv4_rl.policies` then hand the
            observations over as they are.

    Raises:
        TypeError: If the space is not a gymnasium space.
        ValueError: If the space is no image; the message says what came, what is allowed and what to do.
    """

    if TYPE_CHECKING:  # TorchScript reads what a class says of its attributes, and knows none of these
        network: nn.Module

    takes_bytes = True  # whether the network itself divides uint8 by 255
    __jit_unused_properties__: ClassVar[list[str]] = ["channels_last", "image_shape"]  # TorchScript holds no layout

    def __init__(
        self,
        observation_space: gym.Space,
        features_dim: int,
        normalized_image: bool = False,
        channels_last: bool | None = None,
    ) -> None:
        check_positive(features_dim=features_dim)
        layout = read_layout(observation_space, normalized_image, channels_last)
        super().__init__(observation_space, int(features_dim))  # which NumPy's may be
        self.layout = layout
        self.accepts_uint8 = layout.is_bytes
        # uint8 for a float space are pixels; for a space of integers they are those.
        self._divides_uint8 = layout.is_bytes or np.issubdtype(observation_space.dtype, np.floating)
        self._divides_floats = layout.is_bytes and layout.is_folded  # SB3 takes these for no image
        self._keeps_uint8 = self.takes_bytes
        self._axes, self._is_channels_last = len(layout.shape), layout.channels_last
        self._may_be_unscaled = not normalized_image and not self._divides_floats
        self.normalize: nn.Module = nn.Identity()  # what pretrained weights want of the scaled image

    @property
    def channels_last(self) -> bool:
        """Whether an image is (H, W, C) when it arrives here."""
        return self.layout.channels_last

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the network reads."""
        return self.layout.image_shape

    def forward(self, observations: Tensor) -> Tensor:
        """Observations to features.

        Args:
            observations: (N, *observation_space.shape), as SB3 hands them over: float, a 3-D uint8 image divided by
                255, all else as it is. Or uint8 in [0, 255], which gives the features of its ``float() / 255``.

        Returns:
            (N, features_dim) float.

        Raises:
            ValueError: If a 3-D uint8 space arrives as floats above 1, that is with SB3's ``normalize_images=False``.

        Warns:
            UserWarning: Once, if a float space within [-1, 1] carries pixels such as those in [0, 255].
        """
        if not th.jit.is_scripting():
            self._check(observations)
        images = scaled(observations, self._divides_uint8, self._keeps_uint8, self._divides_floats)
        return self.network(self.normalize(fold(images, self._axes, self._is_channels_last)))

    def _check(self, observations: Tensor) -> None:
        """What is looked at in the observations themselves, before they are used and where they can be."""
        if self._may_be_unscaled and has_values(observations) and observations.dtype != th.uint8:
            self._check_scale(observations.detach())

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
        if self.layout.is_bytes and peak > MAX_NORMALIZED + SCALE_TOLERANCE:
            raise ValueError(
                f"{type(self).__name__} got float images with values up to {peak:g}, but expects them divided by 255. "
                "Drop normalize_images=False from policy_kwargs, or scale the images in the environment and pass "
                "features_extractor_kwargs=dict(normalized_image=True)."
            )
        if peak > FAR_ABOVE:
            warnings.warn(
                f"{type(self).__name__} got images with values up to {peak:g}, and the space says that they end at "
                f"{MAX_NORMALIZED:g}. Scale them in the environment, or give the Box their bounds and pass "
                "features_extractor_kwargs=dict(normalized_image=True).",
                stacklevel=2,
            )
        self._may_be_unscaled = peak <= 0.0


@fx.wrap  # torch.fx cannot follow what it decides by dtypes
def scaled(observations: Tensor, divides_uint8: bool, takes_bytes: bool, divides_floats: bool) -> Tensor:
    """Floats of the scale a network wants, or bytes that it divides itself.

    Args:
        observations: (N, ...), of any dtype.
        divides_uint8: Whether uint8 are pixels in [0, 255].
        takes_bytes: Whether the network divides those by 255 itself.
        divides_floats: Whether floats are pixels in [0, 255] too.
    """
    if divides_uint8 and observations.dtype == th.uint8:
        return observations if takes_bytes else observations.float() / 255
    if not observations.is_floating_point():
        observations = observations.float()
    return observations / 255 if divides_floats else observations
