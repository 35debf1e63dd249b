"""The example notebook: its cells are executed one after another, as a kernel does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import GIVE_UP_S, ROOT

NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
# Cells share one namespace, which is that of __main__, so functions travel by value.
KERNEL = """\
import json, sys
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), "cell", "exec"), globals())
"""


def test_the_notebook_runs(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    done = subprocess.run(
        [sys.executable, "-c", KERNEL, NOTEBOOK],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "3.141593 on each of 4 ranks"
    assert "rank 2 does not like this" in done.stdout
    assert done.stdout.count("sum 1.000000, highest 0.") == 3
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") for cell in notebook["cells"])  # none is kept in git
