"""Text on the terminal: output of ranks, joined line by line, and messages of smpirun.

- Output of programs is passed on unchanged, terminal sequences included, as
  `mpiexec` does.
- Any other text (`say`, `printable`) may have parts that others chose: the name
  of a communicator or a file, an object in a bucket that another job wrote.  No
  control character of it reaches the terminal.

`LineWriter` only cuts bytes into lines and adds tags.  `FileWriter` has the same methods
and writes a file per rank; `output_writer` chooses.  Where the bytes come from is the
launcher's, so both are tested without processes.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from pathlib import Path
from typing import BinaryIO

from serverless_mpi.errors import JobError, UsageError
from serverless_mpi.launch.habits import RANK

# Bytes of one line that are held until its end comes; a longer line is written in pieces.
LINE_MAX = 1 << 20


def printable(text: str) -> str:
    """Return a text with control and formatting characters replaced by Python's escapes.

    Parameters
    ----------
    text
        Any text; newlines are replaced as well.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def printable_lines(text: str) -> str:
    """Return a text of several lines, each of them made `printable`.

    Parameters
    ----------
    text
        Lines separated by newlines.
    """
    return "\n".join(map(printable, text.split("\n")))


def say(text: str, *more: str) -> None:
    """Write a message of smpirun to standard error.

    Parameters
    ----------
    text
        The first line, without the prefix "smpirun: ".
    *more
        Further lines, which are indented below it.
    """
    with contextlib.suppress(OSError, ValueError):  # standard error is closed
        sys.stderr.write("\n  ".join(map(printable, (f"smpirun: {text}", *more))) + "\n")
        sys.stderr.flush()


class LineWriter:
    """Writes whole lines of several ranks to one file descriptor, never mixed. Not thread-safe.

    The last line of a rank may lack its newline; it is written as it is, and a newline is added
    only if another line follows.

    Parameters
    ----------
    fd
        Descriptor to write to; borrowed, never closed here.
    tagged
        Whether each line begins with its rank, as "[3] ".
    """

    def __init__(self, fd: int, tagged: bool) -> None:
        self._fd = fd
        self._tagged = tagged
        self._held: dict[int, bytearray] = {}  # rank -> the start of a line without an end
        self._open = -1  # rank whose unfinished line is last in the output

    def tag(self) -> None:
        """Begin each line with its rank from now on."""
        self._tagged = True

    def feed(self, rank: int, data: bytes) -> None:
        """Take bytes from a rank and write the lines that are complete.

        Parameters
        ----------
        rank
            The rank that wrote them.
        data
            Any bytes; incomplete lines are held.

        Raises
        ------
        BrokenPipeError
            The reader of the output has closed it.
        JobError
            The output cannot be written, for example to a full disk.
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
        """Write the incomplete last line of a rank, if there is one.

        Parameters
        ----------
        rank
            A rank from which no more bytes come.
        """
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
            except BlockingIOError:  # the descriptor was inherited as non-blocking
                select.select([], [self._fd], [])
            except BrokenPipeError:
                raise
            except OSError as error:
                stream = {1: "standard output", 2: "standard error"}.get(self._fd, "the output")
                raise JobError(f"{stream} cannot be written: {error.strerror}") from error


class FileWriter:
    """Writes the output of each rank to a file of its own.

    Parameters
    ----------
    pattern
        Path of the files; `%r` in it is the rank.  Folders are made.
    size
        Number of ranks, each of which gets a file, also if it prints nothing.

    Raises
    ------
    UsageError
        A file cannot be written.
    """

    def __init__(self, pattern: str, size: int) -> None:
        self._files: dict[int, BinaryIO] = {}
        for rank in range(size):
            path = Path(pattern.replace(RANK, str(rank)))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files[rank] = path.open("wb", buffering=0)
            except OSError as error:
                raise UsageError(f"{path} cannot be written: {error.strerror}") from error

    def tag(self) -> None:
        """Do nothing: the file names the rank."""

    def feed(self, rank: int, data: bytes) -> None:
        """Write bytes of a rank.

        Parameters
        ----------
        rank
            The rank that wrote them.
        data
            Any bytes.

        Raises
        ------
        JobError
            The file cannot be written, for example to a full disk.
        """
        try:
            self._files[rank].write(data)
        except OSError as error:
            name = self._files[rank].name
            raise JobError(f"{name} cannot be written: {error.strerror}") from error

    def finish(self, rank: int) -> None:
        """Close the file of a rank.

        Parameters
        ----------
        rank
            A rank from which no more bytes come.
        """
        file = self._files.get(rank)
        if file is not None:
            file.close()


def output_writer(fd: int, tagged: bool, pattern: str | None, size: int) -> LineWriter | FileWriter:
    """Return what writes one stream of all ranks.

    Parameters
    ----------
    fd
        Descriptor of the stream, for output that stays together.
    tagged
        Whether each line begins with its rank.
    pattern
        Path of a file per rank, with `%r`; None for the descriptor.
    size
        Number of ranks.

    Raises
    ------
    UsageError
        A file cannot be written, or the pattern gives all ranks the same one.
    """
    if pattern is None:
        return LineWriter(fd, tagged)
    if RANK not in pattern and size > 1:
        raise UsageError(f"{pattern!r} is one file for all ranks: it needs {RANK} for the rank")
    return FileWriter(pattern, size)
