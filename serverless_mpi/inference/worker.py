"""What a rank of `smpi-infer run` does: it loads its part and runs its replica's samples through; rank 0 has the answer.

Ranks 0..P-1 are the parts of replica 0, the next P those of replica 1, and so on; a replica has its share of the samples.
It sees `MPI.COMM_WORLD` and nothing of where that comes from, so the same file runs under smpirun, on Lambda and under mpirun.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverless_mpi import job
from serverless_mpi.errors import ServerlessMPIError, UsageError
from serverless_mpi.inference import dataset, engine, files, report, sources
from serverless_mpi.inference.options import RunOptions
from serverless_mpi.sparse import serial_forward

Floats = NDArray[np.float32]
ENV_TERMINAL = "SMPI_INFER_TERMINAL"  # device on which rank 0 draws its progress
MEMBERS = {name: name for name in (*report.SECONDS, *report.COUNTS[:-1])} | {
    "living": "active_samples"
}  # column of a report -> field of LayerStatistics
EXIT_USAGE = 2
FAULTS = (
    ValueError,
    OSError,
    ServerlessMPIError,
)  # of what the command line names; anything else is a bug


@dataclass(frozen=True)
class Answer:
    """Of a query: samples with an active output, counted from 1 as the challenge does, ascending; of each the largest
    activation of the last layer, and the neuron that has it (the first of several)."""

    categories: NDArray[np.int64]
    scores: Floats
    neurons: NDArray[np.int64]

    def checksum(self) -> str:
        """16 hexadecimal digits over all of it."""
        whole = hashlib.sha256()
        for array in (
            self.categories.astype("<i8"),
            self.scores.astype("<f4"),
            self.neurons.astype("<i8"),
        ):
            whole.update(array.tobytes())
        return whole.hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "categories": self.categories.tolist(),
            "scores": self.scores.tolist(),
            "neurons": self.neurons.tolist(),
            "checksum": self.checksum(),
        }


# --- running ----------------------------------------------------------------------------------------------------------


class _Requests:
    """This rank's requests by layer: what was asked for until a batch came to the next layer.  Safe for threads."""

    def __init__(self, layers: int) -> None:
        self.by_layer = np.zeros(layers)
        self._last = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Count from here."""
        self._last = self._now()

    def come(self, layer: int) -> None:
        """A batch has come to `layer`."""
        with self._lock:
            now = self._now()
            if layer:
                self.by_layer[layer - 1] += now - self._last
            self._last = now

    @staticmethod
    def _now() -> int:
        return sum(row["requests"] for row in requests().values())


class Progress:
    """A bar by layers and batches, on a terminal that the front end named, or on none."""

    STEP_S = 0.1
    WIDTH = 40

    def __init__(self, layers: int, batches: int, device: str | None) -> None:
        self._layers, self._batches = layers, batches
        self._file = open(device, "w") if device else None  # noqa: SIM115
        self._shown = 0.0
        self._done = [0] * batches

    def show(self, batch: int, layer: int) -> None:
        """Layer `layer` of batch `batch` begins; both count from 0."""
        self._done[batch] = layer
        now = time.monotonic()
        if self._file is None or now - self._shown < self.STEP_S:
            return
        self._shown = now
        layer = min(layer, self._layers - 1)
        done = sum(self._done) / (self._batches * self._layers)
        bar = "#" * int(done * self.WIDTH)
        text = f"\r[{bar:<{self.WIDTH}}] layer {layer + 1}/{self._layers}, batch {batch + 1}/{self._batches} "
        self._file.write(text)
        self._file.flush()

    def close(self) -> None:
        """Wipe it away."""
        if self._file is not None:
            self._file.write("\r\033[K")
            self._file.close()


def agree(comm: Any, problem: str) -> None:
    """Every rank says what is wrong with its own; if anything is, rank 0 tells the first of them and all end."""
    found = [(rank, text) for rank, text in enumerate(comm.allgather(problem)) if text]
    if not found:
        return
    if comm.rank == 0:
        print(f"smpi-infer: {found[0][1]}", file=sys.stderr, flush=True)
    comm.Barrier()
    sys.exit(EXIT_USAGE)


def answer(
    group: Any, mine: sources.Model, y: Floats, samples: NDArray[np.int64], part: int
) -> Answer | None:
    """What a replica's parts found, put together at its rank 0; None at the others."""
    rows = np.flatnonzero(mine.last == part)
    best = y.argmax(axis=0) if y.size else np.zeros(len(samples), np.int64)
    top = y[best, np.arange(len(samples))] if y.size else np.full(len(samples), -np.inf, np.float32)
    found = group.gather((top, rows[best] if len(rows) else best))
    if found is None:
        return None
    scores, neurons = (np.stack([one[n] for one in found]) for n in (0, 1))
    highest = scores.max(axis=0)
    first = np.where(scores == highest, neurons, np.iinfo(np.int64).max).min(axis=0)
    return Answer(samples + 1, highest.astype(np.float32), first.astype(np.int64))


def joined(answers: Sequence[tuple[int, Answer]]) -> Answer:
    """Answers of (first sample, its answer) as one."""
    return Answer(
        np.concatenate([one.categories + start for start, one in answers]),
        np.concatenate([one.scores for _, one in answers]),
        np.concatenate([one.neurons for _, one in answers]),
    )


def requests() -> dict[str, dict[str, int]]:
    """What this rank's channel has asked for so far; nothing under a real MPI."""
    if job.current_spec(os.environ) is None:
        return {}
    from serverless_mpi.runtime import get_runtime

    return get_runtime().meter.snapshot()


def run(comm: Any, options: RunOptions) -> int:
    """Run a job's images through the model; returns the exit code, on every rank the same."""
    began = time.perf_counter()
    parts, left = divmod(comm.size, options.replicas)
    replica, part = divmod(comm.rank, max(1, parts))
    problem = ""
    try:
        if left or not parts:
            raise UsageError(f"{comm.size} ranks are not {options.replicas} replicas of equal size")
        mine = sources.model(options, parts, part)
        x, total = sources.own_images(options, mine, part, replica)
        wanted = dataset.read_categories(options.categories) if options.categories else None
    except FAULTS as error:
        problem = str(error)
    agree(comm, problem)
    group = comm if options.replicas == 1 else comm.Split(replica, part)
    loaded = time.perf_counter() - began

    batches = max(1, min(options.batches or 1, x.shape[1]))
    counted = _Requests(mine.layers)
    bar = Progress(mine.layers, batches, os.environ.get(ENV_TERMINAL) if comm.rank == 0 else None)

    def watch(batch: int, layer: int) -> None:
        counted.come(layer)
        bar.show(batch, layer)

    comm.Barrier()
    before, started = requests(), time.perf_counter()
    counted.begin()
    y, samples, taken = engine.infer(
        group,
        mine.own,
        x,
        mine.bias,
        mine.cap,
        batches=batches,
        accumulate=options.accumulate,
        watch=watch,
    )
    layers = np.array(
        [[getattr(layer, name) for layer in taken.layers] for name in MEMBERS.values()]
    )
    own_answer = answer(group, mine, y, samples, part)
    seconds = time.perf_counter() - started
    after = requests()
    bar.close()

    record = _record(
        comm,
        mine,
        options,
        total,
        batches,
        np.vstack([layers, counted.by_layer]),
        (loaded, seconds),
        _difference(before, after),
    )
    start, stop = sources.share(total, options.replicas, replica)
    found = comm.gather(None if own_answer is None else (start, own_answer))
    whole = None
    if options.check:
        output = np.zeros((y.shape[0], stop - start), np.float32)
        output[:, samples] = y
        whole = comm.gather(output)
    code = 0
    if found is not None:
        result = joined([one for one in found if one is not None])
        record["categories"] = len(result.categories)
        code = _tell(options, result, record, wanted)
        if whole is not None and not _same(options, mine, whole, total):
            code = 1
    return int(comm.bcast(code))


def _difference(
    before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]
) -> dict[str, dict[str, int]]:
    return {
        name: {field: count - before.get(name, {}).get(field, 0) for field, count in row.items()}
        for name, row in after.items()
    }


def _record(
    comm: Any,
    mine: sources.Model,
    options: RunOptions,
    total: int,
    batches: int,
    layers: NDArray[np.float64],
    seconds: tuple[float, float],
    asked: dict[str, dict[str, int]],
) -> dict[str, Any]:
    """What the run took, as `report` reads it; {} but at rank 0."""
    own = {
        "rank": comm.rank,
        "load_s": seconds[0],
        "seconds": seconds[1],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "requests": asked,
        "layers": {
            name: row.tolist() for name, row in zip((*MEMBERS, "requests"), layers, strict=True)
        },
    }
    workers = comm.gather(own)
    if workers is None:
        return {}
    spec = job.current_spec(os.environ)
    return {
        "format": 1,
        "model": {
            "name": mine.name,
            "neurons": mine.neurons,
            "layers": mine.layers,
            "nonzeros": mine.nonzeros,
            "bias": mine.bias,
        },
        "job": {
            "ranks": comm.size,
            "replicas": options.replicas,
            "parts": comm.size // options.replicas,
            "method": mine.method,
            "channel": spec.channel if spec else "MPI",
            "batches": batches,
            "samples": total,
            "memory_mb": options.memory
            or int(os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", 0)),
        },
        "workers": workers,
    }


def _tell(
    options: RunOptions, result: Answer, record: dict[str, Any], wanted: NDArray[np.int64] | None
) -> int:
    record = report.priced(record, options.prices)
    facts, net = record["job"], record["model"]
    print(
        f"{net['name']} network of {net['neurons']} neurons, {net['layers']} layers; {facts['samples']} images"
    )
    shown = " ".join(map(str, result.categories[:8].tolist()))
    print(
        f"{len(result.categories)} images have an active output: {shown}{' ...' if len(result.categories) > 8 else ''}"
    )
    print(f"checksum {result.checksum()}")
    code = 0
    if wanted is not None:
        wanted = wanted[wanted <= facts["samples"]]
        same = np.array_equal(result.categories, wanted)
        print(f"{options.categories}: {'the same' if same else 'DIFFERENT'} ({len(wanted)})")
        code = 0 if same else 1
    sys.stdout.flush()
    print(report.summary(record), file=sys.stderr, flush=True)
    try:
        if options.output:
            deliver(options, options.output, rendered(options.output, result))
        for path in options.report:
            deliver(options, path, report.rendered(path, record))
    except FAULTS as error:
        print(f"smpi-infer: {error}", file=sys.stderr, flush=True)
        code = EXIT_USAGE
    return code


def _same(options: RunOptions, mine: sources.Model, outputs: list[Floats], total: int) -> bool:
    """Whether the serial kernel gives the same bits; says so."""
    parts = len(outputs) // options.replicas
    whole = np.zeros((mine.neurons, total), np.float32)
    for rank, own in enumerate(outputs):
        replica, part = divmod(rank, parts)
        start, stop = sources.share(total, options.replicas, replica)
        whole[mine.last == part, start:stop] = own
    right = serial_forward(
        list(sources.network(options)), sources.images(options, mine.neurons), mine.bias, mine.cap
    )
    same = bool(np.array_equal(whole, right))
    print(f"serial kernel: {'the same to the last bit' if same else 'DIFFERENT'}", flush=True)
    return same


def rendered(path: str, result: Answer) -> bytes:
    """An answer as a file of that name has it: JSON, or else categories, one a line."""
    if path.endswith(".json"):
        return json.dumps({key: value for key, value in result.as_dict().items()}).encode() + b"\n"
    return "".join(f"{one}\n" for one in result.categories).encode()


def deliver(options: RunOptions, path: str, data: bytes) -> None:
    """Write a file, or an object of an s3:// URL."""
    if path.startswith("s3://"):
        folder, _, name = path.rpartition("/")
        place = sources.opened(options, folder)
        place.put(name, [memoryview(data)])
        place.close()
    else:
        with files.replacing(path) as file:
            file.write(data)
