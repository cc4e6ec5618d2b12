"""Augmentation: reproducible, bounded, and labels in proportion."""

from dataclasses import replace

import numpy as np
import pytest
import torch as th

from experiments.classification.augment import augment_images, mix, shift
from experiments.classification.config import ClassifyConfig

PLAIN = ClassifyConfig(shift=0.0, mixup_alpha=0.0, cutmix_alpha=0.0)


def pixels(channels: int = 3, size: int = 16, n: int = 8) -> th.Tensor:
    return th.from_numpy(np.random.default_rng(0).integers(0, 256, (n, channels, size, size), dtype=np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_same_generator_same_images(channels):
    images = pixels(channels)
    before = images.clone()
    first, second, other = (
        augment_images(images, replace(PLAIN, shift=0.25), True, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == images.shape and first.dtype == th.uint8
    assert th.equal(first, second) and not th.equal(first, other)
    assert th.equal(images, before)


def test_nothing_changes_without_augmentation():
    images = pixels()
    assert th.equal(augment_images(images, PLAIN, False, np.random.default_rng(0)), images)


def test_mirrors_flips_about_half_and_nothing_else():
    images = pixels(n=64)
    out = augment_images(images, PLAIN, True, np.random.default_rng(0))
    flipped = (out == images.flip(3)).flatten(1).all(1)
    same = (out == images).flatten(1).all(1)
    assert (flipped ^ same).all() and 16 < int(flipped.sum()) < 48


def test_shift_moves_by_at_most_the_fraction():
    images = th.zeros(200, 1, 16, 16, dtype=th.uint8)
    images[:, :, 8, 8] = 255
    rows, columns = shift(images, 0.125, np.random.default_rng(0))[:, 0].nonzero()[:, 1:].T
    assert set(rows.tolist()) == set(columns.tolist()) == {6, 7, 8, 9, 10}


def targets(n: int) -> th.Tensor:
    return th.nn.functional.one_hot(th.arange(n), n).float()


def test_mixup_blends_pixels_and_targets_alike():
    x, y = th.eye(6).view(6, 1, 1, 6) * 10, targets(6)
    mixed, mixed_targets = mix(x, y, replace(PLAIN, mix_prob=1.0, mixup_alpha=1.0), np.random.default_rng(0))
    assert not th.equal(mixed, x)
    assert th.allclose(mixed.view(6, 6), 10 * mixed_targets, atol=1e-5)


def test_cutmix_target_is_the_share_of_the_area():
    x = th.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 10, 10)
    for seed in range(20):
        mixed, mixed_targets = mix(
            x, targets(6), replace(PLAIN, mix_prob=1.0, cutmix_alpha=1.0), np.random.default_rng(seed)
        )
        shares = th.stack([(mixed == value).float().mean((1, 2, 3)) for value in range(6)], dim=1)
        assert th.allclose(shares, mixed_targets, atol=1e-6)


def test_mixing_happens_with_its_probability():
    x, y, rng = th.rand(4, 1, 4, 4), targets(4), np.random.default_rng(0)
    config = replace(PLAIN, mix_prob=0.3, mixup_alpha=0.8, cutmix_alpha=1.0)
    untouched = sum(mix(x, y, config, rng)[0] is x for _ in range(1000))
    assert 650 < untouched < 750
