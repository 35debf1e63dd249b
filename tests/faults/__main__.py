"""The fault suite as a command: every fault with each channel and program, and a table of the
results.

    python -m tests.faults                                 all; faults last as long as they do (about an hour)
    python -m tests.faults --quick                         all, with short faults and time-outs
    python -m tests.faults --sample                        one combination of each fault, short
    python -m tests.faults --only FAULT[:CHANNEL[:PROGRAM]] --seed N     replay

Exit code 0: nothing was lost, duplicated, wrong, late or left behind.
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.faults.suite import (
    CHANNELS,
    FAULTS,
    PROGRAMS,
    Bench,
    Combination,
    Result,
    combinations,
    run,
    sample,
)

WORKERS = 4  # runs at the same time: most wait


def run_all(chosen: list[Combination], seed: int, quick: bool, workers: int) -> list[Result]:
    """Run combinations, several at a time; prints each as it ends."""
    pending: queue.SimpleQueue[Combination] = queue.SimpleQueue()
    # the longest first, so that they do not end alone
    for one in sorted(chosen, key=lambda one: -FAULTS[one.fault].takes_s):
        pending.put(one)
    results: list[Result] = []
    folder = Path(tempfile.mkdtemp(prefix="smpi-faults-"))

    def work() -> None:
        bench = Bench(folder, quick)
        try:
            while True:
                try:
                    combination = pending.get_nowait()
                except queue.Empty:
                    return
                try:
                    result = run(combination, seed, bench)
                except Exception as error:  # a fault of the suite, which must not end the others
                    result = Result(combination, "suite")
                    result.blame("wrong", f"the suite failed: {type(error).__name__}: {error}")
                results.append(result)
                word = result.ended if result.good else "NOT GOOD"
                print(f"{result.seconds:7.1f} s  {word:9} {combination}", flush=True)
                for note in result.notes if not result.good else ():
                    print(f"           {note}", flush=True)
        finally:
            bench.close()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    order = {combination: number for number, combination in enumerate(combinations())}
    results.sort(key=lambda result: order[result.combination])
    return results


COLUMNS = ("fault", "channel", "runs", "right", "error", "slowest s", "faults", "messages sent")
ZEROS = ("lost", "duplicated", "wrong", "hung", "left")


def table(results: list[Result]) -> list[list[str]]:
    """A row for each fault on each channel, and their sum."""
    rows = [[*COLUMNS, *ZEROS]]
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.combination.fault, result.combination.channel), []).append(result)
    for names, group in [*groups.items(), (("all", ""), results)]:
        sent = [result.sent for result in group if result.sent is not None]
        rows.append(
            [
                *names,
                str(len(group)),
                str(sum(result.ended == "right" for result in group)),
                str(sum(result.ended == "error" for result in group)),
                f"{max(result.seconds for result in group):.0f}",
                f"{sum(result.injected for result in group):,}",
                f"{sum(sent):,}" if sent else "-",
                *(str(sum(getattr(result, name) for result in group)) for name in ZEROS),
            ]
        )
    return rows


def markdown(rows: list[list[str]]) -> str:
    """The table for docs/reliability.md, and which combinations do not apply."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    reasons: dict[str, list[str]] = {}
    for fault in FAULTS.values():
        for name, reason in [*fault.not_on.items(), *fault.not_for.items()]:
            reasons.setdefault(reason, []).append(f"{fault.name} on {name}")
    lines += ["", "| does not apply | because |", "| --- | --- |"]
    lines += [f"| {', '.join(names)} | {reason} |" for reason, names in reasons.items()]
    return "\n".join(lines) + "\n"


def text(rows: list[list[str]]) -> str:
    """The table for a terminal."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            word.ljust(width) if place < 2 else word.rjust(width)
            for place, (word, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )


def interrupts(count: int, seed: int) -> list[str]:
    """Signal handlers that raise, `count` times on each rank, on each channel; a line for each channel that failed."""
    from tests.faults.interrupts import CHANNELS, job

    failed = []
    for channel in CHANNELS:
        done = job(channel, count, seed)
        print(f"{channel}: {count:,} interrupts a rank, exit code {done.returncode}", flush=True)
        if done.returncode:
            failed.append(f"{channel}: {done.stderr.strip().rpartition(chr(10))[2]}")
    return failed


def _matches(combination: Combination, pattern: str) -> bool:
    words = pattern.split(":")
    names = (combination.fault, combination.channel, combination.program)
    return all(word in ("", "*", name) for word, name in zip(words, names))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", metavar="FAULT[:CHANNEL[:PROGRAM]]")
    parser.add_argument("--list", action="store_true", help="print the combinations")
    parser.add_argument("--quick", action="store_true", help="short faults and time-outs")
    parser.add_argument(
        "--sample", action="store_true", help="one combination of each fault, quick"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument("--workers", type=int, default=WORKERS, help="runs at the same time")
    options = parser.parse_args()
    chosen = sample(options.seed) if options.sample else combinations()
    if options.only:
        chosen = [one for one in chosen if any(_matches(one, word) for word in options.only)]
        if not chosen:
            parser.error(
                f"no such combination; faults: {', '.join(FAULTS)}; channels: {', '.join(CHANNELS)};"
                f" programs: {', '.join(PROGRAMS)}"
            )
    if options.list:
        print("\n".join(map(str, chosen)))
        return 0
    began = time.monotonic()
    quick = options.quick or options.sample
    failed: list[str] = []
    results = run_all(chosen, options.seed, quick, options.workers)
    rows = table(results)
    print("\n" + text(rows))
    print(f"seed {options.seed}, {time.monotonic() - began:.0f} s")
    if options.markdown:
        options.markdown.write_text(markdown(rows))
    if not options.only and not options.sample:
        failed = interrupts(500 if quick else 10_000, options.seed)
        print("\n".join(failed))
    return 0 if all(result.good for result in results) and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
