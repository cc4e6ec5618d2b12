"""Pixels -> augmented training batches: shift and mirror each image, mixup or cutmix on the batch.

Everything draws from a NumPy generator that the caller seeds, so a batch can be made again bit for bit.
"""

from __future__ import annotations

import numpy as np
import torch as th
from torch import Tensor
from torch.nn import functional as F

from experiments.classification.config import ClassifyConfig


def augment_images(pixels: Tensor, config: ClassifyConfig, mirrors: bool, rng: np.random.Generator) -> Tensor:
    """Change each image a little, in a way that keeps its class.

    Args:
        pixels: (N, C, H, W) uint8, C 1 or 3.
        config: How much.
        mirrors: Whether a mirrored image is still of its class; half of the images are then mirrored.
        rng: Source of all choices.

    Returns:
        (N, C, H, W) uint8; the input is not changed.
    """
    pixels = shift(pixels, config.shift, rng)
    if mirrors:
        flipped = th.from_numpy(rng.random(len(pixels)) < 0.5)
        pixels = th.where(flipped[:, None, None, None], pixels.flip(3), pixels)
    return pixels


def shift(pixels: Tensor, fraction: float, rng: np.random.Generator) -> Tensor:
    """Move each image by up to ``fraction`` of its size along both axes; its edge repeats into the gap.

    Args:
        pixels: (N, C, H, W) uint8.
        fraction: In [0, 1).
        rng: Source of the distances.
    """
    height, width = pixels.shape[2:]
    down, right = round(height * fraction), round(width * fraction)
    padded = F.pad(pixels.float(), (right, right, down, down), mode="replicate").to(th.uint8)
    corners = rng.integers(0, (2 * down + 1, 2 * right + 1), (len(pixels), 2))
    return th.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, corners, strict=True)])


def mix(pixels: Tensor, targets: Tensor, config: ClassifyConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Blend a batch with a reordering of itself, or paste a box of the one into the other; labels in proportion.

    One of the two is chosen at random where both have a Beta parameter.

    Args:
        pixels: (N, C, H, W) float.
        targets: (N, classes) float, each row summing to 1.
        config: Probability for a batch, and the two Beta parameters.
        rng: Source of all choices.

    Returns:
        Pixels and targets of the same shapes.

    Source:
        mixup arXiv:1710.09412, CutMix arXiv:1905.04899.
    """
    ways = [(alpha, way) for alpha, way in ((config.mixup_alpha, _blend), (config.cutmix_alpha, _paste)) if alpha]
    if not ways or rng.random() >= config.mix_prob:
        return pixels, targets
    alpha, way = ways[rng.integers(len(ways))]
    order = th.from_numpy(rng.permutation(len(pixels)))
    mixed, share = way(pixels, pixels[order], float(rng.beta(alpha, alpha)), rng)
    return mixed, share * targets + (1 - share) * targets[order]


def _blend(own: Tensor, other: Tensor, share: float, _rng: np.random.Generator) -> tuple[Tensor, float]:
    return share * own + (1 - share) * other, share


def _paste(own: Tensor, other: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """A box of about ``1 - share`` of the area around a random centre; returns the share that is really left."""
    sizes = np.array(own.shape[2:])
    half, centre = sizes * np.sqrt(1 - share) / 2, rng.uniform(0, sizes)
    (top, left), (bottom, right) = np.clip(np.rint([centre - half, centre + half]), 0, sizes).astype(int)
    mixed = own.clone()
    mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / sizes.prod()
