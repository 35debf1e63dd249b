"""The package is clean under `mypy --strict` (settings in pyproject.toml), for the oldest Python it runs on."""

from __future__ import annotations

import subprocess
import sys

from tests.harness import ROOT


def test_the_package_is_clean_under_mypy() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
