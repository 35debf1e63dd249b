"""Calls on their way to ranks, and outcomes on their way back.

A call is a pickle of three parts: who made it (`Origin`), and the function with its
arguments as an inner pickle, which a rank loads only after it has compared the Origin.  It
travels on the standard input of rank 0, or as a file of the program on a platform without
standard input.

An outcome travels on the rank's standard output, between the lines that the function prints.
It is cut into pieces of one line each:

    <token> <index of the call> <index of the piece> <number of pieces> <base64>

The token is a secret of the caller (32 hexadecimal digits) that only the ranks know, so
nothing that a function prints from foreign data can be taken for an outcome.  A line is
shorter than PIPE_BUF, so lines of several threads never mix.

Functions and values are pickled by cloudpickle if it is installed: then lambdas, closures and
functions of a notebook travel too.
"""

from __future__ import annotations

import base64
import io
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from serverless_mpi.errors import UsageError

try:
    import cloudpickle
except ImportError:  # it is optional
    cloudpickle = None

PIECE_BYTES = (
    2880  # of a pickle; its line has 3,840 base64 digits and is shorter than PIPE_BUF (4096)
)
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Origin:
    """The caller's interpreter.

    Attributes
    ----------
    python
        Version, as (3, 12).  Functions pickled by value need the same one.
    by_value
        Whether cloudpickle made the pickle.
    paths
        Entries of `sys.path` on which a rank of the same machine finds the caller's modules.
    token
        Secret that begins each line of an outcome.
    """

    python: tuple[int, int]
    by_value: bool
    paths: tuple[str, ...]
    token: str


@dataclass(frozen=True)
class Outcome:
    """What became of a call on one rank.

    Attributes
    ----------
    value
        What the function returned.
    error
        The exception that it raised, None if it returned.
    traceback
        Text of the exception's traceback on the rank.
    """

    value: object = None
    error: BaseException | None = None
    traceback: str = ""


def by_value() -> bool:
    """Return whether cloudpickle can be imported."""
    return _dumps() is not pickle.dumps


def _dumps() -> Callable[..., bytes]:
    return pickle.dumps if cloudpickle is None else cloudpickle.dumps


def dump_call(function: Callable[..., object], args: tuple[object, ...], origin: Origin) -> bytes:
    """Pickle a call.

    Parameters
    ----------
    function
        The function of each rank.
    args
        Its arguments.
    origin
        The caller.

    Raises
    ------
    UsageError
        The function or an argument cannot be pickled, or is of a module that ranks cannot import.
    """
    if not callable(function):
        raise UsageError(f"run() calls a function on each rank, and {function!r} is not callable")
    if not origin.by_value and getattr(function, "__module__", None) == "__main__":
        raise UsageError(
            f"{_name(function)} is defined in the main program or notebook, which ranks do not"
            " import: install cloudpickle, or move the function to a module"
        )
    try:
        inner = _dumps()((function, args), protocol=5)
    except Exception as error:  # any: classes decide how they are pickled
        hint = "" if origin.by_value else "; with cloudpickle installed, more functions can be"
        raise UsageError(
            f"{_name(function)} or an argument cannot be pickled: {error}{hint}"
        ) from error
    return pickle.dumps((origin, inner), protocol=5)


def load_origin(data: bytes) -> tuple[Origin, bytes]:
    """Return who made a call, and its function and arguments as a pickle.

    Parameters
    ----------
    data
        From `dump_call`, by a way that only the caller can write to.
    """
    origin, inner = pickle.loads(data)
    return origin, inner


def load_call(origin: Origin, inner: bytes) -> tuple[Callable[..., object], tuple[object, ...]]:
    """Return the function and the arguments of a call.

    Parameters
    ----------
    origin, inner
        From `load_origin`.

    Raises
    ------
    UsageError
        This interpreter has another version, or lacks cloudpickle or a module of the function.
    """
    if origin.by_value and origin.python != sys.version_info[:2]:
        raise UsageError(
            f"the caller runs Python {_version(origin.python)} and this rank"
            f" {_version(sys.version_info[:2])}: functions travel between equal versions only"
        )
    try:
        function, args = pickle.loads(inner)
    except ImportError as error:
        raise UsageError(
            f"this rank cannot import what the function needs: {error}; name its package in"
            " requirements, or run from the folder of its module"
        ) from error
    return function, args


def _version(pair: tuple[int, ...]) -> str:
    return ".".join(map(str, pair))


def _name(function: object) -> str:
    return str(getattr(function, "__qualname__", None) or repr(function))


def dump_outcome(outcome: Outcome) -> bytes:
    """Pickle an outcome; one that cannot be pickled becomes a TypeError that says so.

    Parameters
    ----------
    outcome
        What the function returned or raised.
    """
    try:
        data = _dumps()(outcome, protocol=5)
        if outcome.error is not None:
            pickle.loads(data)  # many exceptions can be pickled, but not loaded
        return data
    except Exception as trouble:  # any: classes decide how they are pickled
        if outcome.error is not None:
            error: BaseException = RuntimeError(
                f"{type(outcome.error).__qualname__}: {outcome.error}"
            )
        else:
            kind = type(outcome.value).__qualname__
            error = TypeError(f"the returned value, of type {kind}, cannot be pickled: {trouble}")
        return pickle.dumps(Outcome(None, error, outcome.traceback), protocol=5)


def lines(token: str, number: int, data: bytes) -> Iterator[bytes]:
    """Cut an outcome into lines.

    Parameters
    ----------
    token
        The caller's secret.
    number
        Index of the call.
    data
        From `dump_outcome`.
    """
    count = max(1, -(-len(data) // PIECE_BYTES))
    for index in range(count):
        piece = data[index * PIECE_BYTES : (index + 1) * PIECE_BYTES]
        head = f"{token} {number} {index} {count} ".encode()
        yield head + base64.b64encode(piece) + b"\n"


class OutcomeReader:
    """Joins the lines of one rank to outcomes.

    Parameters
    ----------
    token
        The caller's secret.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode() + b" "
        self._pieces: list[bytes] = []

    def feed(self, line: bytes) -> tuple[bytes, tuple[int, Outcome] | None]:
        """Take a line of the rank's output.

        Parameters
        ----------
        line
            A whole line.

        Returns
        -------
        bytes
            What of it the function printed; the whole line if it is not a piece.
        (int, Outcome) or None
            Index of a call and its outcome, if this line was the last piece.
        """
        printed, found, rest = line.partition(self._token)
        if not found:
            return line, None
        number, index, count, text = rest.split()
        if int(index) == 0:
            self._pieces = []
        self._pieces.append(base64.b64decode(text))
        if len(self._pieces) < int(count):
            return printed, None
        outcome = pickle.loads(b"".join(self._pieces))
        self._pieces = []
        return printed, (int(number), outcome)


def write_call(stream: BinaryIO, data: bytes) -> None:
    """Write a call to a pipe, with its length in front.

    Parameters
    ----------
    stream
        The pipe.
    data
        From `dump_call`.
    """
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def read_call(stream: BinaryIO | io.BufferedReader) -> bytes | None:
    """Return the next call from a pipe; None at its end.

    Parameters
    ----------
    stream
        The pipe.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (nbytes,) = _LENGTH.unpack(head)
    data = stream.read(nbytes)
    return data if len(data) == nbytes else None
