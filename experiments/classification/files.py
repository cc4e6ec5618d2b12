"""Standard data files -> arrays: MNIST's IDX and CIFAR's two versions, plain or gzipped where that is usual.

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
from typing import Any

import numpy as np

CIFAR_PIXELS = 3 * 32 * 32
_IDX_UNSIGNED_BYTE = 0x08


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in .gz.

    Raises:
        ValueError: If the gzip stream is broken.
    """
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}); download it again.") from None


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes.

    Layout: two zero bytes, the type (8 for unsigned bytes), the number of dimensions, each size as a big-endian
    32-bit integer, then the values, last dimension fastest.

    Args:
        path: The file, .gz allowed.
        dimensions: 3 for images (N, H, W), 1 for labels (N,).

    Raises:
        ValueError: For another magic number, a truncated file or one that is too long.
    """
    content = read_bytes(path)
    magic = content[:4]
    expected = bytes([0, 0, _IDX_UNSIGNED_BYTE, dimensions])
    if magic != expected:
        raise ValueError(
            f"{path} starts with 0x{magic.hex() or '(nothing)'}, an IDX file of {dimensions}-dimensional bytes starts "
            f"with 0x{expected.hex()}; is it another file, or still compressed?"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"{path} ends inside its header; download it again.")
    sizes = struct.unpack(f">{dimensions}I", content[4:start])
    _check_length(path, len(content) - start, math.prod(sizes))
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def read_cifar_binary(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """A file of CIFAR's binary version.

    Args:
        path: The file.
        label_bytes: 1 for CIFAR-10; 2 for CIFAR-100, where the second byte is the fine label.

    Returns:
        Pixels (N, 3, 32, 32) uint8 and labels (N,) uint8.

    Raises:
        ValueError: If the length is not a whole number of records.
    """
    content = np.frombuffer(path.read_bytes(), np.uint8)
    record = label_bytes + CIFAR_PIXELS
    _check_length(path, len(content), math.ceil(len(content) / record) * record)
    records = content.reshape(-1, record)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1]


def read_cifar_pickle(path: Path, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """A file of CIFAR's python version, read by an unpickler that knows arrays and plain values only.

    Args:
        path: The file.
        label_key: ``labels`` for CIFAR-10, ``fine_labels`` for CIFAR-100.

    Returns:
        Pixels (N, 3, 32, 32) uint8 and labels (N,) int64.

    Raises:
        ValueError: If the file asks for anything else than arrays, is broken, or has no such arrays.
    """
    batch = _safe_unpickle(path)
    try:
        pixels = np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch[label_key], np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a CIFAR batch ({error!r}); download it again.") from None
    if labels.shape != (len(pixels),):
        raise ValueError(f"{path} has {len(pixels)} images and {labels.size} labels; download it again.")
    return pixels, labels


def _latin1(text: str, _encoding: str) -> bytes:
    """How Python 3 writes bytes in the old pickle protocols."""
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays and plain values; a pickle that asks for anything else could run code, and is refused."""

    _reconstruct: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
    _allowed = (
        (("numpy", "ndarray"), np.ndarray),
        (("numpy", "dtype"), np.dtype),
        (("_codecs", "encode"), _latin1),
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


def _safe_unpickle(path: Path) -> Any:
    try:
        return _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    # A broken pickle can fail with nearly anything; what it says does not matter, only that it is refused.
    except Exception as error:
        raise ValueError(
            f"{path} is not a plain CIFAR batch and is not unpickled ({error}); "
            "download it again, or use the binary version (data_batch_1.bin ...), which needs no pickle."
        ) from None


def _check_length(path: Path, got: int, expected: int) -> None:
    if got != expected or expected == 0:
        what = "is empty" if got == 0 else "is truncated" if got < expected else "is too long"
        raise ValueError(f"{path} {what}: {got:,} bytes of data instead of {expected:,}; download it again.")
