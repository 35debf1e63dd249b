"""Counts billable requests and bytes, and prices them.

The rule: every attempt counts, retries included, in billed units.  SQS and SNS bill
each API call by started chunks of 64 KB of payload; S3 bills each request, and S3
Express also each byte; DELETE is free.  What is not a service of AWS is counted under a
name of its own, and is free.  Prices are data: `prices.json`, or a file of the same
shape; the table names its sources, the services' pricing pages.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serverless_mpi.aws import limits
from serverless_mpi.errors import UsageError

BILLED_CHUNK_BYTES = limits.BILLED_CHUNK_BYTES.value
BYTES_PER_GB = 1 << 30  # as in the examples of "Amazon S3 FAQs"
# Lambda: an asynchronous event of up to 256 KB is one request, each further 64 KB one more
# (https://aws.amazon.com/lambda/pricing/)
INVOCATION_BYTES = 256 * 1024
CHUNKED_SERVICES = ("sqs", "sns")
_FIELDS = ("requests", "billed", "nbytes", "messages")

Snapshot = dict[str, dict[str, int]]  # "service.operation" -> counts


def billed_units(service: str, requests: int, nbytes: int) -> int:
    """Return the units on the bill of requests with a payload.

    Parameters
    ----------
    service
        Name of boto3's client.
    requests, nbytes
        Number of requests, and the bytes of all of them.
    """
    if service in CHUNKED_SERVICES and requests:
        return max(requests, -(-nbytes // BILLED_CHUNK_BYTES))
    if service == "lambda" and nbytes > INVOCATION_BYTES:
        return requests + -(-(nbytes - INVOCATION_BYTES) // BILLED_CHUNK_BYTES)
    return requests


class Meter:
    """Counters of one rank, by service and operation. Thread-safe.

    Attributes
    ----------
    on_request
        None, or a function that the thread of a request calls after each attempt, with the
        service, the operation, and the beginning in ns of `time.perf_counter_ns`.
    """

    def __init__(self) -> None:
        self.on_request: Callable[[str, str, int], None] | None = None
        self._lock = threading.Lock()
        # (service, operation) -> counts in the order of _FIELDS
        self._rows: dict[tuple[str, str], list[int]] = {}

    def count(
        self,
        service: str,
        operation: str,
        requests: int = 1,
        nbytes: int = 0,
        messages: int = 0,
        billed: int | None = None,
    ) -> None:
        """Add requests of one operation.

        Parameters
        ----------
        service, operation
            Name of boto3's client, and of the operation; for a medium that is not a service of
            AWS, the channel's name and "put".
        requests
            Number of requests; 0 to add bytes that became known after the request was counted.
        nbytes, messages
            Payload in bytes, and the number of messages in it.
        billed
            Units on the bill; None for the started 64 KB chunks for SQS and SNS (for Lambda, those
            beyond 256 KB), and for the number of requests for others.
        """
        if billed is None:
            billed = billed_units(service, requests, nbytes)
        with self._lock:
            row = self._rows.get((service, operation))
            if row is None:
                row = self._rows[service, operation] = [0, 0, 0, 0]
            row[0] += requests
            row[1] += billed
            row[2] += nbytes
            row[3] += messages

    def row(self, service: str, operation: str) -> list[int]:
        """Return the counters of an operation that the caller alone counts, and without `count`.

        For an operation of microseconds, such as a put of `direct`: `count` takes half of one.

        Parameters
        ----------
        service, operation
            As for `count`.

        Returns
        -------
        list[int]
            Requests, billed units, bytes, messages.  Shared with the meter: the caller adds to them
            under a lock of its own.
        """
        with self._lock:
            return self._rows.setdefault((service, operation), [0, 0, 0, 0])

    def snapshot(self) -> Snapshot:
        """Return a copy of the counters."""
        with self._lock:
            return {
                f"{service}.{operation}": dict(zip(_FIELDS, row, strict=True))
                for (service, operation), row in self._rows.items()
            }


def merge(snapshots: list[Snapshot]) -> Snapshot:
    """Return the sum of several counters.

    Parameters
    ----------
    snapshots
        Counters, one per rank.
    """
    total: Snapshot = {}
    for snapshot in snapshots:
        for name, row in snapshot.items():
            into = total.setdefault(name, dict.fromkeys(_FIELDS, 0))
            for count in _FIELDS:
                into[count] += row[count]
    return total


@dataclass(frozen=True)
class Prices:
    """A dated price table of one region.

    Attributes
    ----------
    dated, region
        When and for which AWS region the prices hold.
    usd_per_request
        US dollars per billed unit, by "service" or "service.OPERATION".
    usd_per_gb_second
        US dollars per gigabyte-second of a function, by architecture.
    usd_per_gb
        US dollars per gigabyte (2**30 bytes) moved by a request, by "service.OPERATION".
    usd_of
        US dollars of what is neither a request nor a function's time: "s3.GB-month",
        "snapstart.cached-GB-second", "snapstart.restored-GB", "transfer.GB".
    """

    dated: str
    region: str
    usd_per_request: Mapping[str, float]
    usd_per_gb_second: Mapping[str, float]
    usd_of: Mapping[str, float] = field(default_factory=dict)
    usd_per_gb: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Prices:
        """Read a price table.

        Parameters
        ----------
        path
            File in the format of the package's `prices.json`; None for that one.

        Raises
        ------
        UsageError
            The file is missing or not a price table.
        """
        file = Path(path) if path is not None else Path(__file__).with_name("prices.json")
        try:
            table: dict[str, Any] = json.loads(file.read_text())
            return cls(
                str(table["dated"]),
                str(table["region"]),
                {name: float(usd) for name, usd in table["usd_per_request"].items()},
                {name: float(usd) for name, usd in table["usd_per_gb_second"].items()},
                usd_of={name: float(usd) for name, usd in table.get("usd_of", {}).items()},
                usd_per_gb={name: float(usd) for name, usd in table.get("usd_per_gb", {}).items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(
                f"{file} is not a price table like the package's prices.json: {error!r}"
            ) from error

    def of(self, name: str) -> float:
        """Return the price of a billed unit in US dollars; 0 for what AWS does not bill.

        Parameters
        ----------
        name
            An operation, as "sqs.ReceiveMessage". The price of the operation takes precedence over
            that of the service.
        """
        return self.usd_per_request.get(name, self.usd_per_request.get(name.partition(".")[0], 0.0))

    def per_byte(self, name: str) -> float:
        """Return the US dollars per byte that an operation moves.

        Parameters
        ----------
        name
            The operation, as "s3express.PUT"; 0 is returned for one that has no price per byte.
        """
        return self.usd_per_gb.get(name, 0.0) / BYTES_PER_GB

    def usd(self, name: str, row: Mapping[str, int]) -> float:
        """Return the US dollars for the counts of one operation.

        Parameters
        ----------
        name
            The operation, as "sqs.ReceiveMessage".
        row
            Its counters, as in a snapshot; `billed` and `nbytes` are used.
        """
        return row["billed"] * self.of(name) + row["nbytes"] * self.per_byte(name)

    def requests_usd(self, snapshot: Snapshot) -> float:
        """Return the price of all counted requests in US dollars.

        Parameters
        ----------
        snapshot
            Counters of a rank, or their sum.
        """
        return sum(self.usd(name, row) for name, row in snapshot.items())

    def lambda_usd(self, seconds: float, memory_gb: float, arch: str = "x86_64") -> float:
        """Return the price of one run of a function in US dollars, its invocation included.

        Parameters
        ----------
        seconds
            Billed time.
        memory_gb
            Memory of the function, in GB.
        arch
            Architecture: "x86_64" or "arm64".
        """
        return self.usd_per_request["lambda"] + seconds * memory_gb * self.usd_per_gb_second[arch]


def report(records: list[dict[str, Any]], prices: Prices) -> dict[str, Any]:
    """Sum and price the statistics that the ranks of a job have written.

    Parameters
    ----------
    records
        One record per rank: `rank`, `seconds`, `meter` (a snapshot), `dropped`, `duplicates`.
    prices
        Prices of the services.

    Returns
    -------
    dict
        JSON values, the format of `--stats json`: `ranks`, `seconds` (of the longest rank),
        `operations` (name -> counts and `usd`), their sums `requests`, `billed`, `nbytes`,
        `messages` and `usd`, `dropped` and `duplicates` (frames), `by_rank` (rank -> its sums), and
        `prices` (`dated`, `region`).
    """
    total = merge([record["meter"] for record in records])
    operations = {
        name: {**row, "usd": prices.usd(name, row)} for name, row in sorted(total.items())
    }
    return {
        "ranks": len(records),
        "seconds": max((record["seconds"] for record in records), default=0.0),
        "operations": operations,
        **_sums(total, prices),
        "dropped": sum(record["dropped"] for record in records),
        "duplicates": sum(record["duplicates"] for record in records),
        "by_rank": {str(record["rank"]): _sums(record["meter"], prices) for record in records},
        "prices": {"dated": prices.dated, "region": prices.region},
    }


def _sums(snapshot: Snapshot, prices: Prices) -> dict[str, float]:
    """Return the counts and dollars of all operations together."""
    return {
        **{field: sum(row[field] for row in snapshot.values()) for field in _FIELDS},
        "usd": prices.requests_usd(snapshot),
    }


def render(summary: Mapping[str, Any]) -> str:
    """Return a report as a table of several lines.

    Parameters
    ----------
    summary
        What `report` returned.
    """
    lines = [
        f"{'operation':<28}{'requests':>10}{'billed':>10}{'messages':>10}{'bytes':>15}{'USD':>12}"
    ]
    rows = [*summary["operations"].items(), ("total", summary)]
    for name, row in rows:
        lines.append(
            f"{name:<28}{row['requests']:>10,}{row['billed']:>10,}{row['messages']:>10,}"
            f"{row['nbytes']:>15,}{row['usd']:>12.6f}"
        )
    prices = summary["prices"]
    lines.append(
        f"{summary['ranks']} ranks, {summary['seconds']:.2f} s;"
        f" prices of {prices['region']}, {prices['dated']};"
        f" frames dropped {summary['dropped']}, duplicates {summary['duplicates']}"
    )
    return "\n".join(lines)
