"""Errors have the error classes of MPICH; bad_calls.py has the table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serverless_mpi import MPI
from tests.api import bad_calls
from tests.harness import mpirun, run, under_mpirun


@pytest.mark.parametrize("call, error", [*bad_calls.ANSWERS, *bad_calls.OF_THE_STANDARD])
def test_the_error_class_is_mpichs(call: str, error: str) -> None:
    def body(c: Any) -> None:
        assert bad_calls.answer(MPI, c, call) == error
        c.send("still here", 0, tag=3)
        assert c.recv(source=0, tag=3) == "still here"

    run(1, body)


@pytest.mark.parametrize("pair", [*bad_calls.PAIRS, *bad_calls.PAIRS_OF_THE_STANDARD])
def test_so_it_is_where_two_ranks_do_not_agree(pair: tuple[str, str, str, str]) -> None:
    assert run(2, lambda c: bad_calls.answer_of_two(MPI, c, pair)) == list(pair[2:])


@pytest.mark.skipif(
    mpirun() is None, reason="needs the real MPI to compare with: pip install mpich"
)
@pytest.mark.parametrize("size", [1, 2])
def test_the_tables_say_what_mpich_answers(size: int) -> None:
    job = under_mpirun(size, str(bad_calls.__file__))
    assert job.returncode == 0, job.stderr
    found = dict(json.loads(line) for line in job.stdout.splitlines())
    if size == 1:
        wrong = {
            call: real
            for (call, error), real in zip(bad_calls.ANSWERS, found[0], strict=True)
            if real != error
        }
    else:
        answers = zip(bad_calls.PAIRS, found[0], found[1], strict=True)
        wrong = {pair[:2]: (zero, one) for pair, zero, one in answers if pair[2:] != (zero, one)}  # type: ignore[misc]
    assert not wrong
