"""One rank of a function: its program, what it printed, and the console messages about it.

A function runs one rank or a pack of them.  This is what each has of its own; the claim,
the limits and the requests are the function's (handler.py), which also sends the
messages that `Rank.drain` returns, those of all its ranks in one request.

Messages of a rank are numbered from 0, and the launcher restores their order, so each
is made once and sent in the order in which it was made.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serverless_mpi.job import JobSpec
from serverless_mpi.launch import console
from serverless_mpi.launch.sandbox import Child

# Output of one message: two billed chunks, and half of what the emulator's queues accept.
MESSAGE_BYTES = 128 << 10
# Output of a rank that also goes to the function's log, which costs 0.50 USD per GB.
LOGGED_BYTES = 1 << 20
LAST_WORDS_BYTES = 2000


class Rank:
    """A rank, from its invocation to its end.

    Parameters
    ----------
    spec
        The job as this rank sees it.

    Attributes
    ----------
    number
        Its world rank.
    child
        Its program; None before the start.
    waits
        The report of long waits that was last sent to the launcher; None for none.
    ended
        Its end has been reported.
    """

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.number = spec.rank
        self.child: Child | None = None
        self.waits: dict[str, Any] | None = None
        self.ended = False
        self._seq = 0
        self._unsent: list[tuple[str, bytearray]] = []  # output by stream, in its order
        self._logged = 0
        self._last_words = b""

    def take(self, stream: str, data: bytes) -> None:
        """Keep output for the next message, and write it to the function's log.

        Parameters
        ----------
        stream
            "out" or "err".
        data
            What the program wrote; copied.
        """
        if not self._unsent or self._unsent[-1][0] != stream:
            self._unsent.append((stream, bytearray()))
        self._unsent[-1][1].extend(data)
        if stream == "err":
            self._last_words = (self._last_words + data)[-LAST_WORDS_BYTES:]
        if self._logged < LOGGED_BYTES:
            head = f"smpi {self.spec.job_id} rank {self.number}"
            for line in data.decode(errors="replace").splitlines():
                print(f"{head} {stream}: {line}")
            self._logged += len(data)
            if self._logged >= LOGGED_BYTES:
                print(f"{head}: more output is not logged")
            sys.stdout.flush()

    @property
    def unsent_bytes(self) -> int:
        """Bytes of output that no message has yet."""
        return sum(len(part) for _, part in self._unsent)

    def drain(self) -> list[bytes]:
        """Return messages of the output that is not sent yet, encoded."""
        unsent, self._unsent = self._unsent, []
        return [
            self.message(stream, {}, bytes(data[start : start + MESSAGE_BYTES]))
            for stream, data in unsent
            for start in range(0, len(data), MESSAGE_BYTES)
        ]

    def message(self, kind: str, facts: dict[str, Any], data: bytes = b"") -> bytes:
        """Return the next console message, encoded.

        Parameters
        ----------
        kind, facts, data
            As in `ConsoleMessage`.
        """
        message = console.ConsoleMessage(self.number, self._seq, kind, data, facts)
        self._seq += 1
        return console.encode(message, self.spec.job_id, self.spec.key)

    def hint(self) -> str:
        """Return a remedy if the program ended at an import, else ""."""
        last = self._last_words.decode(errors="replace").strip().rpartition("\n")[2]
        if last.startswith(("ModuleNotFoundError", "ImportError")):
            return (
                f" ({last}; name the package in a file for --requirements,"
                " or put it into the program's folder)"
            )
        return ""

    @property
    def peak_bytes(self) -> int:
        """The most resident memory of its program that was measured, in bytes."""
        return 0 if self.child is None else self.child.peak_bytes


def named(ranks: Sequence[int]) -> str:
    """Return ranks that follow each other in words: "rank 3", or "ranks 4 to 7".

    Parameters
    ----------
    ranks
        At least one.
    """
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


def stats_file(folder: Path, kind: str, rank: int) -> Path:
    """Return the file in which a rank's MPI leaves its counters ("rank"), "trace" or "profile"."""
    return folder / f"{kind}-{rank}.json"
