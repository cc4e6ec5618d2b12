"""A folder with one subfolder of images a class -> :class:`Dataset`.

``root/cat/*.png``                one folder a class: a fifth of each class becomes the test set
``root/train/cat/*.png``          with ``root/test/...``, or ``root/val/...`` where that is the only other split:
                                  the test set; with both, ``val`` chooses the best epoch

Every image is decoded once, before training starts, resized and kept in memory as uint8 (10,000 images of 224x224x3 are
1.5 GB): a corrupt one is found then, not in the third hour. Grey images give one channel if all are grey, else all
become RGB; transparency is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch as th
from PIL import Image, ImageOps

from experiments.classification.images import Dataset, Images, check_memory, make_dataset

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_DEFAULT_SIZE = 224
_GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I")
T = TypeVar("T")
Files = list[tuple[Path, int]]  # image files and their labels


def load_folder(root: Path, seed: int, image_size: int | None, skip_corrupt: bool) -> Dataset:
    """Read images by class.

    Args:
        root: The folder.
        seed: Of the splits that are not there as folders.
        image_size: Side in pixels; by default the median of the images' shorter sides, at most 224.
        skip_corrupt: Leave unreadable images out and count them, instead of refusing the first.

    Raises:
        ValueError: For no classes, a class without images, or a corrupt image, by name.
    """
    folders = _split_folders(root)
    class_names = _class_names(folders["train"])
    files = {split: _list(folder, class_names) for split, folder in folders.items()}
    headers = [header for path, _ in files["train"] if (header := _read(path, _header, skip_corrupt)) is not None]
    side = image_size or min(MAX_DEFAULT_SIZE, round(np.median([short for short, _ in headers] or [1])))
    mode = "L" if all(grey for _, grey in headers) else "RGB"
    n_files = sum(map(len, files.values()))
    check_memory(n_files * side**2 * len(mode))
    read = {split: _decode_all(listed, side, mode, skip_corrupt) for split, listed in files.items()}
    skipped = n_files - sum(map(len, read.values()))
    splits = (read["train"], read.get("validation"), read.get("test"))
    return make_dataset(root.resolve().name, class_names, *splits, seed, side, skipped=skipped)


def _split_folders(root: Path) -> dict[str, Path]:
    """Split -> folder, as the folders there say."""
    names = {path.name for path in _subfolders(root)}
    if "train" not in names or names - {"train", "val", "test"}:  # "train" among other names is a class
        return {"train": root}
    others = [root / name for name in ("test", "val") if name in names]
    return {"train": root / "train"} | dict(zip(("test", "validation"), others, strict=False))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(path.name for path in _subfolders(folder))
    if not names:
        raise ValueError(f"{folder} has no subfolders; put the images of each class in a subfolder named after it.")
    return names


def _list(folder: Path, class_names: tuple[str, ...]) -> Files:
    """All image files of a split."""
    if unknown := sorted(set(_class_names(folder)) - set(class_names)):
        raise ValueError(f"{folder} has the class {unknown[0]!r}, which is not among the training classes.")
    files: Files = []
    for label, name in enumerate(class_names):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found and (folder / name).is_dir():
            raise ValueError(
                f"Class folder {folder / name} has no images ({' '.join(SUFFIXES)}); add some or remove it."
            )
        files += [(path, label) for path in found]
    return files


def _read(path: Path, use: Callable[[Image.Image], T], skip_corrupt: bool) -> T | None:
    """What a function makes of an image file; None for one that cannot be read and is to be skipped."""
    try:
        with Image.open(path) as image:
            return use(image)
    except Exception as error:  # Pillow's decoders raise many kinds of errors on broken files
        if skip_corrupt:
            return None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} is not a readable image ({reason}); replace or delete it, or leave such files out "
            "with --on-corrupt skip."
        ) from None


def _header(image: Image.Image) -> tuple[int, bool]:
    """Shorter side and whether the image is grey, from the file's header."""
    return min(image.size), image.mode in _GREY_MODES


def _decode_all(files: Files, side: int, mode: str, skip_corrupt: bool) -> Images:
    pixels = np.empty((len(files), len(mode), side, side), np.uint8)
    labels: list[int] = []
    for path, label in files:
        decoded = _read(path, lambda image: _decode(image, side, mode), skip_corrupt)
        if decoded is not None:
            pixels[len(labels)] = decoded
            labels.append(label)
    return Images(th.from_numpy(pixels[: len(labels)]), th.tensor(labels, dtype=th.int64))


def _decode(image: Image.Image, side: int, mode: str) -> np.ndarray:
    """The largest centred square, resized, as (C, side, side) uint8; 16-bit grey keeps its upper byte."""
    if image.mode == "F":
        raise ValueError("its pixels are floats, and which of them is white is not known: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # convert() would clip
        grey = np.asarray(image).astype(np.int64)
        is_byte = image.mode == "I" and grey.max() <= 255  # 32 bits say nothing of the range
        image = Image.fromarray((grey if is_byte else grey >> 8).clip(0, 255).astype(np.uint8))
    square = ImageOps.fit(image.convert(mode), (side, side), Image.Resampling.BICUBIC)
    return np.asarray(square).reshape(side, side, len(mode)).transpose(2, 0, 1)
