"""Which observation spaces are images, and how an observation becomes (N, C, H, W); docs/observations.md has the table.

SB3 knows one kind of image, a 3-D uint8 Box in [0, 255]. It moves the channels of those to the front unless the first
axis is the smallest (``VecTransposeImage``), and divides them by 255. Everything else arrives as the environment gives
it, cast to float.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from types import FrameType, NoneType
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.vec_env import VecEnvWrapper, VecFrameStack, VecTransposeImage, unwrap_vec_wrapper
from torch import Tensor

from mnv4_rl.checks import check_type
from mnv4_rl.models.layers import MAX_BYTE

MAX_NORMALIZED = 1.0
SCALE_TOLERANCE = 1e-3  # resizing a scaled image rounds past its bounds
LARGE_MATRIX_SIDE = 32
MIN_MATRIX_SIDE = 8  # a uint8 matrix narrower than this is a table of numbers, or a stack of vectors
# A last axis this many times smaller than the others holds channels by any reading: 84x84x4, 64x64x3.
CLEAR_RATIO = 4
PICTURE_CHANNELS = 4  # grey, two, RGB, RGBD
TRUST = "features_extractor_kwargs=dict(normalized_image=True)"


@dataclass(frozen=True)
class ImageLayout:
    """Where the channels, rows, columns and frames of an observation lie.

    Attributes:
        shape: Shape of an observation: (H, W), one image, or (frames, *image), oldest frame first.
        channels_last: Whether an image is (H, W, C), not (C, H, W).
        is_bytes: Whether the numbers are uint8 in [0, 255].
    """

    shape: tuple[int, ...]
    channels_last: bool
    is_bytes: bool

    @property
    def is_folded(self) -> bool:
        """Whether this is a stack or a matrix: SB3 takes neither for an image, and divides neither by 255."""
        return len(self.shape) != 3

    @property
    def frames(self) -> int:
        """Frames that an axis of their own counts; 1 without one."""
        return self.shape[0] if len(self.shape) == 4 else 1

    @property
    def frame_channels(self) -> int | None:
        """Channels of one frame of a stack; None where the space does not tell."""
        return self.image_shape[0] // self.frames if len(self.shape) == 4 else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the network reads; a stack's frames lie side by side in the channels."""
        if len(self.shape) == 2:
            return (1, self.shape[0], self.shape[1])
        a, b, c = self.shape[-3:]
        channels, height, width = (c, a, b) if self.channels_last else (a, b, c)
        return self.frames * channels, height, width


def fold(observations: Tensor, axes: int, channels_last: bool) -> Tensor:
    """Observations as a network reads them.

    Args:
        observations: (N, H, W), (N, *image) or (N, frames, *image).
        axes: Axes of one observation: 2, 3 or 4.
        channels_last: Whether an image is (H, W, C), not (C, H, W).

    Returns:
        (N, channels, H, W) with the frames side by side in the channels, a view wherever one is possible.
    """
    if axes == 2:
        return observations.unsqueeze(1)
    if channels_last:
        observations = observations.movedim(-1, -3)
    return observations.flatten(1, 2) if axes == 4 else observations


def read_layout(space: gym.Space, normalized_image: bool = False, channels_last: bool | None = None) -> ImageLayout:
    """How to read a space's observations as images.

    Args:
        space: The space as it arrives at the extractor.
        normalized_image: Take the numbers as they are, whatever their type and bounds.
        channels_last: Whether an image is (H, W, C); None finds out.

    Raises:
        TypeError: If it is not a gymnasium space, or for a word where True or False is meant.
        ValueError: If it is no image, its numbers are not those of one, nobody can know which axis holds the
            channels, or frames were stacked along another; the message says what came, what is allowed and what to do.
    """
    check_type("normalized_image", normalized_image, (bool, np.bool_))
    check_type("channels_last", channels_last, (bool, np.bool_, NoneType))
    box = _check_box(space)
    _check_numbers(box, normalized_image)
    layout = ImageLayout(box.shape, _choose_channels_last(box, channels_last), is_bytes(box))
    _check_stacked_frames(layout)
    return layout


def is_bytes(space: gym.Space) -> bool:
    """Whether a space's numbers are uint8 in [0, 255], all of them."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    return bool((space.low == 0).all() and (space.high == MAX_BYTE).all())


def is_image(space: gym.Space) -> bool:
    """Whether a space is taken for an image: a Box with 3 axes, a stack of such, or a grey uint8 picture with 2 axes.

    A matrix of other numbers is none: SB3 flattens it like a vector.
    """
    if not isinstance(space, spaces.Box):
        return False
    if len(space.shape) == 2:
        return is_bytes(space) and min(space.shape) >= MIN_MATRIX_SIDE
    return len(space.shape) in (3, 4)


def is_clearly_channels_last(shape: tuple[int, ...]) -> bool:
    """Whether a shape with 3 axes is (H, W, C) by any reading: as (C, H, W) it would be a narrow strip."""
    return CLEAR_RATIO * shape[2] <= min(shape[:2])


def warn_of_matrix(key: str, space: gym.Space) -> None:
    """Say of a Dict's entry that it is flattened, where it has the size of a picture."""
    if isinstance(space, spaces.Box) and len(space.shape) == 2 and min(space.shape) >= LARGE_MATRIX_SIDE:
        warnings.warn(
            f"Observation {key!r} of shape {space.shape} and {space.dtype} is flattened into {np.prod(space.shape)} "
            f"features, as by SB3. If it is a picture, give it a channel axis: {(1, *space.shape)}.",
            stacklevel=3,
        )


def warn_of_normalised(agent: object, place: object) -> None:
    """Say of an agent that VecNormalize's statistics are not kept with it."""
    env = getattr(agent, "get_vec_normalize_env", lambda: None)()
    if env is not None and env.norm_obs:
        warnings.warn(
            f"This agent knows observations that VecNormalize has normalised, and {place} does not hold its means and "
            "variances: keep them too, with env.save(path), and normalise what the agent is given by them.",
            stacklevel=3,
        )


def _check_box(space: gym.Space) -> spaces.Box:
    """The space, if it is an image by its shape."""
    if not isinstance(space, gym.Space):
        raise TypeError(f"observation_space must be a gymnasium space, got {type(space).__name__}.")
    if not isinstance(space, spaces.Box):
        raise ValueError(f"The encoder needs an image, a 3-D Box, got {space}; {_space_hint(space)}.")
    if 0 in space.shape:
        raise ValueError(f"The image has no pixels: shape {space.shape}; every axis must be at least 1.")
    if not is_image(space):
        raise ValueError(f"The encoder needs an image with 3 axes, got shape {space.shape}: {_axes_hint(space)}.")
    return space


def _space_hint(space: gym.Space) -> str:
    match space:
        case spaces.Dict():
            return "use MNV4CombinedExtractor with 'MultiInputPolicy'"
        case spaces.MultiBinary() if len(space.shape) > 1:
            return f"declare it as Box(0, 1, {space.shape}, np.bool_) and pass {TRUST}"
        case _:
            return "use 'MlpPolicy'"


def _axes_hint(space: spaces.Box) -> str:
    match len(space.shape):
        case 0 | 1:
            return "this is a vector; use 'MlpPolicy'"
        case 2:
            # Only a uint8 picture is taken for one by itself, alone and in a Dict alike.
            return (
                f"as it is {space.dtype}, it may be a table of numbers, for 'MlpPolicy'. If it is a picture, add a "
                f"channel axis: gymnasium.wrappers.ReshapeObservation(env, {(1, *space.shape)})"
            )
        case _:
            return (
                "only one axis may count frames, and it comes first. Put all other axes but height and width into the "
                "channels, with gymnasium.wrappers.TransformObservation or ReshapeObservation"
            )


def _check_numbers(space: spaces.Box, normalized_image: bool) -> None:
    """Refuse pixels whose scale is unknown: SB3 divides by 255 what is uint8 in [0, 255], and passes all else on."""
    if normalized_image or is_bytes(space):
        return
    low, high = float(space.low.min()), float(space.high.max())
    is_scaled = max(-low, high) <= MAX_NORMALIZED + SCALE_TOLERANCE
    if np.issubdtype(space.dtype, np.floating):
        if not is_scaled:
            raise ValueError(
                f"A float image must have bounds within [-1, 1], got [{low:g}, {high:g}]: SB3 divides only uint8 "
                f"images by 255. {_scale_hint(low, high)}"
            )
        return
    what = f"Pixels must be uint8 in [0, 255] or floats, got {space.dtype} in [{low:g}, {high:g}]"
    if not is_scaled:
        raise ValueError(f"{what}: SB3 would not divide them by 255. {_scale_hint(low, high)}")
    bounds = "; if they are bytes after all, correct the Box's bounds to [0, 255]" if space.dtype == np.uint8 else ""
    raise ValueError(f"{what}. Pass {TRUST}, and the encoder gets these numbers as floats{bounds}.")


# Whose bounds are those at which it clips, [-10, 10].
_OF_VEC_NORMALIZE = (
    "If VecNormalize made these bounds, leave images out of it: norm_obs=False, or in a Dict norm_obs_keys=[...] with "
    "the other keys. Otherwise: "
)


def _scale_hint(low: float, high: float) -> str:
    """What to do with numbers that are larger than 1, without losing any of them."""
    as_they_are = f"pass {TRUST} to take the numbers as they are"
    if (low, high) == (0, MAX_BYTE):
        return (
            f"Declare the Box as np.uint8 in [0, 255] if they are whole, else scale them to [0, 1], or {as_they_are}."
        )
    by = f", by dividing by {max(-low, high):g}," if np.isfinite([low, high]).all() else ""
    start = _OF_VEC_NORMALIZE if by and low == -high else ""
    return f"{start}Scale them to floats within [-1, 1] in the environment{by} or {as_they_are}."


def _choose_channels_last(space: spaces.Box, wanted: bool | None) -> bool:
    """Whether an image of this space is (H, W, C)."""
    if len(space.shape) == 2:
        return False
    if len(space.shape) == 3 and is_bytes(space):
        return _sb3s_choice(space.shape, wanted)
    channels_last = _by_the_smallest_axis(space.shape, wanted)
    if len(space.shape) == 4:
        _check_stack(ImageLayout(space.shape, channels_last, is_bytes(space)))
    return channels_last


def _sb3s_choice(shape: tuple[int, ...], wanted: bool | None) -> bool:
    """The layout of a 3-D uint8 image, whose channels SB3 may have moved to the front by now."""
    a, b, c = shape
    giver = _giver()
    is_clearly_first = CLEAR_RATIO * a <= min(b, c)
    if wanted and (giver == "moved" or (giver == "nobody" and is_clearly_first)):
        raise ValueError(
            f"channels_last=True, but the channels of this uint8 image come first: shape {shape}. SB3 moves them "
            "to the front before the encoder sees them; leave channels_last at None."
        )
    if wanted is not None:
        return wanted
    if a <= min(b, c) or giver in ("moved", "algorithm"):
        return False
    if giver in ("nobody", "policy") and is_clearly_channels_last(shape):
        return True
    if giver == "policy":  # as a rule loaded from an agent's
        return False
    raise ValueError(_question(shape))


def _by_the_smallest_axis(shape: tuple[int, ...], wanted: bool | None) -> bool:
    """The layout of an image that SB3 leaves alone."""
    if wanted is not None:
        return wanted
    a, b, c = shape[-3:]
    if a < min(b, c):
        return False
    if c < min(a, b) and (c <= PICTURE_CHANNELS or is_clearly_channels_last((a, b, c))):
        return True
    raise ValueError(_question(shape))


def _question(shape: tuple[int, ...]) -> str:
    a, b, c = shape[-3:]
    is_stack = len(shape) == 4
    frames = f"{shape[0]} frames of " if is_stack else ""
    order = " Frames come first; if another axis counts them, move it to the front." if is_stack else ""
    return (
        f"Which axis of shape {shape} holds the channels? It can be {frames}{a} channels of {b}x{c} pixels "
        f"(channels_last=False) or {frames}{c} channels of {a}x{b} (channels_last=True): pass the one it is, as "
        f"features_extractor_kwargs=dict(channels_last=...).{order}"
    )


def _check_stack(layout: ImageLayout) -> None:
    """Refuse a first axis that hardly counts frames."""
    _, height, width = layout.image_shape
    if layout.frames > min(height, width):
        raise ValueError(
            f"Frames come first, so shape {layout.shape} would be {layout.frames} frames of {height}x{width} pixels. "
            "Move the axis that counts them to the front, oldest frame first, with "
            "gymnasium.wrappers.TransformObservation, or fold them into the channels."
        )


def _check_stacked_frames(layout: ImageLayout) -> None:
    """Refuse frames that a VecFrameStack put side by side into one wide picture, or one below the other.

    SB3 stacks along the last axis all that it does not take for an image: grey matrices, floats, and stacks.
    """
    for part in _stacked_parts():
        frame, stacked = part.observation_space.shape, part.stacked_observation_space.shape
        if stacked == layout.shape and not _lie_in_channels(layout, len(frame), part.repeat_axis):
            raise ValueError(
                f"VecFrameStack made one picture of shape {stacked} of frames of shape {frame}, side by side: stack "
                f"them along the channels; {_stacking_cure(layout, frame)}."
            )


def _stacked_parts() -> list[Any]:
    """SB3's StackedObservations of the environments that a policy is being built for: one for each entry of a Dict."""
    stack = _wrapper_of(_callers()[1], VecFrameStack)
    if stack is None:
        return []
    parts = getattr(stack.stacked_obs, "sub_stacked_observations", {"": stack.stacked_obs})
    return list(parts.values())


def _lie_in_channels(layout: ImageLayout, frame_axes: int, axis: int) -> bool:
    """Whether frames that were stacked along an axis, 0 or -1, are read as channels."""
    if frame_axes == 3:  # SB3 knows the channels of uint8 images
        return layout.is_bytes or axis == (-1 if layout.channels_last else 0)
    return frame_axes == 4 and axis == 0


def _stacking_cure(layout: ImageLayout, frame: tuple[int, ...]) -> str:
    match len(frame):
        case 2:
            return f"give a frame a channel axis first, by gymnasium.wrappers.ReshapeObservation(env, {(*frame, 1)})"
        case 3:
            return f"pass it channels_order={'last' if layout.channels_last else 'first'!r}"
        case _:
            return "leave it out, as a frame is a stack already"


def _giver() -> Literal["nobody", "policy", "algorithm", "moved", "skipped"]:
    """Who hands the space over.

    The same shape means one thing inside SB3, which has moved the channels, and another outside, and SB3 tells its
    extractors neither. So this looks who is calling.

    Returns:
        "nobody" outside of SB3, "policy" for a policy by itself, "algorithm" for one whose environment SB3 leaves as it
        is or that has none, being loaded; "moved" or "skipped" where the environment is in a VecTransposeImage that
        moves the channels, or was told to skip that.
    """
    is_policy, algorithm = _callers()
    if algorithm is None:
        return "policy" if is_policy else "nobody"
    transposer = _wrapper_of(algorithm, VecTransposeImage)
    return "algorithm" if transposer is None else "skipped" if transposer.skip else "moved"


def building_algorithm() -> BaseAlgorithm | None:
    """The algorithm that is building the policy from which this is called; SB3 does not say."""
    return _callers()[1]


def _callers() -> tuple[bool, BaseAlgorithm | None]:
    """Whether a policy is being built, and the algorithm that builds it."""
    is_policy = False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames[:1] else None
        is_policy |= isinstance(caller, BaseModel)
        if is_policy and isinstance(caller, BaseAlgorithm):
            return True, caller
        frame = frame.f_back
    return is_policy, None


def _wrapper_of(algorithm: BaseAlgorithm | None, kind: type[VecEnvWrapper]) -> Any:
    """The outermost wrapper of a kind, None without one; an algorithm that is being loaded may have no environment."""
    return None if algorithm is None or algorithm.env is None else unwrap_vec_wrapper(algorithm.env, kind)
