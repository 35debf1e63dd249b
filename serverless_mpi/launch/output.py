"""What a command writes: many processes' output, put together line by line, and its own words.

The output of programs is passed on as it is, terminal sequences included, as `mpiexec` does. Everything else that the
user reads (`say`, `printable`) may contain text that somebody else chose: the name of a communicator, a file's name, an
object in a bucket that another job wrote. So no control character of it reaches the terminal.

Here is only the cutting into lines and the tags; where bytes come from is the
launcher's, so this is tested without a process.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys

from serverless_mpi.errors import JobError

LINE_MAX = (
    1 << 20
)  # bytes of one line that are held back for its end; a longer line is written in pieces


def printable(text: str) -> str:
    """Return the text as one line without control or formatting characters, which become escapes as in Python."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def printable_lines(text: str) -> str:
    """Return a text of several lines with each line made `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def say(text: str, *more: str) -> None:
    """Write a line of smpirun's own to standard error, and `more` lines that belong to it."""
    with contextlib.suppress(OSError, ValueError):  # nobody reads it
        sys.stderr.write("\n  ".join(map(printable, (f"smpirun: {text}", *more))) + "\n")
        sys.stderr.flush()


class LineWriter:
    """Writes whole lines of several sources to one file descriptor, never mixed.

    A source's last line may lack its newline; it is written as it is, and a
    newline is added only if another line follows.
    """

    def __init__(self, fd: int, tagged: bool) -> None:
        self._fd = fd
        self._tagged = tagged
        self._held: dict[int, bytearray] = {}  # rank -> the beginning of a line
        self._open = -1  # rank whose unfinished line stands last in the output

    def feed(self, rank: int, data: bytes) -> None:
        """Bytes that came from `rank`; what makes whole lines is written.

        Raises
        ------
        BrokenPipeError
            Nobody reads the output any more.
        JobError
            It cannot be written, as when a disk is full.
        """
        held = self._held.setdefault(rank, bytearray())
        held += data
        end = held.rfind(b"\n") + 1
        if not end and len(held) > LINE_MAX:
            end = len(held)
        if end:
            whole = bytes(held[:end])
            del held[:end]
            self._write(rank, whole)

    def finish(self, rank: int) -> None:
        """Nothing more will come from `rank`: write what is held of it."""
        held = self._held.pop(rank, None)
        if held:
            self._write(rank, bytes(held))

    def _write(self, rank: int, data: bytes) -> None:
        if self._tagged:
            tag = f"[{rank}] ".encode()
            *whole, rest = data.split(b"\n")
            lines = [line + b"\n" for line in whole] + ([rest] if rest else [])
            data = b"".join(
                line if self._open == rank and i == 0 else tag + line
                for i, line in enumerate(lines)
            )
        if self._open not in (-1, rank):
            data = b"\n" + data
        self._open = -1 if data.endswith(b"\n") else rank
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # whoever gave us the descriptor made it non-blocking
                select.select([], [self._fd], [])
            except BrokenPipeError:
                raise
            except OSError as error:
                stream = {1: "standard output", 2: "standard error"}.get(self._fd, "the output")
                raise JobError(f"{stream} cannot be written: {error.strerror}") from error
