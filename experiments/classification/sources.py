"""``--data`` -> :class:`Dataset`: digits, or a folder whose content says what it is.

============================  ==========================================================================
``digits``                    scikit-learn's 1,797 grey 8x8 images, resized to 16x16; a fifth is the test set
``train-images-idx3-ubyte``   MNIST and its kin (IDX, also .gz), the ``t10k`` files are the test set; of EMNIST one
                              split, ``emnist-balanced-train-...`` and ``emnist-balanced-test-...``
``data_batch_1.bin``          CIFAR-10, binary version; ``test_batch.bin`` is the test set
``data_batch_1``              CIFAR-10, python version
``train.bin``, ``test.bin``   CIFAR-100, binary version, fine labels
``train``, ``test``, ``meta`` CIFAR-100, python version, fine labels
anything else                 one subfolder a class, see :mod:`experiments.classification.folders`
============================  ==========================================================================

Sources: the IDX layout is described at http://yann.lecun.com/exdb/mnist/, CIFAR's at
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch as th

from agents import INSTALL_LINE
from experiments.classification.folders import load_folder
from experiments.classification.images import Dataset, Images, make_dataset

OnCorrupt = Literal["refuse", "skip"]
DIGITS_SIZE = 16
CIFAR_SIZE = 32
CIFAR_PIXELS = 3 * CIFAR_SIZE**2


def load_dataset(data: str, seed: int, image_size: int | None = None, on_corrupt: OnCorrupt = "refuse") -> Dataset:
    """Read a data set.

    Args:
        data: ``digits``, or a folder; the table above says how its content is recognised.
        seed: Of the splits a source does not have.
        image_size: Side in pixels that images are resized to; the source's own by default.
        on_corrupt: What to do with an image file that cannot be read.

    Raises:
        FileNotFoundError: If there is no such folder, or one of its files is missing.
        ModuleNotFoundError: Without scikit-learn.
        ValueError: For content that is not what it should be; the message names the file.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ModuleNotFoundError(f"Classification needs scikit-learn; install it with: {INSTALL_LINE}") from None
    if data == "digits":
        return _digits(seed, image_size or DIGITS_SIZE)
    root = Path(data).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"There is no folder {data!r}. --data takes digits, or a folder with one subfolder a class, MNIST's IDX "
            "files or CIFAR's files."
        )
    if any(root.glob("*-idx?-ubyte*")) or any(root.glob("*.idx?-ubyte*")):
        return _mnist(root, seed, image_size)
    for first, load in (("data_batch_1", _cifar10), ("train", _cifar100)):
        if any((root / (first + suffix)).is_file() for suffix in ("", ".bin")):
            return load(root, seed, image_size or CIFAR_SIZE)
    return load_folder(root, seed, image_size, skip_corrupt=on_corrupt == "skip")


def _digits(seed: int, image_size: int) -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images[:, None] * (255 / 16)).astype(np.uint8)  # grey levels 0 to 16, (N, 1, 8, 8)
    names = tuple(str(name) for name in digits.target_names)
    images = _images(pixels, digits.target)
    return make_dataset("digits", names, images, None, None, seed, image_size, mirrors=False)


def _mnist(root: Path, seed: int, image_size: int | None) -> Dataset:
    """Classes are 0 to the largest training label, so EMNIST's balanced split and FashionMNIST load too."""
    train, test = (_idx_pair(root, part) for part in _idx_parts(root))
    height, width = train.pixels.shape[2:]
    if height != width and image_size is None:
        raise ValueError(f"The images in {root} are not square; name a side with --image-size.")
    names = tuple(str(label) for label in range(int(train.labels.max()) + 1))
    return make_dataset(root.name, names, train, None, test, seed, image_size or width, mirrors=False)


def _idx_parts(root: Path) -> tuple[str, str]:
    """How the names of the training and the test files begin."""
    splits = sorted({path.name.partition("-train-")[0] for path in root.glob("emnist-*-train-*")})
    if len(splits) > 1:
        raise ValueError(f"{root} has {', '.join(splits)}; leave one of them in that folder.")
    return (f"{splits[0]}-train", f"{splits[0]}-test") if splits else ("train", "t10k")


def _idx_pair(root: Path, part: str) -> Images:
    image_path, label_path = (_idx_file(root, part, kind) for kind in ("images-idx3", "labels-idx1"))
    pixels, labels = read_idx(image_path, 3), read_idx(label_path, 1)
    if len(pixels) != len(labels):
        raise ValueError(f"{image_path} has {len(pixels)} images and {label_path} {len(labels)} labels; they differ.")
    return _images(pixels[:, None], labels)


def _idx_file(root: Path, part: str, kind: str) -> Path:
    """The file under either of the two spellings in use, plain or gzipped."""
    spellings = (f"{part}-{kind}-ubyte", f"{part}-{kind.replace('-', '.')}-ubyte")
    return _first(root, [name + suffix for name in spellings for suffix in ("", ".gz")])


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes, .gz allowed: images (N, H, W) for 3 dimensions, labels (N,) for 1.

    Layout: two zero bytes, the type (8 for unsigned bytes), the number of dimensions, each size as a big-endian
    32-bit integer, then the values, last dimension fastest.

    Raises:
        ValueError: For another magic number, a truncated file or one that is too long.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file ({error}); download it again.") from None
    expected = bytes([0, 0, 8, dimensions])
    if content[:4] != expected:
        raise ValueError(
            f"{path} starts with 0x{content[:4].hex() or '(nothing)'}, an IDX file of {dimensions}-dimensional bytes "
            f"starts with 0x{expected.hex()}; is it another file, or still compressed?"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"{path} ends inside its header; download it again.")
    sizes = struct.unpack(f">{dimensions}I", content[4:start])
    _check_length(path, len(content) - start, math.prod(sizes))
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def _cifar10(root: Path, seed: int, image_size: int) -> Dataset:
    train = [_cifar_file(root, f"data_batch_{i}", 1, "labels") for i in range(1, 6)]
    images = Images(th.cat([part.pixels for part in train]), th.cat([part.labels for part in train]))
    names = _cifar_names(root / "batches.meta.txt", 10)
    test = _cifar_file(root, "test_batch", 1, "labels")
    return make_dataset(root.name, names, images, None, test, seed, image_size)


def _cifar100(root: Path, seed: int, image_size: int) -> Dataset:
    train, test = (_cifar_file(root, part, 2, "fine_labels") for part in ("train", "test"))
    return make_dataset(
        root.name, _cifar_names(root / "fine_label_names.txt", 100), train, None, test, seed, image_size
    )


def _cifar_names(path: Path, n_classes: int) -> tuple[str, ...]:
    """Names from the text file of the binary version, numbers where there is none."""
    names = path.read_text(encoding="utf-8").split() if path.is_file() else []
    return tuple(names) if len(names) == n_classes else tuple(str(label) for label in range(n_classes))


def _cifar_file(root: Path, name: str, label_bytes: int, label_key: str) -> Images:
    path = _first(root, [f"{name}.bin", name])
    if path.suffix == ".bin":
        return _images(*read_cifar_binary(path, label_bytes))
    return _images(*read_cifar_pickle(path, label_key))


def read_cifar_binary(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3, 32, 32) and labels (N,), uint8, of a file of CIFAR's binary version.

    Args:
        path: The file.
        label_bytes: 1 for CIFAR-10; 2 for CIFAR-100, where the second byte is the fine label.

    Raises:
        ValueError: If the length is not a whole number of records.
    """
    content = np.frombuffer(path.read_bytes(), np.uint8)
    record = label_bytes + CIFAR_PIXELS
    _check_length(path, len(content), math.ceil(len(content) / record) * record)
    records = content.reshape(-1, record)
    return records[:, label_bytes:].reshape(-1, 3, CIFAR_SIZE, CIFAR_SIZE), records[:, label_bytes - 1]


def read_cifar_pickle(path: Path, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3, 32, 32) uint8 and labels (N,) int64 of a file of CIFAR's python version.

    Raises:
        ValueError: If the file asks for anything else than arrays, is broken, or has no such arrays.
    """
    try:
        batch = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        pixels = np.asarray(batch["data"], np.uint8).reshape(-1, 3, CIFAR_SIZE, CIFAR_SIZE)
        labels = np.asarray(batch[label_key], np.int64).reshape(len(pixels))
    # A broken pickle can fail with nearly anything; what it says does not matter, only that it is refused.
    except Exception as error:
        raise ValueError(
            f"{path} is not a plain CIFAR batch and is not unpickled ({error}); "
            "download it again, or use the binary version (data_batch_1.bin ...), which needs no pickle."
        ) from None
    return pixels, labels


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays and plain values; a pickle that asks for anything else could run code, and is refused."""

    _reconstruct: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
    _allowed = (
        (("numpy", "ndarray"), np.ndarray),
        (("numpy", "dtype"), np.dtype),
        # How Python 3 writes bytes in the old pickle protocols.
        (("_codecs", "encode"), lambda text, _encoding: text.encode("latin1")),
        # The files of 2009 name numpy's old module.
        (("numpy.core.multiarray", "_reconstruct"), _reconstruct),
        (("numpy._core.multiarray", "_reconstruct"), _reconstruct),
    )

    def find_class(self, module: str, name: str) -> Any:
        """Look the name up in the list above, nowhere else."""
        for allowed, value in self._allowed:
            if allowed == (module, name):
                return value
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _check_length(path: Path, got: int, expected: int) -> None:
    if got != expected or expected == 0:
        what = "is empty" if got == 0 else "is truncated" if got < expected else "is too long"
        raise ValueError(f"{path} {what}: {got:,} bytes of data instead of {expected:,}; download it again.")


def _first(root: Path, names: list[str]) -> Path:
    """The first of some files that is there."""
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(f"{root} has none of {', '.join(names)}; the whole data set must be in that folder.")


def _images(pixels: np.ndarray, labels: np.ndarray) -> Images:
    # A copy: arrays over a file's bytes are read-only.
    return Images(th.tensor(pixels), th.tensor(labels.astype(np.int64)))
