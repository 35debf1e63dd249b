"""The bill of a job: seconds and GB-seconds per rank, cold starts, requests, dollars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serverless_mpi.aws.s3express import zone_of
from serverless_mpi.metering import Prices, Snapshot, merge


def summary(
    ranks: Sequence[dict[str, Any]],
    others: Sequence[Snapshot],
    memory_mb: int,
    arch: str,
    prices: Prices,
) -> dict[str, Any]:
    """Facts of the ranks' ends, and the requests of others (the launcher's), summed and priced.

    A rank that could not tell its end (its function was killed) has no seconds here; AWS bills it all the same.

    Returns ranks, heard (ranks that told their end), cold, seconds (the longest), gb_seconds, lambda_usd, requests_usd,
    usd, operations, by_rank.
    """
    heard = [rank for rank in ranks if "seconds" in rank]
    gigabytes = memory_mb / 1024
    by_rank = {}
    for number, rank in enumerate(ranks):
        if "seconds" in rank:
            own = _snapshot(rank)
            by_rank[str(number)] = {
                "seconds": rank["seconds"],
                "gb_seconds": rank["seconds"] * gigabytes,
                "cold": rank["cold"],
                "init_s": rank["init_s"],
                "peak_mb": rank["peak_mb"],
                "requests": sum(row["requests"] for row in own.values()),
                "usd": prices.requests_usd(own)
                + rank["seconds"] * gigabytes * prices.usd_per_gb_second[arch],
            }
    total = merge([*(_snapshot(rank) for rank in heard), *others])
    gb_seconds = sum(rank["gb_seconds"] for rank in by_rank.values())
    lambda_usd = gb_seconds * prices.usd_per_gb_second[arch]
    requests_usd = prices.requests_usd(total)
    return {
        "ranks": len(ranks),
        "heard": len(heard),
        "cold": sum(1 for rank in heard if rank["cold"]),
        "seconds": max((rank["seconds"] for rank in heard), default=0.0),
        "memory_mb": memory_mb,
        "arch": arch,
        "gb_seconds": gb_seconds,
        "lambda_usd": lambda_usd,
        "requests_usd": requests_usd,
        "usd": lambda_usd + requests_usd,
        "operations": {
            name: {**row, "usd": prices.usd(name, row)} for name, row in sorted(total.items())
        },
        "dropped": sum((rank.get("mpi") or {}).get("dropped", 0) for rank in heard),
        "duplicates": sum((rank.get("mpi") or {}).get("duplicates", 0) for rank in heard),
        "by_rank": by_rank,
        "storage": _storage(ranks),
        "prices": {"dated": prices.dated, "region": prices.region},
    }


def _storage(ranks: Sequence[dict[str, Any]]) -> str:
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


def _snapshot(rank: dict[str, Any]) -> Snapshot:
    """A rank's requests: its messages, and what the platform made of it."""
    return merge([rank["platform"], *([rank["mpi"]["meter"]] if rank.get("mpi") else [])])


def render(bill: dict[str, Any]) -> str:
    """The same as a table for people."""
    lines = [
        f"{'rank':>6}{'seconds':>10}{'GB-s':>10}{'start':>14}{'peak MB':>9}{'requests':>10}{'USD':>12}"
    ]
    for number, rank in bill["by_rank"].items():
        start = f"cold {rank['init_s']:.2f} s" if rank["cold"] else "warm"
        lines.append(
            f"{number:>6}{rank['seconds']:>10.2f}{rank['gb_seconds']:>10.2f}{start:>14}{rank['peak_mb']:>9,}{rank['requests']:>10,}{rank['usd']:>12.6f}"
        )
    lines.append(f"{'operation':<28}{'requests':>10}{'billed':>10}{'bytes':>15}{'USD':>12}")
    for name, row in bill["operations"].items():
        lines.append(
            f"{name:<28}{row['requests']:>10,}{row['billed']:>10,}{row['nbytes']:>15,}{row['usd']:>12.6f}"
        )
    lines.append(
        f"{bill['ranks']} ranks of {bill['memory_mb']} MB ({bill['arch']}), {bill['cold']} cold; {bill['seconds']:.2f} s,"
        f" {bill['gb_seconds']:.2f} GB-s; {bill['lambda_usd']:.6f} USD for time, {bill['requests_usd']:.6f} for requests,"
        f" {bill['usd']:.6f} in all; prices of {bill['prices']['region']}, {bill['prices']['dated']}"
    )
    if bill["heard"] < bill["ranks"]:
        lines.append(
            f"{bill['ranks'] - bill['heard']} ranks did not tell how long they ran; AWS bills them too"
        )
    if bill.get("storage"):
        lines.append(bill["storage"])
    if bill["dropped"] or bill["duplicates"]:
        lines.append(f"frames dropped {bill['dropped']}, duplicates {bill['duplicates']}")
    return "\n".join(lines)
