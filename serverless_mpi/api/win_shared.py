"""Shared memory of the ranks of one machine, for MPI.Win.Allocate_shared.

Rank 0 makes a file in memory (memfd_create), and the others open it by its entry in /proc. Each
maps it, and the descriptors are closed again, so the memory lasts as long as a process has it
mapped. A random token at the end of the file shows that the entry is that of the right file.

References
----------
MPI 4.1, section 12.2.3; memfd_create(2).
"""

from __future__ import annotations

import mmap
import os
import secrets
from pathlib import Path

TOKEN_BYTES = 16


def identity(name: str) -> tuple[str, ...]:
    """Return what is equal for two ranks if and only if one can open the other's memory.

    Parameters
    ----------
    name
        Name of the rank's machine, as MPI has it.
    """
    facts = [name]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            facts.append(
                os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip()
            )
        except OSError:
            facts.append("")
    return tuple(facts)


class SharedFile:
    """The file of one window, while the ranks map it.

    Attributes
    ----------
    nbytes : int
        Bytes that the ranks share.
    """

    def __init__(self, nbytes: int, descriptor: int) -> None:
        self.nbytes = nbytes
        self._descriptor = descriptor

    @classmethod
    def create(cls, nbytes: int) -> tuple[SharedFile, tuple[int, int, bytes]]:
        """Make a file of zeros; return it, and what another rank needs to open it.

        Parameters
        ----------
        nbytes
            Bytes to share.

        Raises
        ------
        OSError
            There is not so much memory.
        """
        descriptor = os.memfd_create("smpi-window", os.MFD_CLOEXEC)
        token = secrets.token_bytes(TOKEN_BYTES)
        try:
            os.ftruncate(descriptor, nbytes + TOKEN_BYTES)
            os.pwrite(descriptor, token, nbytes)
        except OSError:
            os.close(descriptor)
            raise
        return cls(nbytes, descriptor), (os.getpid(), descriptor, token)

    @classmethod
    def open(cls, nbytes: int, origin: tuple[int, int, bytes]) -> SharedFile:
        """Open the file of another rank.

        Parameters
        ----------
        nbytes
            Bytes to share.
        origin
            What `create` returned.

        Raises
        ------
        OSError
            It cannot be opened, or is not the right file.
        """
        process, number, token = origin
        descriptor = os.open(f"/proc/{process}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
        if os.pread(descriptor, TOKEN_BYTES, nbytes) != token:
            os.close(descriptor)
            raise FileNotFoundError(f"process {process} has another file at descriptor {number}")
        return cls(nbytes, descriptor)

    def map(self) -> memoryview:
        """Map the file; the memory lasts as long as the view or a part of it."""
        return memoryview(mmap.mmap(self._descriptor, self.nbytes + TOKEN_BYTES))[: self.nbytes]

    def close(self) -> None:
        """Close the descriptor; mapped memory stays."""
        os.close(self._descriptor)
