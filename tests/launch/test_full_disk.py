"""A full disk: the launcher names it in one line and leaves nothing behind."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from serverless_mpi.errors import JobError
from serverless_mpi.job import JobSpec
from serverless_mpi.launch.jobs import JobFolder

ROOT = Path(__file__).resolve().parents[2]


def _no_file() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_no_temporary_directory_can_be_written() -> None:
    words = [sys.executable, "-m", "serverless_mpi.launch", "-n", "1", "examples/hello.py"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, preexec_fn=_no_file)
    assert done.returncode == 1
    assert done.stderr.startswith("smpirun: No usable temporary directory")
    assert "set TMPDIR" in done.stderr and done.stderr.count("\n") == 1


def test_a_record_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = JobFolder.begin()
    try:

        def full(path: Path, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(JobError, match="spec.new cannot be written: No space left .*TMPDIR"):
            folder.record(JobSpec.new(1, "queue"))
    finally:
        monkeypatch.undo()
        folder.end()
    assert not list(tmp_path.rglob("spec*"))
