"""What MPICH answers with an error, this package answers with the same error class: bad_calls.py has the table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serverless_mpi import MPI
from tests.api import bad_calls
from tests.harness import mpirun, run, under_mpirun


@pytest.mark.parametrize("call, error", bad_calls.ANSWERS)
def test_the_error_class_is_mpichs(call: str, error: str) -> None:
    def body(c: Any) -> None:
        assert bad_calls.answer(MPI, c, call) == error
        c.send("still here", 0, tag=3)
        assert c.recv(source=0, tag=3) == "still here"

    run(1, body)


@pytest.mark.skipif(mpirun() is None, reason="needs the real MPI to compare with: pip install mpich")
def test_the_table_says_what_mpich_answers() -> None:
    job = under_mpirun(1, str(bad_calls.__file__))
    assert job.returncode == 0, job.stderr
    found = json.loads(job.stdout)
    wrong = {call: real for (call, error), real in zip(bad_calls.ANSWERS, found, strict=True) if real != error}
    assert not wrong
