"""The estimated bill of a job: function time, requests, snapshots, storage, transfer.

Everything is counted by the ranks and the launcher and multiplied by the price table, so the bill
is an estimate: it has no free tier, no discounts and no taxes, and ranks that were killed could not
report. What AWS charged is in Cost Explorer, by the stack's tag (`cost_explorer_query`).

What is billed besides time and requests:

- SnapStart: memory that is restored at each start from a snapshot. Keeping the snapshot is charged
  by the hour, whether jobs run or not, so it is not part of a job's bill.
- Storage: what ranks put into the bucket, for as long as the job took. Frames are deleted with the
  job.
- Transfer: what the launcher received, as if it ran outside of AWS. Traffic between functions and
  services of one region is free.

References
----------
https://aws.amazon.com/lambda/pricing/, https://aws.amazon.com/s3/pricing/,
https://aws.amazon.com/ec2/pricing/on-demand/ (data transfer)
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from serverless_mpi.aws.s3express import zone_of
from serverless_mpi.metering import Prices, Snapshot, merge
from serverless_mpi.stack import layout as names

_GB = 1 << 30
_MONTH_S = 30 * 86400.0  # of a price per GB and month
_STORES = ("s3", "s3express")  # whose PUTs on the meter carry stored bytes


def summary(
    ranks: Sequence[Mapping[str, Any]],
    launcher: Snapshot,
    memory_mb: int,
    arch: str,
    prices: Prices,
) -> dict[str, Any]:
    """Sum and price what the ranks and the launcher of a job reported.

    Parameters
    ----------
    ranks
        Facts of each rank's end (`handler.Function`), in order; empty for a rank without a report.
    launcher
        The launcher's requests.
    memory_mb, arch
        Of the functions.
    prices
        Price table.

    Returns
    -------
    dict
        ranks; heard (that reported); functions (whose time was reported), of these cold (started in
        a new environment) and restored (from a snapshot); seconds (the longest rank); gb_seconds;
        lambda_usd (time), requests_usd, snapstart_usd, storage_usd, transfer_usd, and their sum
        usd; operations (counts and usd by name); dropped, duplicates (frames); by_rank; prices.
    """
    heard = [rank for rank in ranks if "seconds" in rank]
    total = merge([*map(_requests, heard), launcher])
    gigabytes = memory_mb / 1024
    functions = [rank for rank in heard if _billed_s(rank)]
    gb_seconds = sum(map(_billed_s, functions)) * gigabytes
    seconds = max((rank["seconds"] for rank in heard), default=0.0)
    restored = sum(bool(rank.get("restored")) for rank in functions)
    usd = {
        "lambda_usd": gb_seconds * prices.usd_per_gb_second[arch],
        "requests_usd": prices.requests_usd(total),
        **_further_usd(total, launcher, restored * gigabytes, seconds, prices),
    }
    return {
        "ranks": len(ranks),
        "functions": len(functions),
        "restored": restored,
        **_counts(heard),
        **{"seconds": seconds, "memory_mb": memory_mb, "arch": arch, "gb_seconds": gb_seconds},
        **usd,
        "usd": sum(usd.values()),
        "operations": {
            name: {**row, "usd": prices.usd(name, row)} for name, row in sorted(total.items())
        },
        "storage": _storage(ranks),
        "by_rank": {
            str(number): _of_rank(rank, gigabytes, arch, prices)
            for number, rank in enumerate(ranks)
            if "seconds" in rank
        },
        "prices": {"dated": prices.dated, "region": prices.region},
    }


def _storage(ranks: Sequence[Mapping[str, Any]]) -> str:
    """Where the job's frames lay, if its stack has S3 Express; else ""."""
    facts = [rank.get("storage") or {} for rank in ranks]
    chosen = next((one for one in facts if "bucket" in one), None)
    if chosen is None:
        return ""
    if chosen["reason"]:
        return f"frames in bucket {chosen['bucket']}, not in S3 Express: {chosen['reason']}"
    zone = zone_of(chosen["bucket"])
    inside = sum(1 for one in facts if one.get("zone") == zone)
    return f"frames in S3 Express, zone {zone}, in which {inside} of {len(ranks)} ranks ran"


def _counts(heard: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many ranks reported and started cold, and the frames that they dropped."""
    counters = [rank.get("mpi") or {} for rank in heard]
    return {
        "heard": len(heard),
        "cold": sum(bool(rank["cold"]) for rank in heard if _billed_s(rank)),
        "dropped": sum(found.get("dropped", 0) for found in counters),
        "duplicates": sum(found.get("duplicates", 0) for found in counters),
    }


def _further_usd(
    total: Snapshot, launcher: Snapshot, restored_gb: float, seconds: float, prices: Prices
) -> dict[str, float]:
    """Return the US dollars of what is neither time nor a request; seconds: of the job."""
    received_gb = launcher.get("sqs.ReceiveMessage", {}).get("nbytes", 0) / _GB
    of = prices.usd_of
    return {
        "snapstart_usd": restored_gb * of.get("snapstart.restored-GB", 0.0),
        "storage_usd": seconds
        / _MONTH_S
        * sum(
            total.get(f"{store}.PUT", {}).get("nbytes", 0) / _GB * of.get(f"{store}.GB-month", 0.0)
            for store in _STORES
        ),
        "transfer_usd": received_gb * of.get("transfer.GB", 0.0),
    }


def _of_rank(
    rank: Mapping[str, Any], gigabytes: float, arch: str, prices: Prices
) -> dict[str, Any]:
    requests, gb_seconds = _requests(rank), _billed_s(rank) * gigabytes
    return {
        "seconds": rank["seconds"],
        "gb_seconds": gb_seconds,
        "cold": rank["cold"],
        "init_s": rank["init_s"],
        "restored": bool(rank.get("restored")),
        "peak_mb": rank["peak_mb"],
        "requests": sum(row["requests"] for row in requests.values()),
        "usd": prices.requests_usd(requests) + gb_seconds * prices.usd_per_gb_second[arch],
    }


def _billed_s(rank: Mapping[str, Any]) -> float:
    """Return the seconds of its function that a rank reports; one rank of each function does."""
    return float(rank.get("billed_s", rank["seconds"]))


def _requests(rank: Mapping[str, Any]) -> Snapshot:
    """Return the requests of a rank: of its program's MPI, and of the function itself."""
    return merge([rank["platform"], *([rank["mpi"]["meter"]] if rank.get("mpi") else [])])


def cost_explorer_query(stack: str, began: float) -> str:
    """Return the command that prints what AWS charged for the stack on the day of a job.

    Parameters
    ----------
    stack
        Name of the stack, the value of its tag.
    began
        When the job began, in seconds since the epoch.

    Notes
    -----
    The tag must be activated once as a cost allocation tag. Rows appear within a day; Cost Explorer
    charges 0.01 USD per query.
    """
    day = time.strftime("%Y-%m-%d", time.gmtime(began))
    after = time.strftime("%Y-%m-%d", time.gmtime(began + 86400))
    tagged = json.dumps({"Tags": {"Key": names.TAG, "Values": [stack]}}, separators=(",", ":"))
    return (
        f"aws ce get-cost-and-usage --time-period Start={day},End={after} --granularity DAILY"
        " --metrics UnblendedCost --group-by Type=DIMENSION,Key=USAGE_TYPE"
        f" --filter '{tagged}'"
    )


def render(bill: dict[str, Any]) -> str:
    """Return a bill as lines for people.

    Parameters
    ----------
    bill
        What `summary` returned; `cost_explorer`, if it is there, is the command that prints what
        AWS charged.

    Returns
    -------
    str
        A table of ranks, a table of operations, and the sums; without a line break at the end.
    """
    lines = [
        f"{'rank':>6}{'seconds':>10}{'GB-s':>10}{'start':>14}{'peak MB':>9}{'requests':>10}"
        f"{'USD':>12}"
    ]
    for number, rank in bill["by_rank"].items():
        start = f"cold {rank['init_s']:.2f} s" if rank["cold"] else "warm"
        start = "snapshot" if rank["restored"] else start
        lines.append(
            f"{number:>6}{rank['seconds']:>10.2f}{rank['gb_seconds']:>10.2f}{start:>14}"
            f"{rank['peak_mb']:>9,}{rank['requests']:>10,}{rank['usd']:>12.6f}"
        )
    lines.append(f"{'operation':<28}{'requests':>10}{'billed':>10}{'bytes':>15}{'USD':>12}")
    for name, row in bill["operations"].items():
        lines.append(
            f"{name:<28}{row['requests']:>10,}{row['billed']:>10,}{row['nbytes']:>15,}"
            f"{row['usd']:>12.6f}"
        )
    parts = [
        f"{bill[key]:.6f} for {what}"
        for key, what in (
            ("requests_usd", "requests"),
            ("snapstart_usd", "restored snapshots"),
            ("storage_usd", "storage"),
            ("transfer_usd", "transfer"),
        )
        if bill[key] >= 5e-7 or key == "requests_usd"
    ]
    lines.append(
        f"{_ranks(bill)} of {bill['memory_mb']} MB ({bill['arch']}), {bill['cold']} cold;"
        f" {bill['seconds']:.2f} s, {bill['gb_seconds']:.2f} GB-s; {bill['lambda_usd']:.6f} USD for"
        f" time, {', '.join(parts)}, {bill['usd']:.6f} in all: an estimate by the prices of"
        f" {bill['prices']['region']}, {bill['prices']['dated']}"
    )
    if bill["heard"] < bill["ranks"]:
        lines.append(
            f"{bill['ranks'] - bill['heard']} ranks did not report how long they ran;"
            " AWS bills them, too"
        )
    if bill.get("storage"):
        lines.append(bill["storage"])
    if bill["dropped"] or bill["duplicates"]:
        lines.append(f"frames dropped {bill['dropped']}, duplicates {bill['duplicates']}")
    if "cost_explorer" in bill:
        lines.append(f"what AWS charged that day: {bill['cost_explorer']}")
    return "\n".join(lines)


def _ranks(bill: dict[str, Any]) -> str:
    """Return the number of ranks, and of functions if it differs."""
    functions = bill.get("functions", bill["ranks"])  # not in a bill of an earlier version
    packed = bill["heard"] == bill["ranks"] != functions
    return f"{bill['ranks']} ranks" + (f" in {functions} functions" if packed else "")
