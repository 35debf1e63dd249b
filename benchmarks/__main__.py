"""`python -m benchmarks [module ...]`: run the benchmarks (all of them, or those named) and print
every figure beside its target.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import time

import benchmarks
from benchmarks.table import Row, render


def modules() -> list[str]:
    """The modules of this folder that have a `run`, in order of their names."""
    names = sorted(
        one.name
        for one in pkgutil.iter_modules(benchmarks.__path__)
        if not one.name.startswith("_")
    )
    return [name for name in names if hasattr(importlib.import_module(f"benchmarks.{name}"), "run")]


def main(wanted: list[str]) -> int:
    """Run and print; returns 1 if a target was missed."""
    known = modules()
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for name in wanted or known:
        module = importlib.import_module(f"benchmarks.{name}")
        started = time.perf_counter()
        try:
            got = module.run()
        except (
            Exception
        ) as error:  # the others shall run all the same; it counts as a target that was missed
            got = [
                Row(
                    f"{name} failed",
                    0.0,
                    "",
                    met=False,
                    reason=f"{type(error).__name__}: {str(error)[-300:]}",
                )
            ]
        summary = " ".join((module.__doc__ or "").split("\n\n")[0].split())
        print(f"\n{name} ({time.perf_counter() - started:.0f} s): {summary}", flush=True)
        print(render(got), flush=True)
        rows += got
    missed = [row for row in rows if row.met is False]
    met = sum(row.met is True for row in rows)
    print(
        f"\n{met} of {met + len(missed)} targets met"
        + "".join(f"\nMISSED {row.what}: {row.reason}" for row in missed)
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
