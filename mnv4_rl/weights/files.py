"""Files with weights: found on disk or the model hub, read without running code from them, written all or nothing."""

from __future__ import annotations

import json
import os
import re
import zipfile
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeAlias

import torch as th
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mnv4_rl.checks import check_type
from mnv4_rl.models.paper import TIMM_NAMES
from mnv4_rl.safe_files import MAX_JSON_BYTES, DamagedError, check_size, open_regular, read_file, write_file
from mnv4_rl.schemas import Schema, parse_json
from mnv4_rl.weights.tensors import plain_names, portable

Pretrained: TypeAlias = Literal[True] | str | os.PathLike[str]

HUB_FILE = "model.safetensors"
# Where a checkpoint may keep its state dict, the first that is there; timm's order.
STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
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
        TypeError: For what is no path.
        ValueError: For anti-aliased networks, or ``True`` where no weights are published.
        FileNotFoundError: If the path is not a file.
        ImportError: If the model hub's client is needed and not installed; the message gives the install line.
        ConnectionError: If the download fails; the message says what to fetch, and how to use it.
    """
    check_type("pretrained", pretrained, (bool, str, os.PathLike))
    if pretrained is True:
        return find_file(_default_repository(name))
    _refuse_filtered_names(Path(pretrained))
    return find_file(pretrained)


def find_file(source: str | os.PathLike[str]) -> Path:
    """A path, or the file of a repository ``"timm/<model>.<tag>"``, downloaded.

    Raises:
        FileNotFoundError: If the path is not a file.
        ImportError, ConnectionError: As :func:`find_weights`.
    """
    path = Path(source)
    if path.exists() and not path.is_dir():
        return path
    if str(source).startswith("timm/") and not path.suffix == ".safetensors":
        return _download(str(source))
    raise FileNotFoundError(f"There is no file {str(source)!r} to take pretrained weights from.")


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
    architecture = str(hub_config(path).get("architecture", ""))
    match = _FILTERED_NAME.search(named_part(path)) or _FILTERED_NAME.search(architecture)
    if match:
        raise ValueError(
            f"{str(path)!r} holds weights of {match.group()}, an anti-aliased network that is not built here. They "
            "would fit the plain network's shapes and give wrong results; use a checkpoint of mobilenetv4_conv_medium "
            "or mobilenetv4_conv_large instead."
        )


def named_part(path: Path) -> str:
    """The innermost part of a path that names one of timm's MobileNetV4, the file itself or a folder; "" if none."""
    return next((part for part in reversed(path.absolute().parts) if "mobilenetv4_" in part), "")


def hub_config(path: Path) -> dict[str, Any]:
    """What the hub keeps beside a file of timm's, as ``config.json``; empty without one."""
    try:
        data = json.loads(read_file(path.with_name("config.json"), MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):  # none, or some other program's
        return {}
    return data if isinstance(data, dict) else {}


def read_weights(path: str | os.PathLike[str], max_bytes: int = 2 * 2**30) -> WeightFile:
    """Read a ``.safetensors`` file, or tensors pickled by torch in any other.

    Of a training checkpoint it is the averaged weights that are read, where there are some, as timm does.

    Args:
        path: The file.
        max_bytes: Refuse a larger one before it is read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no regular file, too large, truncated, of another kind, or holds anything but named
            tensors.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            check_size(file, path, max_bytes)
            if path.suffix == ".safetensors":
                return _read_safetensors(path, file)
            return WeightFile(path, _state_dict(read_pickle(file, path), path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {str(path)!r} to read weights from.") from error


class HeaderEntry(Schema):
    """What a safetensors file says of one tensor."""

    dtype: str
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    data_offsets: tuple[int, int]


def read_header(file: BinaryIO, path: Path) -> tuple[dict[str, HeaderEntry], dict[str, str]]:
    """Tensors and metadata of a safetensors file by its header alone; sizes are those of the file.

    Raises:
        DamagedError: If it has no sound header, or the file ends elsewhere than the header says.
    """
    file.seek(0)
    n_bytes = int.from_bytes(file.read(8), "little")
    size = os.fstat(file.fileno()).st_size
    if not 2 <= n_bytes <= min(MAX_JSON_BYTES, size - 8):
        raise DamagedError(f"{str(path)!r} is truncated or not a safetensors file (its header is {n_bytes:,} bytes).")
    header = parse_json(dict[str, HeaderEntry | dict[str, str]], file.read(n_bytes), path)
    metadata = header.pop("__metadata__", {})
    entries = {name: entry for name, entry in header.items() if isinstance(entry, HeaderEntry)}
    end = max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if len(entries) != len(header) or not isinstance(metadata, dict) or end != size - 8 - n_bytes:
        raise DamagedError(f"{str(path)!r} is truncated or not a safetensors file (its header is of other data).")
    return entries, metadata


def _read_safetensors(path: Path, file: BinaryIO) -> WeightFile:
    _, metadata = read_header(file, path)
    file.seek(0)
    return WeightFile(path, parse_safetensors(file.read(), path), metadata)


def parse_safetensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file.

    Raises:
        DamagedError: If it is none.
    """
    try:
        return load(content)
    except (SafetensorError, KeyError) as error:  # a dtype that torch has not
        raise DamagedError(f"{str(path)!r} is truncated or not a safetensors file ({error}).") from error


def read_pickle(file: BinaryIO, source: object) -> Any:
    """What ``torch.save`` wrote, if it is tensors and plain values; nothing is run, and nothing inflated.

    Raises:
        DamagedError: For anything else.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        inflated = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if inflated or sum(member.file_size for member in members) > file.seek(0, os.SEEK_END):
            raise DamagedError(f"{str(source)!r} is compressed, which torch never does.")
        file.seek(0)
        with th.serialization.safe_globals([Namespace]):  # timm keeps the command line beside the weights
            return th.load(file, map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except Exception as error:  # zip, pickle, unpickling and run-time errors, by how the file is broken
        raise DamagedError(
            f"{str(source)!r} is truncated or not a file of tensors saved by torch ({type(error).__name__}); "
            "files that hold other Python objects are not read, for they could run code."
        ) from error


def _state_dict(data: Any, path: Path) -> dict[str, Tensor]:
    """The weights in what was unpickled, by the keys and in the order that timm knows."""
    if isinstance(data, dict):
        data = next((data[key] for key in STATE_KEYS if isinstance(data.get(key), dict)), data)
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise DamagedError(
            f"{str(path)!r} holds no state dict: a dict of tensors, or one under {', '.join(STATE_KEYS)}."
        )
    if strangers := [key for key, value in data.items() if not isinstance(value, Tensor)]:
        raise DamagedError(f"{str(path)!r} holds no state dict: {strangers[0][:100]!r} is no tensor.")
    return plain_names(data)


def write_safetensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file all or nothing: an existing one is replaced in one step, or not touched.

    Raises:
        ValueError: For another suffix.
        OSError: If it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"Weights are written to a .safetensors file, got {str(path)!r}.")
    write_file(path, save({key: portable(tensor) for key, tensor in tensors.items()}, metadata))
