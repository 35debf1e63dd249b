"""FSD-Inference's configuration c1 (1024 neurons, 120 layers, 8 workers, 10,000 images in one
batch) beside its published run.

    python -m benchmarks.fsd_c1                 the table: queue, object, hybrid; then a network whose activations do not saturate
    python -m benchmarks.fsd_c1 --sizes         larger networks, 8 and 20 workers, exact, with each worker's memory
    python -m benchmarks.fsd_c1 --modes         the exact engine beside the accumulating one, and batches in flight

Jobs run under smpirun on the embedded emulator; counts and bytes are of the whole job.
The published figures are read from ../shared/data, as are the images.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.table import Row, render
from serverless_mpi.inference import cost, dataset, networks, partition, store
from serverless_mpi.inference.backends import Folder
from serverless_mpi.metering import Meter
from serverless_mpi.sparse import layer, serial_forward

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
IMAGES = DATA / "graphchallenge_images_1024_first10k.npz"
CATEGORIES = DATA / "graphchallenge_categories_1024_120_first10k.txt"
WORKERS, MEMORY_MB = 8, 1000  # of c1
RANDOM_LAYERS, RANDOM_SAMPLES, RANDOM_BIAS = 30, 1000, -0.1
PAPER_LEVEL, PAPER_MESSAGE_BYTES, PAPER_ENTRIES = (
    3,
    256 * 1024,
    10,
)  # its zlib level; limits of SNS and SQS then
MAX_S = 300


# --- a job ----------------------------------------------------------------------------------------


def run_job(folder: Path, channel: str, ranks: int, *options: str) -> dict[str, Any]:
    """What a job of workers over `folder`'s store found and asked for; raises RuntimeError if it
    failed.
    """
    words = [
        sys.executable,
        "-m",
        "serverless_mpi.launch",
        "-n",
        str(ranks),
        "--channel",
        channel,
        "--stats",
        "json",
    ]
    words += ["--timeout", str(MAX_S), "-m", "benchmarks.fsd_c1", "--worker", str(folder), *options]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{channel}: {done.stderr[-2000:]}")
    *ranks_told, stats = (json.loads(line) for line in done.stdout.splitlines())
    return {
        "ranks": sorted(ranks_told, key=lambda one: one["rank"]),
        "operations": stats["operations"],
    }


def worker(folder: Path, batches: int, accumulate: bool, connect: bool) -> None:
    """A rank: its part of the store through the engine; prints one line of JSON."""
    from serverless_mpi import MPI
    from serverless_mpi.inference import engine

    comm = MPI.COMM_WORLD
    tiny = networks.randomnet(64, 1)
    own = partition.build(tiny, partition.make(tiny, 1, "block"), 0)
    engine.infer(
        MPI.COMM_SELF, own, np.ones((64, 64), np.float32), 0.0
    )  # loads code, and memory that has nothing to do with the model
    if connect:  # so are connections
        comm.alltoall([bytes(1 << 17)] * comm.size)
        comm.Barrier()
    before = _memory("VmRSS")
    backend = Folder(folder)
    index = store.read_index(backend)
    parts = store.load_part(backend, index, comm.rank)
    x = store.load_inputs(backend, index, "images", comm.rank)
    began = time.perf_counter()
    y, samples, taken = engine.infer(
        comm, parts, x, index.bias, index.cap, batches=batches, accumulate=accumulate
    )
    seconds = time.perf_counter() - began
    grown = _memory("VmHWM") - before
    share = sum(
        array.nbytes
        for part in parts
        for array in vars(part).values()
        if isinstance(array, np.ndarray)
    )
    panel = max(part.columns for part in parts) * x.shape[1] * 4 // batches
    own = {
        "rank": comm.rank,
        "samples": samples.tolist(),
        "digest": hashlib.sha256(y.tobytes()).hexdigest(),
        "seconds": seconds,
        "grown": grown,
        "share": share,
        "panel": panel,
        **{name: value for name, value in vars(taken.total()).items()},
    }
    print(json.dumps(own), flush=True)


def _memory(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024


def prepare(
    folder: Path, network: networks.Network, ranks: int, x: Any, method: str = "greedy"
) -> partition.Partition:
    """Write the store of a job; returns the partition."""
    owners = partition.make(network, ranks, method)
    backend = Folder(folder)
    index = store.write_model(backend, network, owners, bias=network.bias, name=network.name)
    store.write_inputs(backend, index, "images", x)
    return owners


def exact(owners: partition.Partition, result: dict[str, Any], whole: Any) -> bool:
    """Whether every rank's output has the bits of `whole`, the serial kernel's."""
    living = np.flatnonzero((whole != 0).any(axis=0))
    digests = [
        hashlib.sha256(
            np.ascontiguousarray(whole[owners.rows(owners.layers, rank)][:, living]).tobytes()
        ).hexdigest()
        for rank in range(owners.parts)
    ]
    return (
        all(one["samples"] == living.tolist() for one in result["ranks"])
        and [one["digest"] for one in result["ranks"]] == digests
    )


# --- counts ---------------------------------------------------------------------------------------


def use_of(operations: dict[str, Any]) -> cost.Use:
    """Counts of a job as the cost models want them."""
    names = ("requests", "billed", "nbytes", "messages")
    return cost.Use(
        WORKERS,
        MEMORY_MB,
        0.0,
        {key: {name: row[name] for name in names} for key, row in operations.items()},
    )


def total(operations: dict[str, Any], field: str, *prefixes: str) -> int:
    """The sum of a field over the operations that begin so."""
    return sum(row[field] for name, row in operations.items() if name.startswith(prefixes))


SENT = ("sns.Publish", "sqs.SendMessage", "s3.PUT")


def published(kind: str) -> dict[str, str]:
    """FSD-Inference's own row of c1."""
    with (DATA / f"fsd_published_{kind}_metrics.csv").open() as file:
        return next(row for row in csv.DictReader(file) if row["CONFIG"].startswith("c1_"))


# --- the paper's scheme on the same data ----------------------------------------------------------


def paper_scheme(network: networks.Network, owners: partition.Partition, x: Any) -> dict[str, int]:
    """Bytes and requests of pair-wise messages of float32 triples (row, sample, value), zlib level
    3, on the same partition.

    In its favour: every receive is full, no LIST and no empty receive is counted, and messages fill
    batches over all receivers of a layer.
    """
    counts = dict.fromkeys(("nbytes", "pairs", "publishes", "receives", "deletes"), 0)
    y = x
    for number, matrix in enumerate(network):
        out, source = owners.owners[number + 1], owners.owners[number]
        row = np.repeat(np.arange(matrix.n_rows), np.diff(matrix.indptr))
        inbox: dict[int, list[int]] = {}
        for sender in range(owners.parts):
            outbox: list[int] = []
            for reader in range(owners.parts):
                if sender == reader:
                    continue
                wanted = np.unique(matrix.indices[out[row] == reader])
                rows = wanted[source[wanted] == sender]
                at, sample = np.nonzero(y[rows])
                if not len(rows):
                    continue
                triples = np.stack([rows[at], sample, y[rows][at, sample]], axis=1).astype(
                    np.float32
                )
                size = len(zlib.compress(triples.tobytes(), PAPER_LEVEL))
                counts["nbytes"] += size
                counts["pairs"] += 1
                messages = [PAPER_MESSAGE_BYTES] * (size // PAPER_MESSAGE_BYTES) + [
                    size % PAPER_MESSAGE_BYTES
                ]
                outbox += messages
                inbox.setdefault(reader, []).extend(messages)
            counts["publishes"] += _batches(outbox)
        for messages in inbox.values():
            counts["receives"] += _batches(messages)
            counts["deletes"] += -(-len(messages) // PAPER_ENTRIES)
        y, alive = layer(matrix, y, network.bias)
        y = np.ascontiguousarray(y[:, alive])
    return counts


def _batches(sizes: list[int]) -> int:
    count = room = entries = 0
    for size in sorted(sizes, reverse=True):
        if not entries or size > room:
            count, room, entries = count + 1, PAPER_MESSAGE_BYTES, PAPER_ENTRIES
        room, entries = room - size, entries - 1
    return count


def on_express(operations: dict[str, Any], ranks: int) -> dict[str, Any]:
    """The requests of a job on `object`, had its frames been in a directory bucket."""
    moved = {name.replace("s3.", "s3express."): row for name, row in operations.items()}
    session = dict.fromkeys(("nbytes", "messages"), 0) | dict.fromkeys(
        ("requests", "billed"), ranks
    )
    return {**moved, "s3express.CreateSession": session}


# --- the tables -----------------------------------------------------------------------------------


def best_method() -> str:
    """The hypergraph partitioner if it is installed."""
    return "hypergraph" if importlib.util.find_spec("mtkahypar") else "greedy"


def c1() -> Iterator[Row]:
    """The published run beside ours, on the same images and network."""
    x = dataset.read_images(IMAGES, 1024)
    network = networks.radix(1024, 120)
    whole = serial_forward(list(network), x, network.bias)
    right = dataset.read_categories(CATEGORIES)
    paper, billed = cost.PaperModel(), cost.BilledModel()
    dollars: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        method = best_method()
        owners = prepare(Path(folder), network, WORKERS, x, method)
        report = owners.report(network)
        yield _at_most(
            f"rows sent a layer after layer 6, {method} partition",
            float(np.mean(report.rows[6:])),
            3739,
            "rows",
            "<= 3,739",
        )
        yield _at_most(
            f"messages of pairs in all, {method} partition", report.messages, 6452, "", "<= 6,452"
        )
        for channel in ("queue", "object", "hybrid"):
            result = run_job(Path(folder), channel, WORKERS)
            same = exact(owners, result, whole) and np.array_equal(
                np.array(result["ranks"][0]["samples"]) + 1, right
            )
            yield Row(
                f"{channel}: the official categories, every bit the serial kernel's",
                len(result["ranks"][0]["samples"]),
                "",
                target="337",
                met=same,
            )
            operations = result["operations"]
            use = use_of(operations)
            dollars[channel] = billed.bill(use).communication_usd
            ours = paper.bill(use).communication_usd
            if channel == "hybrid":
                continue
            theirs = published(channel)
            use_theirs = cost.published(theirs, MEMORY_MB)
            sent = total(operations, "nbytes", *SENT)
            if channel == "queue":
                was = int(theirs["METRIC_SIZE_MESSAGES_SENT"])
                yield _at_most(
                    f"queue: bytes sent (published {was:,})",
                    sent,
                    26e6,
                    "B",
                    "<= 26 MB",
                    sent / was,
                )
                for name, key in (
                    ("publishes", "METRIC_PUBLISH_CALLS"),
                    ("receives", "METRIC_RECEIVE_POLL_CALLS"),
                ):
                    mine = total(
                        operations,
                        "requests",
                        "sns." if name == "publishes" else "sqs.ReceiveMessage",
                    )
                    yield Row(
                        f"queue: {name} (published {int(theirs[key]):,})",
                        mine,
                        "",
                        mine / int(theirs[key]),
                    )
            else:
                for name, key, most in (
                    ("PUT", "METRIC_S3_NUM_WRITES", 960),
                    ("GET", "METRIC_S3_NUM_READS", None),
                    ("LIST", "METRIC_S3_FOLDER_SCANS", 0),
                ):
                    mine = total(operations, "requests", f"s3.{name}")
                    what = f"object: {name} (published {int(theirs[key]):,})"
                    if most is None:
                        yield Row(what, mine, "", mine / int(theirs[key]))
                    else:
                        yield _at_most(what, mine, most, "", f"<= {most}", mine / int(theirs[key]))
                usd = billed.bill(use_of(on_express(operations, WORKERS))).communication_usd
                yield _at_most(
                    "object: the same requests to S3 Express, every one billed",
                    1e3 * usd,
                    1.5,
                    "m$",
                    "<= 1.5",
                    usd / dollars[channel],
                )
            was_usd, was_billed = (
                paper.bill(use_theirs).communication_usd,
                billed.bill(use_theirs).communication_usd,
            )
            yield _at_most(
                f"{channel}: communication by the paper's formulas (published {was_usd:.4f})",
                1e3 * ours,
                1e3 * was_usd / 5,
                "m$",
                "<= 1/5",
                ours / was_usd,
            )
            yield Row(
                f"{channel}: communication, every billed request (published {was_billed:.4f}, "
                "deletes unknown)",
                1e3 * dollars[channel],
                "m$",
                dollars[channel] / was_billed,
            )
    least = min(dollars["queue"], dollars["object"])
    yield _at_most(
        "hybrid: communication, every billed request, to the cheaper of both",
        1e3 * dollars["hybrid"],
        1e3 * least * 1.02,
        "m$",
        "<= 1",
        dollars["hybrid"] / least,
    )


def unsaturated() -> Iterator[Row]:
    """The same table for a random network, against the paper's scheme on the same data and
    partition.
    """
    x = np.ascontiguousarray(dataset.read_images(IMAGES, 1024)[:, :RANDOM_SAMPLES])
    made = networks.random(1024, RANDOM_LAYERS)
    network = networks.Network(made.neurons, made.layers, RANDOM_BIAS, made.make, made.name)
    whole = serial_forward(list(network), x, network.bias)
    with tempfile.TemporaryDirectory() as folder:
        owners = prepare(Path(folder), network, WORKERS, x)
        theirs = paper_scheme(network, owners, x)
        for channel in ("queue", "object", "hybrid"):
            result = run_job(Path(folder), channel, WORKERS)
            yield Row(
                f"random, {channel}: every bit the serial kernel's",
                len(result["ranks"][0]["samples"]),
                "",
                target="exact",
                met=exact(owners, result, whole),
            )
            operations = result["operations"]
            sent = total(operations, "nbytes", *SENT)
            yield _at_most(
                f"random, {channel}: bytes sent (the paper's scheme {theirs['nbytes']:,})",
                sent,
                0.6 * theirs["nbytes"],
                "B",
                "<= 0.6",
                sent / theirs["nbytes"],
            )
            if channel == "hybrid":
                continue
            asked = total(operations, "requests", "sns.", "sqs.", "s3.") - total(
                operations, "requests", "s3.DELETE"
            )
            was = (
                2 * theirs["pairs"]
                if channel == "object"
                else theirs["publishes"] + theirs["receives"] + theirs["deletes"]
            )
            reason = FEWEST_GETS if channel == "object" else ""
            yield _at_most(
                f"random, {channel}: requests (the paper's scheme {was:,})",
                asked,
                0.35 * was,
                "",
                "<= 0.35",
                asked / was,
                reason,
            )
            ours = cost.BilledModel().bill(use_of(operations)).communication_usd
            theirs_usd = paper_usd(channel, theirs)
            yield Row(
                f"random, {channel}: every billed request (the paper's scheme {theirs_usd:.4f})",
                1e3 * ours,
                "m$",
                ours / theirs_usd,
            )


FEWEST_GETS = (
    "56 of the 64 requests of a layer are GETs, one for each reader and sender, as many as the "
    "scheme's; fewer would take a second "
    "round trip a layer, whose time costs more than the GETs"
)


def paper_usd(channel: str, counts: dict[str, int]) -> float:
    """Every billed request of `paper_scheme`, by the package's prices."""
    meter = Meter()
    if channel == "object":
        meter.count("s3", "PUT", counts["pairs"])
        meter.count("s3", "GET", counts["pairs"])
    else:
        meter.count("sns", "PublishBatch", counts["publishes"], counts["nbytes"])
        meter.count("sqs", "ReceiveMessage", counts["receives"], counts["nbytes"])
        meter.count("sqs", "DeleteMessageBatch", counts["deletes"])
    return (
        cost.BilledModel()
        .bill(cost.Use(WORKERS, MEMORY_MB, 0.0, meter.snapshot()))
        .communication_usd
    )


def _at_most(
    what: str,
    value: float,
    most: float,
    unit: str,
    target: str,
    ratio: float | None = None,
    reason: str = "",
) -> Row:
    """reason: why it is missed, if it is."""
    return Row(
        what,
        value,
        unit,
        ratio,
        target=target,
        met=value <= most,
        reason=reason if value > most else "",
    )


SIZES = (
    (4096, 120, 8, 10000),
    (4096, 120, 20, 10000),
    (16384, 120, 8, 4000),
    (16384, 120, 20, 4000),
    (65536, 24, 8, 1000),
)


def sizes() -> Iterator[Row]:
    """Larger networks on direct: (neurons, layers, workers, samples)."""
    for neurons, layers, ranks, samples in SIZES:
        x = dataset.enlarged(dataset.read_images(IMAGES, 1024, samples), neurons)
        network = networks.radix(neurons, layers)
        whole = serial_forward(list(network), x, network.bias)
        with tempfile.TemporaryDirectory() as folder:
            owners = prepare(Path(folder), network, ranks, x)
            result = run_job(Path(folder), "direct", ranks, "--connect")
        name = f"{neurons} neurons, {layers} layers, {ranks} workers, {samples} images"
        yield Row(
            f"{name}: every bit the serial kernel's",
            len(result["ranks"][0]["samples"]),
            "",
            target="exact",
            met=exact(owners, result, whole),
        )
        yield Row(f"{name}: time", max(one["seconds"] for one in result["ranks"]), "s")
        yield Row(
            f"{name}: bytes given to the channel",
            sum(one["nbytes"] for one in result["ranks"]),
            "B",
        )
        worst = max(
            result["ranks"], key=lambda one: one["grown"] / (one["share"] + 3 * one["panel"])
        )
        allowed = worst["share"] + 3 * worst["panel"]
        yield _at_most(
            f"{name}: worker's memory to share + 3 panels",
            worst["grown"],
            allowed,
            "B",
            "<= 1",
            worst["grown"] / allowed,
        )


def modes() -> Iterator[Row]:
    """c1 on direct and queue: exact, accumulating, and two batches in flight; medians of three."""
    x = dataset.read_images(IMAGES, 1024)
    network = networks.radix(1024, 120)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), network, WORKERS, x, best_method())
        for channel in ("direct", "queue"):
            first = 0.0
            for name, options in (
                ("exact", ()),
                ("accumulating", ("--accumulate",)),
                ("exact, 4 batches", ("--batches", "4")),
            ):
                runs = [run_job(Path(folder), channel, WORKERS, *options) for _ in range(3)]
                seconds = statistics.median(
                    max(one["seconds"] for one in run["ranks"]) for run in runs
                )
                first = first or seconds
                yield Row(f"{channel}, {name}", seconds, "s", seconds / first)


def run() -> list[Row]:
    """For `python -m benchmarks`; needs the real data."""
    if not DATA.exists():
        return [Row(f"no real data at {DATA}: not measured", 0.0, "")]
    return [*c1(), *unsaturated()]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", action="store_true", help="larger networks")
    parser.add_argument("--modes", action="store_true", help="ways to run the engine")
    parser.add_argument("--worker", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--accumulate", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--connect", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.batches, options.accumulate, options.connect)
        return 0
    if not DATA.exists():
        print(f"no real data at {DATA}", file=sys.stderr)
        return 2
    rows = list(sizes() if options.sizes else modes() if options.modes else run())
    print(render(rows))
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
