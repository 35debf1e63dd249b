"""Images, networks and categories in files: the Graph Challenge's, SciPy npz, MatrixMarket.

An image is a column of numbers, usually 0 and 1, one per neuron. A layer in a file is the
challenge's W in Y W: each row is an input, each column an output. A network is a folder with
n1024-l1.tsv, n1024-l2.tsv, ..., or files of these names that end with .npz or .mtx. The digits are
bundled with the package.

`formats` reads entries and `files` bounds what a file may cost; here entries become images and
layers. If you add a format of layers, add its suffix to SUFFIXES and its reader to `formats`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.inference import files, formats
from serverless_mpi.inference.networks import BIAS, Network
from serverless_mpi.sparse import SparseRows

Floats = NDArray[np.float32]
SUFFIXES = (".tsv", ".npz", ".mtx")  # of a layer's file
# Images that take more than EMPTY_BYTES may be at most MOST_EMPTY times as many as the pixels that
# are not 0: otherwise a mistyped image number would take gigabytes.
MOST_EMPTY = 16
EMPTY_BYTES = 256 << 20
# The 1797 test images of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak,
# 1998, UCI Machine Learning Repository, doi:10.24432/C50P49, CC BY 4.0): 8x8 pixels, 1 bit each,
# set where the grey level is above 12 of 16, packed to 8 bytes per image. Some of them become all
# zero in the network, as in the challenge.
DIGITS = Path(__file__).with_name("digits.npy")


def digits(neurons: int = 1024) -> Floats:
    """Return the bundled images of handwritten digits, each pixel enlarged to a square.

    Parameters
    ----------
    neurons
        Pixels of an enlarged image.

    Returns
    -------
    ndarray
        (neurons, 1797) float32.

    Raises
    ------
    ValueError
        `neurons` is not the size of a square image whose side is a multiple of 8.
    """
    side = int(neurons**0.5)
    if side * side != neurons or side % 8:
        raise ValueError(
            f"{neurons} neurons do not make a square image whose side is a multiple of 8"
        )
    bits = np.unpackbits(np.load(DIGITS), axis=1).reshape(-1, 8, 8)
    large = np.kron(bits, np.ones((side // 8, side // 8), np.uint8))
    return np.ascontiguousarray(large.reshape(len(bits), neurons).T, np.float32)


def enlarged(images: Floats, neurons: int) -> Floats:
    """Enlarge square images: each pixel becomes a square of pixels.

    Parameters
    ----------
    images
        (pixels, samples) float32.
    neurons
        Pixels of an enlarged image.

    Returns
    -------
    ndarray
        (neurons, samples) float32.

    Raises
    ------
    ValueError
        The sides of both images are not whole numbers, or one is not a multiple of the other.
    """
    small, large = int(len(images) ** 0.5), int(neurons**0.5)
    if small * small != len(images) or large * large != neurons or large % small:
        raise ValueError(f"images of {len(images)} pixels cannot be enlarged to {neurons}")
    times = large // small
    pictures = images.reshape(small, 1, small, 1, -1)
    return np.ascontiguousarray(
        np.broadcast_to(pictures, (small, times, small, times, images.shape[1])).reshape(
            neurons, -1
        )
    )


# --- images ---------------------------------------------------------------------------------------


def read_images(
    path: str | Path, neurons: int, samples: int | None = None, limit: int | None = None
) -> Floats:
    """Read images from a file.

    Parameters
    ----------
    path
        Entries (image, pixel, value) in a format of `formats`; or an npz with `images`, (samples,
        neurons), or with `bits`, (samples, neurons / 8) uint8, packed by numpy.packbits along
        axis 1.
    neurons
        Pixels of an image.
    samples
        Number of images to read, the first ones; None for all.
    limit
        Memory that the images may take as float32, in bytes; None for the machine's.

    Returns
    -------
    ndarray
        (neurons, samples) float32, C-contiguous.

    Raises
    ------
    ValueError
        The file is not of these formats, is for another number of neurons, has fewer images, or
        exceeds the limit; the text names an invalid line.
    """
    with files.opened(path, limit) as source:
        return images_from(source, Path(path).suffix, neurons, samples)


def images_from(
    source: files.Source, suffix: str, neurons: int, samples: int | None = None
) -> Floats:
    """Read images from an opened file.

    Parameters
    ----------
    source
        The file.
    suffix
        Suffix of its name, which is its format.
    neurons, samples
        As in `read_images`.

    Returns
    -------
    ndarray
        (neurons, samples) float32, C-contiguous.

    Raises
    ------
    ValueError
        As in `read_images`.
    """
    images = _packed(source, neurons, samples) if suffix == ".npz" else None
    if images is None:
        entries = formats.read_from(source, suffix, None, neurons)
        count = entries.shape[0] if entries.shape else int(entries.rows.max(initial=-1)) + 1
        _check_count(source, count, neurons, len(entries.rows))
        images = np.zeros((neurons, count), np.float32)
        images[entries.columns, entries.rows] = entries.values
    if not images.shape[1]:
        raise ValueError(f"{source.name} has no images")
    if samples is not None and samples > images.shape[1]:
        raise ValueError(f"{source.name} has {images.shape[1]} images, not {samples}")
    return np.ascontiguousarray(images[:, :samples], np.float32)


def _check_count(source: files.Source, count: int, neurons: int, entries: int) -> None:
    """Raise ValueError if images exceed the limit, or one of their numbers must be mistyped."""
    nbytes = 4 * neurons * count
    if count > MOST_EMPTY * max(entries, 1) and nbytes > EMPTY_BYTES:
        raise ValueError(
            f"{source.name} has an image number {count:,}, but only {entries:,} pixels that are not"
            f" 0; at most {MOST_EMPTY} images per such pixel are read: is the number mistyped?"
        )
    source.refuse(nbytes, f"{count:,} images of {neurons:,} pixels")


def _packed(source: files.Source, neurons: int, samples: int | None) -> NDArray[np.generic] | None:
    """Return the first `samples` images of an npz; None if it holds a sparse matrix."""
    archive = files.Npz(source)
    if "bits" in archive:
        bits = archive.array("bits", "u", 2)
        if bits.dtype != np.uint8 or bits.shape[1] * 8 != neurons:
            raise ValueError(
                f"{source.name}: bits of type {bits.dtype} and shape {bits.shape} are not images "
                f"of {neurons} pixels"
            )
        bits = _first(source, bits, neurons, samples)
        pixels: NDArray[np.generic] = np.unpackbits(bits, axis=1).T
        return pixels
    if "images" in archive:
        images = archive.array("images", "buif", 2)
        if images.shape[1] != neurons:
            raise ValueError(
                f"{source.name}: images have type {images.dtype} and shape {images.shape}, "
                f"not numbers of shape (samples, {neurons})"
            )
        images = _first(source, images, neurons, samples)
        with np.errstate(over="ignore"):
            whole = np.ascontiguousarray(images.T, np.float32)
        if not np.isfinite(whole).all():
            raise ValueError(f"{source.name}: images have NaN, infinity or numbers beyond float32")
        return whole
    if "indptr" in archive or "row" in archive:
        return None
    raise ValueError(
        f"{source.name} has neither 'bits' nor 'images', and is not a sparse matrix of SciPy"
    )


def _first(
    source: files.Source, images: NDArray[Any], neurons: int, samples: int | None
) -> NDArray[Any]:
    if samples is not None and samples > len(images):
        raise ValueError(f"{source.name} has {len(images)} images, not {samples}")
    count = len(images) if samples is None else samples
    source.refuse(4 * neurons * count, f"{count:,} images of {neurons:,} pixels")
    return images[:count]


# --- networks -------------------------------------------------------------------------------------


def read_layer(path: str | Path, neurons: int) -> SparseRows:
    """Read a layer from a file.

    Parameters
    ----------
    path
        The file; its suffix is its format.
    neurons
        Number of inputs and of outputs.

    Returns
    -------
    SparseRows
        A row per output, its inputs ascending.

    Raises
    ------
    ValueError
        As in `formats.read`.
    """
    entries = formats.read(path, neurons, neurons)
    order = np.lexsort((entries.rows, entries.columns))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(entries.columns, minlength=neurons))])
    return SparseRows(indptr, entries.rows[order], entries.values[order], neurons)


def read_network(
    folder: str | Path, neurons: int, layers: int, bias: float | None = None
) -> Network:
    """Return the network in a folder; its layers are read when the network is iterated.

    Parameters
    ----------
    folder
        The folder.
    neurons
        Neurons per layer.
    layers
        Number of layers.
    bias
        Bias of every layer; None for the challenge's for that number of neurons, or 0.

    Returns
    -------
    Network
        Each iteration reads the files again.

    Raises
    ------
    ValueError
        The file of a layer is missing; in an iteration, as in `read_layer`.
    """
    folder = Path(folder)
    stems = [f"n{neurons}-l{number}" for number in range(1, layers + 1)]
    existing = (suffix for suffix in SUFFIXES if (folder / f"{stems[0]}{suffix}").exists())
    suffix = next(existing, None) if stems else None
    if suffix is None:
        raise ValueError(
            f"{folder} has no file n{neurons}-l1 with a suffix of {', '.join(SUFFIXES)}"
        )
    paths = [folder / f"{stem}{suffix}" for stem in stems]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {layers} layers, the first of them {missing[0]}"
        )

    def read() -> Iterator[SparseRows]:
        for path in paths:
            yield read_layer(path, neurons)

    return Network(
        neurons, layers, BIAS.get(neurons, 0.0) if bias is None else bias, read, folder.name
    )


# --- categories -----------------------------------------------------------------------------------


def read_categories(path: str | Path) -> NDArray[np.int64]:
    """Read a file of categories: the images with an active output.

    Parameters
    ----------
    path
        One image number per line, counted from 1, ascending.

    Returns
    -------
    ndarray
        (categories,) int64, counted from 1.

    Raises
    ------
    ValueError
        A line is not such a number, or not above the line before; the text names it.
    """
    categories: list[int] = []
    with files.opened(path) as source:
        for start, lines in files.Text(source).blocks():
            for number, line in enumerate(lines, start + 1):
                text = line.strip()
                if not text:
                    continue
                good = text.isascii() and text.isdigit() and len(text) < 19
                if not good or int(text) <= (categories[-1] if categories else 0):
                    raise ValueError(
                        f"{path}, line {number}: {files.shown(line)} is not an image number above "
                        "the previous one"
                    )
                categories.append(int(text))
    return np.array(categories, np.int64)
