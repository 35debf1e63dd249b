"""collectives: the chosen algorithm of each call, compared with all others, on every channel.

`python -m benchmarks.collectives [--write]` measures more and longer; --write puts the table into
docs/benchmarks-collectives.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import Row

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks-collectives.md"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
CHANNELS = ("direct", "hybrid", "object", "queue")
RANKS = (2, 4, 8, 16)
SIZES = (8, 64 << 10, 8 << 20)
OPERATIONS = (
    "barrier",
    "bcast",
    "gather",
    "scatter",
    "allgather",
    "alltoall",
    "reduce",
    "allreduce",
    "scan",
)
WORST = 1.2  # the target, for time and for dollars
EQUAL = 1.05  # measured times within this are equal
REASON = (
    "see docs/benchmarks-collectives.md: a loaded machine's noise, or an emulator that is not AWS"
)
TIMEOUT_S = 600.0


def measure(
    channel: str, ranks: int, sizes: Sequence[int], reps: int, budget_s: float
) -> list[dict[str, Any]]:
    """One job that times every algorithm; a dict for each, as collective_ranks.py writes them."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "rows.json")
        wish = {
            "operations": OPERATIONS,
            "sizes": sizes,
            "reps": reps,
            "budget_s": budget_s,
            "out": str(out),
        }
        words = [
            sys.executable,
            "-m",
            "serverless_mpi.launch",
            "-n",
            str(ranks),
            "--channel",
            channel,
        ]
        subprocess.run(
            [*words, "-m", "benchmarks.collective_ranks", json.dumps(wish)],
            check=True,
            cwd=ROOT,
            timeout=TIMEOUT_S,
            stderr=subprocess.DEVNULL,
        )
        rows: list[dict[str, Any]] = json.loads(out.read_text())
        return [{**row, "channel": channel} for row in rows]


def verdicts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each call: the chosen algorithm, the fastest and the cheapest of those as fast, and the
    two ratios.

    A time is the least of its repetitions: what else runs on the machine only adds.
    """
    calls: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        calls[row["channel"], row["operation"], row["nbytes"], row["ranks"]].append(
            {**row, "s": min(row["seconds"])}
        )
    found = []
    for (channel, operation, nbytes, ranks), tried in calls.items():
        same: dict[
            tuple[int, ...], float
        ] = {}  # with few ranks some algorithms send the same messages: they are one
        for row in tried:
            shape = tuple(row["shape"])
            same[shape] = min(row["s"], same.get(shape, row["s"]))
        for row in tried:
            row["s"] = same[tuple(row["shape"])]
        (chosen,) = [row for row in tried if row["chosen"]]
        best = min(tried, key=lambda row: row["s"])
        as_fast = [row for row in tried if row["s"] <= EQUAL * chosen["s"]]
        cheapest = min(as_fast, key=lambda row: row["usd"])
        found.append(
            {
                "channel": channel,
                "operation": operation,
                "nbytes": nbytes,
                "ranks": ranks,
                "chosen": chosen["algorithm"],
                "ms": 1e3 * chosen["s"],
                "best": best["algorithm"],
                "slower": chosen["s"] / best["s"],
                "usd": chosen["usd"],
                "dearer": chosen["usd"] / cheapest["usd"] if cheapest["usd"] else 1.0,
            }
        )
    return found


def summary(found: Sequence[dict[str, Any]], channel: str) -> Row:
    """How many of a channel's calls are within the target."""
    mine = [one for one in found if one["channel"] == channel]
    good = [one for one in mine if one["slower"] <= WORST and one["dearer"] <= WORST]
    worst = max(mine, key=lambda one: one["slower"])
    share = len(good) / len(mine)
    where = f"worst {worst['operation']} of {worst['nbytes']} B on {worst['ranks']}: x{worst['slower']:.2f}"
    return Row(
        f"{channel}: calls chosen within 1.2 of the best",
        100 * share,
        "%",
        share,
        where,
        "all, time and dollars",
        share == 1.0,
        "" if share == 1.0 else REASON,
    )


def run() -> list[Row]:
    """A short measurement: 4 ranks, small and middling blobs."""
    rows = []
    for channel in CHANNELS:
        rows += measure(channel, 4, SIZES[:2], 5, 0.5)
    found = verdicts(rows)
    return [summary(found, channel) for channel in CHANNELS]


def page(found: Sequence[dict[str, Any]]) -> str:
    """The table, a line for each operation and size, a column for each number of ranks."""
    lines = []
    for channel in CHANNELS:
        mine = {
            (one["operation"], one["nbytes"], one["ranks"]): one
            for one in found
            if one["channel"] == channel
        }
        if not mine:
            continue
        ranks = sorted({key[2] for key in mine})
        good = sum(one["slower"] <= WORST and one["dearer"] <= WORST for one in mine.values())
        lines += [
            "",
            f"### {channel}: {good} of {len(mine)} within 1.2",
            "",
            "| call | " + " | ".join(f"{n} ranks" for n in ranks) + " |",
        ]
        lines.append("|---" * (len(ranks) + 1) + "|")
        for operation, nbytes in dict.fromkeys(key[:2] for key in mine):
            cells = []
            for size in ranks:
                one = mine.get((operation, nbytes, size))
                if one is None:
                    cells.append("not run")
                    continue
                cell = f"{one['chosen']} {one['ms']:.1f} ms"
                if one["slower"] > WORST:
                    cell += f", **x{one['slower']:.2f}** of {one['best']}"
                if one["dearer"] > WORST:
                    cell += f", **more expensive x{one['dearer']:.2f}**"
                cells.append(cell)
            label = operation if operation == "barrier" else f"{operation} {nbytes:,} B"
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Measure everything; rows already measured (in the file after --from) are kept."""
    rows: list[dict[str, Any]] = []
    store = Path(arguments[arguments.index("--from") + 1]) if "--from" in arguments else None
    if store is not None and store.exists():
        rows = json.loads(store.read_text())
    wanted = [word for word in arguments if word in CHANNELS] or CHANNELS
    numbers = [int(word) for word in arguments if word.isdigit()] or RANKS
    if "--only-page" not in arguments:
        for channel in wanted:
            for ranks in numbers:
                fresh = measure(
                    channel, ranks, SIZES, *((5, 0.6) if channel == "direct" else (3, 0.25))
                )
                rows = [
                    row for row in rows if (row["channel"], row["ranks"]) != (channel, ranks)
                ] + fresh
                if store is not None:
                    store.write_text(json.dumps(rows))
    found = verdicts(rows)
    text = page(found)
    if "--write" in arguments:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + "\n" + text + END + rest.partition(END)[2])
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
