"""Runs the suites through the strict layer and prints the table of rules.

    python -m tests.strict          # about a minute on two cores
    python -m tests.strict --list   # the rules and their sources alone

For each rule: how often the suites exercised it (a check held, or an adversity struck),
and how often it was broken on purpose and caught.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

import pytest

from tests.strict.layer import TOTALS
from tests.strict.rules import RULES

WIDTH = 100


def table(counted: bool) -> list[str]:
    """Return the lines of the table."""
    lines = [f"{'rule':<22}{'exercised':>10}{'broken':>8}" if counted else "rule"]
    for rule in RULES.values():
        counts = f"{TOTALS.exercised[rule.name]:>10}{TOTALS.broken[rule.name]:>8}"
        lines.append(f"{rule.name:<22}{counts}" if counted else rule.name)
        lines += textwrap.wrap(
            rule.statement, WIDTH, initial_indent="    ", subsequent_indent="    "
        )
        lines.append(f"    {rule.source}")
    return lines


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.strict", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--list", action="store_true", help="do not run the suites")
    options = parser.parse_args()
    code = 0
    if not options.list:
        code = int(pytest.main(["-q", "-p", "no:cacheprovider", str(Path(__file__).parent)]))
    print("\n".join(table(not options.list)))
    never = [name for name in RULES if not TOTALS.broken[name]]
    if not options.list:
        unseen = [name for name in RULES if not TOTALS.exercised[name]]
        print(
            f"\n{len(RULES)} rules; {len(RULES) - len(never)} were broken on purpose and caught,"
            f" {len(RULES) - len(unseen)} were exercised by the suites"
            + (f" (not: {', '.join(unseen)})" if unseen else "")
        )
        code = code or int(bool(never))
    return code


if __name__ == "__main__":
    sys.exit(main())
