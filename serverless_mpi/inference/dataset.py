"""Images, networks and categories in files: those of the Graph Challenge, SciPy's npz,
MatrixMarket; the bundled digits.

An image is a column of 0 and 1, one number a neuron. In a file a layer is the challenge's W of Y W:
a row an input, a column an output; a network is a folder with n1024-l1.tsv, n1024-l2.tsv, ..., or
the same with .npz or .mtx.
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
SUFFIXES = (".tsv", ".npz", ".mtx")  # of a layer
MOST_EMPTY = 16  # images for each pixel that is not 0, once they take more than EMPTY_BYTES
EMPTY_BYTES = 256 << 20
# The 1797 test images of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak,
# 1998, UCI Machine Learning Repository, doi:10.24432/C50P49, CC BY 4.0): 8x8 pixels, 1 bit each,
# set where the grey level is above 12 of 16, packed to 8 bytes an image. Some of them become all
# zero in the network, as in the challenge.
DIGITS = Path(__file__).with_name("digits.npy")


def digits(neurons: int = 1024) -> Floats:
    """Return the bundled images of handwritten digits, (neurons, 1797), each pixel enlarged to a
    square.

    Raises
    ------
    ValueError
        `neurons` is not the size of a square picture whose side is a multiple of 8.
    """
    side = int(neurons**0.5)
    if side * side != neurons or side % 8:
        raise ValueError(f"{neurons} neurons are no square picture whose side is a multiple of 8")
    bits = np.unpackbits(np.load(DIGITS), axis=1).reshape(-1, 8, 8)
    large = np.kron(bits, np.ones((side // 8, side // 8), np.uint8))
    return np.ascontiguousarray(large.reshape(len(bits), neurons).T, np.float32)


def enlarged(images: Floats, neurons: int) -> Floats:
    """Square pictures, (pixels, samples), with each point a square of points, so that there are
    `neurons` of them.

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
    return np.ascontiguousarray(
        np.broadcast_to(pictures, (small, times, small, times, images.shape[1])).reshape(
            neurons, -1
        )
    )


# --- images ---------------------------------------------------------------------------------------


def read_images(
    path: str | Path, neurons: int, samples: int | None = None, limit: int | None = None
) -> Floats:
    """(neurons, samples) from a file: entries (image, pixel, value) in a format of `formats`, or an
    npz of ours or yours.

    Such an npz has `bits`, uint8 (samples, neurons / 8), packed by numpy.packbits along axis 1, or
    `images` (samples, neurons). limit: bytes that the images may take, as float32; the machine's
    memory if not given.

    Raises
    ------
    ValueError
        The file is no such file, or for another number of neurons, or has more images than the
        limit; a bad line is named.
    """
    with files.opened(path, limit) as source:
        return images_from(source, Path(path).suffix, neurons, samples)


def images_from(
    source: files.Source, suffix: str, neurons: int, samples: int | None = None
) -> Floats:
    """As `read_images`, from an opened file."""
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
    """Raise ValueError if there are so many images that a number among them must be mistyped, or
    that memory ends.
    """
    nbytes = 4 * neurons * count
    if count > MOST_EMPTY * max(entries, 1) and nbytes > EMPTY_BYTES:
        raise ValueError(
            f"{source.name}: image {count:,} is there, but only {entries:,} pixels are not 0: "
            f"at most {MOST_EMPTY} images for each are read; is that number mistyped?"
        )
    source.refuse(nbytes, f"{count:,} images of {neurons:,} pixels")


def _packed(source: files.Source, neurons: int, samples: int | None) -> NDArray[np.generic] | None:
    """The first `samples` images of an npz, or all of fewer; None if it is a sparse matrix."""
    archive = files.Npz(source)
    if "bits" in archive:
        bits = archive.array("bits", "u", 2)
        if bits.dtype != np.uint8 or bits.shape[1] * 8 != neurons:
            raise ValueError(
                f"{source.name}: bits of {bits.dtype} {bits.shape} are no images of {neurons} "
                "pixels"
            )
        bits = _first(source, bits, neurons, samples)
        pixels: NDArray[np.generic] = np.unpackbits(bits, axis=1).T
        return pixels
    if "images" in archive:
        images = archive.array("images", "buif", 2)
        if images.shape[1] != neurons:
            raise ValueError(
                f"{source.name}: images of {images.dtype} {images.shape}, "
                f"wanted numbers (samples, {neurons})"
            )
        images = _first(source, images, neurons, samples)
        with np.errstate(over="ignore"):
            whole = np.ascontiguousarray(images.T, np.float32)
        if not np.isfinite(whole).all():
            raise ValueError(f"{source.name}: images have NaN, infinity or numbers beyond float32")
        return whole
    if "indptr" in archive or "row" in archive:
        return None
    raise ValueError(f"{source.name} has neither 'bits' nor 'images', and is no sparse matrix")


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
    """A layer of `neurons` inputs and outputs from a file, each output's inputs ascending."""
    entries = formats.read(path, neurons, neurons)
    order = np.lexsort((entries.rows, entries.columns))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(entries.columns, minlength=neurons))])
    return SparseRows(indptr, entries.rows[order], entries.values[order], neurons)


def read_network(
    folder: str | Path, neurons: int, layers: int, bias: float | None = None
) -> Network:
    """The network in a folder; each layer is read when it is its turn, and again by each reader.

    bias: the challenge's for that number of neurons, if it has one, else 0.

    Raises
    ------
    ValueError
        A layer's file is missing; when it is read, as for `formats.read`.
    """
    folder = Path(folder)
    stems = [f"n{neurons}-l{number}" for number in range(1, layers + 1)]
    suffix = (
        next((one for one in SUFFIXES if (folder / f"{stems[0]}{one}").exists()), None)
        if stems
        else None
    )
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
    """Image numbers, counted from 1, one a line: those whose last row is not all 0.

    Raises
    ------
    ValueError
        A line is no such number, or not above the one before; it is named.
    """
    found: list[int] = []
    with files.opened(path) as source:
        for start, lines in files.Text(source).blocks():
            for number, line in enumerate(lines, start + 1):
                text = line.strip()
                if not text:
                    continue
                good = text.isascii() and text.isdigit() and len(text) < 19
                if not good or int(text) <= (found[-1] if found else 0):
                    raise ValueError(
                        f"{path}, line {number}: {files.shown(line)} is no image number above the "
                        "one before"
                    )
                found.append(int(text))
    return np.array(found, np.int64)
