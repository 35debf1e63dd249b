"""Point-to-point calls of a communicator: validation, and objects and buffers to and from bytes (MPI 4.1, chapter 3)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from serverless_mpi.api.bsend import Attached
from serverless_mpi.api.buffers import Buffer, BufSpec
from serverless_mpi.api.matched import MESSAGE_NO_PROC, Message, matched_message
from serverless_mpi.api.pickling import encode
from serverless_mpi.api.request import Request, complete, complete_receive, operation_of, request_of
from serverless_mpi.api.status import Status, fill_empty_status, fill_null_status, fill_status
from serverless_mpi.api.transfer import as_object, both, completed, outgoing, receive_request, room
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG, PROC_NULL, TAG_UB, Envelope
from serverless_mpi.errors import ERR_RANK, ERR_TAG, MPIException
from serverless_mpi.operation import Operation, Payload
from serverless_mpi.runtime import Runtime
from serverless_mpi.signals import shield, uninterrupted


class PointToPoint:
    """What sends to and receives from one rank.  `Comm` gives the context, the ranks and the runtime."""

    _runtime: Runtime
    _context: int
    _peers: tuple[int, ...]  # rank in the (remote) group -> world rank
    _places: dict[int, int]  # world rank -> rank in the (remote) group

    def _live(self) -> None: ...

    def _attached(self) -> Attached:
        """The buffer for buffered sends."""
        raise NotImplementedError

    # --- what all calls share ------------------------------------------------

    def _check_send(self, dest: int, tag: int) -> None:
        self._live()
        if not 0 <= tag <= TAG_UB:
            raise MPIException(ERR_TAG, f"tag {tag} to rank {dest} is outside 0..{TAG_UB}")
        if dest != PROC_NULL and not 0 <= dest < len(self._peers):
            raise MPIException(ERR_RANK, f"destination {dest} is outside 0..{len(self._peers) - 1}")

    def _check_recv(self, source: int, tag: int) -> None:
        self._live()
        if tag != ANY_TAG and not 0 <= tag <= TAG_UB:
            raise MPIException(
                ERR_TAG, f"tag {tag} from rank {source} is neither ANY_TAG nor in 0..{TAG_UB}"
            )
        if source not in (PROC_NULL, ANY_SOURCE) and not 0 <= source < len(self._peers):
            raise MPIException(
                ERR_RANK, f"source {source} is neither ANY_SOURCE nor in 0..{len(self._peers) - 1}"
            )

    def _world(self, rank: int) -> int:
        """The world rank of a peer; programs compute ranks as n / 2, which C cuts to an integer."""
        try:
            return self._peers[rank]
        except TypeError:
            return self._peers[int(rank)]

    @uninterrupted
    def _start_send(
        self,
        data: Sequence[memoryview],
        dest: int,
        tag: int,
        sync: bool = False,
        payload: Payload = Payload.BORROWED,
    ) -> Request:
        """Start a send of bytes that may change when `payload` says."""

        def finish(operation: Operation, status: Status) -> None:
            fill_empty_status(status)

        if dest == PROC_NULL:
            return request_of(self._runtime, completed(), finish)
        operation = self._runtime.isend(
            self._context, self._world(dest), tag, data, sync=sync, payload=payload
        )
        return request_of(self._runtime, operation, finish)

    def _send(self, data: Sequence[memoryview], dest: int, tag: int, sync: bool = False) -> None:
        """A blocking send, which needs no request."""
        if dest == PROC_NULL:
            return
        runtime = self._runtime
        shield.enter()
        try:
            operation = runtime.isend(self._context, self._world(dest), tag, data, sync=sync)
            if not operation.done:
                runtime.complete_send(operation)
            if operation.error is not None:
                raise operation.error
        finally:
            shield.leave()

    @uninterrupted
    def _start_buffered(self, data: Sequence[memoryview], dest: int, tag: int) -> Request:
        if dest == PROC_NULL:
            return self._start_send(data, dest, tag)
        attached, nbytes = self._attached(), sum(part.nbytes for part in data)
        attached.reserve(nbytes)
        request = self._start_send(data, dest, tag, payload=Payload.TRANSIENT)
        operation = operation_of(request)
        assert operation is not None
        attached.took(self._runtime, operation, nbytes)
        return request

    @uninterrupted
    def _start_recv(
        self,
        source: int,
        tag: int,
        value: Callable[[Operation], Any],
        into: memoryview | None = None,
    ) -> Request:
        self._check_recv(source, tag)
        if source == PROC_NULL:
            return request_of(
                self._runtime, completed(), lambda operation, status: fill_null_status(status)
            )
        world = source if source == ANY_SOURCE else self._world(source)
        operation = self._runtime.irecv(self._context, world, tag, into)
        return receive_request(self._runtime, self._places, operation, value)

    def _recv(
        self,
        source: int,
        tag: int,
        status: Status | None,
        value: Callable[[Operation], Any],
        into: memoryview | None = None,
    ) -> Any:
        """A blocking receive, which needs no request."""
        self._check_recv(source, tag)
        if source == PROC_NULL:
            if status is not None:
                fill_null_status(status)
            return None
        runtime = self._runtime
        shield.enter()
        try:
            operation = runtime.irecv(
                self._context, source if source == ANY_SOURCE else self._world(source), tag, into
            )
            if not operation.done:
                runtime.complete_receive(operation)
            if operation.error is not None:
                raise operation.error
            if status is not None:
                assert operation.envelope is not None
                self._status(operation.envelope, status)
            return value(operation)
        finally:
            shield.leave()

    def _status(self, envelope: Envelope, status: Status) -> None:
        fill_status(status, self._places[envelope.source], envelope.tag, envelope.nbytes)

    # --- objects -------------------------------------------------------------

    def send(self, obj: Any, dest: int, tag: int = 0) -> None:
        """Send a Python object to rank `dest`; returns when `obj` may be changed."""
        self._check_send(dest, tag)
        self._send(encode(obj), dest, tag)

    def bsend(self, obj: Any, dest: int, tag: int = 0) -> None:
        """Send an object, buffered: never waits for the receiver; ERR_BUFFER if no buffer is attached that it fits in."""
        self.ibsend(obj, dest, tag)

    def ssend(self, obj: Any, dest: int, tag: int = 0) -> None:
        """Send an object; returns when a receive has matched it."""
        self._check_send(dest, tag)
        self._send(encode(obj), dest, tag, sync=True)

    def isend(self, obj: Any, dest: int, tag: int = 0) -> Request:
        """Start sending an object, which may be changed at once."""
        self._check_send(dest, tag)
        return self._start_send(encode(obj), dest, tag, payload=Payload.TRANSIENT)

    def ibsend(self, obj: Any, dest: int, tag: int = 0) -> Request:
        """Start a buffered send of an object."""
        self._check_send(dest, tag)
        return self._start_buffered(encode(obj), dest, tag)

    def issend(self, obj: Any, dest: int, tag: int = 0) -> Request:
        """Start a send of an object that is done when a receive has matched it."""
        self._check_send(dest, tag)
        return self._start_send(encode(obj), dest, tag, sync=True, payload=Payload.TRANSIENT)

    def recv(
        self,
        buf: Buffer | None = None,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Any:
        """Receive a Python object; None from PROC_NULL.  `buf` is not needed and not used, as in mpi4py, which warns too."""
        if buf is not None:
            warnings.warn("the 'buf' argument is deprecated", UserWarning, stacklevel=2)
        return self._recv(source, tag, status, as_object)

    def irecv(
        self, buf: Buffer | None = None, source: int = ANY_SOURCE, tag: int = ANY_TAG
    ) -> Request:
        """Start receiving an object; `wait` gives it."""
        return self._start_recv(source, tag, as_object)

    @uninterrupted
    def sendrecv(
        self,
        sendobj: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Buffer | None = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Any:
        """Send an object and receive one, without deadlock."""
        self._check_send(dest, sendtag)
        data = encode(sendobj)  # what is wrong with it shows before anything is posted
        receive = self._start_recv(source, recvtag, as_object)
        send = self._start_send(data, dest, sendtag)
        return self._complete_both(receive, send, status)

    def probe(
        self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> bool:
        """Wait for a message, without taking it."""
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
        """Whether a message is there."""
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
        return source if source == ANY_SOURCE else self._world(source)

    def mprobe(
        self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> Message:
        """Wait for a message and take it for the returned Message alone."""
        message = self._matched(source, tag, status, block=True)
        assert message is not None
        return message

    def improbe(
        self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> Message | None:
        """Take a message that is there, or None."""
        return self._matched(source, tag, status, block=False)

    Mprobe = mprobe
    Improbe = improbe

    @uninterrupted
    def _matched(self, source: int, tag: int, status: Status | None, block: bool) -> Message | None:
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
        """Send a buffer to rank `dest`; returns when it may be changed."""
        self._check_send(dest, tag)
        self._send(outgoing(buf, dest), dest, tag)

    Rsend = Send

    def Bsend(self, buf: BufSpec, dest: int, tag: int = 0) -> None:
        """Send a buffer, buffered: never waits for the receiver."""
        self.Ibsend(buf, dest, tag)

    def Ssend(self, buf: BufSpec, dest: int, tag: int = 0) -> None:
        """Send a buffer; returns when a receive has matched it."""
        self._check_send(dest, tag)
        self._send(outgoing(buf, dest), dest, tag, sync=True)

    def Isend(self, buf: BufSpec, dest: int, tag: int = 0) -> Request:
        """Start sending a buffer, which must not change before the request is done."""
        self._check_send(dest, tag)
        return self._start_send(outgoing(buf, dest), dest, tag)

    Irsend = Isend

    def Ibsend(self, buf: BufSpec, dest: int, tag: int = 0) -> Request:
        """Start a buffered send of a buffer, which may be changed at once."""
        self._check_send(dest, tag)
        return self._start_buffered(outgoing(buf, dest), dest, tag)

    def Issend(self, buf: BufSpec, dest: int, tag: int = 0) -> Request:
        """Start a send of a buffer that is done when a receive has matched it."""
        self._check_send(dest, tag)
        return self._start_send(outgoing(buf, dest), dest, tag, sync=True)

    def Recv(
        self,
        buf: BufSpec,
        source: int = ANY_SOURCE,
        tag: int = ANY_TAG,
        status: Status | None = None,
    ) -> None:
        """Receive into a buffer; ERR_TRUNCATE if the message is longer."""
        self._recv(source, tag, status, *room(buf, source))

    def Irecv(self, buf: BufSpec, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Request:
        """Start receiving into a buffer."""
        return self._start_recv(source, tag, *room(buf, source))

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
        """Send one buffer and receive into another, without deadlock."""
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
        """Send a buffer and receive into it."""
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
        """Start sending one buffer and receiving into another; the request is done when both are."""
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
        """Start sending a buffer and receiving into it."""
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
        """A receive and a send, both started."""
        self._check_send(
            dest, sendtag
        )  # what is wrong with the send shows before a receive is posted
        return self.Irecv(recvbuf, source, recvtag), self._start_send(data, dest, sendtag)

    def _complete_both(self, receive: Request, send: Request, status: Status | None) -> Any:
        """Wait for a receive and a send that the program has no requests for."""
        sending = operation_of(send)
        assert sending is not None
        try:
            value = complete_receive(receive, status)
        finally:
            if not sending.done:
                self._runtime.complete_send(sending)
        complete(send, None)
        return value
