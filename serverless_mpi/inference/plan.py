"""Forecasts: seconds and dollars of every deployment, before anything runs.

A deployment is a grid of R replicas x P parts: each replica holds the whole network, in P parts by
rows, and has 1/R of the samples. So 1 x 1 is serial, R x 1 data-parallel, 1 x P row-partitioned.
`predict` has the rules, `Platform` the figures that it uses; `advice` surveys the deployments and
names the best.

Times and limits of AWS are those of `aws/limits.py`, or measured ones; here are only figures of
this package's workers. `uncertainty.py` forecasts with the ends of the ranges of those figures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import ceil, exp, inf

import numpy as np
from numpy.typing import NDArray

from serverless_mpi import channels
from serverless_mpi.aws import limits, sns
from serverless_mpi.aws.limits import Figures
from serverless_mpi.channels.base import Channel, CostParameters
from serverless_mpi.channels.object import ObjectChannel
from serverless_mpi.channels.queue import MAX_FRAME_BYTES
from serverless_mpi.errors import UsageError
from serverless_mpi.inference.cost import Bill, BilledModel, Use
from serverless_mpi.inference.networks import COPIES, DEGREE
from serverless_mpi.launch import tree
from serverless_mpi.metering import BILLED_CHUNK_BYTES, Meter, Prices

Floats = NDArray[np.float64]
MB = 1 << 20
VCPU_MB = limits.LAMBDA_VCPU_MB.value
# MB; from one vCPU on whole vCPUs
MEMORY_SIZES = (512, 1024, VCPU_MB, 2 * VCPU_MB, 3 * VCPU_MB, limits.LAMBDA_MOST_MB.value)
PANELS = (
    3  # of activations that a worker holds: its own rows, those of its peers, and the next layer's
)
LEAST_BATCH = 32  # samples; the kernel's panel

# Of a vCPU, for what is not the kernel in a layer of a batch: Python, panels, codec; measured
LAYER_S = 1e-3
# How the answer to the challenge's images thins out: the part of the samples that lives before each
# layer, measured on its first 10,000 images at N = 1024; larger nets lose theirs a little sooner.
# The last figure holds from there on.
RADIX_LIVING = (1.0, 0.92, 0.68, 0.4, 0.22, 0.13, 0.08, 0.055, 0.045, 0.04, 0.037)
RADIX_WIRE_BYTES = 0.03  # of a living sample's activation, coded: most are equal
RANDOM_WIRE_BYTES = 1.8  # half of them are not 0, and no two alike
# Rows that a hypergraph partition sends, of those that a random one would; the published partition
# of N = 1024 over 8 workers sends 3,739 a layer, where chance has 7,037.
LOCALITY = 0.53

# Measured on the emulator with 8 workers, 7 frames to each in a layer:
FRAMES_PER_POLL = 7.0  # of a receive; it may have 10
POLLS_PER_LAYER = 0.15  # that came back empty
GETS_PER_OBJECT = 1.02  # GETs until the object is there
FRAME_BYTES = 80  # of a frame's header
AT_ONCE = 8  # requests of a worker at the same time


@dataclass(frozen=True)
class Work:
    """What is to be computed.

    Attributes
    ----------
    neurons, layers, samples
        Size of the model and of the run.
    nonzeros, weight_bytes
        Of all layers together as stored, duplicate rows once.
    living
        Share of the samples that are active before each layer; the last value holds from there on.
    wire_bytes
        Bytes on the wire per activation of an active sample.
    duplicates
        Copies of each distinct row, which are computed and sent once.
    rows
        Number of parts -> rows sent per layer by all workers together, where a partition is known.
    """

    neurons: int
    layers: int
    samples: int
    nonzeros: int
    weight_bytes: int
    living: Sequence[float] = (1.0,)
    wire_bytes: float = 4.0
    duplicates: int = 1
    rows: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def radix(cls, neurons: int, layers: int, samples: int) -> Work:
        """Return the work of the challenge's network on images like its own.

        It has 32 inputs per neuron, equal weights, and 16 copies of each row.

        Parameters
        ----------
        neurons, layers, samples
            Size of the network, and number of images.
        """
        rows = layers * neurons // COPIES
        return cls(
            neurons,
            layers,
            samples,
            DEGREE * rows,
            rows * (DEGREE * 2 + 8),
            RADIX_LIVING,
            RADIX_WIRE_BYTES,
            COPIES,
        )

    @classmethod
    def random(cls, neurons: int, layers: int, samples: int) -> Work:
        """Return the work of a random network: distinct weights, and samples that all stay
        active.

        Parameters
        ----------
        neurons, layers, samples
            Size of the network, and number of images.
        """
        rows = layers * neurons
        return cls(
            neurons,
            layers,
            samples,
            DEGREE * rows,
            rows * (DEGREE * 6 + 8),
            (1.0,),
            RANDOM_WIRE_BYTES,
        )

    def active(self) -> Floats:
        """Return the share of the samples that are active before each layer: (layers,)."""
        known = np.asarray(self.living[: self.layers], float)
        return np.concatenate([known, np.full(self.layers - len(known), known[-1])])

    def columns(self, parts: int) -> float:
        """Return the distinct input rows that one of `parts` reads in a layer, if inputs are
        random.

        Parameters
        ----------
        parts
            Number of parts of the network.
        """
        distinct = self.neurons / self.duplicates
        inputs = self.nonzeros / self.layers / distinct / self.duplicates  # of a row
        return distinct * (1 - exp(-inputs / parts))

    def received(self, parts: int) -> float:
        """Return the rows that a worker receives in a layer, on average.

        Parameters
        ----------
        parts
            Number of parts of the network.
        """
        if parts in self.rows:
            return self.rows[parts] / parts
        return LOCALITY * self.columns(parts) * (1 - 1 / parts)


@dataclass(frozen=True)
class Platform:
    """Where workers run, and what that costs in time.

    Attributes
    ----------
    name, channels
        The platform, and the cost parameters of its channels.
    store_latency_s
        Seconds until one small object of the store is there.
    start_s, call_s
        Seconds from an invocation to a worker's first statement; of the call that invokes it.
    load_Bps
        Bytes per second from the store into a worker.
    edges_s
        Nonzeros x active samples per second of one vCPU.
    memory_sizes
        MiB that a worker can have.
    mb_per_vcpu
        MiB that come with a vCPU; 0 where workers share `cores`.
    figures
        The figures of AWS from which the platform was made (`place`).
    base_mb
        MiB of a worker without a model.
    limit_s
        Longest run of a worker in seconds.
    """

    name: str
    channels: Mapping[str, CostParameters]
    store_latency_s: float
    start_s: float
    call_s: float
    load_Bps: float
    edges_s: float
    memory_sizes: Sequence[int] = MEMORY_SIZES
    mb_per_vcpu: float = VCPU_MB
    cores: int = 1
    base_mb: float = 70.0
    limit_s: float = inf
    figures: Figures = limits.AWS

    def vcpus(self, memory_mb: float, workers: int) -> float:
        """Return the vCPUs of one of `workers` workers of that memory.

        Parameters
        ----------
        memory_mb
            Memory of a worker in MiB.
        workers
            Workers that share a machine, where the platform has one machine.
        """
        return memory_mb / self.mb_per_vcpu if self.mb_per_vcpu else min(1.0, self.cores / workers)

    def start_of(self, memory_mb: float) -> float:
        """Return the seconds of a start with that memory, as the nearest measured size had them.

        Parameters
        ----------
        memory_mb
            Memory of a worker in MiB.
        """
        starts = self.figures.starts
        if not starts or not self.mb_per_vcpu:
            return self.start_s
        nearest = min(starts, key=lambda size: (abs(size - memory_mb), size))
        return self.start_s * starts[nearest][0] / starts[min(starts)][0]


def predictable(channel: str) -> bool:
    """Return whether the figures of a channel hold before a job has begun.

    Parameters
    ----------
    channel
        Its name.
    """
    return channels.load(channel).predictable


def place(name: str, figures: Figures = limits.AWS) -> Platform:
    """Return a platform: lambda, with AWS's figures; or local, this machine with the emulator's.

    Parameters
    ----------
    name
        "lambda" or "local".
    figures
        Figures of AWS, perhaps measured; of these, `local` has the kernel's speed.

    Raises
    ------
    UsageError
        There is no such platform.
    """
    if name not in ("lambda", "local"):
        raise UsageError(f"no platform {name!r}; known: lambda, local")
    aws, prices = name == "lambda", Prices.load()
    kinds = {known: channels.load(known) for known in channels.CHANNELS}

    def cost(kind: type[Channel]) -> CostParameters:
        return kind.cost_by(figures, prices) if aws else kind.cost(aws=False, prices=prices)

    costs = {
        known: cost(kind)
        for known, kind in kinds.items()
        if channels.works_on(kind, name) and not kind.one_process
    }
    edges_s = figures.kernel_per_s.value
    if aws:
        return Platform(
            name,
            costs,
            cost(ObjectChannel).latency_s,
            start_s=figures.cold_start_s.value,
            call_s=figures.invoke_s.value,
            load_Bps=min(AT_ONCE * figures.s3_Bps.value, figures.network_Bps.value),
            edges_s=edges_s,
            limit_s=limits.LAMBDA_TIME_S.value,
            figures=figures,
        )
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MB
    return Platform(
        name,
        costs,
        cost(ObjectChannel).latency_s,
        start_s=0.3,
        call_s=0.01,
        load_Bps=5e8,
        edges_s=edges_s,
        memory_sizes=(memory,),
        mb_per_vcpu=0.0,
        cores=cores,
        figures=figures,
    )


@dataclass(frozen=True)
class Deployment:
    """A grid of workers: replicas x parts, their channel (None for one part), MiB of each."""

    replicas: int
    parts: int
    channel: str | None
    memory_mb: int

    @property
    def workers(self) -> int:
        """Number of workers."""
        return self.replicas * self.parts

    @property
    def name(self) -> str:
        """The deployment in words."""
        if self.workers == 1:
            return f"one worker of {self.memory_mb} MB"
        if self.parts == 1:
            return f"data-parallel, {self.replicas} workers of {self.memory_mb} MB"
        grid = (
            f"{self.parts} parts"
            if self.replicas == 1
            else f"{self.replicas} replicas x {self.parts} parts"
        )
        return f"{grid} of {self.memory_mb} MB over {self.channel}"


@dataclass(frozen=True)
class Forecast:
    """What a deployment takes: seconds by phase, and its bill.

    batches: number that a replica's samples are cut into, so that activations fit the memory.
    """

    way: Deployment
    batches: int
    start_s: float
    load_s: float
    compute_s: float
    exchange_s: float
    use: Use
    bill: Bill

    @property
    def seconds(self) -> float:
        """Seconds from the call to the answer."""
        return self.start_s + self.load_s + self.compute_s + self.exchange_s

    @property
    def usd(self) -> float:
        """Dollars in total."""
        return self.bill.total_usd


def worker_mb(work: Work, parts: int, samples: int, base_mb: float) -> float:
    """Return the MiB of a worker: its share of the weights, and PANELS panels of `samples`.

    Parameters
    ----------
    work
        The network and the samples.
    parts
        Number of parts of the network.
    samples
        Samples that are computed at once.
    base_mb
        MiB that a worker takes without weights and samples.
    """
    rows = max(
        work.duplicates * work.columns(parts) if parts > 1 else work.neurons, work.neurons / parts
    )
    return base_mb + (work.weight_bytes / parts + PANELS * 4 * rows * samples) / MB


def batches(work: Work, way: Deployment, base_mb: float) -> int | None:
    """Return the least number of batches that fit a worker's memory; None if none does.

    Parameters
    ----------
    work
        The network and the samples.
    way
        Replicas, parts and memory.
    base_mb
        MiB that a worker takes without weights and samples.
    """
    samples = ceil(work.samples / way.replicas)
    fixed = worker_mb(work, way.parts, 0, base_mb)
    a_sample = (worker_mb(work, way.parts, 1000, base_mb) - fixed) / 1000
    room = int((way.memory_mb - fixed) / a_sample)
    if room < min(LEAST_BATCH, samples):
        return None
    return ceil(samples / room)


def least_parts(work: Work, memory_mb: float, base_mb: float = 70.0) -> int | None:
    """Return the least number of parts that fit workers of that memory; None if none does.

    Parameters
    ----------
    work
        The network and the samples.
    memory_mb
        Memory of a worker in MiB.
    base_mb
        MiB that a worker takes without weights and samples.
    """
    fitting = (
        p
        for p in range(1, min(work.neurons, 4096) + 1)
        if worker_mb(work, p, LEAST_BATCH, base_mb) <= memory_mb
    )
    return next(fitting, None)


def check_memory(work: Work, parts: int, memory_mb: float, base_mb: float = 70.0) -> None:
    """Check that a part fits a worker.

    Parameters
    ----------
    work
        The network and the samples.
    parts
        Number of parts of the network.
    memory_mb
        Memory of a worker in MiB.
    base_mb
        MiB that a worker takes without weights and samples.

    Raises
    ------
    UsageError
        It does not; the message names the number of parts that would fit.
    """
    needed = worker_mb(work, parts, LEAST_BATCH, base_mb)
    if needed <= memory_mb:
        return
    fitting = least_parts(work, memory_mb, base_mb)
    remedy = (
        f"{fitting} parts would fit"
        if fitting
        else f"no number of parts fits; a worker needs more than {memory_mb:g} MB"
    )
    raise UsageError(
        f"a worker of {memory_mb:g} MB cannot hold 1/{parts} of this model: it needs {needed:,.0f} "
        f"MB with {LEAST_BATCH} samples; " + remedy
    )


def predict(work: Work, place: Platform, way: Deployment, model: BilledModel) -> Forecast | None:
    """Forecast a deployment.

    A layer takes the time of its multiplication and of its exchange, of which the multiplication of
    a worker's own rows, 1/P of it, overlaps with the exchange.

    Parameters
    ----------
    work
        What is to be computed.
    place
        Where.
    way
        By which workers.
    model
        Prices the requests and the seconds.

    Returns
    -------
    Forecast or None
        None if a worker has too little memory, or runs into the platform's time limit.
    """
    cut = batches(work, way, place.base_mb)
    if cut is None:
        return None
    samples = work.samples / way.replicas
    active = work.active() * samples
    vcpus = place.vcpus(way.memory_mb, way.workers)
    a_layer = work.nonzeros / work.layers / way.parts * active / (
        place.edges_s * vcpus
    ) + cut * LAYER_S / min(1.0, vcpus)
    start_s = place.start_of(way.memory_mb)
    start = start_s + tree.seconds(
        way.workers, _branching(way.workers, start_s, place.call_s), start_s, place.call_s
    )
    loaded = work.weight_bytes / way.parts + work.neurons * samples / way.parts / 8
    load = place.store_latency_s + loaded / place.load_Bps
    meter = Meter()
    meter.count("s3", "GET", way.workers * max(2, ceil(loaded / (16 * MB))))
    exchange = np.zeros(work.layers)
    if way.parts > 1:
        nbytes = work.received(way.parts) * active * work.wire_bytes + (way.parts - 1) * (
            FRAME_BYTES + active / 8
        )
        message = nbytes / cut / (way.parts - 1)
        exchange = cut * _exchange(place, way, message)
        exchange = np.maximum(exchange - a_layer / way.parts, 0)
        for size, times in zip(*np.unique(np.round(message), return_counts=True), strict=True):
            _count(meter, place, way, int(size), int(times) * cut * way.workers)
    compute_s, exchange_s = float(a_layer.sum()), float(exchange.sum())
    busy = start_s + load + compute_s + exchange_s
    waiting = max(0.0, start - start_s) * (way.workers if way.parts > 1 else 1)
    use = Use(way.workers, way.memory_mb, busy * way.workers + waiting, meter.snapshot())
    forecast = Forecast(way, cut, start, load, compute_s, exchange_s, use, model.bill(use))
    return forecast if forecast.seconds <= place.limit_s else None


def _exchange(place: Platform, way: Deployment, message: Floats) -> Floats:
    """(layers,): seconds of a batch's exchanges, with messages of that many bytes per peer."""
    peers = way.parts - 1

    def over(figures: CostParameters) -> Floats:
        rounds = ceil(peers / (AT_ONCE * figures.batch))
        requests = ceil(peers / figures.batch)
        busy = figures.put_s + requests * figures.get_s * (
            way.workers / figures.parallelism if figures.parallelism else 1 / AT_ONCE
        )
        return figures.latency_s * (1 + rounds) / 2 + busy + peers * message / figures.bandwidth_Bps

    assert way.channel is not None, "workers of several parts exchange rows"
    figures = place.channels[way.channel]
    if figures.large is None:
        return over(figures)
    limit, large = figures.large
    # references travel in batches while the objects are put and read, so only their latency adds
    alone = replace(
        large,
        latency_s=large.latency_s - figures.latency_s,
        put_s=large.put_s - figures.put_s,
        get_s=large.get_s - figures.get_s,
    )
    return np.where(message <= limit, over(figures), figures.latency_s + over(alone))


@lru_cache(maxsize=1024)
def _branching(workers: int, start_s: float, call_s: float) -> int:
    return tree.choose(workers, start_s, call_s)


def _count(meter: Meter, place: Platform, way: Deployment, size: int, times: int) -> None:
    """Count the requests of `times` exchanges of `size` bytes with each peer, both ways."""
    assert way.channel is not None, "workers of several parts exchange rows"
    peers, figures = way.parts - 1, place.channels[way.channel]
    services = channels.load(way.channel).services
    queued = "sqs" in services
    if "s3" in services and (not queued or (figures.large and size > figures.large[0])):
        meter.count("s3", "PUT", times)  # one object for all, read by ranges
        meter.count("s3", "GET", round(times * peers * (1 if queued else GETS_PER_OBJECT)))
        meter.count("s3", "DELETE", ceil(times / limits.S3_DELETE_KEYS.value))
        size = FRAME_BYTES  # of a reference
    if not queued:
        return
    frames = peers * max(1, ceil(size / MAX_FRAME_BYTES))
    chunks = ceil(peers * size / BILLED_CHUNK_BYTES)
    publishes = max(ceil(frames / sns.MAX_ENTRIES), ceil(peers * size / sns.MAX_BATCH_BYTES))
    polls = ceil(max(frames / FRAMES_PER_POLL, chunks / 4))
    meter.count(
        "sns",
        "PublishBatch",
        times * publishes,
        times * peers * size,
        billed=times * max(publishes, chunks),
    )
    meter.count(
        "sqs",
        "ReceiveMessage",
        round(times * (polls + POLLS_PER_LAYER)),
        times * peers * size,
        billed=round(times * (max(polls, chunks) + POLLS_PER_LAYER)),
    )
    # deletes are collected over the layers
    meter.count("sqs", "DeleteMessageBatch", ceil(times * frames / limits.SQS_BATCH_ENTRIES.value))
