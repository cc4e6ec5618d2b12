"""Small image folders and data files for the classification tests."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, level: int, size: tuple[int, int] = (8, 8), mode: str = "L", seed: int = 0) -> None:
    """One noisy image around a grey level; ``size`` is width, height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    noise = np.random.default_rng(seed).integers(-20, 21, shape)
    Image.fromarray((level + noise).clip(0, 255).astype(np.uint8)).save(path)


def write_folder(root: Path, n_images: int = 12, mode: str = "L", classes: tuple[str, ...] = ("dark", "light")) -> Path:
    """``n_images`` PNGs a class, told apart by their brightness."""
    for label, name in enumerate(classes):
        for index in range(n_images):
            level = 40 + 170 * label // max(1, len(classes) - 1)
            write_image(root / name / f"{index:02d}.png", level, mode=mode, seed=100 * label + index)
    return root


def idx_bytes(values: np.ndarray) -> bytes:
    """The IDX file of an array of bytes."""
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def random_pixels(n: int, *shape: int) -> np.ndarray:
    """Bytes to compare with what is read back."""
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)
