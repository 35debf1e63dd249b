"""Generate reference pages while mkdocs builds the site (a hook of mkdocs).

- reference/commands.md: every command and option, from the argparse parsers themselves.
- reference/compatibility.md: every name of mpi4py's stubs, and whether this package has it.
- reference/aws-figures.md: every quota, size, time and rate of AWS that the package computes with.

The pages are not files of the repository, so they cannot be out of date.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ("reference/commands.md", "reference/compatibility.md", "reference/aws-figures.md")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those that mkdocs found (called by mkdocs)."""
    from mkdocs.structure.files import File

    sys.path.insert(0, str(ROOT))
    for path, text in zip(GENERATED, (commands(), compatibility(), aws_figures()), strict=True):
        files.append(File.generated(config, path, content=text))
    return files


# --- commands ---------------------------------------------------------------------------------------


def _parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    from serverless_mpi.deploy import cli as deploy
    from serverless_mpi.inference import options
    from serverless_mpi.launch import cli as launch

    yield "smpirun", launch.build_parser()
    for name, parser in (("smpi", deploy.build_parser()), ("smpi-infer", options.parser())):
        yield name, parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command, subparser in action.choices.items():
                    yield f"{name} {command}", subparser


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def commands() -> str:
    """Return the page of commands as Markdown."""
    lines = [
        "# Commands",
        "",
        "Generated from the commands' own parsers; `--help` prints the same. "
        "`python -m tests.conformance` and `python -m tests.thirdparty` "
        "have `--help`, too; `python -m benchmarks NAME` runs one benchmark.",
    ]
    for name, parser in _parsers():
        usage = " ".join(parser.format_usage().split()).removeprefix("usage: ")
        lines += ["", f"{'###' if ' ' in name else '##'} {name}", ""]
        if parser.description:
            lines += [parser.description.strip(), ""]
        lines += ["```text", usage, "```"]
        for group in parser._action_groups:
            rows = [
                action
                for action in group._group_actions
                if action.help != argparse.SUPPRESS
                and not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))
            ]
            if not rows:
                continue
            title = _cell(group.title or "options")
            lines += ["", f"| {title} | |", "|---|---|"]
            for action in rows:
                metavar = action.metavar or ("" if action.nargs == 0 else action.dest.upper())
                names = ", ".join(action.option_strings) or str(metavar)
                if action.option_strings and metavar and action.nargs != 0:
                    names += f" {metavar}"
                text = _cell((action.help or "") % {**vars(action), "prog": parser.prog})
                lines.append(f"| `{_cell(names)}` | {text} |")
        if parser.epilog:
            lines += ["", "```text", parser.epilog.rstrip(), "```"]
    return "\n".join(lines) + "\n"


# --- compatibility ----------------------------------------------------------------------------------

_ABSENT = re.compile(r"^- `((?:MPI|futures)\.[^`]+)`: (\S.*)$", re.MULTILINE)


def _declared(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(class, name) of each public declaration of a stub."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _declared(node.body, prefix)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield prefix, node.name
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield prefix, node.name
            yield from _declared(node.body, node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if not node.target.id.startswith("_"):
                yield prefix, node.target.id


def compatibility() -> str:
    """Return the page of mpi4py's names as Markdown."""
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    absent = dict(_ABSENT.findall(page))
    lines = [
        "# Compatibility with mpi4py, by call",
        "",
        "Generated from the stubs (`MPI.pyi`) of the installed mpi4py. `tests/api/test_signatures.py`"
        " compares every name, parameter and default with them, so a name listed as present has"
        " mpi4py's signature. A name that is missing raises `MPI.Exception`, which is also a"
        " `NotImplementedError`.",
    ]
    spec = importlib.util.find_spec("mpi4py")
    if spec is None:
        return "\n".join([*lines, "", "mpi4py was not installed when this page was built.", ""])
    stub = Path(next(iter(spec.submodule_search_locations or ()))) / "MPI.pyi"
    members: dict[str, dict[str, str]] = {}
    for owner, name in _declared(ast.parse(stub.read_text(encoding="utf-8")).body):
        full = f"MPI.{owner}.{name}" if owner else f"MPI.{name}"
        reason = next((why for pattern, why in absent.items() if fnmatchcase(full, pattern)), "")
        members.setdefault(owner, {})[name] = reason
    total = sum(map(len, members.values()))
    missing = sum(bool(reason) for names in members.values() for reason in names.values())
    lines += ["", f"{total - missing} of {total} names are present.", ""]
    for owner in sorted(members, key=lambda each: (each != "", each)):
        names = members[owner]
        present = sorted(name for name, reason in names.items() if not reason)
        lines += [f"## {'Module `MPI`' if not owner else f'`MPI.{owner}`'}", ""]
        if present:
            lines += [f"{len(present)} present: " + ", ".join(f"`{name}`" for name in present), ""]
        for reason in sorted({reason for reason in names.values() if reason}):
            those = sorted(name for name, why in names.items() if why == reason)
            listed = ", ".join(f"`{name}`" for name in those)
            lines += [f"{len(those)} missing ({reason}): {listed}", ""]
    return "\n".join(lines) + "\n"


# --- figures of AWS ---------------------------------------------------------------------------------


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _source(text: str) -> str:
    """A source as Markdown: its address as a link, and what is quoted of it."""
    address, _, quoted = text.partition(" ")
    if not address.startswith("https://"):
        return _cell(text)
    page = address.rstrip("/").rpartition("/")[2].removesuffix(".html")
    return _cell(f"[{page}]({address}) {quoted}".strip()).replace("&lt;", "<")


def aws_figures() -> str:
    """Return the page of AWS's limits and figures as Markdown."""
    from serverless_mpi.aws import limits

    lines = [
        "# Limits and figures of AWS",
        "",
        "Generated from `serverless_mpi/aws/limits.py`, the one table that channels, simulation,"
        " planner and commands read. Prices are in `serverless_mpi/prices.json`. A range is what"
        " other accounts, regions or moments may have; an end that the source does not state is an"
        " assumption.",
        "",
        "## Limits",
        "",
        "| limit | value | range | what | source | read |",
        "|---|---|---|---|---|---|",
    ]
    for name, limit in limits.all_limits():
        low, high = (limit.value if end is None else end for end in (limit.low, limit.high))
        span = "" if low == high else f"{low:,} to {high:,}"
        lines.append(
            f"| `{name}` | {limit.value:,} {limit.unit} | {span} | {_cell(limit.meaning)}"
            f" | {_source(limit.source)} | {limit.date} |"
        )
    rates = ", ".join(
        f"{region} {rate:,}" for region, rate in limits.SNS_PUBLISHES_PER_S_IN.items()
    )
    lines += [
        "",
        f"Messages per second that may be published, where it is more: {rates}.",
        "",
        "## Figures",
        "",
        "`smpi calibrate` replaces these by what it measures on your stack"
        " ([how](../how-to/calibrate.md)).",
        "",
        "| figure | value | range | what | source | read |",
        "|---|---|---|---|---|---|",
    ]
    for name, figure in limits.AWS.items():
        lines.append(
            f"| `{name}` | {_number(figure.value)} {figure.unit} | {_number(figure.low)} to"
            f" {_number(figure.high)} | {_cell(figure.meaning)} | {_source(figure.source)}"
            f" | {figure.date} |"
        )
    return "\n".join(lines) + "\n"
