"""The program of the ranks: takes calls, runs them, and writes what they return.

Rank 0 reads calls from its standard input and broadcasts them; at the end of the input all
ranks end.  On a platform without standard input, a file of the program has the one call.

A function that raises ends its rank with exit code 1 after the outcome was written, so
the launcher stops the other ranks, which may wait for this one.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from serverless_mpi.calls import messages
from serverless_mpi.MPI import COMM_WORLD


def _calls() -> Iterator[bytes]:
    """Yield calls as they come, on every rank."""
    if len(sys.argv) > 1:
        yield Path(sys.argv[1]).read_bytes()
        return
    # A private communicator: messages of an earlier call that nobody received stay out of it.
    comm = COMM_WORLD.Dup()
    source = None
    if comm.rank == 0:
        source = os.fdopen(os.dup(0), "rb")
        _silence(0)  # a function that reads its standard input finds it empty
    while True:
        data = comm.bcast(None if source is None else messages.read_call(source))
        if data is None:
            return
        yield data


def _silence(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, fd)
    os.close(null)


def _outcome(origin: messages.Origin, inner: bytes) -> messages.Outcome:
    for path in origin.paths:
        if path not in sys.path:
            sys.path.append(path)
    try:
        function, args = messages.load_call(origin, inner)
        return messages.Outcome(function(*args))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too: the caller gets it instead of a value
        frames = error.__traceback__ and error.__traceback__.tb_next  # without this file
        text = "".join(traceback.format_exception(type(error), error, frames))
        return messages.Outcome(None, error, text)


def main() -> None:
    """Serve calls until the caller has no more."""
    output = os.dup(1)  # whatever the function does with its standard output
    for number, data in enumerate(_calls()):
        origin, inner = messages.load_origin(data)
        outcome = _outcome(origin, inner)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed by the function
                stream.flush()
        for line in messages.lines(origin.token, number, messages.dump_outcome(outcome)):
            view = memoryview(line)
            while view:
                view = view[os.write(output, view) :]
        if outcome.error is not None:
            sys.exit(1)
