"""Pixels -> augmented training batches: shift, mirror, RandAugment on each image, mixup or cutmix on the batch.

Everything draws from a NumPy generator that the caller seeds, so a batch can be made again bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch as th
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional as F

from experiments.classification.recipes import Recipe

MAX_MAGNITUDE = 30
_GREY = 128
Picture = Image.Image


def augment_images(pixels: Tensor, recipe: Recipe, mirrors: bool, rng: np.random.Generator) -> Tensor:
    """Change each image a little, in a way that keeps its class.

    Args:
        pixels: (N, C, H, W) uint8, C 1 or 3.
        recipe: How much.
        mirrors: Whether a mirrored image is still of its class; half of the images are then mirrored.
        rng: Source of all choices.

    Returns:
        (N, C, H, W) uint8; the input is not changed.
    """
    pixels = shift(pixels, recipe.shift, rng)
    if mirrors:
        flipped = th.from_numpy(rng.random(len(pixels)) < 0.5)
        pixels = th.where(flipped[:, None, None, None], pixels.flip(3), pixels)
    if recipe.randaugment_prob == 0 or recipe.randaugment_layers == 0:
        return pixels
    changed = [_randaugment_tensor(image, recipe, rng) for image in pixels]
    return th.stack(changed)


def shift(pixels: Tensor, fraction: float, rng: np.random.Generator) -> Tensor:
    """Move each image by up to ``fraction`` of its size along both axes; its edge repeats into the gap.

    Args:
        pixels: (N, C, H, W) uint8.
        fraction: In [0, 1).
        rng: Source of the distances.
    """
    height, width = pixels.shape[2:]
    down, right = round(height * fraction), round(width * fraction)
    if down == right == 0:
        return pixels
    padded = F.pad(pixels.float(), (right, right, down, down), mode="replicate").to(th.uint8)
    tops = rng.integers(0, 2 * down + 1, len(pixels))
    lefts = rng.integers(0, 2 * right + 1, len(pixels))
    moved = [
        image[:, top : top + height, left : left + width] for image, top, left in zip(padded, tops, lefts, strict=True)
    ]
    return th.stack(moved)


def mix(pixels: Tensor, targets: Tensor, recipe: Recipe, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Blend a batch with a reordering of itself, or paste a box of the one into the other; labels in proportion.

    One of the two is chosen at random where the recipe has both.

    Args:
        pixels: (N, C, H, W) float.
        targets: (N, classes) float, each row summing to 1.
        recipe: Probability for a batch, and the two Beta parameters.
        rng: Source of all choices.

    Returns:
        Pixels and targets of the same shapes.

    Source:
        mixup arXiv:1710.09412, CutMix arXiv:1905.04899.
    """
    alphas = [(alpha, way) for alpha, way in ((recipe.mixup_alpha, _blend), (recipe.cutmix_alpha, _paste)) if alpha]
    if not alphas or rng.random() >= recipe.mix_prob:
        return pixels, targets
    alpha, way = alphas[rng.integers(len(alphas))]
    order = th.from_numpy(rng.permutation(len(pixels)))
    mixed, share = way(pixels, pixels[order], float(rng.beta(alpha, alpha)), rng)
    return mixed, share * targets + (1 - share) * targets[order]


def _blend(own: Tensor, other: Tensor, share: float, _rng: np.random.Generator) -> tuple[Tensor, float]:
    return share * own + (1 - share) * other, share


def _paste(own: Tensor, other: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """A box of about ``1 - share`` of the area; returns the share that is really left."""
    height, width = own.shape[2:]
    side = np.sqrt(1 - share)
    top, bottom = _interval(height, side, rng)
    left, right = _interval(width, side, rng)
    mixed = own.clone()
    mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _interval(size: int, share: float, rng: np.random.Generator) -> tuple[int, int]:
    """A stretch of about ``share`` of ``size`` around a random centre, cut at the border."""
    half = size * share / 2
    centre = rng.uniform(0, size)
    return max(0, round(centre - half)), min(size, round(centre + half))


def randaugment(picture: Picture, prob: float, layers: int, magnitude: int, rng: np.random.Generator) -> Picture:
    """Apply ``layers`` random operations, each with probability ``prob``.

    Args:
        picture: Grey or RGB.
        prob: Of each layer doing anything.
        layers: Operations in a row.
        magnitude: 0 (weak) to 30 (strong).
        rng: Source of all choices.

    Source:
        RandAugment, arXiv:1909.13719, with the 14 operations of its table. A magnitude is a point between the weakest
        and the strongest setting of AutoAugment (arXiv:1805.09501), 30 being the strongest.
    """
    for _ in range(layers):
        operation = OPERATIONS[rng.integers(len(OPERATIONS))]
        sign = rng.choice((-1, 1))
        if rng.random() < prob:
            picture = operation(picture, magnitude / MAX_MAGNITUDE, sign)
    return picture


def _randaugment_tensor(pixels: Tensor, recipe: Recipe, rng: np.random.Generator) -> Tensor:
    """RandAugment on one (C, H, W) uint8 image."""
    array = pixels.permute(1, 2, 0).numpy()  # (H, W, C)
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array))
    changed = randaugment(
        picture, recipe.randaugment_prob, recipe.randaugment_layers, recipe.randaugment_magnitude, rng
    )
    values = np.array(changed).reshape(array.shape)
    return th.from_numpy(values).permute(2, 0, 1)


Operation = Callable[[Picture, float, int], Picture]


def _affine(picture: Picture, matrix: tuple[float, ...]) -> Picture:
    fill = _GREY if picture.mode == "L" else (_GREY,) * 3
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=fill
    )


def _shear_x(picture: Picture, strength: float, sign: int) -> Picture:
    slope = sign * 0.3 * strength
    return _affine(picture, (1, slope, -slope * picture.height / 2, 0, 1, 0))


def _shear_y(picture: Picture, strength: float, sign: int) -> Picture:
    slope = sign * 0.3 * strength
    return _affine(picture, (1, 0, 0, slope, 1, -slope * picture.width / 2))


def _translate_x(picture: Picture, strength: float, sign: int) -> Picture:
    return _affine(picture, (1, 0, sign * 0.45 * strength * picture.width, 0, 1, 0))


def _translate_y(picture: Picture, strength: float, sign: int) -> Picture:
    return _affine(picture, (1, 0, 0, 0, 1, sign * 0.45 * strength * picture.height))


def _rotate(picture: Picture, strength: float, sign: int) -> Picture:
    fill = _GREY if picture.mode == "L" else (_GREY,) * 3
    return picture.rotate(sign * 30 * strength, resample=Image.Resampling.BILINEAR, fillcolor=fill)


def _enhance(enhancer: type) -> Operation:
    """Colour, contrast, brightness or sharpness, up to 90 % more or less."""

    def apply(picture: Picture, strength: float, sign: int) -> Picture:
        return enhancer(picture).enhance(1 + sign * 0.9 * strength)

    return apply


OPERATIONS: tuple[Operation, ...] = (
    lambda picture, _strength, _sign: picture,
    lambda picture, _strength, _sign: ImageOps.autocontrast(picture),
    lambda picture, _strength, _sign: ImageOps.equalize(picture),
    _rotate,
    lambda picture, strength, _sign: ImageOps.posterize(picture, 8 - round(4 * strength)),
    lambda picture, strength, _sign: ImageOps.solarize(picture, 256 - round(256 * strength)),
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
