"""Outcomes of the real MPI, recorded in the repository: half of the suite's time in CI is its.

A record is of one version of MPICH and one of mpi4py, and is used for these alone; with
other versions the real MPI runs.  `python -m tests.conformance --np 3 --modules all --record`
writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.conformance import suite
from tests.conformance.jobs import Module, Outcome

FILE = Path(__file__).with_name("recorded.json")


def _versions() -> dict[str, str]:
    return {"mpich": version("mpich"), "mpi4py": suite.VERSION}


def _load(path: Path) -> dict[str, Any]:
    """Number of ranks -> module -> kind -> names of cases; empty if it is of other versions."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    same = all(content[name] == value for name, value in _versions().items())
    outcomes: dict[str, Any] = content["outcomes"] if same else {}
    return outcomes


def read(size: int, modules: Iterable[str], path: Path = FILE) -> dict[str, Module]:
    """The recorded outcomes of those of the modules that are recorded."""
    found = _load(path).get(str(size), {})
    return {
        module: Module(
            {case: Outcome(kind) for kind, cases in found[module].items() for case in cases}
        )
        for module in modules
        if module in found
    }


def write(size: int, outcomes: Mapping[str, Module], path: Path = FILE) -> None:
    """Add the outcomes of modules, in place of earlier ones; a broken module is not recorded."""
    found = _load(path)
    for module, now in outcomes.items():
        if any(case.startswith("(") for case in now.outcomes):
            continue
        kinds: dict[str, list[str]] = {}
        for case, outcome in sorted(now.outcomes.items()):
            kinds.setdefault(outcome.kind, []).append(case)
        found.setdefault(str(size), {})[module] = kinds
    content = {**_versions(), "outcomes": found}
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
