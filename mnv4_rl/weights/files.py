"""Files with weights: found on disk or the model hub, read without running code from them, written all or nothing."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import torch as th
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mnv4_rl.models.paper import TIMM_NAMES

Pretrained: TypeAlias = "Literal[True] | str | os.PathLike[str]"

HUB_FILE = "model.safetensors"
# timm's default weights of each architecture that has any (timm 1.0.31, Apache-2.0).
TIMM_TAGS = {
    "mnv4_conv_s": "e2400_r224_in1k",
    "mnv4_conv_m": "e500_r256_in1k",
    "mnv4_conv_l": "e600_r384_in1k",
    "mnv4_hybrid_m": "e200_r256_in12k_ft_in1k",
    "mnv4_hybrid_l": "ix_e600_r384_in1k",
    "mnv4_conv_s_050": "e3000_r224_in1k",
}
_FILTERED_NAME = re.compile(r"mobilenetv4_conv_(?:aa|blur)_\w+")


@dataclass(frozen=True)
class WeightFile:
    """What a file holds: tensors by name, and the strings safetensors keeps beside them."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def find_weights(pretrained: Pretrained, name: str) -> Path:
    """Where the weights are, downloaded first if they are on the model hub.

    Args:
        pretrained: A path; ``True`` for timm's default weights of the variant; or ``"timm/<model>.<tag>"`` for others.
        name: Registry name of the variant.

    Raises:
        ValueError: For anti-aliased networks, or ``True`` where no weights are published.
        FileNotFoundError: If the path is not a file.
        ImportError: If the model hub's client is needed and not installed; the message gives the install line.
        ConnectionError: If the download fails; the message says what to fetch, and how to use it.
    """
    if pretrained is True:
        return _download(_default_repository(name))
    path = Path(pretrained)
    _refuse_filtered_names(path)
    if path.is_file():
        return path
    if str(pretrained).startswith("timm/") and not path.suffix == ".safetensors":
        return _download(str(pretrained))
    raise FileNotFoundError(f"There is no file {str(pretrained)!r} to take pretrained weights from.")


def _default_repository(name: str) -> str:
    if name not in TIMM_TAGS:
        raise ValueError(
            f"No pretrained weights are published for {name!r}; they are for {', '.join(TIMM_TAGS)}. "
            "Pass the path of a file as pretrained, or leave it out."
        )
    return f"timm/{TIMM_NAMES[name]}.{TIMM_TAGS[name]}"


def _download(repository: str) -> Path:
    by_hand = (
        f"or fetch https://huggingface.co/{repository}/resolve/main/{HUB_FILE} on a machine with a connection and pass "
        f"its path: pretrained='{repository.removeprefix('timm/')}.safetensors'."
    )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(
            f"Downloading {repository} needs huggingface_hub: pip install huggingface_hub, {by_hand}"
        ) from error
    try:
        return Path(hf_hub_download(repository, HUB_FILE))
    except Exception as error:  # the hub's client passes on the errors of whatever HTTP library it uses
        raise ConnectionError(
            f"Downloading {repository} failed ({type(error).__name__}: {str(error)[:200]}). Try again online, {by_hand}"
        ) from error


def _refuse_filtered_names(path: Path) -> None:
    """Refuse timm's anti-aliased networks, whose checkpoints have the keys and shapes of the plain ones.

    Their pooling holds no weights, so such a file would load and compute another function. The name decides: that of
    the file, of the folders it is in, or of the architecture in the ``config.json`` the hub keeps beside it.
    """
    named = next((part for part in reversed(path.absolute().parts) if "mobilenetv4_" in part), "")
    match = _FILTERED_NAME.search(named) or _FILTERED_NAME.search(_hub_architecture(path))
    if match:
        raise ValueError(
            f"{str(path)!r} holds weights of {match.group()}, an anti-aliased network that is not built here. They "
            "would fit the plain network's shapes and give wrong results; use a checkpoint of mobilenetv4_conv_medium "
            "or mobilenetv4_conv_large instead."
        )


def _hub_architecture(path: Path) -> str:
    config = path.with_name("config.json")
    if not config.is_file():
        return ""
    try:
        data = json.loads(config.read_text())
    except ValueError:  # some other program's config
        return ""
    return str(data.get("architecture", "")) if isinstance(data, dict) else ""


def read_weights(path: str | os.PathLike[str]) -> WeightFile:
    """Read a ``.safetensors`` file, or tensors pickled by torch in any other.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, of another kind, or holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r} to read weights from.")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            return WeightFile(path, tensors, file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is truncated or not a safetensors file ({error}).") from error


def _read_pickle(path: Path) -> WeightFile:
    try:
        data = th.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, unpickling and run-time errors, by how the file is broken
        raise ValueError(
            f"{str(path)!r} is truncated or not a file of tensors saved by torch ({type(error).__name__}); "
            "files that hold other Python objects are not read, for they could run code."
        ) from error
    if isinstance(data, dict) and isinstance(data.get("state_dict"), dict):
        data = data["state_dict"]
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise ValueError(f"{str(path)!r} holds no state dict: a dict of tensors, or one under 'state_dict'.")
    return WeightFile(path, dict(data))


def write_safetensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file all or nothing: an existing one is replaced in one step, or not touched."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"Weights are written to a .safetensors file, got {str(path)!r}.")
    data = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, metadata)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
