"""Point-to-point calls of a communicator: validation, and objects and buffers to and from bytes.

A blocking call checks its arguments, then drives the runtime until its operation is done; it makes
no request. A nonblocking call returns a `Request` with a function that fills the status and makes
the value. PROC_NULL sends nothing and receives at once.

Ownership. Bytes that the program may change as soon as the call returns (objects of `isend`, all
buffered sends) are passed as `Payload.TRANSIENT`, so the runtime copies what it cannot send at
once. Buffers of other sends are borrowed until the send is done.

Pitfall: these calls are the hot path (`python -m benchmarks calls` measures it), so `_recv` enters
the signal shield itself instead of using the decorator, which is two Python calls less. `_send`
needs no shield: once `Runtime.send` returns, nothing can be lost.

References
----------
MPI 4.1, chapter 3.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from threading import get_ident
from typing import Any

from serverless_mpi.api.bsend import Attached
from serverless_mpi.api.buffers import Buffer, BufSpec
from serverless_mpi.api.comm_state import State
from serverless_mpi.api.matched import MESSAGE_NO_PROC, Message, matched_message
from serverless_mpi.api.pickling import encode
from serverless_mpi.api.request import (
    Request,
    complete,
    complete_receive,
    operation_of,
    request_of,
    request_of_message,
)
from serverless_mpi.api.status import Status, fill_empty_status, fill_null_status, fill_status
from serverless_mpi.api.transfer import (
    Received,
    as_object,
    both,
    completed,
    outgoing,
    receive_request,
    receive_target,
)
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG, PROC_NULL, TAG_UB, Envelope
from serverless_mpi.errors import ERR_RANK, ERR_TAG, MPIException
from serverless_mpi.runtime import Runtime
from serverless_mpi.runtime.operation import Operation, Payload
from serverless_mpi.signals import shield, uninterrupted


def _sent(operation: Operation, status: Status | None) -> None:
    """Finish the request of a send."""
    if status is not None:
        fill_empty_status(status)


class PointToPoint:
    """The point-to-point calls of a communicator. `Comm` provides context, ranks and runtime."""

    _runtime: Runtime
    _context: int
    _peers: tuple[int, ...]  # rank in the (remote) group -> world rank
    _places: dict[int, int]  # world rank -> rank in the (remote) group

    def _usable(self) -> None:
        """Raise ERR_COMM if it is null or has been freed, ERR_REVOKED if it has been revoked."""

    @cached_property
    def _state(self) -> State:
        """What all handles to the communicator share."""
        raise NotImplementedError

    def _attached(self) -> Attached:
        """The buffer that buffered sends are counted against."""
        raise NotImplementedError

    # --- what all calls share ------------------------------------------------

    def _check_send(self, dest: int, tag: int) -> None:
        """Raise ERR_TAG or ERR_RANK for an invalid tag or destination."""
        state = self._state
        if state.unusable:
            self._usable()
        if not 0 <= tag <= TAG_UB:
            raise MPIException(ERR_TAG, f"tag {tag} to rank {dest} is outside 0..{TAG_UB}")
        if not 0 <= dest < len(state.peers) and dest != PROC_NULL:
            raise MPIException(ERR_RANK, f"destination {dest} is outside 0..{len(self._peers) - 1}")

    def _check_recv(self, source: int, tag: int) -> None:
        """Raise ERR_TAG or ERR_RANK for an invalid tag or source."""
        state = self._state
        if state.unusable:
            self._usable()
        if not 0 <= tag <= TAG_UB and tag != ANY_TAG:
            raise MPIException(
                ERR_TAG, f"tag {tag} from rank {source} is neither ANY_TAG nor in 0..{TAG_UB}"
            )
        if not 0 <= source < len(state.peers) and source not in (PROC_NULL, ANY_SOURCE):
            raise MPIException(
                ERR_RANK, f"source {source} is neither ANY_SOURCE nor in 0..{len(self._peers) - 1}"
            )

    def _world(self, rank: int) -> int:
        """The world rank of a peer; a float is truncated: programs compute ranks as n / 2."""
        try:
            return self._peers[rank]
        except TypeError:
            return self._peers[int(rank)]

    def _start_send(
        self,
        data: Sequence[memoryview],
        dest: int,
        tag: int,
        sync: bool = False,
        payload: Payload = Payload.BORROWED,
    ) -> Request:
        """Start a send; `payload` states when the bytes may change."""
        state = self._state
        if dest == PROC_NULL:
            return request_of_message(state.runtime, completed(), _sent)
        shield.enter()
        try:
            operation = state.runtime.isend(
                state.context, self._world(dest), tag, data, sync=sync, payload=payload
            )
            return request_of_message(state.runtime, operation, _sent)
        finally:
            shield.leave()

    def _send(self, data: Sequence[memoryview], dest: int, tag: int, sync: bool = False) -> None:
        """Send and return when the bytes may be changed."""
        if dest != PROC_NULL:
            state = self._state
            try:
                world = state.peers[dest]
            except TypeError:
                world = self._world(dest)
            state.runtime.send(state.context, world, tag, data, sync=sync)

    @uninterrupted
    def _start_buffered(self, data: Sequence[memoryview], dest: int, tag: int) -> Request:
        """Start a send of bytes that may change at once; ERR_BUFFER if they do not fit."""
        if dest == PROC_NULL:
            return self._start_send(data, dest, tag)
        attached, nbytes = self._attached(), sum(part.nbytes for part in data)
        attached.reserve(nbytes)
        request = self._start_send(data, dest, tag, payload=Payload.TRANSIENT)
        operation = operation_of(request)
        assert operation is not None
        attached.took(self._runtime, operation, nbytes)
        return request

    def _start_recv(
        self,
        source: int,
        tag: int,
        value: Callable[[Received], Any],
        into: memoryview | None = None,
    ) -> Request:
        """Start a receive; `value` makes the value of the request."""
        self._check_recv(source, tag)
        if source == PROC_NULL:
            return request_of(
                self._runtime, completed(), lambda operation, status: fill_null_status(status)
            )
        state = self._state
        world = source if source == ANY_SOURCE else self._world(source)
        shield.enter()
        try:
            operation = state.runtime.irecv(state.context, world, tag, into)
            return receive_request(state.runtime, state.places, operation, value)
        finally:
            shield.leave()

    def _recv(
        self,
        source: int,
        tag: int,
        status: Status | None,
        value: Callable[[Received], Any],
        into: memoryview | None = None,
    ) -> Any:
        """Receive and return what `value` makes of the message; None from PROC_NULL.

        A message that is received into `into` is not given to `value`.
        """
        self._check_recv(source, tag)
        if source == PROC_NULL:
            if status is not None:
                fill_null_status(status)
            return None
        state = self._state
        # shield.enter and leave, written out: 0.2 us
        in_main = get_ident() == shield.main
        if in_main:
            if shield.depth or (shield.installed and not shield.deferred):
                shield.depth += 1
            else:
                shield.enter()
        try:
            receive = state.runtime.recv(
                state.context, source if source == ANY_SOURCE else self._world(source), tag, into
            )
            if status is not None:
                assert receive.envelope is not None
                self._status(receive.envelope, status)
            return None if receive.landed else value(receive)
        finally:
            if in_main:
                shield.depth -= 1

    def _status(self, envelope: Envelope, status: Status) -> None:
        """Fill a status from the envelope of a message."""
        fill_status(status, self._places[envelope.source], envelope.tag, envelope.nbytes)

    # --- objects -------------------------------------------------------------

    def send(self, obj: object, dest: int, tag: int = 0) -> None:
        """Send a Python object; return when it may be changed.

        Parameters
        ----------
        obj
            Any object that pickles. Contiguous arrays in it are sent without a copy.
        dest
            Rank of the receiver, or MPI.PROC_NULL; on an intercommunicator a rank of the remote
            group.
        tag
            Between 0 and MPI.TAG_UB.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.2.
        """
        self._check_send(dest, tag)
        self._send(encode(obj), dest, tag)

    def bsend(self, obj: object, dest: int, tag: int = 0) -> None:
        """Send a Python object without waiting for the receiver.

        Parameters
        ----------
        obj
            Any object that pickles; it may be changed as soon as the call returns.
        dest, tag
            As in `send`.

        Raises
        ------
        MPIException
            ERR_BUFFER: the pickle does not fit in the attached buffer (`Attach_buffer`).

        References
        ----------
        MPI 4.1, section 3.6.
        """
        self.ibsend(obj, dest, tag)

    def ssend(self, obj: object, dest: int, tag: int = 0) -> None:
        """Send a Python object; return when a receive has matched it.

        Parameters
        ----------
        obj
            Any object that pickles.
        dest, tag
            As in `send`.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.
        """
        self._check_send(dest, tag)
        self._send(encode(obj), dest, tag, sync=True)

    def isend(self, obj: object, dest: int, tag: int = 0) -> Request:
        """Start sending a Python object, which may be changed at once.

        Parameters
        ----------
        obj
            Any object that pickles; it may be changed as soon as the call returns.
        dest, tag
            As in `send`.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.7.2.
        """
        self._check_send(dest, tag)
        return self._start_send(encode(obj), dest, tag, payload=Payload.TRANSIENT)

    def ibsend(self, obj: object, dest: int, tag: int = 0) -> Request:
        """Start a buffered send of a Python object, which may be changed at once.

        Parameters
        ----------
        obj
            Any object that pickles; it may be changed as soon as the call returns.
        dest, tag
            As in `send`.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag. ERR_BUFFER: the pickle does not fit in the
            attached buffer (`Attach_buffer`).

        References
        ----------
        MPI 4.1, section 3.7.2.
        """
        self._check_send(dest, tag)
        return self._start_buffered(encode(obj), dest, tag)

    def issend(self, obj: object, dest: int, tag: int = 0) -> Request:
        """Start sending a Python object; the request completes when a receive has matched it.

        Parameters
        ----------
        obj
            Any object that pickles; it may be changed as soon as the call returns.
        dest, tag
            As in `send`.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.7.2.
        """
        self._check_send(dest, tag)
        return self._start_send(encode(obj), dest, tag, sync=True, payload=Payload.TRANSIENT)

    def recv(
        self,
        buf: Buffer | None = None,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Any:
        """Receive a Python object.

        Parameters
        ----------
        buf
            Not used; mpi4py has deprecated it, and a value raises a warning.
        source
            Rank of the sender, MPI.ANY_SOURCE or MPI.PROC_NULL.
        tag
            Tag of the message, or MPI.ANY_TAG.
        status
            Filled with source, tag and length.

        Returns
        -------
        object
            The object; arrays in it are views of the received bytes. None from PROC_NULL.
        """
        if buf is not None:
            warnings.warn("the 'buf' argument is deprecated", UserWarning, stacklevel=2)
        return self._recv(source, tag, status, as_object)

    def irecv(
        self, buf: Buffer | None = None, source: int = ANY_SOURCE, tag: int = ANY_TAG
    ) -> Request:
        """Start receiving a Python object, which `wait` returns.

        Parameters
        ----------
        buf
            Not used.
        source, tag
            As in `recv`.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.7.2.
        """
        return self._start_recv(source, tag, as_object)

    @uninterrupted
    def sendrecv(
        self,
        sendobj: object,
        dest: int,
        sendtag: int = 0,
        recvbuf: Buffer | None = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Any:
        """Send one Python object and receive another, without deadlock.

        Parameters
        ----------
        sendobj, dest, sendtag
            As in `send`.
        recvbuf
            Not used.
        source, recvtag, status
            As in `recv`.

        Returns
        -------
        object
            The received object.
        """
        self._check_send(dest, sendtag)
        data = encode(sendobj)  # raises before anything is posted
        receive = self._start_recv(source, recvtag, as_object)
        send = self._start_send(data, dest, sendtag)
        return self._complete_both(receive, send, status)

    def probe(
        self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> bool:
        """Wait until a message can be received, and leave it there.

        Parameters
        ----------
        source, tag
            As in `recv`.
        status
            Filled with source, tag and length.

        Returns
        -------
        bool
            True, always.

        References
        ----------
        MPI 4.1, section 3.8.1.
        """
        self._check_recv(source, tag)
        status = Status() if status is None else status
        if source == PROC_NULL:
            fill_null_status(status)
        else:
            self._status(
                self._runtime.probe(self._context, self._world_source(source), tag), status
            )
        return True

    def iprobe(
        self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> bool:
        """Return whether a message can be received, and leave it there.

        Parameters
        ----------
        source, tag
            As in `recv`.
        status
            Filled with source, tag and length, if there is a message.

        Returns
        -------
        bool
            True also if `source` is MPI.PROC_NULL.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.8.1.
        """
        self._check_recv(source, tag)
        status = Status() if status is None else status
        if source == PROC_NULL:
            fill_null_status(status)
            return True
        envelope = self._runtime.iprobe(self._context, self._world_source(source), tag)
        if envelope is None:
            return False
        self._status(envelope, status)
        return True

    Probe = probe
    Iprobe = iprobe

    def _world_source(self, source: int) -> int:
        """The world rank of a source, or ANY_SOURCE."""
        return source if source == ANY_SOURCE else self._world(source)

    @contextlib.contextmanager
    def watching(self, source: int, tag: int) -> Iterator[tuple[Runtime, Callable[[], bool]]]:
        """Look for a message meanwhile; not part of MPI.

        Yields the runtime and a predicate of its `wait_until`: whether there is such a message.

        Parameters
        ----------
        source, tag
            As in `recv`.
        """
        self._check_recv(source, tag)
        state = self._state
        with state.runtime.watching(state.context, self._world_source(source), tag) as seen:
            yield state.runtime, seen

    def mprobe(
        self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> Message:
        """Wait for a message and take it out of matching.

        Parameters
        ----------
        source, tag
            As in `recv`.
        status
            Filled with source, tag and length.

        Returns
        -------
        Message
            Only this object can receive the message.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.8.2.
        """
        message = self._matched(source, tag, status, block=True)
        assert message is not None
        return message

    def improbe(
        self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> Message | None:
        """Take a message that can be received out of matching; None if there is none.

        Parameters
        ----------
        source, tag
            As in `recv`.
        status
            Filled with source, tag and length, if there is a message.

        Returns
        -------
        Message or None
            Only this object can receive the message. MPI.MESSAGE_NO_PROC if `source` is
            MPI.PROC_NULL.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.8.2.
        """
        return self._matched(source, tag, status, block=False)

    Mprobe = mprobe
    Improbe = improbe

    @uninterrupted
    def _matched(self, source: int, tag: int, status: Status | None, block: bool) -> Message | None:
        """Take a message out of matching, waiting for one if `block`."""
        self._check_recv(source, tag)
        status = Status() if status is None else status
        if source == PROC_NULL:
            fill_null_status(status)
            return Message(MESSAGE_NO_PROC)
        take = self._runtime.mprobe if block else self._runtime.improbe
        incoming = take(self._context, self._world_source(source), tag)
        if incoming is None:
            return None
        self._status(incoming.envelope, status)
        return matched_message(self._runtime, self._places, incoming)

    # --- buffers -------------------------------------------------------------

    def Send(self, buf: BufSpec, dest: int, tag: int = 0) -> None:
        """Send a buffer; return when it may be changed.

        Parameters
        ----------
        buf
            Buffer specification; borrowed until the call returns.
        dest
            Rank of the receiver, or MPI.PROC_NULL; on an intercommunicator a rank of the remote
            group.
        tag
            Between 0 and MPI.TAG_UB.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag. ERR_TYPE: the datatype is not committed.

        References
        ----------
        MPI 4.1, section 3.2.
        """
        self._check_send(dest, tag)
        self._send(outgoing(buf, dest), dest, tag)

    Rsend = Send

    def Bsend(self, buf: BufSpec, dest: int, tag: int = 0) -> None:
        """Send a buffer without waiting for the receiver; it may be changed at once.

        Parameters
        ----------
        buf
            Buffer specification; borrowed until the call returns.
        dest, tag
            As in `Send`.

        Raises
        ------
        MPIException
            ERR_BUFFER: the data do not fit in the attached buffer (`Attach_buffer`).
        """
        self.Ibsend(buf, dest, tag)

    def Ssend(self, buf: BufSpec, dest: int, tag: int = 0) -> None:
        """Send a buffer; return when a receive has matched it.

        Parameters
        ----------
        buf
            Buffer specification; borrowed until the call returns.
        dest, tag
            As in `Send`.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.
        """
        self._check_send(dest, tag)
        self._send(outgoing(buf, dest), dest, tag, sync=True)

    def Isend(self, buf: BufSpec, dest: int, tag: int = 0) -> Request:
        """Start sending a buffer, which must not change until the request completes.

        Parameters
        ----------
        buf
            Buffer specification; borrowed until the request completes.
        dest, tag
            As in `Send`.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.7.2.
        """
        self._check_send(dest, tag)
        return self._start_send(outgoing(buf, dest), dest, tag)

    Irsend = Isend

    def Ibsend(self, buf: BufSpec, dest: int, tag: int = 0) -> Request:
        """Start a buffered send of a buffer, which may be changed at once.

        Parameters
        ----------
        buf
            Buffer specification; borrowed until the call returns.
        dest, tag
            As in `Send`.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag. ERR_BUFFER: the data do not fit in the
            attached buffer (`Attach_buffer`).

        References
        ----------
        MPI 4.1, section 3.7.2.
        """
        self._check_send(dest, tag)
        return self._start_buffered(outgoing(buf, dest), dest, tag)

    def Issend(self, buf: BufSpec, dest: int, tag: int = 0) -> Request:
        """Start sending a buffer; the request completes when a receive has matched it.

        The buffer must not change until then.

        Parameters
        ----------
        buf
            Buffer specification; borrowed until the request completes.
        dest, tag
            As in `Send`.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.7.2.
        """
        self._check_send(dest, tag)
        return self._start_send(outgoing(buf, dest), dest, tag, sync=True)

    def Recv(
        self,
        buf: BufSpec,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        status: Status | None = None,
    ) -> None:
        """Receive into a buffer.

        Parameters
        ----------
        buf
            Buffer specification of writable memory. A shorter message fills its beginning.
        source
            Rank of the sender, MPI.ANY_SOURCE or MPI.PROC_NULL.
        tag
            Tag of the message, or MPI.ANY_TAG.
        status
            Filled with source, tag and length.

        Raises
        ------
        MPIException
            ERR_TRUNCATE: the message is longer than the buffer.

        Notes
        -----
        A contiguous array receives its bytes directly, if the receive is posted before the message
        arrives.

        References
        ----------
        MPI 4.1, section 3.2.4.
        """
        value, into = receive_target(buf, source)
        self._recv(source, tag, status, value, into)

    def Irecv(self, buf: BufSpec, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Request:
        """Start receiving into a buffer, which must not be accessed until the request completes.

        Parameters
        ----------
        buf
            Buffer specification of writable memory; borrowed until the request completes.
        source, tag
            As in `Recv`.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.

        References
        ----------
        MPI 4.1, section 3.7.2.
        """
        # No call with * here: CPython 3.11 looks for signals after it, when the request is made.
        value, into = receive_target(buf, source)
        return self._start_recv(source, tag, value, into)

    @uninterrupted
    def Sendrecv(
        self,
        sendbuf: BufSpec,
        dest: int,
        sendtag: int = 0,
        recvbuf: BufSpec | None = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Status | None = None,
    ) -> None:
        """Send one buffer and receive into another, without deadlock.

        Parameters
        ----------
        sendbuf, dest, sendtag
            As in `Send`.
        recvbuf, source, recvtag, status
            As in `Recv`; the two buffers must not overlap.

        References
        ----------
        MPI 4.1, section 3.11.
        """
        data = outgoing(sendbuf, dest)
        pair = self._start_both(data, dest, sendtag, recvbuf, source, recvtag)
        self._complete_both(*pair, status)

    @uninterrupted
    def Sendrecv_replace(
        self,
        buf: BufSpec,
        dest: int,
        sendtag: int = 0,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Status | None = None,
    ) -> None:
        """Send a copy of a buffer and receive into the buffer, without deadlock.

        Parameters
        ----------
        buf
            Buffer specification of writable memory. Its contents are copied before they are sent.
        dest, sendtag
            As `dest` and `tag` in `Send`.
        source, recvtag, status
            As `source`, `tag` and `status` in `Recv`.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.
        """
        data = [memoryview(bytes(part)) for part in outgoing(buf, dest)]
        pair = self._start_both(data, dest, sendtag, buf, source, recvtag)
        self._complete_both(*pair, status)

    @uninterrupted
    def Isendrecv(
        self,
        sendbuf: BufSpec,
        dest: int,
        sendtag: int = 0,
        recvbuf: BufSpec | None = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
    ) -> Request:
        """Start sending one buffer and receiving into another.

        The request completes when both are done; its status is that of the receive.

        Parameters
        ----------
        sendbuf
            Buffer specification; borrowed until the request completes.
        dest, sendtag
            As `dest` and `tag` in `Send`.
        recvbuf
            Buffer specification of writable memory, which must not overlap `sendbuf`; borrowed
            until the request completes.
        source, recvtag
            As `source` and `tag` in `Recv`.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.
        """
        data = outgoing(sendbuf, dest)
        return both(*self._start_both(data, dest, sendtag, recvbuf, source, recvtag))

    @uninterrupted
    def Isendrecv_replace(
        self,
        buf: BufSpec,
        dest: int,
        sendtag: int = 0,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
    ) -> Request:
        """Start sending a copy of a buffer and receiving into the buffer.

        Parameters
        ----------
        buf
            Buffer specification of writable memory; its contents are copied before they are sent.
            Borrowed until the request completes.
        dest, sendtag
            As `dest` and `tag` in `Send`.
        source, recvtag
            As `source` and `tag` in `Recv`.

        Returns
        -------
        Request
            It completes when both are done; its status is that of the receive.

        Raises
        ------
        MPIException
            ERR_RANK or ERR_TAG: no such rank or tag.
        """
        data = [memoryview(bytes(part)) for part in outgoing(buf, dest)]
        return both(*self._start_both(data, dest, sendtag, buf, source, recvtag))

    def _start_both(
        self,
        data: Sequence[memoryview],
        dest: int,
        sendtag: int,
        recvbuf: BufSpec,
        source: int,
        recvtag: int,
    ) -> tuple[Request, Request]:
        """Start a receive and a send; a faulty send is reported before the receive is posted."""
        self._check_send(dest, sendtag)
        return self.Irecv(recvbuf, source, recvtag), self._start_send(data, dest, sendtag)

    def _complete_both(self, receive: Request, send: Request, status: Status | None) -> Any:
        """Wait for a receive and a send, even if the receive fails; return the received value."""
        sending = operation_of(send)
        assert sending is not None
        try:
            value = complete_receive(receive, status)
        finally:
            if not sending.done:
                self._runtime.complete_send(sending)
        complete(send, None)
        return value
