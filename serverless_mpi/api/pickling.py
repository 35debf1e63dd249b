"""Objects and bytes: pickle protocol 5 with out-of-band buffers, so arrays are not copied.

A message is a pickle, as mpi4py's is, so that `Send` of a pickle and `recv` of an object understand
each other; where there are buffers it is a head (how many, how long the pickle and each of them
is), the pickle, then
the buffers.  Only bytes that `core.wire` authenticated come here.
"""

from __future__ import annotations

import pickle as _pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any

from serverless_mpi.api.memory import buffer

_THRESHOLD = 1024  # bytes
_MARK = 0  # the first byte of a message that has a head: no pickle begins with it
_HEAD = struct.Struct("<BxxxI")  # the mark, the number of buffers


class Pickle:
    """mpi4py's `MPI.Pickle`: the functions that turn objects to bytes and back.

    dumps(obj, protocol, buffer_callback=) and loads(data, buffers=) as in the
    pickle module, 5 being the least protocol.
    """

    def __init__(
        self,
        dumps: Callable[..., bytes] | None = None,
        loads: Callable[..., Any] | None = None,
        protocol: int | None = None,
        threshold: int | None = None,
    ) -> None:
        self._dumps = dumps or _pickle.dumps
        self._loads = loads or _pickle.loads
        self._custom = dumps is not None
        self._set_protocol(protocol)
        self._set_threshold(threshold)

    def _set_protocol(self, protocol: int | None) -> None:
        self._protocol = (
            _pickle.HIGHEST_PROTOCOL
            if protocol is None and self._dumps is _pickle.dumps
            else protocol
        )

    def _set_threshold(self, threshold: int | None) -> None:
        self._threshold = _THRESHOLD if threshold is None else threshold

    PROTOCOL = property(
        lambda self: self._protocol,
        _set_protocol,
        doc="Of the pickles; None: the functions' own default.",
    )
    THRESHOLD = property(
        lambda self: self._threshold,
        _set_threshold,
        doc="A buffer of fewer bytes stays in the pickle.",
    )

    def dumps(self, obj: Any) -> bytes:
        """Return the pickle of `obj`.

        Parameters
        ----------
        obj
            Any object that pickles.
        """
        return self._dumps(obj) if self.PROTOCOL is None else self._dumps(obj, self.PROTOCOL)

    def loads(self, data: Any) -> Any:
        """Return the object of a pickle.

        Parameters
        ----------
        data
            Bytes of a pickle.
        """
        return self._loads(data)

    def dumps_oob(self, obj: Any) -> tuple[bytes, list[buffer]]:
        """Return the pickle, and the large contiguous buffers outside of it.

        Parameters
        ----------
        obj
            Any object that pickles; the buffers are borrowed from it.
        """
        stream, views = self._split(obj)
        return stream, [buffer.frombuffer(view, view.readonly) for view in views]

    def _split(self, obj: Any) -> tuple[bytes, list[memoryview]]:
        threshold = self._threshold
        buffers: list[memoryview] = []

        def keep(buffer: _pickle.PickleBuffer) -> bool:
            try:
                view = buffer.raw()
            except BufferError:  # not contiguous: stays in the pickle
                return True
            if view.nbytes < threshold:
                return True
            buffers.append(view)
            return False

        protocol = (
            5
            if self._protocol is None
            else max(self._protocol, 5)
            if self._protocol >= 0
            else self._protocol
        )
        return self._dumps(obj, protocol, buffer_callback=keep), buffers

    def loads_oob(self, data: Any, buffers: Sequence[Any]) -> Any:
        """Return the object of a pickle and its buffers.

        Parameters
        ----------
        data
            Bytes of a pickle.
        buffers
            The buffers outside of it, in the order of `dumps_oob`.
        """
        return self._loads(data, buffers=buffers)


pickle = Pickle()


def encode(obj: Any) -> list[memoryview]:
    """Return the bytes of an object: its pickle alone, or a head, the pickle and its large buffers.

    The buffers are borrowed from the object. What pickle, or the object, raises is raised, as in
    mpi4py; nothing has been sent then.

    Parameters
    ----------
    obj
        Any object that pickles.
    """
    if pickle._custom:  # a program's own dumps need not know of buffers
        return [memoryview(pickle.dumps(obj))]
    stream, buffers = pickle._split(obj)
    if not buffers:
        return [memoryview(stream)]
    lengths = (len(stream), *(one.nbytes for one in buffers))
    return [
        memoryview(_HEAD.pack(_MARK, len(buffers)) + struct.pack(f"<{len(lengths)}Q", *lengths)),
        memoryview(stream),
        *buffers,
    ]


def decode(data: memoryview) -> Any:
    """Return the object in received bytes, None in no bytes; large arrays are views of them.

    Parameters
    ----------
    data
        Received bytes; arrays in the object may borrow them.
    """
    if not data.nbytes:
        return None
    if data[0] != _MARK or pickle._custom:
        return pickle.loads(data)
    _, count = _HEAD.unpack_from(data)
    lengths = struct.unpack_from(f"<{count + 1}Q", data, _HEAD.size)
    start = _HEAD.size + 8 * (count + 1)
    pieces = []
    for length in lengths:
        pieces.append(data[start : start + length])
        start += length
    stream, *buffers = pieces
    return pickle.loads_oob(stream, buffers)


__all__ = ["Pickle", "pickle"]
