"""Counts billable requests and bytes, and prices them.

Every attempt counts, retries included, in billed units: SQS and SNS bill each
API call by started chunks of 64 KB of payload; S3 bills each request; DELETE
is free.  Prices are data: `prices.json`, or a file of the same shape.
Sources: the services' pricing pages, named in the table.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serverless_mpi.errors import UsageError

BILLED_CHUNK_BYTES = (
    64 * 1024
)  # SQS and SNS: "every 64 KB chunk of a payload is billed as 1 request"
CHUNKED_SERVICES = ("sqs", "sns")
_FIELDS = ("requests", "billed", "nbytes", "messages")

Snapshot = dict[str, dict[str, int]]  # "service.operation" -> counts


class Meter:
    """Counters of one rank, by service and operation.  Safe for threads.

    An observer may set `on_request(service, operation, begin)`, called at the end of each attempt of
    a request by the thread that made it; begin: ns, by `time.perf_counter_ns`.
    """

    def __init__(self) -> None:
        self.on_request: Callable[[str, str, int], None] | None = None
        self._lock = threading.Lock()
        self._rows: dict[
            tuple[str, str], list[int]
        ] = {}  # (service, operation) -> amounts in the order of _FIELDS

    def count(
        self,
        service: str,
        operation: str,
        requests: int = 1,
        nbytes: int = 0,
        messages: int = 0,
        billed: int | None = None,
    ) -> None:
        """Add a request: `nbytes` of payload in `messages` messages.

        billed: units on the bill; by default the started 64 KB chunks for SQS and SNS, else the requests.
        """
        if billed is None:
            billed = requests
            if service in CHUNKED_SERVICES and requests:
                billed = max(requests, -(-nbytes // BILLED_CHUNK_BYTES))
        with self._lock:
            row = self._rows.get((service, operation))
            if row is None:
                row = self._rows[service, operation] = [0, 0, 0, 0]
            row[0] += requests
            row[1] += billed
            row[2] += nbytes
            row[3] += messages

    def snapshot(self) -> Snapshot:
        """A copy of the counters."""
        with self._lock:
            return {
                f"{service}.{operation}": dict(zip(_FIELDS, row, strict=True))
                for (service, operation), row in self._rows.items()
            }


def merge(snapshots: list[Snapshot]) -> Snapshot:
    """The sum of several ranks' counters."""
    total: Snapshot = {}
    for snapshot in snapshots:
        for name, row in snapshot.items():
            into = total.setdefault(name, dict.fromkeys(_FIELDS, 0))
            for field in _FIELDS:
                into[field] += row[field]
    return total


@dataclass(frozen=True)
class Prices:
    """A dated price table.  usd_per_request: by "service" or "service.OPERATION"; usd_per_gb_second: by architecture."""

    dated: str
    region: str
    usd_per_request: Mapping[str, float]
    usd_per_gb_second: Mapping[str, float]

    @classmethod
    def load(cls, path: str | Path | None = None) -> Prices:
        """The package's table, or the file at `path`.

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
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(
                f"{file} is not a price table like the package's prices.json: {error!r}"
            ) from error

    def of(self, name: str) -> float:
        """Dollars per billed unit of "service.operation"; 0 for what is no service of AWS."""
        return self.usd_per_request.get(name, self.usd_per_request.get(name.partition(".")[0], 0.0))

    def requests_usd(self, snapshot: Snapshot) -> float:
        """Dollars for all counted requests."""
        return sum(row["billed"] * self.of(name) for name, row in snapshot.items())

    def lambda_usd(self, seconds: float, memory_gb: float, arch: str = "x86_64") -> float:
        """Dollars of one function of `memory_gb` that runs `seconds`, its invocation included."""
        return self.usd_per_request["lambda"] + seconds * memory_gb * self.usd_per_gb_second[arch]


def report(records: list[dict[str, Any]], prices: Prices) -> dict[str, Any]:
    """What a job's ranks left in their stats files, summed and priced.

    Returns ranks, seconds (the longest), operations (name -> counts and usd),
    messages, nbytes, requests, usd, dropped, duplicates, by_rank (rank -> the same sums), prices.
    """
    total = merge([record["meter"] for record in records])
    operations = {
        name: {**row, "usd": row["billed"] * prices.of(name)} for name, row in sorted(total.items())
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
    return {
        **{field: sum(row[field] for row in snapshot.values()) for field in _FIELDS},
        "usd": prices.requests_usd(snapshot),
    }


def render(summary: Mapping[str, Any]) -> str:
    """`report` as a table for people."""
    lines = [
        f"{'operation':<28}{'requests':>10}{'billed':>10}{'messages':>10}{'bytes':>15}{'USD':>12}"
    ]
    rows = [*summary["operations"].items(), ("total", summary)]
    for name, row in rows:
        lines.append(
            f"{name:<28}{row['requests']:>10,}{row['billed']:>10,}{row['messages']:>10,}{row['nbytes']:>15,}{row['usd']:>12.6f}"
        )
    prices = summary["prices"]
    lines.append(
        f"{summary['ranks']} ranks, {summary['seconds']:.2f} s; prices of {prices['region']}, {prices['dated']}; "
        f"frames dropped {summary['dropped']}, duplicates {summary['duplicates']}"
    )
    return "\n".join(lines)
