"""A folder with one subfolder of images a class -> :class:`Dataset`.

``root/cat/*.png``                one folder a class: a fifth of each class becomes the test set
``root/train/cat/*.png``          with ``root/test/...``, or ``root/val/...`` where that is the only other split:
                                  the test set; with both, ``val`` chooses the best epoch

Every image is decoded once, before training starts, resized and kept in memory as uint8 (10,000 images of 224x224x3 are
1.5 GB): a corrupt one is found then, not in the third hour. Grey images give one channel if all are grey, else all
become RGB; transparency is dropped.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch as th
from PIL import Image

from experiments.classification.images import Dataset, Images, check_memory, make_dataset

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_DEFAULT_SIZE = 224
_GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I")


@dataclass(frozen=True)
class _Split:
    """Image files and their labels."""

    paths: list[Path]
    labels: list[int]


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
    sizes, greys = zip(*(_header(path, skip_corrupt) for path in files["train"].paths), strict=True)
    side = image_size or min(MAX_DEFAULT_SIZE, round(statistics.median([s for s in sizes if s] or [1])))
    mode = "L" if all(greys) else "RGB"
    check_memory(sum(len(split.paths) for split in files.values()) * side**2 * len(mode))
    read = {split: _read(listed, side, mode, skip_corrupt) for split, listed in files.items()}
    skipped = sum(len(files[split].paths) - len(images) for split, images in read.items())
    return make_dataset(
        root.resolve().name,
        class_names,
        read["train"],
        read.get("validation"),
        read.get("test"),
        seed,
        side,
        skipped=skipped,
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """Split -> folder, as the folders there say."""
    names = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if "train" not in names or names - {"train", "val", "test"}:  # "train" among other names is a class
        return {"train": root}
    others = [root / name for name in ("test", "val") if name in names]
    return {"train": root / "train"} | dict(zip(("test", "validation"), others, strict=False))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise ValueError(f"{folder} has no subfolders; put the images of each class in a subfolder named after it.")
    return tuple(names)


def _list(folder: Path, class_names: tuple[str, ...]) -> _Split:
    """All image files of a split."""
    unknown = sorted(set(_class_names(folder)) - set(class_names))
    if unknown:
        raise ValueError(f"{folder} has the class {unknown[0]!r}, which is not among the training classes.")
    paths, labels = [], []
    for label, name in enumerate(class_names):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        paths += found
        labels += [label] * len(found)
        if not found and (folder / name).is_dir():
            raise ValueError(
                f"Class folder {folder / name} has no images ({' '.join(SUFFIXES)}); add some or remove it."
            )
    return _Split(paths, labels)


def _header(path: Path, skip_corrupt: bool) -> tuple[int, bool]:
    """Shorter side and whether the image is grey, from the file's header; (0, True) for one to be skipped."""
    try:
        with Image.open(path) as image:
            return min(image.size), image.mode in _GREY_MODES
    # Pillow's decoders raise many kinds of errors on broken files.
    except Exception as error:
        return (0, True) if skip_corrupt else _refuse(path, error)


def _read(split: _Split, side: int, mode: str, skip_corrupt: bool) -> Images:
    pixels = np.empty((len(split.paths), len(mode), side, side), np.uint8)
    kept = []
    for row, path in enumerate(split.paths):
        try:
            pixels[row] = _decode(path, side, mode)
            kept.append(row)
        except Exception as error:  # as above
            if not skip_corrupt:
                _refuse(path, error)
    images = Images(th.from_numpy(pixels), th.tensor(split.labels, dtype=th.int64))
    return images if len(kept) == len(images) else images[th.tensor(kept, dtype=th.int64)]


def _decode(path: Path, side: int, mode: str) -> np.ndarray:
    """One image as (C, side, side) uint8: the largest centred square, resized."""
    with Image.open(path) as opened:
        opened.load()
        picture = _eight_bit(opened).convert(mode)
    width, height = picture.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    square = picture.resize((side, side), box=(left, top, left + short, top + short), reducing_gap=2)
    return np.asarray(square).reshape(side, side, len(mode)).transpose(2, 0, 1)


def _eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit grey keeps its upper byte, where convert() would clip."""
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture).astype(np.int64) >> 8
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _refuse(path: Path, error: Exception) -> tuple[int, bool]:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise ValueError(
        f"{path} is not a readable image ({reason}); replace or delete it, or leave such files out "
        "with --on-corrupt skip."
    ) from None
