"""Many processes' output, put together line by line.

Here is only the cutting into lines and the tags; where bytes come from is the
launcher's, so this is tested without a process.
"""

from __future__ import annotations

import os
import select

LINE_MAX = (
    1 << 20
)  # bytes of one line that are held back for its end; a longer line is written in pieces


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
