"""``--data`` -> :class:`Dataset`: digits, or a folder whose content says what it is.

============================  ==========================================================================
``digits``                    scikit-learn's 1,797 grey 8x8 images, resized to 16x16; a fifth is the test set
``train-images-idx3-ubyte``   MNIST and its kin (IDX, also .gz), the ``t10k`` files are the test set
``data_batch_1.bin``          CIFAR-10, binary version; ``test_batch.bin`` is the test set
``data_batch_1``              CIFAR-10, python version
``train.bin``, ``test.bin``   CIFAR-100, binary version, fine labels
``train``, ``test``, ``meta`` CIFAR-100, python version, fine labels
anything else                 one subfolder a class, see :mod:`experiments.classification.folders`
============================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch as th

from experiments.classification.files import read_cifar_binary, read_cifar_pickle, read_idx
from experiments.classification.folders import load_folder
from experiments.classification.images import Dataset, Images, make_dataset

OnCorrupt = Literal["refuse", "skip"]
Arrays = tuple[np.ndarray, np.ndarray]

INSTALL_LINE = 'python -m pip install -c constraints.txt -e ".[runner,classify]"'
DIGITS_SIZE = 16
_CIFAR10_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))


def load_dataset(data: str, seed: int, image_size: int | None = None, on_corrupt: OnCorrupt = "refuse") -> Dataset:
    """Read a data set.

    Args:
        data: ``digits``, or a folder; the table above says how its content is recognised.
        seed: Of the splits a source does not have.
        image_size: Side in pixels that images are resized to; the source's own by default.
        on_corrupt: What to do with an image file that cannot be read.

    Raises:
        FileNotFoundError: If there is no such folder, or one of its files is missing.
        ModuleNotFoundError: If the source needs a package that is not installed.
        ValueError: For content that is not what it should be; the message names the file.
    """
    if data == "digits":
        return _digits(seed, image_size or DIGITS_SIZE)
    root = Path(data).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"There is no folder {data!r}. --data takes digits, or a folder with one subfolder a class, MNIST's IDX "
            "files or CIFAR's files."
        )
    for is_it, load in _FORMATS:
        if is_it(root):
            return load(root, seed, image_size)
    return load_folder(root, seed, image_size, skip_corrupt=on_corrupt == "skip")


def _digits(seed: int, image_size: int) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ModuleNotFoundError(f"--data digits needs scikit-learn; install it with: {INSTALL_LINE}") from None
    digits = load_digits()
    # Grey levels 0 to 16, (N, 8, 8).
    pixels = np.round(digits.images[:, None] * (255 / 16)).astype(np.uint8)
    names = tuple(str(name) for name in digits.target_names)
    images = _images((pixels, digits.target))
    return make_dataset("digits", names, images, None, None, seed, image_size, recipe="digits", mirrors=False)


def _mnist(root: Path, seed: int, image_size: int | None) -> Dataset:
    """Classes are 0 to the largest training label, so EMNIST's balanced split and FashionMNIST load too."""
    train, test = (_idx_pair(root, part) for part in ("train", "t10k"))
    if train[0].shape[2] != train[0].shape[3] and image_size is None:
        raise ValueError(f"The images in {root} are not square; name a side with --image-size.")
    names = tuple(str(label) for label in range(int(train[1].max()) + 1))
    size = image_size or train[0].shape[2]
    return make_dataset(root.name, names, _images(train), None, _images(test), seed, size, mirrors=False)


def _idx_pair(root: Path, part: str) -> Arrays:
    image_path, label_path = (_idx_file(root, part, kind) for kind in ("images-idx3", "labels-idx1"))
    pixels, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if len(pixels) != len(labels):
        raise ValueError(f"{image_path} has {len(pixels)} images and {label_path} {len(labels)} labels; they differ.")
    return pixels[:, None], labels


def _idx_file(root: Path, part: str, kind: str) -> Path:
    """The file under either of the two spellings in use, plain or gzipped."""
    spellings = (f"{part}-{kind}-ubyte", f"{part}-{kind.replace('-', '.')}-ubyte")
    names = [name + suffix for name in spellings for suffix in ("", ".gz")]
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(f"{root} has none of {', '.join(names)}; all four MNIST files must be there.")


def _is_mnist(root: Path) -> bool:
    return any(path.is_file() for path in root.glob("*-idx?-ubyte*")) or any(root.glob("*.idx?-ubyte*"))


def _cifar10(root: Path, seed: int, image_size: int | None) -> Dataset:
    binary = (root / "data_batch_1.bin").is_file()
    read: Callable[[Path], Arrays] = (
        (lambda path: read_cifar_binary(path, 1)) if binary else (lambda path: read_cifar_pickle(path, "labels"))
    )
    suffix = ".bin" if binary else ""
    train = [read(_required(root / (batch + suffix))) for batch in _CIFAR10_BATCHES]
    test = read(_required(root / ("test_batch" + suffix)))
    return _cifar(root, "batches.meta.txt", 10, train, test, seed, image_size)


def _cifar100(root: Path, seed: int, image_size: int | None) -> Dataset:
    if (root / "train.bin").is_file():
        train, test = (read_cifar_binary(_required(root / f"{part}.bin"), 2) for part in ("train", "test"))
    else:
        train, test = (read_cifar_pickle(_required(root / part), "fine_labels") for part in ("train", "test"))
    return _cifar(root, "fine_label_names.txt", 100, [train], test, seed, image_size)


def _cifar(
    root: Path, names_file: str, n_classes: int, train: list[Arrays], test: Arrays, seed: int, image_size: int | None
) -> Dataset:
    pixels, labels = (np.concatenate(part) for part in zip(*train, strict=True))
    names = _class_names(root / names_file, n_classes)
    return make_dataset(root.name, names, _images((pixels, labels)), None, _images(test), seed, image_size or 32)


def _class_names(path: Path, n_classes: int) -> tuple[str, ...]:
    """Names from the text file of the binary version, numbers where there is none."""
    names = path.read_text(encoding="utf-8").split() if path.is_file() else []
    return tuple(names) if len(names) == n_classes else tuple(str(label) for label in range(n_classes))


def _required(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the whole data set must be in that folder.")
    return path


def _images(arrays: Arrays) -> Images:
    pixels, labels = arrays
    # A copy: arrays over a file's bytes are read-only.
    return Images(th.tensor(pixels), th.tensor(labels.astype(np.int64)))


_FORMATS: tuple[tuple[Callable[[Path], bool], Callable[[Path, int, int | None], Dataset]], ...] = (
    (_is_mnist, _mnist),
    (lambda root: any((root / f"data_batch_1{suffix}").is_file() for suffix in ("", ".bin")), _cifar10),
    (lambda root: any((root / f"train{suffix}").is_file() for suffix in ("", ".bin")), _cifar100),
)
