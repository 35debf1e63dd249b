"""Calls and outcomes as bytes: they return as they were, and what cannot travel is named."""

from __future__ import annotations

import io
import operator
import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless_mpi.calls import messages
from serverless_mpi.calls.messages import Origin, Outcome, OutcomeReader
from serverless_mpi.errors import UsageError

TOKEN = "0123456789abcdef" * 2
HERE = (sys.version_info[0], sys.version_info[1])


def _origin(python: tuple[int, int] = HERE, by_value: bool = False) -> Origin:
    return Origin(python, by_value, (), TOKEN)


@given(
    st.binary(max_size=4 * messages.PIECE_BYTES),
    st.integers(0, 1000),
    st.binary(max_size=20).filter(lambda text: b"\n" not in text),
)
def test_an_outcome_is_joined_from_its_lines(value: bytes, number: int, printed: bytes) -> None:
    cut = list(messages.lines(TOKEN, number, messages.dump_outcome(Outcome(value))))
    assert all(len(line) < 4096 and line.endswith(b"\n") for line in cut)  # PIPE_BUF
    reader = OutcomeReader(TOKEN)
    cut[0] = printed + cut[0]  # a function that printed a line without its end
    got = [reader.feed(line[:-1]) for line in cut]
    assert got[0][0] == printed and [text for text, _ in got[1:]] == [b""] * (len(cut) - 1)
    assert [done for _, done in got[:-1]] == [None] * (len(cut) - 1)
    assert got[-1][1] == (number, Outcome(value))


@given(st.binary(max_size=200))
def test_what_a_function_prints_is_no_outcome(text: bytes) -> None:
    line = text.replace(b"\n", b"")
    other = messages.lines("f" * 32, 0, messages.dump_outcome(Outcome(1)))
    for one in (line, next(other)[:-1]):
        assert OutcomeReader(TOKEN).feed(one) == (one, None)


def test_a_call_travels() -> None:
    data = messages.dump_call(operator.add, (2, 3), _origin())
    pipe = io.BytesIO()
    messages.write_call(pipe, data)
    messages.write_call(pipe, b"")
    pipe.write(b"\5\0\0\0\0\0\0\0cut")
    pipe.seek(0)
    assert messages.read_call(pipe) == data
    assert messages.read_call(pipe) == b"" and messages.read_call(pipe) is None
    origin, inner = messages.load_origin(data)
    function, args = messages.load_call(origin, inner)
    assert origin == _origin() and function(*args) == 5


class _Unloadable(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


class _Stubborn:
    def __reduce__(self) -> str:
        raise TypeError("not this one")


def _main_function() -> None: ...


def test_what_cannot_travel_is_named() -> None:
    with pytest.raises(UsageError, match="5 is not callable"):
        messages.dump_call(5, (), _origin())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not this one"):
        messages.dump_call(print, (_Stubborn(),), _origin())
    _main_function.__module__ = "__main__"
    with pytest.raises(UsageError, match="_main_function is defined .* install cloudpickle"):
        messages.dump_call(_main_function, (), _origin())
    inner = pickle.dumps((print, ()))
    with pytest.raises(UsageError, match=r"the caller runs Python 2\.7 and this rank 3\."):
        messages.load_call(_origin((2, 7), by_value=True), inner)
    assert messages.load_call(_origin((2, 7)), inner)[0] is print  # by name it may
    gone = inner.replace(b"builtins", b"buildins")
    with pytest.raises(UsageError, match="cannot import .*buildins"):
        messages.load_call(_origin(), gone)


def test_an_outcome_that_cannot_travel_becomes_one_that_says_so() -> None:
    value = pickle.loads(messages.dump_outcome(Outcome(_Stubborn())))
    assert isinstance(value.error, TypeError) and "_Stubborn, cannot be pickled" in str(value.error)
    odd = pickle.loads(messages.dump_outcome(Outcome(None, _Unloadable("a", "b"), "trace")))
    assert str(odd.error) == "_Unloadable: a" and odd.traceback == "trace"
