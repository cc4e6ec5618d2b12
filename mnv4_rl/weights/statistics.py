"""What images trained weights know: the mean and deviation that were taken off them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, TypeAlias

import gymnasium as gym
from gymnasium import spaces
from pydantic import Field

from mnv4_rl.safe_files import MAX_JSON_BYTES
from mnv4_rl.schemas import parse_json
from mnv4_rl.weights.files import WeightFile, hub_config, named_part

RGB = 3
Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of R, G and B, or of grey
AS_IT_IS: Statistics = ((0.0,) * RGB, (1.0,) * RGB)
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INCEPTION: Statistics = ((0.5,) * RGB, (0.5,) * RGB)
# timm's checkpoints of MobileNetV4 that were trained with INCEPTION (timm 1.0.31).
_INCEPTION_NAME = re.compile(r"mobilenetv4_conv_small_0|mobilenetv4_conv_small\.e3600")

_KEY = "image_statistics"  # in the metadata of this package's files
_Number: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Mean: TypeAlias = Annotated[tuple[_Number, ...], Field(min_length=1, max_length=1000)]
_Deviation: TypeAlias = Annotated[tuple[Annotated[_Number, Field(gt=0)], ...], Field(min_length=1, max_length=1000)]


def image_statistics(file: WeightFile) -> Statistics:
    """Mean and deviation of the images that a file's weights were trained on, a number for each channel.

    This package's files say it themselves, and those that do not were trained on images in [0, 1] as they are. timm's
    are in the ``config.json`` that the hub keeps beside the file; else the file's name tells which of timm's two it
    has.

    Raises:
        ValueError: If a file of this package says something else than numbers.
    """
    if "mnv4_rl" in file.metadata:
        return from_metadata(file.metadata, file.path) or AS_IT_IS
    by_name = INCEPTION if _INCEPTION_NAME.search(named_part(file.path)) else IMAGENET
    return from_hub_config(file.path) or by_name


def from_metadata(metadata: dict[str, str], path: Path) -> Statistics | None:
    """What a file of this package says; None if nothing.

    Raises:
        ValueError: If it is no mean and deviation.
    """
    if _KEY not in metadata:
        return None
    mean, deviation = parse_json(tuple[_Mean, _Deviation], metadata[_KEY][:MAX_JSON_BYTES], f"{_KEY} of {path}")
    if len(mean) != len(deviation):
        raise ValueError(f"{_KEY} of {path}: {len(mean)} means and {len(deviation)} deviations; they go in pairs.")
    return mean, deviation


def to_metadata(statistics: Statistics | None) -> dict[str, str]:
    """What a file says of them; nothing without."""
    return {} if statistics is None else {_KEY: json.dumps(statistics)}


def from_hub_config(path: Path) -> Statistics | None:
    """What timm's ``config.json`` beside a file says; None if nothing that can be used."""
    try:
        data = hub_config(path)["pretrained_cfg"]
        mean, std = (tuple(float(number) for number in data[key]) for key in ("mean", "std"))
    except (LookupError, TypeError, ValueError, OverflowError):  # some other program's
        return None
    usable = len(mean) == len(std) == RGB and all(map(math.isfinite, mean)) and all(0 < value < 10 for value in std)
    return (mean, std) if usable else None


def check_from_zero(space: gym.Space, statistics: Statistics) -> None:
    """Refuse images that a mean and deviation of images in [0, 1] are not for.

    Raises:
        ValueError: If the space goes below 0.
    """
    if statistics != AS_IT_IS and isinstance(space, spaces.Box) and (low := float(space.low.min())) < 0:
        raise ValueError(
            f"The pretrained weights know images in [0, 1] less their mean, and this space begins at {low:g}. Give "
            "images in [0, 1], or as the weights know them, with features_extractor_kwargs=dict(normalized_image=True)."
        )
