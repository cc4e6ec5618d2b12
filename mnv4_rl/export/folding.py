"""Fold an encoder into plain layers: what is constant after training goes into the weights.

Gains, BatchNorm's statistics, layer scale and the division by 255 go into the convolutions, the head's order of
positions into its fully connected layer, the head's gain and constant features into the layer that follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mnv4_rl.extractors import MNV4CombinedExtractor
from mnv4_rl.image_extractor import ImageExtractor
from mnv4_rl.models.blocks import Stem
from mnv4_rl.models.layers import (
    MAX_BYTE,
    ChannelLayerNorm,
    Conv2d,
    ConvNorm,
    DropPath,
    LayerScale,
    SamePadConv2d,
    averages,
    missing_padding,
)
from mnv4_rl.models.network import GridHead, Network
from mnv4_rl.models.timm_network import TimmNetwork
from mnv4_rl.observations import ImageLayout, fold
from mnv4_rl.weights.pretrained import Normalize


@dataclass(frozen=True)
class Part:
    """Features in a row that a folded encoder puts out as ``(feature) / gain``, the constant ones not at all.

    Attributes:
        n_features: Features of the part that depend on the observation.
        gain: What the next layer's weights are multiplied by.
        n_constants: Features behind them that are the same for every observation.
        constant: Their value.
    """

    n_features: int
    gain: float = 1.0
    n_constants: int = 0
    constant: float = 0.0


class ReadImage(nn.Module):
    """Pixels as floats, channels first, frames side by side.

    Args:
        layout: How an observation becomes an image; None for one that is (C, H, W).
    """

    def __init__(self, layout: ImageLayout | None) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, image: Tensor) -> Tensor:
        """(N, *observation) of any type -> (N, C, H, W) float, not scaled: that is in the first weights."""
        image = image.float()
        return image if self.layout is None else fold(image, len(self.layout.shape), self.layout.channels_last)


class ReadVector(nn.Module):
    """Everything of a Dict that is no image: flattened numbers, or a one-hot code.

    Args:
        space: A Box, MultiBinary, Discrete or MultiDiscrete space.
    """

    def __init__(self, space: spaces.Space) -> None:
        super().__init__()
        self.codes = [] if isinstance(space, spaces.Box | spaces.MultiBinary) else _codes(space)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, width) float."""
        if not self.codes:
            return x.float().flatten(1)
        columns = x.long().reshape(-1, len(self.codes)).unbind(1)
        coded = [nn.functional.one_hot(column, n) for column, n in zip(columns, self.codes, strict=True)]
        return th.cat(coded, 1).float()


def _codes(space: Any) -> list[int]:
    """Values of each number that is written as a one-hot code."""
    return [int(n) for n in (space.nvec.flatten() if isinstance(space, spaces.MultiDiscrete) else [space.n])]


class ToGrid(nn.Module):
    """Average a map down to a grid, as :func:`torch.nn.functional.adaptive_avg_pool2d` does, by two products.

    Args:
        map_size: Height and width that come in.
        grid: Height and width that go out.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, map_size: tuple[int, int], grid: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("rows", averages(map_size[0], grid[0]))
        self.register_buffer("columns", averages(map_size[1], grid[1]).t().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, rows, columns)."""
        return self.rows @ x @ self.columns


class Encoders(nn.Module):
    """The folded parts of a Dict's encoder, concatenated."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.keys, self.parts = list(parts), nn.ModuleList(parts.values())

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Dict of batches to (N, features)."""
        return th.cat([part(observations[key]) for key, part in zip(self.keys, self.parts, strict=True)], dim=1)


@th.no_grad()
def fold_extractor(extractor: BaseFeaturesExtractor, normalize_images: bool) -> tuple[nn.Module, list[Part]]:
    """A plain network on the CPU that computes an extractor's features, up to what the next layer has to absorb.

    Args:
        extractor: One of ours, SB3's NatureCNN, or SB3's CombinedExtractor.
        normalize_images: Whether SB3 divides uint8 images by 255.

    Returns:
        The network, which takes observations as the environment gives them, and its features part by part.

    Raises:
        TypeError: For any other extractor, or a subclass with a forward of its own.
    """
    _check_known(extractor)
    if isinstance(extractor, MNV4CombinedExtractor | CombinedExtractor):
        return _fold_combined(extractor, normalize_images)
    assert isinstance(extractor, ImageExtractor | NatureCNN)  # what else is known
    layers, part = _fold_image(extractor)
    first = next(module for module in layers.modules() if isinstance(module, nn.Conv2d))
    first.weight.mul_(_scale(extractor, normalize_images))  # zero padding commutes with it
    return nn.Sequential(ReadImage(getattr(extractor, "layout", None)), *layers), [part]


_KNOWN = (ImageExtractor, NatureCNN, MNV4CombinedExtractor, CombinedExtractor)


def _check_known(extractor: BaseFeaturesExtractor) -> None:
    name = type(extractor).__name__
    if not isinstance(extractor, _KNOWN):
        raise TypeError(
            f"{name} cannot be folded; MNV4Extractor, MNV4CombinedExtractor, the baselines here, NatureCNN and "
            "CombinedExtractor can. Export it with torch.onnx.export instead."
        )
    if type(extractor).forward not in [known.forward for known in _KNOWN]:
        raise TypeError(
            f"{name} has a forward of its own, unknown to folding. Export it with torch.onnx.export instead."
        )


def _scale(extractor: ImageExtractor | NatureCNN, normalize_images: bool) -> float:
    """What a policy and its encoder multiply pixels by, together."""
    if isinstance(extractor, NatureCNN):
        divides = normalize_images and is_image_space(extractor._observation_space)
    else:
        divides = extractor.layout.is_bytes and (normalize_images or extractor.layout.is_folded)
    return 1 / MAX_BYTE if divides else 1.0


def _fold_combined(
    extractor: MNV4CombinedExtractor | CombinedExtractor, normalize_images: bool
) -> tuple[nn.Module, list[Part]]:
    networks: dict[str, nn.Module] = {}
    parts: list[Part] = []
    assert isinstance(extractor._observation_space, spaces.Dict)  # both extractors refuse others
    entries = extractor._observation_space.spaces.items()
    for (key, space), module in zip(entries, extractor.extractors.values(), strict=True):
        if isinstance(module, BaseFeaturesExtractor):
            networks[key], found = fold_extractor(module, normalize_images)
            parts += found
        else:
            networks[key] = ReadVector(space)
            parts.append(Part(int(get_flattened_obs_dim(space))))
    return Encoders(networks), parts


def _fold_image(extractor: ImageExtractor | NatureCNN) -> tuple[nn.Sequential, Part]:
    if isinstance(extractor, NatureCNN):
        plain = deepcopy(nn.Sequential(extractor.cnn, extractor.linear)).cpu().requires_grad_(False).eval()
        return plain, Part(extractor.features_dim)
    network = deepcopy(extractor.network).cpu().requires_grad_(False).eval()
    if isinstance(network, TimmNetwork):
        head, part = _fold_head(network.head, {network.head: network.map_size})
        layers = nn.Sequential(network.trunk, head)  # whose own layers converters know
    elif isinstance(network, Network):
        layers, part = _fold_network(network, extractor.image_shape)
    else:
        return nn.Sequential(network), Part(extractor.features_dim)
    normalize: nn.Module = extractor.normalize
    return (nn.Sequential(_normalizing(normalize), *layers) if isinstance(normalize, Normalize) else layers), part


def _normalizing(weights: Normalize) -> nn.Conv2d:
    """Mean and deviation of trained weights as a layer of their own: behind them images are padded with the mean."""
    mean, std = weights.mean.cpu(), weights.std.cpu()
    layer = nn.Conv2d(len(mean), len(mean), 1, groups=len(mean))
    layer.weight.copy_(1 / std[..., None])
    layer.bias.copy_((-mean / std).flatten())  # type: ignore[union-attr]
    return layer


def _fold_network(network: Network, image_shape: tuple[int, int, int]) -> tuple[nn.Sequential, Part]:
    sizes = _input_sizes(network, image_shape)
    head, part = _fold_head(network.head, sizes)
    body = nn.Sequential(network.stem.conv, network.stages, head)
    _replace(body, lambda module: _plain(module, sizes))
    return body, part


def _input_sizes(network: Network, image_shape: tuple[int, int, int]) -> dict[nn.Module, tuple[int, int]]:
    """Height and width of what each layer gets at this image size."""
    sizes: dict[nn.Module, tuple[int, int]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].dim() == 4:
            sizes[module] = (inputs[0].shape[2], inputs[0].shape[3])

    layers = [module for module in network.modules() if isinstance(module, SamePadConv2d | GridHead)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    network(th.zeros(1, *image_shape))
    for hook in hooks:
        hook.remove()
    return sizes


def _fold_head(head: nn.Module, sizes: dict[nn.Module, tuple[int, int]]) -> tuple[nn.Module, Part]:
    if not isinstance(head, GridHead):
        raise TypeError(f"A network with a {type(head).__name__} puts out classes, not features; fold an encoder.")
    pool = nn.Identity() if sizes[head] == head.grid else ToGrid(sizes[head], head.grid)
    n_positions, fc = math.prod(head.grid), head.fc
    # The head flattens with the channels innermost, nn.Flatten with the positions.
    weight = fc.weight.unflatten(1, (n_positions, -1)).transpose(1, 2).flatten(1)
    plain_fc = nn.Linear(fc.in_features, fc.out_features, bias=fc.bias is not None)
    plain_fc.weight.copy_(weight)
    if fc.bias is not None:
        plain_fc.bias.copy_(fc.bias)
    layers = nn.Sequential(pool, head.squeeze, nn.Flatten(), plain_fc, _plain_norm(head.norm), head.activation)
    return layers, Part(fc.out_features, head.gain, head.constants, head.constant)


def _plain_norm(norm: nn.Module) -> nn.Module:
    """The norm over features alone, where a map has no positions left."""
    if not isinstance(norm, ChannelLayerNorm):
        return norm
    plain = nn.LayerNorm(norm.normalized_shape, norm.eps)
    plain.load_state_dict(norm.state_dict())
    return plain


def _replace(module: nn.Module, plain: Callable[[nn.Module], nn.Module]) -> None:
    """Replace every module inside, the deepest first."""
    for name, child in list(module.named_children()):
        _replace(child, plain)
        setattr(module, name, plain(child))


def _plain(module: nn.Module, sizes: dict[nn.Module, tuple[int, int]]) -> nn.Module:
    """The plain layers that compute what one of this package's does in eval mode; other modules as they are."""
    match module:
        case Conv2d():
            return _plain_conv(module, sizes.get(module))
        case ConvNorm():
            return _without_identities([*_fused(module.conv, module.norm), module.activation])
        case Stem():
            return module.conv
        case DropPath():
            return nn.Identity()
        case _:
            return _with_scaled_projection(module)


def _plain_conv(conv: Conv2d, size: tuple[int, int] | None) -> nn.Module:
    plain = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,  # type: ignore[arg-type]
        groups=conv.groups, bias=conv.bias is not None,
    )  # fmt: skip
    plain.weight.copy_(conv.weight if conv.gain is None else conv.weight * conv.gain)
    if conv.bias is not None and plain.bias is not None:
        plain.bias.copy_(conv.bias)
    if not isinstance(conv, SamePadConv2d) or size is None:
        return plain
    (top, bottom), (left, right) = (missing_padding(side, conv.kernel_size[0], conv.stride[0]) for side in size)
    padding = (left, right, top, bottom)
    return nn.Sequential(nn.ZeroPad2d(padding), plain) if any(padding) else plain


def _fused(conv: nn.Module, norm: nn.Module) -> list[nn.Module]:
    """A convolution with the BatchNorm behind it, as one where it can be."""
    last = conv[-1] if isinstance(conv, nn.Sequential) else conv
    if not isinstance(norm, nn.BatchNorm2d) or not isinstance(last, nn.Conv2d):
        return [conv, norm]
    fused = fuse_conv_bn_eval(last.eval(), norm.eval()).requires_grad_(False)
    return [*list(conv)[:-1], fused] if isinstance(conv, nn.Sequential) else [fused]


def _with_scaled_projection(block: nn.Module) -> nn.Module:
    """Layer scale goes into the convolution before it."""
    scale = getattr(block, "layer_scale", None)
    before = getattr(block, "project", getattr(block, "output", None))
    if not isinstance(scale, LayerScale) or not isinstance(before, nn.Conv2d):
        return block
    before.weight.mul_(scale.gamma[:, None, None, None])
    if before.bias is not None:
        before.bias.mul_(scale.gamma)
    block.layer_scale = nn.Identity()
    return block


def _without_identities(layers: Sequence[nn.Module]) -> nn.Module:
    kept = [layer for layer in layers if not isinstance(layer, nn.Identity)]
    return kept[0] if len(kept) == 1 else nn.Sequential(*kept)


def absorb(linear: nn.Linear, parts: Sequence[Part]) -> nn.Linear:
    """The layer behind the encoder, with the parts' gains and constant features in its weights.

    Args:
        linear: A layer on all features.
        parts: What :func:`fold_extractor` says of them.

    Returns:
        A layer on the features that the folded encoder puts out.
    """
    weight, bias = linear.weight, linear.bias.clone() if linear.bias is not None else th.zeros(linear.out_features)
    columns, start = [], 0
    for part in parts:
        middle, end = start + part.n_features, start + part.n_features + part.n_constants
        columns.append(weight[:, start:middle] * part.gain)
        bias += part.constant * weight[:, middle:end].sum(1)
        start = end
    folded = nn.Linear(sum(part.n_features for part in parts), linear.out_features)
    folded.weight.copy_(th.cat(columns, 1))
    folded.bias.copy_(bias)
    return folded


__all__ = ["Part", "absorb", "fold_extractor"]
