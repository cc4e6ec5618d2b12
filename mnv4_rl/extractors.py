"""The encoders behind stable-baselines3's features-extractor contract, of one image and of a Dict with images.

    policy_kwargs = dict(features_extractor_class=MNV4Extractor, net_arch=[])

:mod:`mnv4_rl.image_extractor` has what holds for every image, :mod:`mnv4_rl.observations` knows the spaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from mnv4_rl.checks import check_positive
from mnv4_rl.image_extractor import ImageExtractor
from mnv4_rl.models.network import Network, build
from mnv4_rl.models.registry import DEFAULT_VARIANT, get_spec, list_models
from mnv4_rl.models.specs import TIMM_PREFIX, GridHeadSpec, NetworkSpec, TimmSpec
from mnv4_rl.models.timm_network import TimmNetwork
from mnv4_rl.observations import is_image, warn_of_matrix
from mnv4_rl.weights.files import Pretrained
from mnv4_rl.weights.pretrained import Normalize, PretrainedWeights, freeze_trunk
from mnv4_rl.weights.statistics import AS_IT_IS, check_from_zero

# An SB3 zip holds the policy_kwargs as they were passed: one that names no variant hangs on the default of its day.
_OTHER_VARIANT = (
    "These are the weights of the variant {name!r}, and this encoder is another. Pass variant={name!r} where it is "
    "made; SB3's load takes it by custom_objects=dict(policy_kwargs=dict(features_extractor_class=MNV4Extractor, "
    "features_extractor_kwargs=dict(variant={name!r}), ...)), beside the policy_kwargs that the agent had."
)


class MNV4Extractor(ImageExtractor):
    """MobileNetV4-style image encoder: ``policy_kwargs=dict(features_extractor_class=MNV4Extractor)``.

    Works with ``"CnnPolicy"`` in PPO, A2C, DQN, SAC and TD3, on images of any size and channel count. It has no
    dropout, and no BatchNorm unless it is pretrained, whose statistics then never change; so train and eval mode agree,
    and it keeps its own initialisation under every algorithm. For PPO, A2C and DQN on uint8 images the policies of
    :mod:`mnv4_rl.policies` do the same as ``"CnnPolicy"`` in less time and memory.

    In PPO, A2C and DQN SB3 puts two layers of 64 behind every extractor but its own NatureCNN; pass ``net_arch=[]``
    beside it. In TD3 pass ``[256, 256]``, which is NatureCNN's; in SAC nothing.

    Args:
        observation_space: Images, see docs/observations.md: uint8 in [0, 255], or float in [-1, 1].
        features_dim: Width of the features, at least 2. Of an ``rl_s2`` a quarter are constants, the same for every
            image: 384 of its 512 features depend on what is seen.
        variant: Any name of :func:`mnv4_rl.list_models`, a :class:`mnv4_rl.models.specs.NetworkSpec` of your own, or
            ``"timm:<model>"`` for any model of timm, where that is installed.
        normalized_image: Take the numbers as they are, as floats, whatever their type and bounds.
        channels_last: Whether the image is (H, W, C) when it arrives here; None finds out, and asks where nobody can
            know. SB3 itself moves the channels of uint8 images to the front.
        grid: The last map is averaged down to at most ``grid`` x ``grid`` before the fully connected layer, so the
            parameters do not grow with the image; 1 forgets position, 6 or 12 keep it. None takes the variant's own. Of
            a model of timm 1 takes the features that it pools itself.
        pretrained: Start stem and stages from trained weights, see :func:`mnv4_rl.weights.load_pretrained`. The file
            is not needed to load a saved agent. Images in [0, 1] get the mean and deviation of timm's training, unless
            ``normalized_image`` says that they have them. Without it a paper model gets GroupNorm for its BatchNorm.
        frozen: Never change the pretrained stem and stages; only the fully connected layer behind them is trained.
        frame_channels: Channels of one frame where the image is a stack of them: 1 for grey, 3 for RGB. None takes a
            multiple of 3 for RGB (3 channels for one frame, 12 for four), any other number for grey frames, unless the
            frames have an axis of their own. RL variants start nearly blind to what all frames of a stack have in
            common, colour by colour.

    Raises:
        ValueError: If the space is no image, the variant unknown, the file does not fit or is an empty name, or frozen
            is not pretrained; or if the weights know images in [0, 1] less their mean, and the space goes below 0.
        FileNotFoundError: At the first batch, if the file was not there and no agent was loaded; it warns before.
    """

    if TYPE_CHECKING:
        kept_shape: tuple[int, ...]  # of maps in place of images, where mnv4_rl.frozen keeps them
        network: Network | TimmNetwork
        weights: PretrainedWeights | None

    def __init__(
        self,
        observation_space: gym.Space,
        features_dim: int = 512,
        variant: str | NetworkSpec | TimmSpec = DEFAULT_VARIANT,
        normalized_image: bool = False,
        channels_last: bool | None = None,
        grid: int | None = None,
        pretrained: Pretrained | Literal[False] = False,
        frozen: bool = False,
        frame_channels: int | None = None,
    ) -> None:
        if pretrained == "":  # an environment variable that is not set
            raise ValueError("pretrained must be the path of a file, True or False, got ''.")
        if frozen and not pretrained:
            raise ValueError("frozen=True would keep random weights: pass pretrained=<path> too, or leave it out.")
        super().__init__(observation_space, features_dim, normalized_image, channels_last)
        channels, height, width = self.image_shape
        row = _spec_of(variant)
        if isinstance(row, TimmSpec):
            spec = encoder_spec(row, self.features_dim, grid, keep_batch_norm=bool(pretrained))
            self.network = TimmNetwork(spec, channels, (height, width))
        else:
            own = encoder_spec(row, self.features_dim, grid, keep_batch_norm=bool(pretrained))
            if frame_channels is None:
                frame_channels = self.layout.frame_channels
            self.network = build(own, channels, 0, (height, width), frame_channels)
        self.weights = PretrainedWeights(self.network, pretrained) if pretrained else None
        if self.weights is not None or isinstance(row, TimmSpec):
            statistics = AS_IT_IS if normalized_image or self.weights is None else self.weights.statistics
            check_from_zero(observation_space, statistics)
            self.normalize = Normalize(statistics, channels)
            if not normalized_image:
                self.register_load_state_dict_post_hook(remember_statistics)
        if frozen:
            freeze_trunk(self.network)
        self.train()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """As torch's; weights that do not fit are called by their variant's name where it is one made for RL."""
        error_msgs: list[str] = rest[-1]
        name = self.other_variant(state_dict, prefix)
        if name and (message := _OTHER_VARIANT.format(name=name)) not in error_msgs:  # SB3 holds it three times
            error_msgs.append(message)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def other_variant(self, state_dict: Mapping[str, Any], prefix: str = "") -> str | None:
        """The name of the other variant made for RL that weights are of; None if they fit, or are of none.

        Args:
            state_dict: Weights by name; nothing is looked at but the shapes of this extractor's.
            prefix: What the extractor's names begin with there, with its dot.
        """
        start = f"{prefix}network."
        theirs = _shapes({key.removeprefix(start): value for key, value in state_dict.items() if key.startswith(start)})
        if not isinstance(self.network, Network) or theirs == _shapes(self.network.state_dict()):
            return None
        return self._variant_with(theirs)

    def _variant_with(self, shapes: Mapping[str, th.Size | None]) -> str | None:
        """The RL variant that would have weights of these shapes here; None if no one would."""
        channels, height, width = self.image_shape
        with th.device("meta"):  # neither numbers nor draws of the generator
            for name in list_models("rl"):
                row = encoder_spec(get_spec(name), self.features_dim)
                if _shapes(build(row, channels, 0, (height, width)).state_dict()) == shapes:
                    return name
        return None

    def _check(self, observations: Tensor) -> None:
        """As :meth:`ImageExtractor._check`; FileNotFoundError if pretrained weights never came."""
        if self.weights is not None:
            self.weights.check()
        super()._check(observations)

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
        observation_space: A Dict with at least one image: a Box with 3 axes, a stack of such with 4, or a grey uint8
            picture with 2.
        cnn_output_dim: Features of each image; the name is that of SB3's CombinedExtractor.
        normalized_image: As of :class:`MNV4Extractor`, for all images, or for some by key: ``{"board": True}``. Images
            whose key is not there keep the default.
        channels_last: Likewise.
        frame_channels: Likewise.
        image_kwargs: Passed on to every :class:`MNV4Extractor`: ``variant``, ``grid``, ``pretrained``, ``frozen``.

    Raises:
        TypeError: If the space is not a Dict, or for an argument that :class:`MNV4Extractor` does not have.
        ValueError: If it holds no image, or one that :class:`MNV4Extractor` refuses (the key is named), or for an
            argument by a key that is no image's.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        cnn_output_dim: int = 512,
        normalized_image: bool | dict[str, bool] = False,
        channels_last: bool | dict[str, bool] | None = None,
        frame_channels: int | dict[str, int] | None = None,
        **image_kwargs: Any,
    ) -> None:
        if "features_dim" in image_kwargs:
            raise TypeError(
                "features_dim is of a single image. In a Dict each image has cnn_output_dim features, as in SB3, and "
                f"what is no image is added: pass cnn_output_dim={image_kwargs['features_dim']!r}."
            )
        check_positive(cnn_output_dim=cnn_output_dim)
        cnn_output_dim = int(cnn_output_dim)
        entries = check_dict_space(observation_space).spaces
        images = [key for key, space in entries.items() if is_image(space)]
        told = dict(zip(_TOLD_BY_KEY, (normalized_image, channels_last, frame_channels), strict=True))
        _check_keys(told, images)
        by_key = {key: image_kwargs | _told_of(key, told) for key in images}
        extractors: dict[str, nn.Module] = {}
        features_dim = 0
        for key, space in entries.items():
            if key in by_key:
                extractors[key] = _named_extractor(key, space, cnn_output_dim, **by_key[key])
                features_dim += cnn_output_dim
            else:
                warn_of_matrix(key, space)
                extractors[key] = nn.Flatten()
                features_dim += int(get_flattened_obs_dim(space))  # of MultiDiscrete it is NumPy's
        super().__init__(observation_space, features_dim)
        self.extractors = nn.ModuleDict({module_name(key): extractor for key, extractor in extractors.items()})
        self._keys = tuple(extractors)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Dict of batches to (N, features_dim)."""
        parts = zip(self._keys, self.extractors.values(), strict=True)
        return th.cat([extractor(observations[key]) for key, extractor in parts], dim=1)


_TAKEN = frozenset(("", *dir(nn.ModuleDict())))  # what torch lets no submodule be called, beside what has a "."


def module_name(key: str) -> str:
    """What a Dict's entry is called among torch's modules: its key, or the nearest to it that torch takes."""
    name = key.replace(".", "·")
    return f"{name}·" if name in _TAKEN else name


_TOLD_BY_KEY = ("normalized_image", "channels_last", "frame_channels")


def _told_of(key: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of one image, where each argument is of all images or a dict by key."""
    of_all = {name: value for name, value in told.items() if not isinstance(value, dict)}
    return of_all | {name: value[key] for name, value in told.items() if isinstance(value, dict) and key in value}


def _check_keys(told: Mapping[str, Any], images: list[str]) -> None:
    for name, value in told.items():
        if isinstance(value, dict) and (wrong := [key for key in value if key not in images]):
            raise ValueError(f"{name} is told for {wrong}, of this Dict the images are {images}.")


def _named_extractor(key: str, space: gym.Space, features_dim: int, **image_kwargs: Any) -> MNV4Extractor:
    """An extractor whose errors name the key of the Dict."""
    try:
        return MNV4Extractor(space, features_dim, **image_kwargs)
    except ValueError as error:
        own = next((name for name in _TOLD_BY_KEY if name in str(error)), None)
        hint = f" For this key alone: {own}={{{key!r}: ...}}." if own else ""
        raise ValueError(f"Observation {key!r}: {error}{hint}") from error


def remember_statistics(policy: nn.Module, _: Any = None) -> None:
    """Let networks whose weights came with a saved agent know the images that those were trained on.

    Args:
        policy: The policy, or an extractor, that the weights were copied into.
    """
    for part in policy.modules():
        if isinstance(part, MNV4Extractor) and isinstance(part.normalize, Normalize):
            part.network.image_statistics = part.normalize.statistics()


def _spec_of(variant: str | NetworkSpec | TimmSpec) -> NetworkSpec | TimmSpec:
    if isinstance(variant, TimmSpec):
        return variant
    if isinstance(variant, str) and variant.startswith(TIMM_PREFIX):
        return TimmSpec(model=variant.removeprefix(TIMM_PREFIX), head=GridHeadSpec())
    return get_spec(variant)


Spec = TypeVar("Spec", NetworkSpec, TimmSpec)


def encoder_spec(spec: Spec, features_dim: int, grid: int | None = None, keep_batch_norm: bool = False) -> Spec:
    """The row of an RL encoder: a head that keeps position and ends in ``features_dim`` features.

    BatchNorm is swapped for a norm without modes, unless its trained statistics are wanted. Untrained, it would act on
    statistics that describe nothing: the hybrids' features would not even depend on the image.

    Raises:
        ValueError: For fewer than 2 features of the image behind a norm, which would be the same for every image.
    """
    head = spec.head if isinstance(spec.head, GridHeadSpec) else GridHeadSpec()
    grid = head.grid if grid is None else grid
    check_positive(grid=grid)
    head = replace(head, features_dim=features_dim, grid=int(grid))
    if head.norm != "none" and head.image_features < 2:
        raise ValueError(f"features_dim must be at least 2, got {features_dim}: a norm over one feature is blind.")
    return replace(spec if keep_batch_norm else spec.without_batch_norm(), head=head)


def _shapes(state: Mapping[str, Any]) -> dict[str, th.Size | None]:
    return {key: getattr(value, "shape", None) for key, value in state.items()}


def check_dict_space(space: gym.Space) -> spaces.Dict:
    """The space, if it is a Dict with an image in it.

    Raises:
        TypeError: If the space is not a Dict.
        ValueError: If no entry is an image.
    """
    if not isinstance(space, spaces.Dict):
        raise TypeError(f"MNV4CombinedExtractor needs a Dict space, got {space}; use MNV4Extractor for a single image.")
    if not any(is_image(sub) for sub in space.spaces.values()):
        raise ValueError(f"No entry of {space} is an image (a 3-D Box); use SB3's own CombinedExtractor for vectors.")
    return space


__all__ = ["MNV4CombinedExtractor", "MNV4Extractor"]
