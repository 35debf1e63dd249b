"""Fuzz the parsers of foreign bytes: python -m tests.fuzz [TARGET ...] [--inputs N] [--seconds S] [--seed N]

Without targets all are run.  Exit code 0: each input ended with a value or the documented error, in time and memory.
--replay N runs input N of one target in this process and shows it.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.run import Report, in_child, load, make_input


def rows(reports: list[Report]) -> list[list[str]]:
    """The table."""
    lines = [["target", "inputs", "inputs/s", "accepted", "refused", "worst memory", "failures"]]
    for report in reports:
        refused = ", ".join(f"{name} {count:,}" for name, count in sorted(report.refused.items()))
        lines.append(
            [
                report.name,
                f"{report.inputs:,}",
                f"{report.inputs / max(report.seconds, 1e-9):,.0f}",
                f"{report.accepted:,}",
                refused or "-",
                f"{report.worst_bytes / 1024:,.0f} KiB",
                str(report.failed),
            ]
        )
    return lines


def main() -> int:
    targets = load()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(targets))
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of each target")
    parser.add_argument("--seconds", type=float, default=600.0, help="at most, of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="targets at the same time")
    parser.add_argument("--replay", type=int, metavar="N", help="run input N of one target")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    options = parser.parse_args()
    unknown = set(options.targets) - set(targets)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(targets)}")
    names = options.targets or list(targets)
    if options.replay is not None:
        (name,) = names
        target = targets[name]
        data = make_input(target, target.corpus(), options.seed, options.replay)
        print(data)
        print(target.parse(data))
        return 0
    with ThreadPoolExecutor(options.workers) as pool:
        reports = list(
            pool.map(
                lambda name: in_child(name, options.inputs, options.seconds, options.seed), names
            )
        )
    table = rows(reports)
    widths = [max(len(row[place]) for row in table) for place in range(len(table[0]))]
    for row in table:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip())
    for report in reports:
        for kind, (count, example) in report.failures.items():
            print(f"{report.name} --seed {options.seed}: {count:,} x {kind}; {example}")
    if options.markdown:
        lines = ["| " + " | ".join(row) + " |" for row in table]
        lines.insert(1, "|" + " --- |" * len(table[0]))
        options.markdown.write_text("\n".join(lines) + "\n")
    return 1 if any(report.failed for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
