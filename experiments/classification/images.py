"""What every data source becomes: uint8 pixels with labels, split into training, validation and test images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch as th
from torch import Tensor
from torch.nn import functional as F

from mnv4_rl.memory import check_fits

PIECE = 1024  # images that are computed with at a time: the float copy of a large set would not fit beside it


def check_memory(needed_bytes: int) -> None:
    """Refuse images that would be killed for memory.

    Raises:
        ValueError: With what there is, and what to do.
    """
    check_fits("All images together", needed_bytes, lambda available: "use a smaller --image-size or fewer images.")


@dataclass(frozen=True)
class Images:
    """Labelled images in memory.

    Attributes:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | np.ndarray) -> Images:
        """The images at some rows."""
        index = th.as_tensor(rows)
        return Images(self.pixels[index], self.labels[index])

    def resized(self, size: int) -> Images:
        """The same images at ``size`` x ``size`` pixels, bilinear with antialiasing."""
        if self.pixels.shape[2:] == (size, size):
            return self
        check_memory(size * size * self.pixels.shape[1] * (len(self) + 4 * min(len(self), PIECE)))
        scaled = (
            F.interpolate(piece.float(), (size, size), mode="bilinear", antialias=True)
            for piece in self.pixels.split(PIECE)
        )
        return Images(th.cat([piece.round().clamp(0, 255).to(th.uint8) for piece in scaled]), self.labels)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images to learn from, to choose the best epoch by, and to report on.

    Attributes:
        name: For the log and the run folder's name.
        class_names: One name a class, in label order.
        train: Images that weights are fitted to.
        validation: Images that choose the best epoch; taken from the training images where a source has none.
        test: Images looked at once, at the end.
        mirrors: Whether a mirrored image is still of its class; false for digits.
        skipped: Images left out because they could not be read.
    """

    name: str
    class_names: tuple[str, ...]
    train: Images
    validation: Images
    test: Images
    mirrors: bool = True
    skipped: int = 0

    @property
    def in_channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return self.train.pixels.shape[1]

    @property
    def image_size(self) -> int:
        """Side in pixels."""
        return self.train.pixels.shape[2]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of the training images, (C, 1, 1) each, as shares of 255."""
        some = self.train.pixels[:: len(self.train) // PIECE + 1].float() / 255
        variance, mean = th.var_mean(some, (0, 2, 3), correction=0)
        return mean[:, None, None], variance.clamp(min=1e-6).sqrt()[:, None, None]

    def describe(self) -> str:
        """Sizes in one line."""
        shape = f"{self.in_channels}x{self.image_size}x{self.image_size}"
        left_out = f", {self.skipped} unreadable images skipped" if self.skipped else ""
        return (
            f"{len(self.class_names)} classes, {shape}, {len(self.train):,} training, "
            f"{len(self.validation):,} validation and {len(self.test):,} test images{left_out}"
        )


def make_dataset(
    name: str,
    class_names: tuple[str, ...],
    train: Images,
    validation: Images | None,
    test: Images | None,
    seed: int,
    image_size: int,
    *,
    mirrors: bool = True,
    skipped: int = 0,
) -> Dataset:
    """Take the missing splits from the training images, class by class, and check all of them.

    A fifth of the images becomes the test set where there is none, then a tenth the validation set.

    Raises:
        ValueError: For a class without images, labels outside the classes, or an empty split.
    """
    given = {"training": train, "validation": validation, "test": test}
    for split, images in given.items():
        if images is not None:
            _check_labels(images, class_names, f"{split} images of {name}")
    _check_every_class(train, class_names, name, splits_to_take=sum(images is None for images in given.values()))
    if test is None:
        train, test = stratified_split(train, 0.2, seed)
    if validation is None:
        train, validation = stratified_split(train, 0.1, seed + 1)
    splits = [images.resized(image_size) for images in (train, validation, test)]
    return Dataset(
        name=name,
        class_names=class_names,
        train=splits[0],
        validation=splits[1],
        test=splits[2],
        mirrors=mirrors,
        skipped=skipped,
    )


def stratified_split(images: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """The rest of the images, and a share of them in which every class has its share; the same for the same seed."""
    from sklearn.model_selection import train_test_split

    labels = images.labels.numpy()
    size = max(len(np.unique(labels)), round(len(labels) * fraction))
    rest, part = train_test_split(np.arange(len(labels)), test_size=size, stratify=labels, random_state=seed)
    return images[np.sort(rest)], images[np.sort(part)]


def _check_labels(images: Images, class_names: tuple[str, ...], what: str) -> None:
    if len(images) == 0:
        raise ValueError(f"There are no {what}; add some, or take the empty split away to have one split off.")
    outside = images.labels[(images.labels < 0) | (images.labels >= len(class_names))]
    if len(outside):
        raise ValueError(
            f"The {what} have {len(outside)} labels outside the {len(class_names)} classes "
            f"(0 to {len(class_names) - 1}), the first is {int(outside[0])}; check the label file."
        )


def _check_every_class(train: Images, class_names: tuple[str, ...], name: str, splits_to_take: int) -> None:
    if len(class_names) < 2:
        raise ValueError(f"{name} has one class, {class_names[0]!r}; there is nothing to tell apart with fewer than 2.")
    needed = 1 + splits_to_take
    counts = th.bincount(train.labels, minlength=len(class_names)).tolist()
    for class_name, count in zip(class_names, counts, strict=True):
        if count < needed:
            raise ValueError(
                f"Class {class_name!r} of {name} has {count} training images and needs at least {needed}, the "
                "validation and test images that are taken from them included; add images or remove the class."
            )
