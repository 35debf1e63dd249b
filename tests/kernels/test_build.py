"""The kernel under AddressSanitizer and UBSan: its C test for every path, and its Python interface."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.kernels import sanitized

CMAKE = sanitized.cmake()
TIMEOUT_S = 300.0
RUNS = 300  # `python -m tests.kernels.sanitized 600` does more


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if CMAKE is None:
        pytest.skip("no cmake: pip install cmake")
    return sanitized.build(tmp_path_factory.mktemp("sanitized"))


def test_the_c_test_under_sanitizers(module: Path) -> None:
    assert CMAKE is not None
    words = [Path(CMAKE).with_name("ctest"), "--test-dir", module.parent, "--output-on-failure"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0 and "100% tests passed" in done.stdout, done.stdout + done.stderr


def test_no_call_from_python_reaches_foreign_memory(module: Path) -> None:
    try:
        sanitized.runtimes()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    done = sanitized.fuzz(module, RUNS, 0, seed=1)
    assert done.returncode == 0 and f"{RUNS} runs" in done.stdout, done.stdout + done.stderr
