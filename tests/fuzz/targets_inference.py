"""Fuzz targets: untrusted files that smpi-infer reads, and the kernel's Python interface.

A target takes bytes and ends with a value or with an error that the reader documents; any other exception is a finding.
TARGETS: name -> (target, seed inputs): bytes that the reader takes, from which a fuzzer makes others.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from serverless_mpi.errors import StoreError, UsageError
from serverless_mpi.inference import codec, container, dataset, formats, records, report, serve
from serverless_mpi.inference.files import Source
from serverless_mpi.sparse import Panels, SparseRows, forward, layer, multiply

Target = Callable[[bytes], None]
NEURONS = 64
SHAPE = (6, 40)  # of activation rows
LIMIT = 64 << 20  # bytes of memory for a file's content


def rows_of_the_codec(data: bytes) -> None:
    """Activation rows; ValueError."""
    try:
        rows = codec.decode(data, SHAPE)
    except ValueError:
        return
    assert rows.shape == SHAPE and rows.dtype == np.float32


def set_of_the_codec(data: bytes) -> None:
    """A set of samples; ValueError."""
    try:
        assert codec.decode_set(data, SHAPE[1]).shape == (SHAPE[1],)
    except ValueError:
        return


def store_container(data: bytes) -> None:
    """A file of a store; StoreError.  The header's checksum is made right, or no change of a header would get any further."""
    changed = bytearray(data)
    if len(changed) >= 32:
        length = struct.unpack_from("<I", changed, 12)[0]
        digest = container._digest(bytes(changed[32 : 32 + length]))
        changed[16:32] = bytes.fromhex(digest)
    for given in (data, bytes(changed)):
        try:
            container.unpack("file", memoryview(given), "a thing")
        except StoreError:
            continue


def _images(suffix: str) -> Target:
    def target(data: bytes) -> None:
        """Images of a file; ValueError."""
        try:
            images = dataset.images_from(Source.of("file", data, LIMIT), suffix, NEURONS)
        except ValueError:
            return
        assert images.shape[0] == NEURONS and images.dtype == np.float32

    return target


def _layer_of(suffix: str) -> Target:
    def target(data: bytes) -> None:
        """Entries of a layer; ValueError."""
        try:
            entries = formats.read_from(Source.of("file", data, LIMIT), suffix, NEURONS, NEURONS)
        except ValueError:
            return
        assert len(entries.rows) == len(entries.columns) == len(entries.values)

    return target


def query(data: bytes) -> None:
    """A line of a client; UsageError."""
    try:
        serve.parse(data)
    except UsageError:
        return


def report_page(data: bytes) -> None:
    """A record as `report` reads and shows it; ValueError, KeyError, TypeError."""
    from serverless_mpi.inference import page

    try:
        record = records.RunRecord.from_json(report.json.loads(data))
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    page.html(record)
    report.text(record)


def kernel(data: bytes) -> None:
    """Calls of the kernel that the bytes choose, with matrices that may be wrong; ValueError, TypeError, MemoryError.

    It is of use only against a kernel that is built with sanitizers: `tests/kernels/sanitized.py`.
    """
    chance = np.random.default_rng(list(data) or [0])
    samples = int(chance.choice([0, 1, 5, 31, 32, 33, 64, 97]))
    threads = int(chance.integers(1, 4))
    made: list[SparseRows] = []
    for _ in range(int(chance.integers(1, 4))):
        try:
            made.append(_matrix(chance, made[-1].n_rows if made else int(chance.integers(0, 70))))
        except (ValueError, TypeError):
            continue
    if not made:
        return
    first = made[0]
    wrong = int(chance.integers(0, 12))
    x = chance.choice(
        np.array([0, -0.0, 1, -2, 1e38, 1e-40, np.nan, np.inf], np.float32),
        (first.n_cols + (wrong == 0), samples),
    )
    x = x.astype(np.float64) if wrong == 1 else np.asfortranarray(x) if wrong == 2 else x
    out = np.zeros((first.n_rows + (wrong == 3), samples), np.float32)
    counts = np.zeros(first.n_rows + (wrong == 4), np.uint32)
    calls: list[Callable[[], Any]] = [
        lambda: forward(made, x, -0.1, threads=threads),
        lambda: layer(first, x, -0.1, counts=counts, threads=threads),
        lambda: multiply(first, x, out, accumulate=bool(wrong % 2), threads=threads),
        lambda: layer(first, x, 0.5, out=out, accumulate=True, counts=counts, threads=threads),
        lambda: _panels(chance, first, x, threads),
    ]
    for call in calls:
        try:
            call()
        except (ValueError, TypeError, MemoryError):
            continue


def _matrix(chance: np.random.Generator, cols: int) -> SparseRows:
    rows = int(chance.integers(0, 70))
    most = int(chance.choice([1, 4, 8, 70])) + 1
    if chance.integers(2):
        lengths = np.full(rows, chance.integers(0, most))
    else:
        lengths = chance.integers(0, most, rows)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    indices = chance.integers(0, max(cols, 1), indptr[-1])
    if chance.integers(2):  # groups of rows with equal columns, which have a path of their own
        of = np.arange(len(indices)) % max(1, int(lengths[0]) if rows else 1)
        indices = indices[of] if len(indices) else indices
    values: Any = chance.normal(size=len(indices)).astype(np.float32)
    wrong = int(chance.integers(0, 16))
    if wrong == 0 and len(indices):
        indices[chance.integers(len(indices))] = chance.choice([-1, cols, cols + 1, 2**31, 2**62])
    elif wrong == 1:
        indptr[chance.integers(len(indptr))] = chance.choice([-1, 2**40, 2**62, -(2**63)])
    elif wrong == 2:
        values = values[:-1]
    elif wrong == 3:
        cols = int(chance.choice([-1, 0, 2**16, 2**32, 2**40]))
    elif wrong == 4:
        values = 0.25
    matrix = SparseRows(indptr, indices, values, cols)
    for array in (indptr, indices):  # what was given is changed afterwards, by who gave it
        array[:] = 1 << 62
    if chance.integers(2):
        matrix = matrix.chosen(chance.integers(0, max(1, matrix.n_rows), matrix.n_rows))
    return matrix


def _panels(chance: np.random.Generator, w: SparseRows, x: Any, threads: int) -> None:
    panels = Panels.of(x)
    y, alive = layer(w, panels, -0.1, threads=threads)
    layer(w, panels, -0.1, out=Panels(w.n_rows, panels.samples), threads=threads)
    y.take(chance.integers(-1, w.n_rows + 1, 3))
    y.keep(alive)
    y.put(y.take())


# --- seeds ------------------------------------------------------------------------------------------------------------


def _npz(compressed: bool, **arrays: Any) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def _seeds() -> dict[str, list[bytes]]:
    chance = np.random.default_rng(7)
    rows = chance.normal(size=SHAPE).astype(np.float32)
    sparse = np.where(chance.random(SHAPE) > 0.95, rows, 0).astype(np.float32)
    half = np.where(chance.random(SHAPE) > 0.5, np.float32(2), 0).astype(np.float32)
    images = (chance.random((5, NEURONS)) > 0.8).astype(np.float32)
    down, across = np.nonzero(images)
    text = "".join(f"{a + 1}\t{b + 1}\t1\n" for a, b in zip(down, across)).encode()
    banner = b"%%MatrixMarket matrix coordinate pattern general\n% by hand\n"
    market = banner + f"5 {NEURONS} {len(down)}\n".encode() + text.replace(b"\t1\n", b"\n")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(down, minlength=5))])
    csr = {"format": np.array(b"csr"), "shape": np.array(images.shape), "indptr": indptr}
    coo = {"format": np.array("coo"), "shape": np.array(images.shape), "row": down, "col": across}
    record = {
        "format": 1,
        "model": {"name": "n", "neurons": 4, "layers": 2, "nonzeros": 8, "bias": -0.3},
        "job": {
            **dict.fromkeys(("ranks", "replicas", "parts", "batches", "samples"), 1),
            **{"method": "m", "channel": "c", "memory_mb": 1},
        },
        "bill": {f"{name}_usd": 0.1 for name in (*records.SERVICES, *records.TOTALS)},
        "prices": {"dated": "d", "region": "r", "memory_mb": 1},
        "workers": [
            {
                **{"rank": 0, "load_s": 0.1, "seconds": 1.0, "peak_mb": 9},
                "requests": {"s3.GET": dict.fromkeys(records.REQUEST_COUNTS, 3)},
                "layers": {name: [1.0, 0.0] for name in records.COLUMNS},
            }
        ],
    }
    return {
        "rows": [
            codec.encode(one) for one in (rows, sparse, half, rows[[0, 1, 0, 1, 0, 1]], 0 * rows)
        ],
        "set": [codec.encode_set(rows[0] > 0), codec.encode_set(np.arange(SHAPE[1]) > 20)],
        "container": [
            b"".join(
                container.pack(
                    "a thing", {"x": 1}, {"a": np.arange(90), "b": rows, "c": np.zeros(0, np.int8)}
                )
            )
        ],
        "tsv": [text, b"1\t1\t0.5\r\n\r\n2 2 1e3\n"],
        "mtx": [market, b"%%MatrixMarket matrix coordinate real general\n64 64 1\n3 4 -1.5\n"],
        "npz": [
            _npz(True, bits=np.packbits(images > 0, axis=1)),
            _npz(False, images=images),
            _npz(True, data=images[down, across], indices=across.astype(np.int32), **csr),
            _npz(False, data=images[down, across], **coo),
        ],
        "query": [b'{"images": "a.tsv", "samples": 5}', b'{"input": "x"}', b'{"status": true}'],
        "report": [report.json.dumps(record).encode()],
        "kernel": [bytes([n]) for n in range(8)],
    }


SEEDS = _seeds()
TARGETS: dict[str, tuple[Target, list[bytes]]] = {
    "inference-codec-rows": (rows_of_the_codec, SEEDS["rows"]),
    "inference-codec-set": (set_of_the_codec, SEEDS["set"]),
    "inference-store": (store_container, SEEDS["container"]),
    "inference-images-tsv": (_images(".tsv"), SEEDS["tsv"]),
    "inference-images-mtx": (_images(".mtx"), SEEDS["mtx"]),
    "inference-images-npz": (_images(".npz"), SEEDS["npz"]),
    "inference-layer-tsv": (_layer_of(".tsv"), SEEDS["tsv"]),
    "inference-layer-mtx": (_layer_of(".mtx"), SEEDS["mtx"]),
    "inference-layer-npz": (_layer_of(".npz"), SEEDS["npz"]),
    "inference-query": (query, SEEDS["query"]),
    "inference-report": (report_page, SEEDS["report"]),
    "inference-kernel": (kernel, SEEDS["kernel"]),
}


def mutated(chance: np.random.Generator, seed: bytes) -> bytes:
    """Bytes near `seed`: some are changed, cut out, doubled, or replaced by numbers at the limits."""
    data = bytearray(seed)
    for _ in range(int(chance.integers(1, 5))):
        at = int(chance.integers(0, len(data) + 1))
        long = int(chance.integers(1, 9))
        match int(chance.integers(6)):
            case 0 if at < len(data):
                data[at] ^= int(chance.integers(1, 256))
            case 1:
                del data[at : at + long]
            case 2:
                data[at:at] = data[max(0, at - long) : at]
            case 3:
                data[at : at + 4] = struct.pack("<i", int(chance.choice([-1, 0, 2**31 - 1, 2**16])))
            case 4:
                data[at : at + long] = bytes(
                    chance.choice(list(b'0123456789-+.eE \t\n"[]{},:'), long)
                )
            case _:
                del data[at:]
    return bytes(data)


def rezipped(data: bytes) -> bytes:
    """An archive with right sums over members that are changed: it gets as far as the arrays."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(SEEDS["npz"][data[0] % 4])) as old,
        zipfile.ZipFile(file, "w") as new,
    ):
        for number, name in enumerate(old.namelist()):
            chance = np.random.default_rng([*data, number])
            content = old.read(name)
            new.writestr(name, mutated(chance, content) if chance.integers(2) else content)
    return file.getvalue()
