"""The C test through CMake with AddressSanitizer and UBSan, for every path of this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness import ROOT

try:
    from cmake import CMAKE_BIN_DIR

    CMAKE: str | None = str(Path(CMAKE_BIN_DIR) / "cmake")
except ImportError:
    CMAKE = shutil.which("cmake")
TIMEOUT_S = 300.0


def said(*words: object) -> str:
    """What a command said; its errors are the test's."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(CMAKE is None, reason="no cmake: pip install cmake")
def test_the_c_test_under_sanitizers(tmp_path: Path) -> None:
    assert CMAKE is not None
    said(
        CMAKE,
        "-S",
        ROOT,
        "-B",
        tmp_path,
        "-DSPDNN_SANITIZE=address,undefined",
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_C_FLAGS=-O1",
    )
    said(CMAKE, "--build", tmp_path, "--parallel", 2)
    assert "100% tests passed" in said(
        Path(CMAKE).with_name("ctest"), "--test-dir", tmp_path, "--output-on-failure"
    )
