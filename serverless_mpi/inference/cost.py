"""What a run costs: two models over the same counts.

`PaperModel` has FSD-Inference's formulas and prices, as they were published with its runs: it
counts neither deletes nor started 64 KB chunks of what is received, and it charges SNS for bytes
carried to SQS. `BilledModel` has what AWS bills: every request in billed units, as `metering`
counts them, by the package's price table. Sources: Oakley and Ferhatosmanoglu, "FSD-Inference:
Fully Serverless Distributed Inference with Scalable Cloud Communication", ICDE 2024; the services'
pricing pages, named in prices.json.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from serverless_mpi.metering import BILLED_CHUNK_BYTES, CHUNKED_SERVICES, Meter, Prices, Snapshot

COMMUNICATION = ("sns", "sqs", "s3")


@dataclass(frozen=True)
class Use:
    """What a run used.

    workers: invocations; memory_mb: of each worker, in MB as Lambda has them; seconds: of all
    workers together; requests: what `metering` counted, all workers together; coordinators:
    invocations that only start others.
    """

    workers: int
    memory_mb: float
    seconds: float
    requests: Snapshot = field(default_factory=dict)
    coordinators: int = 0

    def of(self, service: str, *operations: str) -> tuple[int, int]:
        """(requests, bytes) of a service, of all its operations unless some are named.

        Parameters
        ----------
        service
            Name as the meter counts it, such as "sqs".
        *operations
            Names of operations; none for all.
        """
        requests = nbytes = 0
        for name, row in self.requests.items():
            one, _, operation = name.partition(".")
            if one == service and (not operations or operation in operations):
                requests += row["requests"]
                nbytes += row["nbytes"]
        return requests, nbytes


@dataclass(frozen=True)
class Bill:
    """Dollars by service."""

    lambda_usd: float = 0.0
    sns_usd: float = 0.0
    sqs_usd: float = 0.0
    s3_usd: float = 0.0

    @property
    def communication_usd(self) -> float:
        """All but the functions themselves."""
        return self.sns_usd + self.sqs_usd + self.s3_usd

    @property
    def total_usd(self) -> float:
        """Everything."""
        return self.lambda_usd + self.communication_usd


class Model(ABC):
    """Prices a run."""

    @abstractmethod
    def bill(self, use: Use) -> Bill:
        """Dollars for `use`.

        Parameters
        ----------
        use
            What the ranks used.
        """


@dataclass(frozen=True)
class PaperModel(Model):
    """FSD-Inference's own model.

    lambda = (P + 1) C + T (MB / 128) D;  sns = S C + Z D, with S started units of 64,000 bytes of a
    mean publish;  sqs = polls C;  s3 = PUT, GET and LIST.

    Dollars of eu-west-1 in 2023.  The P + 1st invocation is `Use.coordinators`.
    """

    invocation_usd: float = 2e-7
    second_128mb_usd: float = 2.1e-6
    publish_usd: float = 5e-7
    published_byte_usd: float = 9e-11
    published_unit_bytes: int = 64_000
    poll_usd: float = 4e-7
    put_usd: float = 5.3e-6
    get_usd: float = 4.2e-7
    list_usd: float = 5.3e-6

    def bill(self, use: Use) -> Bill:
        """Dollars for `use`.

        Parameters
        ----------
        use
            What the ranks used.
        """
        calls, nbytes = use.of("sns")
        units = ceil(nbytes / calls / self.published_unit_bytes) * calls if calls else 0
        polls, _ = use.of("sqs", "ReceiveMessage")
        puts, gets, lists = (use.of("s3", operation)[0] for operation in ("PUT", "GET", "LIST"))
        return Bill(
            (use.workers + use.coordinators) * self.invocation_usd
            + use.seconds * use.memory_mb / 128 * self.second_128mb_usd,
            units * self.publish_usd + nbytes * self.published_byte_usd,
            polls * self.poll_usd,
            puts * self.put_usd + gets * self.get_usd + lists * self.list_usd,
        )


@dataclass(frozen=True)
class BilledModel(Model):
    """Every billed request: deletes, empty receives, started 64 KB chunks of every payload, and
    GB-seconds.
    """

    prices: Prices = field(default_factory=Prices.load)
    arch: str = "x86_64"

    def bill(self, use: Use) -> Bill:
        """Dollars for `use`.

        Parameters
        ----------
        use
            What the ranks used.
        """
        dollars = dict.fromkeys(COMMUNICATION, 0.0)
        for name, row in use.requests.items():
            service = name.partition(".")[0].replace("s3express", "s3")
            if service in dollars:
                dollars[service] += self.prices.usd(name, row)
        starts = (use.workers + use.coordinators) * self.prices.of("lambda")
        rate = self.prices.usd_per_gb_second[self.arch]
        return Bill(
            starts + use.seconds * use.memory_mb / 1024 * rate,
            dollars["sns"],
            dollars["sqs"],
            dollars["s3"],
        )


def published(metrics: Mapping[str, str], memory_mb: float) -> Use:
    """The use that a row of FSD-Inference's published metrics describes, of its queue or its object
    runs.

    Receives are counted as billed units of 64 KB at their mean size, since no more is known of
    them; it published no deletes.

    Parameters
    ----------
    metrics
        A row of the published table: column -> text.
    memory_mb
        Memory of each function in MB, which the row does not have.

    Raises
    ------
    ValueError
        The row is no such row.
    """
    meter = Meter()

    def number(name: str) -> Any:
        try:
            return float(metrics[name])
        except (KeyError, ValueError):
            raise ValueError(
                f"no row of FSD-Inference's published metrics: {name} is {metrics.get(name)!r}"
            ) from None

    if "METRIC_PUBLISH_CALLS" in metrics:
        _count(
            meter,
            "sns",
            "PublishBatch",
            number("METRIC_PUBLISH_CALLS"),
            number("METRIC_SIZE_MESSAGES_SENT"),
        )
        _count(
            meter,
            "sqs",
            "ReceiveMessage",
            number("METRIC_RECEIVE_POLL_CALLS"),
            number("METRIC_SIZE_MESSAGES_RECEIVED"),
        )
    else:
        _count(meter, "s3", "PUT", number("METRIC_S3_NUM_WRITES"), number("METRIC_S3_WRITE_SIZE"))
        _count(meter, "s3", "GET", number("METRIC_S3_NUM_READS"), number("METRIC_S3_READ_SIZE"))
        _count(meter, "s3", "LIST", number("METRIC_S3_FOLDER_SCANS"), 0)
    return Use(
        int(number("TOTAL_NWORKERS")),
        memory_mb,
        number("METRIC_LAMBDA_RUNTIME"),
        meter.snapshot(),
        coordinators=1,
    )


def _count(meter: Meter, service: str, operation: str, requests: float, nbytes: float) -> None:
    calls = int(requests)
    billed = calls
    if service in CHUNKED_SERVICES and calls:
        billed = ceil(nbytes / calls / BILLED_CHUNK_BYTES) * calls
    meter.count(service, operation, calls, int(nbytes), billed=billed)
