"""Records of a run: from a worker to rank 0, from rank 0 to a file, from a file to a report.

Each record is a frozen dataclass. Only `RunRecord.to_json` and `from_json` depend on the file's
format, whose number is FORMAT. A file is untrusted, so `from_json` checks the type and range of
every field; the readers of a record, `report` and `page`, check nothing.

If you add a field to a record, it becomes a required field of the file: raise FORMAT. If you rename
one of `LayerStatistics`, keep its column's name in COLUMNS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from serverless_mpi.inference.cost import Bill
from serverless_mpi.inference.engine import LayerStatistics

FORMAT = 1
SECONDS = ("compute_s", "send_s", "wait_s")
TRAFFIC = ("rows", "nonzeros", "nbytes", "messages")
COUNTS = (*TRAFFIC, "requests")
ACTIVE = "living"  # the file's name for `LayerStatistics.active_samples`
COLUMNS = (*SECONDS, *COUNTS, ACTIVE)  # numbers of a worker by layer
SERVICES = ("lambda", "sns", "sqs", "s3")
TOTALS = ("communication", "total")  # dollars that follow from those of the services
REQUEST_COUNTS = ("requests", "billed", "messages", "nbytes")
SMALLEST, LARGEST = 1e-12, 1e18  # bounds of numbers other than 0, which a page can show
MAX_NAME = 1000  # characters

_KINDS: dict[Any, Any] = {"str": str, "int": int, "float": (int, float)}  # by annotation
Record = TypeVar("Record")


@dataclass(frozen=True)
class ModelFacts:
    """The network of a run.

    Attributes
    ----------
    name, neurons, layers, bias
        As in `networks.Network`.
    nonzeros
        Number of weights of all layers, duplicate rows included.
    """

    name: str
    neurons: int
    layers: int
    nonzeros: int
    bias: float = field(metadata={"signed": True})


@dataclass(frozen=True)
class JobFacts:
    """The job of a run.

    Attributes
    ----------
    ranks, replicas, parts
        Number of workers, of replicas, and of parts of each replica; ranks = replicas x parts.
    method, channel
        Name of the partition method and of the channel.
    batches, samples
        Number of batches of a replica, and of samples of all replicas.
    memory_mb
        Memory of a worker in MiB; 0 if it is not limited.
    """

    ranks: int
    replicas: int
    parts: int
    method: str
    channel: str
    batches: int
    samples: int
    memory_mb: float


@dataclass(frozen=True)
class PriceFacts:
    """The assumptions of a bill.

    Attributes
    ----------
    dated, region
        Date and region of the price table.
    memory_mb
        Memory of a function in MiB.
    """

    dated: str
    region: str
    memory_mb: float


@dataclass(frozen=True)
class WorkerRecord:
    """What one worker measured.

    Attributes
    ----------
    rank
        Its world rank.
    load_s, seconds
        Seconds to load the model, and from the first layer to the answer.
    peak_mb
        Largest resident memory in MiB.
    requests
        Operation -> REQUEST_COUNTS, from the first layer to the answer.
    layers
        Each of COLUMNS -> a number per layer.
    """

    rank: int
    load_s: float
    seconds: float
    peak_mb: float
    requests: Mapping[str, Mapping[str, int]]
    layers: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class RunRecord:
    """What a run took, and what it costs on AWS.

    Attributes
    ----------
    model, job, workers
        What ran, and what each worker measured.
    bill, prices
        Dollars, and what they assume.
    categories
        Number of images with an active output; None if it is not known.
    """

    model: ModelFacts
    job: JobFacts
    workers: tuple[WorkerRecord, ...]
    bill: Bill
    prices: PriceFacts
    categories: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        record: dict[str, Any] = {
            "format": FORMAT,
            "model": asdict(self.model),
            "job": asdict(self.job),
            "workers": [asdict(worker) for worker in self.workers],
            "bill": {
                f"{name}_usd": getattr(self.bill, f"{name}_usd") for name in SERVICES + TOTALS
            },
            "prices": asdict(self.prices),
        }
        return record if self.categories is None else {**record, "categories": self.categories}

    @classmethod
    def from_json(cls, record: Any) -> RunRecord:
        """Rebuild a record from what `to_json` returned.

        Parameters
        ----------
        record
            Parsed JSON, untrusted.

        Raises
        ------
        ValueError, KeyError, TypeError
            It has another format, or a field is missing, of another type or out of range.
        """
        if record["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}, which this version reads")
        model = _facts(ModelFacts, record["model"])
        job = _facts(JobFacts, record["job"])
        workers = tuple(_worker(given, model.layers) for given in _field(record["workers"], list))
        if not model.layers or not job.parts or len(workers) != job.replicas * job.parts:
            raise ValueError("the numbers of workers or layers are not those of its job")
        bill = _facts(Bill, record["bill"])
        categories = _field(record["categories"], int) if "categories" in record else None
        return cls(model, job, workers, bill, _facts(PriceFacts, record["prices"]), categories)


def columns(layers: Sequence[LayerStatistics], requests: Sequence[float]) -> dict[str, list[float]]:
    """Return the table of a worker's layers, as in `WorkerRecord.layers`.

    Parameters
    ----------
    layers
        What each layer took.
    requests
        Number of requests of each layer.
    """
    numbers = {
        name: [float(getattr(layer, name)) for layer in layers] for name in SECONDS + TRAFFIC
    }
    active = [float(layer.active_samples) for layer in layers]
    return {**numbers, "requests": [float(count) for count in requests], ACTIVE: active}


def _worker(given: Any, layers: int) -> WorkerRecord:
    requests = {
        _field(name, str): {count: _field(row[count], int) for count in REQUEST_COUNTS}
        for name, row in _field(given["requests"], dict).items()
    }
    numbers = {
        name: [_field(number, _KINDS["float"]) for number in _field(given["layers"][name], list)]
        for name in COLUMNS
    }
    if any(len(column) != layers for column in numbers.values()):
        raise ValueError("a worker has another number of layers than the model")
    scalars = {
        name: _field(given[name], _KINDS["float"]) for name in ("load_s", "seconds", "peak_mb")
    }
    return WorkerRecord(_field(given["rank"], int), **scalars, requests=requests, layers=numbers)


def _facts(cls: type[Record], given: Any) -> Record:
    """Return a dataclass of strings and numbers from a dict, whose other keys are ignored."""
    described: Any = fields(cls)  # type: ignore[arg-type]
    return cls(
        **{
            entry.name: _field(
                given[entry.name], _KINDS[entry.type], signed="signed" in entry.metadata
            )
            for entry in described
        }
    )


def _field(value: Any, kind: Any, *, signed: bool = False) -> Any:
    """Return a value if it has that type and a page can show it.

    Numbers must be in range, and names short and printable.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"a {type(value).__name__} in place of another type")
    if isinstance(value, (int, float)):
        size = abs(value) if signed else value
        if not (size == 0 or SMALLEST <= size < LARGEST):  # NaN is not in the range either
            raise ValueError("a number that is out of bounds")
    if isinstance(value, str) and not (value.isprintable() and len(value) <= MAX_NAME):
        raise ValueError("a name that is too long or not printable")
    return value
