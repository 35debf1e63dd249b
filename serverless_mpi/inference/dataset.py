"""Images and categories: scikit-learn's handwritten digits, or files of the Graph Challenge.

An image is a column of 0 and 1, one number a neuron.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
THRESHOLD = 12  # of 16 levels of grey; some images then die in the network, as in the challenge


def digits(neurons: int = 1024) -> Floats:
    """(neurons, 1797): scikit-learn's digits of 8x8, each point enlarged to a square, thresholded to 0 and 1."""
    from sklearn.datasets import load_digits

    side = int(neurons**0.5)
    if side * side != neurons or side % 8:
        raise ValueError(f"{neurons} neurons are no square picture whose side is a multiple of 8")
    grey = load_digits().images
    large = np.kron(grey, np.ones((side // 8, side // 8)))
    return np.ascontiguousarray((large.reshape(len(grey), neurons) > THRESHOLD).T, np.float32)


def enlarged(images: Floats, neurons: int) -> Floats:
    """Square pictures, (pixels, samples), with each point a square of points, so that there are `neurons` of them.

    Raises
    ------
    ValueError
        `neurons` are no square picture whose side is a multiple of that of the images.
    """
    small, large = int(len(images) ** 0.5), int(neurons**0.5)
    if small * small != len(images) or large * large != neurons or large % small:
        raise ValueError(f"pictures of {len(images)} points cannot be enlarged to {neurons}")
    times = large // small
    pictures = images.reshape(small, 1, small, 1, -1)
    return np.ascontiguousarray(np.broadcast_to(pictures, (small, times, small, times, images.shape[1])).reshape(neurons, -1))


def read_images(path: str | Path, neurons: int, samples: int | None = None) -> Floats:
    """(neurons, samples) from a file: the challenge's TSV (image, pixel, value, counted from 1), or an npz.

    An npz has `bits`, uint8 (samples, neurons / 8), packed by numpy.packbits along axis 1, or `images`
    (samples, neurons).

    Raises
    ------
    ValueError
        The file is no such file, or for another number of neurons; a TSV's bad line is named.
    """
    path = Path(path)
    images = _read_npz(path, neurons) if path.suffix == ".npz" else _read_tsv(path, neurons)
    if samples is not None and samples > images.shape[1]:
        raise ValueError(f"{path} has {images.shape[1]} images, not {samples}")
    return np.ascontiguousarray(images[:, :samples], np.float32)


def _read_npz(path: Path, neurons: int) -> NDArray[np.generic]:
    with np.load(path, allow_pickle=False) as file:
        if "bits" in file:
            bits = file["bits"]
            if bits.ndim != 2 or bits.shape[1] * 8 != neurons:
                raise ValueError(f"{path}: bits of shape {bits.shape} are no images of {neurons} pixels")
            pixels: NDArray[np.generic] = np.unpackbits(bits, axis=1).T
            return pixels
        if "images" in file:
            images = file["images"]
            if images.ndim != 2 or images.shape[1] != neurons:
                raise ValueError(f"{path}: images of shape {images.shape}, wanted (samples, {neurons})")
            if not np.isfinite(images).all():
                raise ValueError(f"{path}: images have NaN or infinity")
            return np.asarray(images.T)
    raise ValueError(f"{path} has neither 'bits' nor 'images'")


def _read_tsv(path: Path, neurons: int) -> NDArray[np.generic]:
    rows, columns, values = [], [], []
    with path.open() as file:
        for number, line in enumerate(file, 1):
            try:
                row, column, value = line.split()
                entry = int(row), int(column), float(value)
            except ValueError:
                raise ValueError(f"{path}, line {number}: {line.strip()!r} is not image, pixel, value") from None
            if entry[0] < 1 or not 1 <= entry[1] <= neurons or not np.isfinite(entry[2]):
                raise ValueError(f"{path}, line {number}: {line.strip()!r} is outside of images of {neurons} pixels")
            rows.append(entry[0] - 1)
            columns.append(entry[1] - 1)
            values.append(entry[2])
    images = np.zeros((neurons, max(rows, default=-1) + 1), np.float32)
    images[columns, rows] = values
    return images


def read_categories(path: str | Path) -> NDArray[np.int64]:
    """Image numbers, counted from 1, one a line: those whose last row is not all 0."""
    return np.atleast_1d(np.loadtxt(path, dtype=np.int64))
