"""Build the cffi module with AddressSanitizer and UBSan, and call it with matrices that may be
invalid.

    python -m tests.kernels.sanitized SECONDS [SEED]

A fault of the kernel ends the program with the sanitizer's report, and the seed that led to it is
the last that was printed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MODULE = "serverless_mpi._spdnn"
ENV_MODULE = (
    "SMPI_SANITIZED_KERNEL"  # path of the module, in the process that runs under the sanitizers
)
AT_ONCE = 50  # runs between two looks at the clock


def cmake() -> str | None:
    """Path of a CMake; None if there is none."""
    try:
        from cmake import CMAKE_BIN_DIR
    except ImportError:
        return shutil.which("cmake")
    return str(Path(CMAKE_BIN_DIR) / "cmake")


def runtimes() -> list[str]:
    """Libraries of the compiler's sanitizers, which a program that is not built with them has to
    load first.
    """
    compiler = os.environ.get("CC", "gcc")
    found = []
    for name in ("libasan.so", "libubsan.so"):
        done = subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        )
        if not os.path.isabs(done.stdout.strip()):
            raise FileNotFoundError(f"{compiler} has no {name}")
        found.append(done.stdout.strip())
    return found


def build(folder: str | Path) -> Path:
    """The module, built in `folder`, and next to it the C test."""
    command = cmake()
    assert command is not None
    words = [
        *(command, "-S", str(ROOT), "-B", str(folder)),
        *("-DSPDNN_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_C_FLAGS=-O0"),
        *("-DSPDNN_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}"),
    ]
    for one in (words, [command, "--build", str(folder), "--parallel", "2"]):
        done = subprocess.run(one, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return Path(folder) / "_spdnn.so"


def fuzz(module: Path, runs: int, seconds: float, seed: int) -> subprocess.CompletedProcess[str]:
    """Runs of the target under the sanitizers: that many at least, and for so long."""
    environment = {
        **os.environ,
        ENV_MODULE: str(module),
        "LD_PRELOAD": " ".join(runtimes()),
        "ASAN_OPTIONS": "detect_leaks=0,allocator_may_return_null=1,abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1,halt_on_error=1",
        "PYTHONMALLOC": "malloc",  # so that an array's end is an end for the sanitizer
    }
    return subprocess.run(
        [sys.executable, "-m", "tests.kernels.sanitized", str(seconds), str(seed), str(runs)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def _inside(path: str, seconds: float, seed: int, runs: int) -> None:
    """In the process under the sanitizers."""
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    from tests.fuzz.targets_inference import kernel

    until = time.monotonic() + seconds
    number = seed
    while number < seed + runs or time.monotonic() < until:
        print(f"seeds from {number} on", flush=True)
        for one in range(number, number + AT_ONCE):
            kernel(one.to_bytes(4, "little"))
        number += AT_ONCE
    print(f"{number - seed} runs", flush=True)


def main(seconds: str = "60", seed: str = "0", runs: str = "0") -> int:
    """Build and fuzz for so long; in the child, fuzz."""
    if path := os.environ.get(ENV_MODULE):
        _inside(path, float(seconds), int(seed), int(runs))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        done = fuzz(build(folder), int(runs), float(seconds), int(seed))
    print(done.stdout[-2000:], done.stderr[-8000:])
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
