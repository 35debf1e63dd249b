"""A rank of `smpi-infer run`: load a part of the model, run samples, and report to rank 0.

Ranks 0 to P-1 are the parts of replica 0, the next P those of replica 1, and so on; each replica
has its share of the samples.

The rule: every rank makes the same collective calls in the same order, even if it cannot read its
own files. `agree` then ends all ranks together, so that none waits for one that has exited.

A communicator is an argument, of mpi4py or of this package, so this module runs under smpirun, on
Lambda and under mpirun. Only the counts of requests are specific to this package's channels.
"""

from __future__ import annotations

import hashlib
import io
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
from serverless_mpi.env import ENV_TERMINAL
from serverless_mpi.errors import ServerlessMPIError, UsageError
from serverless_mpi.inference import dataset, engine, files, page, records, report, sources
from serverless_mpi.inference.communicator import Communicator
from serverless_mpi.inference.options import RunOptions, SourceOptions
from serverless_mpi.launch.base import EXIT_USAGE
from serverless_mpi.sparse import serial_forward, serial_run

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Counts = dict[str, dict[str, int]]  # operation -> number by kind, as in `Meter.snapshot`
SHOWN_CATEGORIES = 8  # categories of an answer that are printed
# Errors that files and options of the user can cause. Any other is a fault of this program.
FAULTS = (ValueError, OSError, ServerlessMPIError)


@dataclass(frozen=True)
class Answer:
    """The answer to a set of images.

    Attributes
    ----------
    categories
        Numbers of the images with an active output, ascending, counted from 1 as in the challenge.
    scores
        Largest activation of each of them in the last layer.
    neurons
        Neuron with that activation; the first of several.
    top_scores, top_neurons
        (K, images of `categories`): the K largest activations and their neurons, descending, the
        first neuron of equal ones; (0, images) if they were not asked for.
    """

    categories: Indices
    scores: Floats
    neurons: Indices
    top_scores: Floats
    top_neurons: Indices

    def checksum(self) -> str:
        """Return 16 hexadecimal digits over categories, scores and neurons."""
        digest = hashlib.sha256()
        for array in (
            self.categories.astype("<i8"),
            self.scores.astype("<f4"),
            self.neurons.astype("<i8"),
        ):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """Return the answer and its checksum as JSON values."""
        facts = {
            "categories": self.categories.tolist(),
            "scores": self.scores.tolist(),
            "neurons": self.neurons.tolist(),
            "checksum": self.checksum(),
        }
        if len(self.top_scores):
            facts["top"] = {
                "neurons": self.top_neurons.T.tolist(),
                "scores": self.top_scores.T.tolist(),
            }
        return facts

    def of_all(self, images: int) -> tuple[Floats, Indices]:
        """Return the largest activations of every image, whose outputs may all be 0.

        Parameters
        ----------
        images
            Number of images.

        Returns
        -------
        scores, neurons : ndarray
            (images, K) float32 and int64.
        """
        most = len(self.top_scores)
        scores = np.zeros((images, most), np.float32)
        neurons = np.tile(np.arange(most), (images, 1))
        scores[self.categories - 1] = self.top_scores.T
        neurons[self.categories - 1] = self.top_neurons.T
        return scores, neurons


# --- running --------------------------------------------------------------------------------------


class _Requests:
    """This rank's requests by layer: those between two arrivals of batches. Thread-safe."""

    def __init__(self, layers: int) -> None:
        self.by_layer = np.zeros(layers)
        self._last = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Start counting."""
        self._last = self._now()

    def on_layer(self, layer: int) -> None:
        """Attribute the requests since the last call to the layer that a batch has completed."""
        with self._lock:
            now = self._now()
            if layer:
                self.by_layer[layer - 1] += now - self._last
            self._last = now

    @staticmethod
    def _now() -> int:
        return sum(row["requests"] for row in requests().values())


class Progress:
    """A progress bar by layers and batches.

    A rank's own output is a pipe to smpirun, so the front end passes the name of its terminal.

    Parameters
    ----------
    layers, batches
        Number of layers and of batches.
    device
        Name of the terminal; None for no bar.
    """

    STEP_S = 0.1
    WIDTH = 40

    def __init__(self, layers: int, batches: int, device: str | None) -> None:
        self._layers, self._batches = layers, batches
        self._file = open(device, "w") if device else None  # noqa: SIM115
        self._shown = 0.0
        self._done = [0] * batches

    def show(self, batch: int, layer: int) -> None:
        """Show that a batch has reached a layer.

        Parameters
        ----------
        batch, layer
            Their numbers, counted from 0.
        """
        self._done[batch] = layer
        now = time.monotonic()
        if self._file is None or now - self._shown < self.STEP_S:
            return
        self._shown = now
        layer = min(layer, self._layers - 1)
        done = sum(self._done) / (self._batches * self._layers)
        bar = "#" * int(done * self.WIDTH)
        self._file.write(
            f"\r[{bar:<{self.WIDTH}}] layer {layer + 1}/{self._layers},"
            f" batch {batch + 1}/{self._batches} "
        )
        self._file.flush()

    def close(self) -> None:
        """Erase the bar and close the terminal."""
        if self._file is not None:
            self._file.write("\r\033[K")
            self._file.close()


def agree(comm: Communicator, problem: str) -> None:
    """Exit on every rank if any of them has a problem; collective over the communicator.

    Rank 0 prints the first problem.

    Parameters
    ----------
    comm
        Communicator of all workers.
    problem
        This rank's problem; "" for none.

    Raises
    ------
    SystemExit
        Some rank has a problem; the code is EXIT_USAGE.
    """
    problems = [text for text in comm.allgather(problem) if text]
    if not problems:
        return
    if comm.rank == 0:
        print(f"smpi-infer: {problems[0]}", file=sys.stderr, flush=True)
    comm.Barrier()  # so that the message is printed before the exit of any rank ends the job
    sys.exit(EXIT_USAGE)


def answer(
    group: Communicator, model: sources.Model, y: Floats, samples: Indices, part: int, top: int = 0
) -> Answer | None:
    """Combine what the parts of a replica have computed; collective over `group`.

    Parameters
    ----------
    group
        Communicator of the replica's parts.
    model
        This rank's part of the model.
    y
        (own neurons, samples) activations of the last layer.
    samples
        Numbers of those samples, counted from 0, equal on all ranks.
    part
        This rank's part.
    top
        How many of the largest activations of each sample the answer has.

    Returns
    -------
    Answer or None
        The answer at rank 0 of `group`; None at the others.
    """
    rows = np.flatnonzero(model.last == part)
    # Largest activation of each sample among this part's neurons, and its neuron; a part without
    # neurons has -inf, so that it never wins.
    best = y.argmax(axis=0) if y.size else np.zeros(len(samples), np.int64)
    high = (
        y[best, np.arange(len(samples))] if y.size else np.full(len(samples), -np.inf, np.float32)
    )
    gathered = group.gather((high, rows[best] if len(rows) else best, largest(y, rows, top)))
    if gathered is None:
        return None
    scores, neurons = (np.stack([share[item] for share in gathered]) for item in (0, 1))
    tops = [share[2] for share in gathered]
    top_scores, top_neurons = largest(
        np.concatenate([values for values, _ in tops]),
        np.concatenate([numbers for _, numbers in tops]),
        top,
    )
    highest = scores.max(axis=0)
    # Of equal scores, the neuron with the lowest number: the result does not depend on the cut.
    first = np.where(scores == highest, neurons, np.iinfo(np.int64).max).min(axis=0)
    return Answer(
        samples + 1, highest.astype(np.float32), first.astype(np.int64), top_scores, top_neurons
    )


def largest(y: Floats, neurons: Indices, most: int) -> tuple[Floats, Indices]:
    """Return the largest activations of each sample and their neurons.

    Of equal ones those of the lowest neurons, so the result does not depend on the cut.

    Parameters
    ----------
    y
        (rows, samples) float32.
    neurons
        Neuron of each row: (rows,), ascending, or (rows, samples).
    most
        How many; fewer if there are fewer rows.

    Returns
    -------
    scores, neurons : ndarray
        (at most `most`, samples) float32 and int64, descending.
    """
    samples = y.shape[1]
    most = min(most, len(y))
    scores, numbers = np.zeros((most, samples), np.float32), np.zeros((most, samples), np.int64)
    if not most or not samples:
        return scores, numbers
    least = np.partition(y, len(y) - most, axis=0)[len(y) - most]
    for sample in range(samples):
        rows = np.flatnonzero(y[:, sample] >= least[sample])
        of_rows = neurons[rows] if neurons.ndim == 1 else neurons[rows, sample]
        order = np.lexsort((of_rows, -y[rows, sample]))[:most]
        scores[:, sample], numbers[:, sample] = y[rows[order], sample], of_rows[order]
    return scores, numbers


def joined(answers: Sequence[tuple[int, Answer]]) -> Answer:
    """Join the answers to consecutive samples.

    Parameters
    ----------
    answers
        The number of the first sample of each answer, and the answer.
    """
    return Answer(
        np.concatenate([share.categories + start for start, share in answers]),
        np.concatenate([share.scores for _, share in answers]),
        np.concatenate([share.neurons for _, share in answers]),
        np.concatenate([share.top_scores for _, share in answers], axis=1),
        np.concatenate([share.top_neurons for _, share in answers], axis=1),
    )


def requests() -> Counts:
    """Return the requests of this rank's channel so far; empty under a real MPI."""
    if job.current_spec(os.environ) is None:
        return {}
    from serverless_mpi.runtime import get_runtime  # under mpirun its import would be wasted

    return get_runtime().meter.snapshot()


@dataclass(frozen=True)
class _Task:
    """The work of a rank: its part of the model and its samples; `total` counts all replicas."""

    model: sources.Model
    x: Floats
    total: int
    replica: int
    part: int
    expected: Indices | None  # categories of --categories
    load_s: float


@dataclass(frozen=True)
class _Result:
    """What a rank has computed: `y` over `samples`; an answer if it is the first of a replica."""

    y: Floats
    samples: Indices
    answer: Answer | None
    record: records.WorkerRecord


def run(comm: Communicator, options: RunOptions) -> int:
    """Run the images of a job through the model; collective over the communicator.

    Parameters
    ----------
    comm
        Communicator of all workers.
    options
        Options of the run, equal on all ranks, with `replicas` decided.

    Returns
    -------
    int
        Exit code, equal on all ranks: 0, 1 for a wrong answer, 2 if a file cannot be written.
    """
    task = _load(comm, options)
    group = comm if options.replicas == 1 else comm.Split(task.replica, task.part)
    batches = max(1, min(options.batches or 1, task.x.shape[1]))
    result = _compute(comm, group, task, options, batches)
    workers = comm.gather(result.record)
    start, stop = sources.share(task.total, options.replicas, task.replica)
    answers = comm.gather(None if result.answer is None else (start, result.answer))
    outputs = None
    if options.check or options.whole:
        output = np.zeros((result.y.shape[0], stop - start), np.float32)
        output[:, result.samples] = result.y
        outputs = comm.gather(output)
    code = 0
    if workers is not None and answers is not None:  # at rank 0
        whole = joined([given for given in answers if given is not None])
        model, facts = _facts(comm, task, options, batches)
        record = report.priced(model, facts, workers, len(whole.categories), options.prices)
        complete = None if outputs is None else _complete(options, task, outputs)
        code = _publish(options, whole, record, task.expected, complete)
        if options.check and complete is not None:
            code = code if _matches_serial(options, task, complete) else 1
    return int(comm.bcast(code))


def _load(comm: Communicator, options: RunOptions) -> _Task:
    """Load this rank's part and samples; exit on all ranks if one of them cannot."""
    began = time.perf_counter()
    parts, remainder = divmod(comm.size, options.replicas)
    replica, part = divmod(comm.rank, max(1, parts))
    problem = ""
    try:
        if remainder or not parts:
            raise UsageError(
                f"{comm.size} ranks do not make {options.replicas} replicas of equal size"
            )
        model = sources.model(options, parts, part)
        x, total = sources.own_images(options, model, part, replica)
        expected = dataset.read_categories(options.categories) if options.categories else None
    except FAULTS as error:
        problem = str(error)
    agree(comm, problem)
    return _Task(model, x, total, replica, part, expected, time.perf_counter() - began)


def _compute(
    comm: Communicator, group: Communicator, task: _Task, options: RunOptions, batches: int
) -> _Result:
    """Run the samples through all layers, and measure it from the first layer to the answer."""
    model = task.model
    counted = _Requests(model.layers)
    terminal = os.environ.get(ENV_TERMINAL) if comm.rank == 0 else None
    bar = Progress(model.layers, batches, terminal)

    def watch(batch: int, layer: int) -> None:
        counted.on_layer(layer)
        bar.show(batch, layer)

    comm.Barrier()  # so that no rank's wait for its peers includes their loading
    before, started = requests(), time.perf_counter()
    counted.begin()
    y, samples, taken = engine.infer(
        group,
        model.own,
        task.x,
        model.bias,
        model.cap,
        batches=batches,
        accumulate=options.accumulate,
        merge=options.merge == "auto",
        watch=watch,
    )
    own_answer = answer(group, model, y, samples, task.part, options.top)
    seconds = time.perf_counter() - started
    counts = _difference(before, requests())
    bar.close()
    if comm.rank == 0 and taken.merged:
        print(
            f"{taken.merged:,} of {task.x.shape[1]:,} samples became equal to others and were "
            "merged",
            file=sys.stderr,
            flush=True,
        )
    record = records.WorkerRecord(
        rank=comm.rank,
        load_s=task.load_s,
        seconds=seconds,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        requests=counts,
        layers=records.columns(taken.layers, counted.by_layer.tolist()),
    )
    return _Result(y, samples, own_answer, record)


def _difference(before: Counts, after: Counts) -> Counts:
    return {
        name: {kind: count - before.get(name, {}).get(kind, 0) for kind, count in row.items()}
        for name, row in after.items()
    }


def _facts(
    comm: Communicator, task: _Task, options: RunOptions, batches: int
) -> tuple[records.ModelFacts, records.JobFacts]:
    model, spec = task.model, job.current_spec(os.environ)
    return records.ModelFacts(
        name=model.name,
        neurons=model.neurons,
        layers=model.layers,
        nonzeros=model.nonzeros,
        bias=model.bias,
    ), records.JobFacts(
        ranks=comm.size,
        replicas=options.replicas,
        parts=comm.size // options.replicas,
        method=model.method,
        channel=spec.channel if spec else "MPI",
        batches=batches,
        samples=task.total,
        memory_mb=options.memory or int(os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", 0)),
    )


def _publish(
    options: RunOptions,
    result: Answer,
    record: records.RunRecord,
    expected: Indices | None,
    complete: Floats | None,
) -> int:
    """Print the answer and the summary, and write the files; return the exit code."""
    model, facts = record.model, record.job
    print(
        f"{model.name} network of {model.neurons} neurons, {model.layers} layers; "
        f"{facts.samples} images"
    )
    if options.top:
        _print_top(result, facts.samples)
    first = " ".join(map(str, result.categories[:SHOWN_CATEGORIES].tolist()))
    more = " ..." if len(result.categories) > SHOWN_CATEGORIES else ""
    print(f"{len(result.categories)} images have an active output: {first}{more}")
    print(f"checksum {result.checksum()}")
    code = 0
    if expected is not None:
        # The file may be for all images: --samples runs the first ones only.
        expected = expected[expected <= facts.samples]
        same = np.array_equal(result.categories, expected)
        print(f"{options.categories}: {'the same' if same else 'DIFFERENT'} ({len(expected)})")
        code = 0 if same else 1
    sys.stdout.flush()
    print(report.summary(record), file=sys.stderr, flush=True)
    try:
        if options.output:
            images = record.job.samples
            deliver(options, options.output, rendered(options.output, result, images, complete))
        for path in options.report:
            deliver(options, path, page.rendered(path, record))
    except FAULTS as error:
        print(f"smpi-infer: {error}", file=sys.stderr, flush=True)
        code = EXIT_USAGE
    return code


def _print_top(result: Answer, images: int) -> None:
    """Print the largest activations of the first images."""
    scores, neurons = result.of_all(images)
    for image in range(min(images, SHOWN_CATEGORIES)):
        pairs = zip(neurons[image].tolist(), scores[image].tolist())
        print(
            f"image {image + 1}: " + ", ".join(f"{neuron} ({score:g})" for neuron, score in pairs)
        )
    if images > SHOWN_CATEGORIES:
        print("...")


def _complete(options: RunOptions, task: _Task, outputs: list[Floats]) -> Floats:
    """Return the output of all ranks together: (outputs, samples) float32."""
    model, parts = task.model, len(outputs) // options.replicas
    whole = np.zeros((model.outputs, task.total), np.float32)
    for rank, output in enumerate(outputs):
        replica, part = divmod(rank, parts)
        start, stop = sources.share(task.total, options.replicas, replica)
        whole[model.last == part, start:stop] = output
    return whole


def _matches_serial(options: RunOptions, task: _Task, whole: Floats) -> bool:
    """Return whether the serial kernel computes the same bits, and print the result."""
    model = task.model
    images = sources.images(options, model.neurons)
    network = sources.network(options)
    if network.endings is None:
        expected = serial_forward(list(network), images, model.bias, model.cap)
    else:
        expected = serial_run(list(network), network.endings, images)
    same = bool(np.array_equal(whole, expected))
    print(f"serial kernel: {'the same to the last bit' if same else 'DIFFERENT'}", flush=True)
    return same


def rendered(path: str, result: Answer, images: int, complete: Floats | None = None) -> bytes:
    """Return the contents of an answer's file.

    Parameters
    ----------
    path
        Its name. Its suffix stands for the format: .json; .csv for a line per image and rank of the
        largest activations; .npy for all outputs, (images, outputs) float32; any other for one
        category per line.
    result
        The answer.
    images
        Number of images.
    complete
        (outputs, images) float32, for .npy.
    """
    if path.endswith(".json"):
        return json.dumps(result.as_dict()).encode() + b"\n"
    if path.endswith(".csv"):
        scores, neurons = result.of_all(images)
        lines = ["image,rank,neuron,score"]
        for image in range(images):
            for rank, (neuron, score) in enumerate(zip(neurons[image], scores[image]), 1):
                lines.append(f"{image + 1},{rank},{neuron},{score!s}")
        return "\n".join([*lines, ""]).encode()
    if path.endswith(".npy"):
        assert complete is not None
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(complete.T))
        return file.getvalue()
    return "".join(f"{category}\n" for category in result.categories).encode()


def deliver(options: SourceOptions, path: str, data: bytes) -> None:
    """Write a file, or the object of an s3:// URL.

    Parameters
    ----------
    options
        Endpoint of s3:// URLs.
    path
        The file or URL.
    data
        Its contents.

    Raises
    ------
    OSError, ServerlessMPIError
        It cannot be written.
    """
    if path.startswith("s3://"):
        folder, _, name = path.rpartition("/")
        target = sources.opened(options, folder)
        target.put(name, [memoryview(data)])
        target.close()
    else:
        with files.replacing(path) as file:
            file.write(data)
