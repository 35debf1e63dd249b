"""Compare counts of what the project wants less of with budgets.toml.

`python tools/budgets.py` fails if a count is above its budget, and if it is below it: then the
budget has to fall, too, which `python tools/budgets.py --update` does. `--list NAME` prints the
places that a budget counts.

To add a budget: write a function that yields one line per finding, put it into `BUDGETS`, and
add its present count to budgets.toml.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "serverless_mpi"
FILE = ROOT / "budgets.toml"
LONGEST_FUNCTION = 60  # lines, the decorators and the docstring included
LONGEST_LINE = 100  # columns
MOST_COMPLEX = 12  # McCabe

Findings = Iterator[str]


def _ruff(rule: str) -> Findings:
    """Findings of one rule of ruff in the package."""
    beside = Path(sys.executable).with_name("ruff")
    command = [
        str(beside) if beside.exists() else "ruff",
        *("check", str(PACKAGE), "--select", rule, "--output-format", "json"),
        *("--exit-zero", "--quiet", "--ignore-noqa", "--no-cache"),
        *("--config", f"lint.mccabe.max-complexity={MOST_COMPLEX}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    for finding in json.loads(done.stdout):
        if finding["code"] == rule:
            path = Path(finding["filename"]).relative_to(ROOT)
            yield f"{path}:{finding['location']['row']}: {finding['message']}"


def _sources() -> Iterator[Path]:
    return iter(sorted(PACKAGE.rglob("*.py")))


def _long_functions() -> Findings:
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                lines = (node.end_lineno or first) - first + 1
                if lines > LONGEST_FUNCTION:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {lines} lines"


def _long_lines() -> Findings:
    for path in _sources():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > LONGEST_LINE:
                yield f"{path.relative_to(ROOT)}:{number}: {len(line)} columns"


BUDGETS: dict[str, tuple[str, Callable[[], Findings]]] = {
    "private_access": ("private names of another object (SLF001)", partial(_ruff, "SLF001")),
    "inner_imports": ("imports inside a function (PLC0415)", partial(_ruff, "PLC0415")),
    "any_annotations": ("annotations that are Any (ANN401)", partial(_ruff, "ANN401")),
    "complex_functions": (
        f"functions of complexity above {MOST_COMPLEX} (C901)",
        partial(_ruff, "C901"),
    ),
    "long_functions": (f"functions longer than {LONGEST_FUNCTION} lines", _long_functions),
    "long_lines": (f"lines over {LONGEST_LINE} columns", _long_lines),
}


def read() -> dict[str, int]:
    """Return the budgets of budgets.toml. A line is `name = count`; Python 3.10 has no tomllib."""
    text = FILE.read_text(encoding="utf-8")
    return {name: int(count) for name, count in re.findall(r"^(\w+) = (\d+)$", text, re.MULTILINE)}


def write(budgets: dict[str, int]) -> None:
    """Replace the counts in budgets.toml and keep its comments."""
    text = FILE.read_text(encoding="utf-8")
    for name, count in budgets.items():
        text = re.sub(rf"^{name} = \d+$", f"{name} = {count}", text, flags=re.MULTILINE)
    FILE.write_text(text, encoding="utf-8")


def main() -> int:
    """Check the budgets; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="lower the budgets that have fallen")
    parser.add_argument("--list", metavar="NAME", choices=BUDGETS, help="print what one counts")
    options = parser.parse_args()
    if options.list:
        for line in BUDGETS[options.list][1]():
            print(line)
        return 0
    budgets, code = read(), 0
    if set(budgets) != set(BUDGETS):
        print(f"budgets.toml must name exactly these: {', '.join(BUDGETS)}", file=sys.stderr)
        return 1
    for name, (text, count_of) in BUDGETS.items():
        count, budget = sum(1 for _ in count_of()), budgets[name]
        verdict = "ok"
        if count > budget:
            verdict = f"too many: at most {budget}; see `python tools/budgets.py --list {name}`"
            code = 1
        elif count < budget and options.update:
            verdict, budgets[name] = f"budget lowered from {budget}", count
        elif count < budget:
            verdict = f"the budget is {budget}: `python tools/budgets.py --update` lowers it"
            code = 1
        print(f"{count:5d} {text}: {verdict}")
    if options.update:
        write(budgets)
    return code


if __name__ == "__main__":
    sys.exit(main())
