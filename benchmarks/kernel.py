"""The kernel compared with its peers and with the core's limit, in 10^9 edges per second.

Edges are samples x nonzeros of all layers.

    python -m benchmarks.kernel                 every size, every peer that is installed; some minutes
    python -m benchmarks.kernel 1024 4096       those sizes alone

One core each, the same images, median of 5; it is an error if the samples that stay active differ. A
run of more than SLOW_S is not repeated. Peers prune inactive samples after every layer, as the
kernel does. Images: ../shared/data, enlarged to the size of the network.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.table import Row, render, spread

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT.parent / "shared" / "data" / "graphchallenge_images_1024_first10k.npz"
SAMPLES = {1024: 10000, 4096: 10000, 16384: 4000, 65536: 500}
LAYERS = {
    1024: 120,
    4096: 120,
    16384: 120,
    65536: 24,
}  # of 65536 as many as fit a small machine's memory
TARGETS = {
    1024: (500, 750),
    4096: (400, 600),
    16384: (350, 520),
}  # stored values; elided and relabelled
RANDOM = (
    4096,
    24,
    2048,
    -0.02,
)  # neurons, layers, samples, bias of the network that does not saturate
PEERS_AT = {1024, 4096, 16384}
REPEAT = 5
SLOW_S = 5.0
ROOFLINE_FLAGS = {  # of the kernel's paths
    "avx512": ["-mavx512f", "-mfma", "-DLANES=16"],
    "avx2": ["-mavx2", "-mfma", "-DLANES=8"],
    "neon": [],
    "plain": [],
}
ONE_CORE = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "SMPI_THREADS",
    )
}
Floats = NDArray[np.float32]
Answer = tuple[Any, NDArray[np.int64]]  # what is left of the activations, and of which samples
Peer = Callable[[Any, Floats, float], Answer]


# -- peers: make(layers) prepares what is not timed and returns the call that is


def _dense(
    multiply: Callable[[Any, Floats], Floats], prepared: list[Any]
) -> Callable[[Floats, float], Answer]:
    """Sparse times dense, then bias, ReLU and cap in place, then the dead samples go."""

    def run(x: Floats, bias: float) -> Answer:
        living = np.arange(x.shape[1])
        for w in prepared:
            z = multiply(w, x)
            np.add(z, np.float32(bias), out=z, where=z != 0)
            np.clip(z, 0, 32, out=z)
            alive = z.any(axis=0)
            if not alive.all():
                z, living = np.ascontiguousarray(z[:, alive]), living[alive]
            x = z
        return x, living

    return run


def scipy_dense(layers: list[Any]) -> Callable[[Floats, float], Answer]:
    return _dense(lambda w, x: w @ x, [_csr(one) for one in layers])


def scipy_sparse(layers: list[Any]) -> Callable[[Floats, float], Answer]:
    """CSR x CSR, what FSD-Inference runs: samples x neurons, sparse all the way."""
    from scipy import sparse

    prepared = [_csr(one).T.tocsr() for one in layers]

    def run(x: Floats, bias: float) -> Answer:
        y = sparse.csr_matrix(x.T)
        living = np.arange(x.shape[1])
        for w in prepared:
            y = y @ w
            y.data += np.float32(bias)
            np.clip(y.data, 0, 32, out=y.data)
            y.eliminate_zeros()
            alive = np.diff(y.indptr) > 0
            if not alive.all():
                y, living = y[alive], living[alive]
        return y, living

    return run


def mkl(layers: list[Any]) -> Callable[[Floats, float], Answer]:
    found = sorted(glob.glob(str(Path(sys.prefix) / "lib" / "libmkl_rt.so*")))
    if found:
        os.environ.setdefault("MKL_RT", found[0])
    from sparse_dot_mkl import dot_product_mkl

    return _dense(dot_product_mkl, [_csr(one) for one in layers])


def torch(layers: list[Any]) -> Callable[[Floats, float], Answer]:
    import warnings

    import torch as t

    warnings.simplefilter("ignore")  # CSR is "in beta"
    t.set_num_threads(1)
    prepared = [
        t.sparse_csr_tensor(
            t.from_numpy(w.indptr), t.from_numpy(w.indices), t.from_numpy(w.data), size=w.shape
        )
        for w in (_csr(one) for one in layers)
    ]

    def run(x: Floats, bias: float) -> Answer:
        y = t.from_numpy(x)
        living = t.arange(y.shape[1])
        for w in prepared:
            z = w @ y
            z = t.where(z != 0, z + bias, z).clamp_(0, 32)
            alive = z.any(dim=0)
            if not bool(alive.all()):
                z, living = z[:, alive], living[alive]
            y = z
        return y.numpy(), living.numpy()

    return run


def graphblas(layers: list[Any]) -> Callable[[Floats, float], Answer]:
    import graphblas as gb

    gb.ss.config["nthreads"] = 1
    prepared = [gb.io.from_scipy_sparse(_csr(one).T.tocsr()) for one in layers]

    def run(x: Floats, bias: float) -> Answer:
        y = gb.io.from_scipy_sparse(_sparse(x.T))
        for w in prepared:
            y = y.mxm(w, gb.semiring.plus_times["FP32"]).new()
            y = y.apply(gb.binary.plus["FP32"], right=bias).new()
            y = gb.select.valuegt(
                y, 0
            ).new()  # a sample without entries costs nothing: its row is empty
            y = y.apply(gb.binary.min["FP32"], right=32.0).new()
        return y, np.sort(y.reduce_rowwise(gb.monoid.max).new().to_coo(values=False)[0]).astype(
            np.int64
        )

    return run


def numba(layers: list[Any]) -> Callable[[Floats, float], Answer]:
    """The kernel's idea in numba: panels of 32, sums in a local array, dead samples moved out
    between layers.
    """
    from numba import njit

    @njit(fastmath=True, cache=False)  # type: ignore[untyped-decorator]
    def multiply(indptr: Any, indices: Any, values: Any, x: Any, y: Any, bias: Any) -> None:
        for panel in range(x.shape[0]):
            for row in range(len(indptr) - 1):
                sums = np.zeros(32, np.float32)
                for entry in range(indptr[row], indptr[row + 1]):
                    value = values[entry]
                    column = x[panel, indices[entry]]
                    for s in range(32):
                        sums[s] += value * column[s]
                for s in range(32):
                    z = sums[s] + bias if sums[s] != 0 else np.float32(0)
                    y[panel, row, s] = min(max(z, np.float32(0)), np.float32(32))

    def panels(x: Floats) -> Floats:
        padded = np.zeros((x.shape[0], -(-x.shape[1] // 32) * 32), np.float32)
        padded[:, : x.shape[1]] = x
        return np.ascontiguousarray(padded.reshape(x.shape[0], -1, 32).transpose(1, 0, 2))

    def run(x: Floats, bias: float) -> Answer:
        living = np.arange(x.shape[1])
        now = panels(x)
        for w in layers:
            y = np.empty((now.shape[0], w.n_rows, 32), np.float32)
            multiply(w.indptr, w.indices, w.values, now, y, np.float32(bias))
            alive = y.any(axis=1).reshape(-1)[: len(living)]
            count = int(alive.sum())
            if count <= len(living) - 16 or count == 0:  # fewer would not save a panel's worth
                kept = np.flatnonzero(alive)
                y = panels(y[kept // 32, :, kept % 32].T)
                living = living[kept]
            now = y
        last = now.any(axis=1).reshape(-1)[: len(living)]
        return now, living[last]

    return run


PEERS: dict[str, Callable[[list[Any]], Callable[[Floats, float], Answer]]] = {
    "scipy CSR x CSR": scipy_sparse,
    "scipy CSR x dense": scipy_dense,
    "MKL": mkl,
    "GraphBLAS": graphblas,
    "torch CSR": torch,
    "numba": numba,
}


def _csr(one: Any) -> Any:
    from scipy import sparse

    return sparse.csr_matrix(
        (one.all_values(), one.indices.astype(np.int32), one.indptr.astype(np.int32)),
        (one.n_rows, one.n_cols),
    )


def _sparse(x: Floats) -> Any:
    from scipy import sparse

    return sparse.csr_matrix(x)


# -- measuring


def images(neurons: int) -> Floats:
    """(neurons, samples): the challenge's images, each point enlarged to a square."""
    from serverless_mpi.inference import dataset

    count = SAMPLES[neurons]
    small = dataset.read_images(IMAGES, 1024, count) if IMAGES.exists() else dataset.digits(1024)
    return dataset.enlarged(small, neurons)


def timed(call: Callable[[], Any], repeat: int = REPEAT) -> tuple[list[float], Any]:
    taken: list[float] = []
    while len(taken) < repeat and not (taken and taken[-1] > SLOW_S):
        start = time.perf_counter()
        answer = call()
        taken.append(time.perf_counter() - start)
    return taken, answer


def stored(layers: list[Any]) -> list[Any]:
    from serverless_mpi.sparse import SparseRows

    return [
        SparseRows.stored(one.indptr, one.indices, one.all_values(), one.n_cols) for one in layers
    ]


def roofline() -> dict[str, float]:
    """10^9 numbers a second: multiply-adds, and loads from each cache; {} without a compiler."""
    from serverless_mpi import sparse

    compiler, flags = shutil.which("cc"), ROOFLINE_FLAGS[sparse.path()]
    if compiler is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "roofline")
        source = str(Path(__file__).with_name("roofline.c"))
        subprocess.run(
            [compiler, "-O3", "-ffp-contract=fast", *flags, source, "-o", program], check=True
        )
        done = subprocess.run([program], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def measure(sizes: list[int]) -> Iterator[Row]:
    """Every row, as it is measured; this process is one core's."""
    roof = roofline()
    for name, told in (
        ("fma", "multiply-adds"),
        ("l1", "loads, first cache"),
        ("l2", "loads, second cache"),
        ("l3", "loads, third"),
    ):
        if roof:
            yield Row(f"this core at most: {told}", roof[name], "G/s")
    for neurons in sizes:
        yield from network(neurons, roof)
    yield from unsaturated(roof)
    yield from distributed()
    yield from overhead()


def network(neurons: int, roof: dict[str, float]) -> Iterator[Row]:
    from serverless_mpi import sparse
    from serverless_mpi.inference import networks

    x, bias = images(neurons), networks.BIAS[neurons]
    elided = networks.radixnet(neurons, LAYERS[neurons])
    edges = x.shape[1] * sum(one.nnz for one in elided) / 1e9
    name = f"RadiX-Net {neurons}"
    full = stored(elided)
    forms = {
        "stored": full,
        "stored, relabelled": sparse.relabelled(full),
        "elided": elided,
        "elided, relabelled": sparse.relabelled(elided),
    }
    survivors, alive = expected(elided, x, bias)
    best = 0.0
    if neurons in PEERS_AT:
        for peer, make in PEERS.items():
            if peer in ("scipy CSR x CSR", "GraphBLAS") and neurons > 1024:
                continue  # minutes a run, and far behind
            try:
                run = make(full)
            except ImportError:
                continue
            run(np.ascontiguousarray(x[:, :64]), bias)  # compiles, warms
            taken, (_, living) = timed(lambda run=run: run(x, bias))  # type: ignore[misc]
            assert (living == survivors).all(), f"{peer} has other survivors"
            rate = edges / statistics.median(taken)
            best = max(best, rate)
            yield Row(f"{name}, peer {peer}", rate, "Gedge/s", spread=spread(taken))
    targets = dict(zip(("stored, relabelled", "elided, relabelled"), TARGETS.get(neurons, ())))
    for form, layers in forms.items():
        taken, (_, living) = timed(lambda layers=layers: sparse.forward(layers, x, bias, threads=1))  # type: ignore[misc]
        assert (living == survivors).all(), f"{form} has other survivors"
        middle = statistics.median(taken)
        rate, target = edges / middle, targets.get(form)
        part = f"; {edges * alive / middle / roof['fma']:.0%} of multiply-adds" if roof else ""
        yield Row(
            f"{name}, {form}",
            rate,
            "Gedge/s",
            rate / best if best else None,
            spread(taken) + part,
            f">= {target}" if target else "",
            rate >= target if target else None,
        )
        if form == "stored, relabelled" and best:
            yield Row(
                f"{name}, {form} / best peer", rate / best, "x", target=">= 3", met=rate / best >= 3
            )
    if (os.cpu_count() or 1) > 1:
        one, two = [], []
        for _ in range(REPEAT):
            one += timed(
                lambda: sparse.forward(forms["elided, relabelled"], x, bias, threads=1), 1
            )[0]
            two += timed(
                lambda: sparse.forward(forms["elided, relabelled"], x, bias, threads=2), 1
            )[0]
        gain = statistics.median(one) / statistics.median(two)
        yield Row(
            f"{name}, two threads / one",
            gain,
            "x",
            spread=spread(two),
            target=">= 1.8",
            met=gain >= 1.8,
        )
    merged = sparse.merged(elided)
    taken, (_, living) = timed(lambda: sparse.forward(merged, x, bias, threads=1))
    assert (living == survivors).all()
    yield Row(
        f"{name}, equal rows merged (apart: the network's peculiarity)",
        edges / statistics.median(taken),
        "Gedge/s",
    )


def expected(layers: list[Any], x: Floats, bias: float) -> tuple[NDArray[np.int64], float]:
    """(survivors, part of the samples that live, over all layers), layer by layer."""
    from serverless_mpi import sparse

    living, alive, y = np.arange(x.shape[1]), 0, x
    for one in layers:
        alive += len(living)
        y, flags = sparse.layer(one, y, bias)
        if not flags.all():
            y, living = np.ascontiguousarray(y[:, flags]), living[flags]
    return living, alive / len(layers) / x.shape[1]


def unsaturated(roof: dict[str, float]) -> Iterator[Row]:
    """A network of random weights and columns: nothing dies, no rows share anything."""
    from serverless_mpi import sparse
    from serverless_mpi.inference import networks

    neurons, depth, samples, bias = RANDOM
    layers = networks.randomnet(neurons, depth, seed=1)
    x = (np.random.default_rng(1).random((neurons, samples)) > 0.7).astype(np.float32)
    edges = samples * sum(one.nnz for one in layers) / 1e9
    best = 0.0
    for peer in ("scipy CSR x dense", "MKL", "torch CSR", "numba"):
        try:
            run = PEERS[peer](layers)
        except ImportError:
            continue
        run(np.ascontiguousarray(x[:, :64]), bias)
        rate = edges / statistics.median(timed(lambda run=run: run(x, bias))[0])  # type: ignore[misc]
        best = max(best, rate)
        yield Row(f"random net {neurons}, peer {peer}", rate, "Gedge/s")
    taken, _ = timed(lambda: sparse.forward(layers, x, bias, threads=1))
    rate = edges / statistics.median(taken)
    part = f"; {rate / roof['l2']:.0%} of second cache's loads" if roof else ""
    yield Row(
        f"random net {neurons}, kernel / best peer",
        rate,
        "Gedge/s",
        rate / best if best else None,
        spread(taken) + part,
    )


def distributed() -> Iterator[Row]:
    """A ninth of each layer's rows: all columns at once, and as a row block and eight parts that
    arrive one by one.
    """
    from serverless_mpi import sparse
    from serverless_mpi.inference import networks
    from serverless_mpi.sparse import Panels, SparseRows

    neurons, samples, parts = 4096, 320, 9
    bounds = [neurons * k // parts for k in range(parts + 1)]
    blocks = [one.rows(0, bounds[1]) for one in networks.radixnet(neurons, 10)]

    def columns(w: SparseRows, start: int, stop: int) -> SparseRows:
        here = (w.indices >= start) & (w.indices < stop)
        indptr = np.concatenate([[0], np.cumsum(here)])[w.indptr]
        return SparseRows(
            indptr, w.indices[here].astype(np.int64) - start, w.all_values()[here], stop - start
        )

    x = np.random.default_rng(2).random((neurons, samples)).astype(np.float32)
    whole, y = Panels.of(x), Panels(bounds[1], samples)
    cut = list(zip(bounds, bounds[1:]))
    pieces = [Panels.of(np.ascontiguousarray(x[a:b])) for a, b in cut]
    divided = [[columns(w, a, b) for a, b in cut] for w in blocks]

    def serial() -> None:
        for w in blocks:
            sparse.layer(w, whole, -0.3, out=y, threads=1)

    def accumulating() -> None:
        for ws in divided:
            for k, w in enumerate(ws[:-1]):
                sparse.multiply(w, pieces[k], y, k > 0, 1)
            sparse.layer(ws[-1], pieces[-1], -0.3, out=y, accumulate=True, threads=1)

    def arriving() -> None:
        for w in blocks:
            for (a, b), piece in zip(cut, pieces):
                whole.data[:, a:b] = piece.data
            sparse.layer(w, whole, -0.3, out=y, threads=1)

    took: dict[str, list[float]] = {"serial": [], "accumulating": [], "arriving": []}
    for _ in range(REPEAT):
        for one in (serial, accumulating, arriving):
            took[one.__name__] += timed(one, 1)[0]
    base = statistics.median(took["serial"])
    put = statistics.median(took["arriving"]) / base
    yield Row(
        "row block + 8 parts, copied into their place, one call / serial",
        put,
        "x",
        target="<= 1.25",
        met=put <= 1.25,
    )
    each = statistics.median(took["accumulating"]) / base
    yield Row(
        "row block + 8 parts, accumulated one by one / serial",
        each,
        "x",
        target="<= 1.25",
        met=each <= 1.25,
    )


def overhead() -> Iterator[Row]:
    """What a call from Python costs beside the same call of the C function."""
    from serverless_mpi._spdnn import ffi, lib

    from serverless_mpi import sparse
    from serverless_mpi.sparse import Panels, SparseRows

    w = SparseRows([0, 1], [0], 1.0, 1)
    x, y = Panels(1, 1), Panels(1, 1)
    step = ffi.new("spdnn_step *", (0, 1, -0.1, 32.0))

    def each(call: Callable[[], Any]) -> float:
        return min(timed(lambda: [call() for _ in range(5000)])[0]) / 5000 * 1e6

    bare = each(lambda: lib.spdnn_panels(w.c, x.c, 1, y.c, step, ffi.NULL, ffi.NULL, 1))
    extra = each(lambda: sparse.layer(w, x, -0.1, out=y, threads=1)) - bare
    yield Row("a call from Python beyond the kernel", extra, "us", target="<= 5", met=extra <= 5)


def run(sizes: list[int] | None = None) -> list[Row]:
    """Measured in a process of its own, whose libraries are told to take one core."""
    words = [sys.executable, "-m", "benchmarks.kernel", "--rows", *map(str, sizes or SAMPLES)]
    done = subprocess.run(
        words,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **ONE_CORE},
        check=True,
    )
    return [Row(**json.loads(line)) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rows"]:
        for row in measure([int(word) for word in sys.argv[2:]]):
            print(json.dumps(vars(row)), flush=True)
    else:
        print(render(run([int(word) for word in sys.argv[1:]])))
