"""Views: which bytes of a file a rank sees, and in what order.

A view is a displacement, after which a filetype repeats, one extent after the other. The bytes that
the filetype covers are the *stream*: its byte i is at a place of the file that this module
computes. An etype is the unit of offsets, and the filetype is made of whole etypes.

References
----------
MPI 4.1, sections 14.1.1 and 14.3.
"""

from __future__ import annotations

import numpy as np

from serverless_mpi.fileio.pieces import NONE, Places, joined, places


class View:
    """Where the bytes of a stream are.

    Parameters
    ----------
    disp
        Bytes of the file before the first filetype.
    etype_size
        Bytes of an etype, as stored in the file.
    filetype
        Places of one filetype, in the order of the stream, relative to its beginning.
    extent
        Bytes from one filetype to the next.

    Attributes
    ----------
    size
        Bytes of the stream in one filetype.
    dense
        Whether the stream is the file from `disp` on.
    """

    def __init__(self, disp: int, etype_size: int, filetype: Places, extent: int) -> None:
        self.disp = disp
        self.etype_size = etype_size
        self.extent = extent
        self._tile = joined(filetype)
        self._ends = np.cumsum(self._tile[:, 1])
        self.size = int(self._ends[-1]) if len(self._ends) else 0
        self.dense = len(self._tile) == 1 and not self._tile[0, 0] and self.size == extent

    def places(self, start: int, nbytes: int) -> Places:
        """Return where bytes of the stream are in the file.

        Parameters
        ----------
        start
            First byte of the stream.
        nbytes
            Number of bytes.

        Returns
        -------
        ndarray, shape (k, 2)
            Offsets and lengths, in the order of the stream, neighbours joined.
        """
        if nbytes <= 0 or not self.size:
            return NONE
        if self.dense:
            return places((self.disp + start, nbytes))
        first, before = divmod(start, self.size)
        last = (start + nbytes - 1) // self.size
        begins = self.disp + np.arange(first, last + 1, dtype=np.int64) * self.extent
        many = len(begins)
        offsets = (begins[:, None] + self._tile[None, :, 0]).reshape(-1)
        lengths = np.tile(self._tile[:, 1], many)
        ends = np.cumsum(lengths)
        low = int(np.searchsorted(ends, before, "right"))
        high = int(np.searchsorted(ends, before + nbytes, "left")) + 1
        at = np.stack([offsets[low:high], lengths[low:high]], axis=1)
        skipped = before - (int(ends[low]) - int(lengths[low]))
        at[0] += (skipped, -skipped)
        at[-1, 1] -= int(ends[high - 1]) - (before + nbytes)
        return joined(at)

    def offset_of(self, position: int) -> int:
        """Return the offset in the file of a byte of the stream.

        Parameters
        ----------
        position
            Byte of the stream.
        """
        if self.dense or not self.size:
            return self.disp + position
        tile, within = divmod(position, self.size)
        piece = int(np.searchsorted(self._ends, within, "right"))
        offset, length = self._tile[piece]
        inside = within - (int(self._ends[piece]) - int(length))
        return self.disp + tile * self.extent + int(offset) + inside

    def bytes_before(self, offset: int) -> int:
        """Return how many bytes of the stream lie before an offset of the file.

        Parameters
        ----------
        offset
            Offset in the file, such as its size, in bytes.
        """
        beyond = offset - self.disp
        if beyond <= 0 or not self.size:
            return 0
        if self.dense:
            return beyond
        # the last filetypes whose first byte lies before the offset may lie in it only partly
        reach = int((self._tile[:, 0] + self._tile[:, 1]).max())
        whole = max(0, (beyond - reach) // self.extent + 1) if self.extent > 0 else 0
        count, tile = whole * self.size, whole
        while True:
            there = np.clip(beyond - tile * self.extent - self._tile[:, 0], 0, self._tile[:, 1])
            here = int(there.sum())
            if not here:
                return count
            count += here
            tile += 1
            if self.extent <= 0:
                return count
