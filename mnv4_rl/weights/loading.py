"""Weights in and out: this package's own files, timm's checkpoints, and pretrained weights for a new model.

Whatever is wrong with a file is found before the first weight is copied, so a model is loaded whole or left as it was.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from mnv4_rl._version import __version__
from mnv4_rl.checks import check_type
from mnv4_rl.models.network import Network
from mnv4_rl.models.pyramid import FeaturePyramid
from mnv4_rl.models.spec_json import spec_from_dict, spec_to_dict
from mnv4_rl.models.specs import NetworkSpec
from mnv4_rl.safe_files import MAX_JSON_BYTES
from mnv4_rl.schemas import parse_json
from mnv4_rl.weights.files import Pretrained, WeightFile, find_weights, read_weights, write_safetensors
from mnv4_rl.weights.statistics import RGB, Statistics, from_metadata, image_statistics, to_metadata
from mnv4_rl.weights.tensors import StateDict, check_tensors, copy_tensors, kind_problem, plain_names, some
from mnv4_rl.weights.timm_names import rename, timm_layers

Model: TypeAlias = Network | FeaturePyramid

STEM_WEIGHT = "stem.conv.conv.weight"
# What a checkpoint may have more than its model: averages, the optimiser's state, another classifier.
_TIMES, _AT_LEAST_BYTES = 16, 2**29


def to_timm_state_dict(model: Model) -> dict[str, Tensor]:
    """The model's state dict under timm's names, in timm's order; it loads strictly into timm's model.

    Args:
        model: A paper model or its feature pyramid; the tensors are the model's own, not copies.

    Raises:
        ValueError: If timm has no such model: the README family, the RL variants, other norms or heads.
    """
    names = _timm_keys(model)
    return {names[key]: tensor for key, tensor in plain_names(model.state_dict()).items()}


def load_timm_state_dict(model: Model, state_dict: StateDict) -> None:
    """Load a timm state dict, strictly: the same keys and shapes. Numbers are converted to the model's dtype.

    Args:
        model: A paper model or its feature pyramid.
        state_dict: timm's, of the architecture that :data:`mnv4_rl.models.paper.TIMM_NAMES` gives for the model.
            The anti-aliased ones (``mobilenetv4_conv_aa_*``, ``mobilenetv4_conv_blur_*``) cannot be told apart here;
            loading by path refuses them by name.

    Raises:
        ValueError: If timm has no such model, or a key or shape differs; the model is left as it was.
    """
    ours = {theirs: key for key, theirs in _timm_keys(model).items()}
    renamed = {ours.get(key, key): tensor for key, tensor in plain_names(state_dict).items()}
    own = plain_names(model.state_dict())
    check_tensors(own, renamed, f"The state dict does not fit {model.spec.name}")
    copy_tensors(own, renamed)


def _timm_keys(model: Model) -> dict[str, str]:
    """Our key -> timm's, for every tensor of the model."""
    check_is_timms(model.spec)
    layers = timm_layers(getattr(model.stages, "_orig_mod", model.stages))
    names = {key: rename(key, layers) for key in plain_names(model.state_dict())}
    unknown = [key for key, theirs in names.items() if theirs is None]
    if unknown:
        raise ValueError(f"timm has no counterpart for {some(unknown)} of this {model.spec.name}.")
    return {key: theirs for key, theirs in names.items() if theirs is not None}


def check_is_timms(spec: NetworkSpec) -> None:
    """Refuse variants timm does not have.

    Raises:
        ValueError: Unless the spec is a paper model's with its BatchNorm.
    """
    if spec.family != "paper" or (spec.norm, spec.inner_norm) != ("batch", "batch"):
        raise ValueError(
            f"timm has no {spec.name} with norm {spec.norm!r}: its weights fit the paper's models, mnv4_*, with their "
            "BatchNorm. Use save_weights and load_weights for the others."
        )


def save_weights(model: Model, path: str | os.PathLike[str], statistics: Statistics | None = None) -> None:
    """Write the weights to a safetensors file that knows its architecture, all or nothing.

    Args:
        model: Any model of this package; the network of an extractor is ``extractor.network``.
        path: A ``.safetensors`` file; an existing one is replaced in one step.
        statistics: Mean and deviation, of each channel, of the images that it was trained on; an encoder that starts
            from this file takes them off its own. None takes those of the weights that the model came with, and images
            in [0, 1] as they are for a model that was trained from scratch.

    Raises:
        ValueError: For another suffix, or statistics that are no means and positive deviations, as many of each.
        OSError: If the folder is missing or full; an existing file is then as it was.
    """
    check_type("model.spec", model.spec, NetworkSpec)
    metadata = {"format": "pt", "mnv4_rl": __version__, "spec": json.dumps(spec_to_dict(model.spec))}
    metadata |= to_metadata(statistics or model.image_statistics)
    from_metadata(metadata, Path(path))  # what could not be read is not written
    write_safetensors(path, plain_names(model.state_dict()), metadata)


def load_weights(model: Model, path: str | os.PathLike[str]) -> None:
    """Load what :func:`save_weights` wrote, bit for bit, into the same architecture.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, foreign, of another architecture, shape or dtype; the model is left as it
            was.
    """
    own = plain_names(model.state_dict())
    file = read_weights(path, 2 * sum(tensor.nbytes for tensor in own.values()) + MAX_JSON_BYTES)
    spec = file_spec(file)
    if spec is None:
        raise ValueError(
            f"{str(path)!r} was not written by save_weights. For a timm checkpoint use "
            "create_model(name, pretrained=path)."
        )
    _check_same_spec(spec, model.spec, file.path)
    check_tensors(own, file.tensors, f"{str(path)!r} does not fit {model.spec.name}", same_dtype=True)
    statistics = from_metadata(file.metadata, file.path)
    copy_tensors(own, file.tensors)
    model.image_statistics = statistics


def load_pretrained(model: Model, pretrained: Pretrained) -> list[str]:
    """Start a model from trained weights, whatever its head and image channels.

    Stem and stages are loaded whole. The head is loaded up to its first layer that differs, so a classifier of another
    number of classes, or the head of an RL encoder, keeps its fresh start. A stem trained on RGB is adapted to other
    image channels by :func:`adapt_stem`.

    timm's weights were trained on images normalised by a mean and a deviation, mostly ImageNet's (0.485, 0.456, 0.406)
    and (0.229, 0.224, 0.225); ``model.image_statistics`` says by which, and nothing here normalises images.

    Args:
        model: A model of this package, freshly built.
        pretrained: A path (a timm checkpoint, ``.safetensors`` or ``.pth``, or a file of :func:`save_weights`),
            ``True`` for timm's default weights of the variant, or ``"timm/<model>.<tag>"`` for others.

    Returns:
        The keys that were not loaded, all of them of the head.

    Raises:
        FileNotFoundError: If the path is not a file.
        ImportError: If the model hub's client is needed and not installed.
        ConnectionError: If a download fails.
        ValueError: If the file is broken, of another architecture, or of an anti-aliased network; the model is left as
            it was.
    """
    own = plain_names(model.state_dict())
    file = read_weights(find_weights(pretrained, model.spec.name), most_bytes(own))
    state = dict(_in_our_names(model, file))
    stem = state.get(STEM_WEIGHT)
    if stem is not None and not kind_problem(stem, own[STEM_WEIGHT].dtype) and stem.dim() == 4:
        state[STEM_WEIGHT] = adapt_stem(stem, model.in_channels)
    fresh = _fresh_head_keys(own, state)
    wanted = {key: tensor for key, tensor in own.items() if key not in fresh}
    given = {key: tensor for key, tensor in state.items() if key in wanted or not key.startswith("head.")}
    check_tensors(wanted, given, f"{str(file.path)!r} does not fit {model.spec.name}")
    statistics = image_statistics(file)
    copy_tensors(wanted, given)
    model.image_statistics = statistics
    return fresh


def most_bytes(own: StateDict) -> int:
    """What a checkpoint of a model with these tensors may take."""
    return _TIMES * sum(tensor.nbytes for tensor in own.values()) + _AT_LEAST_BYTES


def _in_our_names(model: Model, file: WeightFile) -> StateDict:
    """The file's tensors under our names, its architecture compared as far as the file tells."""
    spec = file_spec(file)
    if spec is not None:
        _check_same_spec(spec, model.spec, file.path, ignored=("name", "head", "image_size"))
        return file.tensors
    check_is_timms(model.spec)
    ours = {theirs: layer for layer, theirs in timm_layers(getattr(model.stages, "_orig_mod", model.stages)).items()}
    return {rename(key, ours) or key: tensor for key, tensor in file.tensors.items()}


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """A stem trained on RGB for images with other channels.

    Args:
        weight: (out, 3, k, k); any other number of input channels is returned as it is.
        in_channels: Image channels of the new stem. One channel gets the sum over RGB, which is exact for grey
            pictures; others repeat R, G, B, R, ... scaled by ``3 / in_channels``, so that the response keeps its size.

    Returns:
        (out, in_channels, k, k).

    Source:
        timm's ``adapt_input_conv``.
    """
    if weight.shape[1] != RGB or in_channels == RGB:
        return weight
    if in_channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, math.ceil(in_channels / RGB), 1, 1)[:, :in_channels]
    return (repeated * (RGB / in_channels)).to(weight.dtype)


def file_spec(file: WeightFile) -> NetworkSpec | None:
    """The architecture a file of :func:`save_weights` knows; None for a file from elsewhere.

    Raises:
        ValueError: If the file says it is ours and its spec cannot be read.
    """
    if "mnv4_rl" not in file.metadata:
        return None
    try:
        return spec_from_dict(parse_json(dict[str, Any], file.metadata.get("spec", "")[:MAX_JSON_BYTES], "spec"))
    except ValueError as error:
        version = file.metadata["mnv4_rl"]
        raise ValueError(
            f"The spec in {str(file.path)!r}, written by mnv4_rl {version}, is none that {__version__} reads: {error}"
        ) from error


def _check_same_spec(
    spec: NetworkSpec, own: NetworkSpec, path: os.PathLike[str], ignored: tuple[str, ...] = ()
) -> None:
    theirs, ours = spec_to_dict(spec), spec_to_dict(own)
    differing = [field for field in ours if field not in ignored and theirs[field] != ours[field]]
    if differing:
        raise ValueError(
            f"{str(path)!r} holds weights of another architecture: {spec.name}, which differs from this {own.name} in "
            f"{', '.join(differing)}."
        )


def _fresh_head_keys(own: StateDict, given: StateDict) -> list[str]:
    """Keys of the head from its first layer on that the given tensors do not fit."""
    head = [key for key in own if key.startswith("head.")]
    for key in head:
        if key not in given or given[key].shape != own[key].shape:
            layer = key.rpartition(".")[0] + "."
            return head[[other.startswith(layer) for other in head].index(True) :]
    return []
