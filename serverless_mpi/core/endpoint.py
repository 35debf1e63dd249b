"""The protocol state of one rank, without IO: bytes in, frames and completions out.

`Endpoint` composes wire, delivery and matching. It never blocks, reads no clock (times are
arguments) and is not thread-safe: `runtime/` has the lock, the clock and the channel.

A point-to-point frame passes `_arrive` (its message, in order; matching at the first frame) and
`_store` (its body), and `_finish` completes the receive when both a receive and the whole body are
there, in either order.  A frame of a collective's step passes `_step`: it has a name of its own, so
it needs neither order nor matching.  `_short` and `_whole_step` are shorter ways of the usual
frames: a whole message whose turn it is, or a whole step, that a receive awaits.  They must have
the effects of the long ones.

Invariants:

- `held_bytes` is the memory of messages and steps that no receive has asked for; every path on
  which a receive takes one, or a context is dropped, subtracts what `_hold` has added.
- `_unsettled` contains exactly the streams with an incomplete or waiting message; `check` and
  `wanted` look only there.
- The state of a context lives from its first frame or call until `free`, and then until no
  operation waits for frames of it.

If you add a reason to wait, also add it to `awaits`, `wanted`, `awaited` and `_awaits_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serverless_mpi.core.delivery import Assembly, CompletedSet, Freed, Incoming, ReorderBuffer
from serverless_mpi.core.envelope import ANY_SOURCE, CONTEXT_FAULTS, Envelope
from serverless_mpi.core.frames import (
    SCATTERED,
    SHARED,
    ExpectedFrame,
    FrameName,
    OutgoingFrame,
    cut,
)
from serverless_mpi.core.matching import Matcher
from serverless_mpi.core.wire import (
    FLAG_GUARDED,
    FLAG_SYNC,
    HEADER_BYTES,
    Frame,
    Kind,
    decode,
    decode_head,
    encode,
    encode_whole,
)
from serverless_mpi.errors import ERR_COMM, ERR_NO_MEM, ChannelError, MPIException, WireError

_POINT, _STEP = int(Kind.POINT), int(Kind.STEP)  # an enumeration's member costs a look-up

# a channel does not lose frames: one that is missing so long after the last one never arrives
GAP_TIMEOUT_S = 120.0
_NOTHING = memoryview(b"")

Pattern = tuple[int, int, int]
StepName = tuple[int, int, int, int]  # context, source, seq, slot


class Receive:
    """A receive, of a point-to-point message or of a collective's step, and its result.

    Attributes
    ----------
    pattern : tuple
        (context, source, tag), or (context, source, slot) of a step.
    into : memoryview or None
        The caller's buffer, borrowed until `done`; used if the payload fits.
    dest : int
        Of the names of a step's frames: SHARED or SCATTERED.
    envelope : Envelope or None
        Of the message, once it has been matched; None for a step.
    data : memoryview or None
        The whole payload, writable, once `done`.
    done : bool
        Whether the payload is complete.
    landed : bool
        Whether the payload is in `into`.
    on_done : callable or None
        Called once, when the receive is done after it was posted.
    error : Exception or None
        Why the message will never come; then the receive is done without a payload.
    """

    __slots__ = (
        "pattern",
        "into",
        "dest",
        "envelope",
        "data",
        "done",
        "landed",
        "on_done",
        "error",
    )

    def __init__(
        self, pattern: Pattern, into: memoryview | None = None, dest: int = SHARED
    ) -> None:
        self.pattern = pattern
        self.into = into
        self.dest = dest
        self.envelope: Envelope | None = None
        self.data: memoryview | None = None
        self.done = False
        self.landed = False
        self.on_done: Callable[[Receive], None] | None = None
        self.error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """End the receive without a payload; the caller has withdrawn it.

        Parameters
        ----------
        error
            Kept in `error`.
        """
        self.error = error
        self.done = True
        on_done, self.on_done = self.on_done, None
        if on_done is not None:
            on_done(self)

    def unmatched(self) -> bool:
        """Return whether no message has matched the receive."""
        return self.envelope is None


class ReceiveSlot:
    """A frame whose body the channel reads into `memory`; see `Endpoint.landed`."""

    __slots__ = ("memory", "_frame", "_message", "_stream")

    def __init__(
        self, memory: memoryview, frame: Frame, message: Incoming, stream: ReorderBuffer
    ) -> None:
        self.memory = memory
        self._frame = frame
        self._message = message
        self._stream = stream


class _Context:
    """The state of one context: sequence numbers, streams of incoming messages, collectives."""

    __slots__ = ("sent", "streams", "completed", "steps")

    def __init__(self) -> None:
        self.sent: dict[int, int] = {}  # dest -> next sequence number
        self.streams: dict[int, ReorderBuffer] = {}  # by source
        self.completed = CompletedSet()
        # collective in progress -> (source, slot) of a step -> its body, None once it was received
        self.steps: dict[int, dict[tuple[int, int], Assembly | None]] = {}

    def step(self, source: int, seq: int, slot: int) -> Assembly | None:
        """Return what has arrived of a step; None if nothing has, or it was received already."""
        steps = self.steps.get(seq)
        return None if steps is None else steps.get((source, slot))


class Endpoint:
    """The protocol state of one rank.

    Parameters
    ----------
    rank
        World rank.
    job
        8 bytes that name the job.
    key
        32 bytes, the job's key.
    max_frame_bytes
        Of the channel, header included.
    max_held_bytes
        How many bytes of unexpected messages may be held before the rank fails with ERR_NO_MEM.
    guarded
        Whether the channel is a trusted transport, so that tags need not cover bodies.

    Attributes
    ----------
    held_bytes : int
        Memory of messages that no receive has asked for.
    dropped : int
        Frames that failed authentication, belong to another job or contradict other frames.
    duplicates : int
        Frames that had been received before.
    outbox : list of OutgoingFrame
        Acknowledgements to be put; the caller clears it.

    Notes
    -----
    An observer may set `on_send(kind, context, tag or slot, seq, dests, nbytes)`, called before a
    message is cut into frames, `on_match(envelope, seq)`, called before a receive takes a message,
    and `on_step((context, source, seq, slot))`, called when a step of a collective has been
    received.
    They run under the caller's lock and must not call the endpoint.
    """

    def __init__(
        self,
        rank: int,
        job: bytes,
        key: bytes,
        max_frame_bytes: int,
        max_held_bytes: int,
        guarded: bool = False,
    ) -> None:
        self.rank = rank
        self._job = job
        self._key = key
        self._guarded = guarded
        self._flags = FLAG_GUARDED if guarded else 0
        self._max_body = max_frame_bytes - HEADER_BYTES
        self._max_held = max_held_bytes
        self.held_bytes = 0
        self.dropped = 0
        self.duplicates = 0
        self._contexts: dict[int, _Context] = {}
        self._closing: set[int] = set()  # freed, but an operation still waits for their frames
        self._freed = Freed()
        # by (context, source): streams with an incomplete or waiting message
        self._unsettled: dict[tuple[int, int], ReorderBuffer] = {}
        self._matcher: Matcher[Incoming, Receive] = Matcher()
        self._unacked: dict[tuple[int, int, int], Callable[[], None]] = {}  # (context, dest, seq)
        self._expected: dict[StepName, Receive] = {}
        self.watched: list[Pattern] = []  # patterns of waiting probes
        # hooks of an observer; None costs one attribute test per message
        self.on_send: Callable[[int, int, int, int, tuple[int, ...], int], None] | None = None
        self.on_match: Callable[[Envelope, int], None] | None = None
        self.on_step: Callable[[StepName], None] | None = None
        # called before the first message in CONTEXT_FAULTS is sent or matched
        self.on_faults: Callable[[], None] | None = None
        self.outbox: list[OutgoingFrame] = []

    # --- sending ----------------------------------------------------------------------------------

    def send(
        self,
        context: int,
        dest: int,
        tag: int,
        data: Sequence[memoryview],
        on_matched: Callable[[], None] | None = None,
        now: float = 0.0,
    ) -> list[OutgoingFrame]:
        """Return the frames of a point-to-point message.

        Parameters
        ----------
        context, dest, tag
            Of the message; `dest` is a world rank.
        data
            C-contiguous byte views; borrowed by the frames, not copied.
        on_matched
            Called when a receive has matched the message; makes it a synchronous send.
        now
            Seconds of a monotonic clock.

        Returns
        -------
        list of OutgoingFrame
            Empty for a message to this rank, which is copied and delivered at once.

        Raises
        ------
        MPIException
            ERR_COMM: the context has been freed.
        """
        state = self._contexts.get(context) or self._begin(context)
        if state is None:
            raise MPIException(ERR_COMM, "the communicator has been freed and cannot send any more")
        seq = state.sent.get(dest, 0)
        state.sent[dest] = seq + 1
        if on_matched is not None:
            self._unacked[context, dest, seq] = on_matched
        flags = FLAG_SYNC if on_matched is not None else 0
        if dest == self.rank:
            body = bytearray().join(data)
            frame = Frame(
                Kind.POINT,
                flags,
                context,
                dest,
                dest,
                tag,
                seq,
                0,
                1,
                0,
                len(body),
                memoryview(body),
            )
            self._point(frame, now)
            return []
        return self._cut(_POINT, flags, context, dest, tag, seq, data, (dest,))

    def publish(
        self, context: int, seq: int, slot: int, dests: Sequence[int], data: Sequence[memoryview]
    ) -> list[OutgoingFrame]:
        """Return the frames of a step that every rank in `dests` reads.

        `dests` are world ranks without this one; `data` is borrowed by the frames.

        Parameters
        ----------
        context, seq, slot
            Context of the communicator, number of the collective, and number of the step.
        dests
            World ranks of the readers, without this one.
        data
            C-contiguous byte views that together are the body; borrowed until the frames are put.
        """
        return self._cut(_STEP, 0, context, SHARED, slot, seq, data, tuple(dests))

    def scatter(
        self, context: int, seq: int, slot: int, blobs: Sequence[tuple[int, Sequence[memoryview]]]
    ) -> list[OutgoingFrame]:
        """Return the frames of a step of which each reader gets its own data.

        Parameters
        ----------
        context, seq, slot
            Of the step.
        blobs
            (world rank, data) for each reader, without this rank; borrowed by the frames.

        Returns
        -------
        list of OutgoingFrame
            Scattered frames; number k has piece k of the data of every reader that has so many.
        """
        frames_per_reader = [
            self._cut(Kind.STEP, 0, context, dest, slot, seq, data, (dest,)) for dest, data in blobs
        ]
        scattered = []
        for chunk in range(max(len(frames) for frames in frames_per_reader)):
            pieces = [frames[chunk] for frames in frames_per_reader if chunk < len(frames)]
            dests = tuple(frame.dests[0] for frame in pieces)
            name = FrameName(Kind.STEP, context, self.rank, SCATTERED, seq, slot, chunk)
            bodies = tuple(frame.parts for frame in pieces)
            scattered.append(OutgoingFrame(dests, name, (), bodies))
        return scattered

    def _cut(
        self,
        kind: int,
        flags: int,
        context: int,
        dest: int,
        tag: int,
        seq: int,
        data: Sequence[memoryview],
        dests: tuple[int, ...],
    ) -> list[OutgoingFrame]:
        """Cut a message or step into authenticated frames."""
        total = 0
        for part in data:
            total += part.nbytes
        if self.on_send is not None:
            self.on_send(kind, context, tag, seq, dests, total)
        most, source, flags = self._max_body, self.rank, flags | self._flags
        if total <= most:
            # tuple.__new__ is C; the constructor of a NamedTuple is a Python function
            name = tuple.__new__(FrameName, (kind, context, source, dest, seq, tag, 0))
            parts = encode_whole(
                kind, flags, context, source, dest, tag, seq, total, data, self._job, self._key
            )
            return [tuple.__new__(OutgoingFrame, (dests, name, parts, ()))]
        chunks = -(-total // most)
        frames = []
        for chunk, body in enumerate(cut(data, most)):
            offset = chunk * most
            name = FrameName(kind, context, source, dest, seq, tag, chunk)
            parts = encode(
                kind,
                flags,
                context,
                source,
                dest,
                tag,
                seq,
                chunk,
                chunks,
                offset,
                total,
                body,
                min(most, total - offset),
                self._job,
                self._key,
            )
            frames.append(OutgoingFrame(dests, name, parts))
        return frames

    # --- receiving --------------------------------------------------------------------------------

    def post(self, context: int, source: int, tag: int, into: memoryview | None = None) -> Receive:
        """Post a receive; it may be done at once.

        Parameters
        ----------
        context, source, tag
            `source` is a world rank or ANY_SOURCE, `tag` a tag or ANY_TAG.
        into
            Writable memory, borrowed until the receive is done; used if the payload fits.
        """
        receive = Receive((context, source, tag), into)
        message = self._matcher.post(receive)
        if message is not None:
            self._match(message, receive)
        return receive

    def cancel(self, receive: Receive) -> bool:
        """Withdraw a posted receive; return False if it has been matched.

        Parameters
        ----------
        receive
            What `post` returned.
        """
        cancelled = self._matcher.cancel(receive)
        if self._closing:
            self._close_settled(receive.pattern[0])
        return cancelled

    def probe(self, context: int, source: int, tag: int) -> Envelope | None:
        """Return the envelope of the message that a receive would get now, or None.

        Parameters
        ----------
        context, source, tag
            Context of the communicator, world rank or ANY_SOURCE, and tag or ANY_TAG.
        """
        message = self._matcher.probe((context, source, tag))
        return None if message is None else message.envelope

    def mprobe(self, context: int, source: int, tag: int) -> Incoming | None:
        """Take the message that a receive would get now, for `post_matched`; or None.

        Parameters
        ----------
        context, source, tag
            Context of the communicator, world rank or ANY_SOURCE, and tag or ANY_TAG.
        """
        return self._matcher.take((context, source, tag))

    def post_matched(self, message: Incoming, into: memoryview | None = None) -> Receive:
        """Receive a message that `mprobe` took; `into` as for `post`.

        Parameters
        ----------
        message
            What `mprobe` returned; it must not be received again.
        into
            Memory for the body, borrowed until the receive is done; None: new memory.
        """
        envelope = message.envelope
        receive = Receive((envelope.context, envelope.source, envelope.tag), into)
        self._match(message, receive)
        return receive

    def expect(
        self, context: int, source: int, seq: int, slot: int, scattered: bool = False
    ) -> Receive:
        """Receive one step of a collective; it may be done at once.

        Parameters
        ----------
        context, source, seq, slot
            Name of the step; `source` is a world rank.
        scattered
            Whether each reader gets its own data (`scatter`), not all of them the same (`publish`).
        """
        receive = Receive((context, source, slot), dest=SCATTERED if scattered else SHARED)
        state = self._contexts.get(context)
        assembly = None if state is None else state.step(source, seq, slot)
        name = (context, source, seq, slot)
        if assembly is not None:
            self.held_bytes -= assembly.held
            if assembly.complete:
                self._step_is_over(name)
                receive.data, receive.done = assembly.body, True
                return receive
        self._expected[name] = receive
        return receive

    def retire(self, context: int, seq: int) -> None:
        """End collective number `seq` of a context, whether it has completed or failed.

        Steps that were not received are dropped, and any further frame of it is a duplicate.

        Parameters
        ----------
        context, seq
            Context of the communicator, and number of the collective.
        """
        state = self._contexts.get(context) or self._begin(context)
        if state is None:
            return
        state.completed.retire(seq)
        for assembly in state.steps.pop(seq, {}).values():
            if assembly is not None:
                self.held_bytes -= assembly.held
        if self._closing:
            self._close_settled(context)

    # --- contexts ---------------------------------------------------------------------------------

    def free(self, context: int) -> None:
        """Free a context, on which no further call will be made; operations in progress complete.

        Its state is dropped when no operation waits for frames of it any more. Messages that were
        not received are dropped then, and so are further frames.  The predefined contexts stay.

        Parameters
        ----------
        context
            Context of a communicator.
        """
        if context > CONTEXT_FAULTS and context not in self._freed:
            self._closing.add(context)
            self._close_settled(context)

    def _begin(self, context: int) -> _Context | None:
        """Create and return the state of a context that has none; None if it has been freed."""
        if context in self._freed:
            return None
        state = self._contexts[context] = _Context()
        if context == CONTEXT_FAULTS and self.on_faults is not None:
            self.on_faults()
        return state

    def _close_settled(self, context: int) -> None:
        """Drop the state of a context that was freed, unless an operation waits for its frames."""
        if context not in self._closing or self._awaits_of(context):
            return
        state = self._contexts.get(context)
        unasked = self._matcher.discard(context)
        for message in unasked:
            self.held_bytes -= message.assembly.held
        if state is not None:
            streams = state.streams
            for message in unasked:
                streams[message.envelope.source].close(message)
            for source, stream in streams.items():
                if stream.settled:
                    self._unsettled.pop((context, source), None)
            if any(stream.open for stream in streams.values()):
                return  # a receive or a matched probe took a message whose body is still to come
            for source, stream in streams.items():
                self.held_bytes -= sum(message.assembly.held for message in stream.waiting.values())
                self._unsettled.pop((context, source), None)
            for steps in state.steps.values():
                self.held_bytes -= sum(
                    assembly.held for assembly in steps.values() if assembly is not None
                )
            del self._contexts[context]
        self._closing.remove(context)
        self._freed.add(context)

    def _awaits_of(self, context: int) -> bool:
        """Whether a receive, a synchronous send or a collective waits for frames of a context."""
        return (
            any(pattern[0] == context for pattern in self._matcher.posted())
            or any(name[0] == context for name in self._unacked)
            or any(name[0] == context for name in self._expected)
        )

    # --- frames -----------------------------------------------------------------------------------

    def receive(self, data: memoryview, now: float, leaves: Sequence[bytes] = ()) -> None:
        """Process the bytes of one frame; count and drop bytes that are not a frame of this job.

        Parameters
        ----------
        data
            Kept as the body of a message if it is writable; the channel must not reuse it.
        now
            Seconds of a monotonic clock.
        leaves
            As for `wire.decode`.
        """
        try:
            frame = decode(data, self._job, self._key, self._guarded, leaves)
        except WireError:
            self.dropped += 1
            return
        kind, dest = frame[0], frame[4]
        if dest != self.rank and dest != SHARED:
            self.dropped += 1
        elif kind == _POINT:
            if frame[8] > 1 or not self._short(frame, now):
                self._point(frame, now)
        elif kind == _STEP:
            if frame[8] > 1 or not self._whole_step(frame):
                self._step(frame)
        else:
            self._ack(frame.context, frame.source, frame.seq)
        if self._closing:
            self._close_settled(frame.context)

    def land(self, head: memoryview, nbytes: int, now: float) -> ReceiveSlot | None:
        """Return memory into which a trusted transport reads the body of a frame.

        Parameters
        ----------
        head
            The first 84 bytes of the frame.
        nbytes
            Length of the body in bytes.
        now
            Seconds of a monotonic clock.

        Returns
        -------
        ReceiveSlot or None
            The memory is the receiver's own if a receive has matched the message. The caller fills
            it and calls `landed`.  None: read the whole frame and give it to `receive`.
        """
        try:
            frame = decode_head(head, nbytes, self._job, self._key)
        except WireError:
            return None
        if frame.kind != Kind.POINT or frame.dest != self.rank:
            return None
        arrived = self._arrive(frame, now)
        if arrived is None:
            return None
        stream, message = arrived
        assembly = message.assembly
        if assembly.has(frame.chunk) or not assembly.agrees(frame, nbytes):
            return None
        receive = message.receive
        into = receive.into if isinstance(receive, Receive) else None
        if into is not None and into.nbytes < frame.total:
            into = None
        if receive is None and assembly.body is None:
            self._hold(frame.total, frame.source)
        return ReceiveSlot(assembly.reserve(frame.offset, nbytes, into), frame, message, stream)

    def landed(self, landing: ReceiveSlot) -> None:
        """Process a frame whose body has been read into `landing.memory`.

        Parameters
        ----------
        landing
            What `land` returned for the frame.
        """
        self._store(landing._frame, landing.memory, landing._message, landing._stream, True)
        if self._closing:
            self._close_settled(landing._frame.context)

    def _short(self, frame: Frame, now: float) -> bool:
        """Process a message of one frame whose turn it is and that a receive awaits.

        Returns False, and does nothing, for any other frame: `_point` processes it.
        """
        _, flags, context, source, _, tag, seq, _, _, _, total, body = frame
        state = self._contexts.get(context)
        stream = None if state is None else state.streams.get(source)
        if stream is None or seq != stream.next_seq or stream.waiting or flags & FLAG_SYNC:
            return False
        receive = self._matcher.claim(context, source, tag)
        if receive is None:
            return False
        stream.next_seq = seq + 1
        stream.progress_at = now
        receive.envelope = envelope = tuple.__new__(Envelope, (context, source, tag, total))
        if self.on_match is not None:
            self.on_match(envelope, seq)
        into = receive.into
        if into is not None and into.nbytes >= total:
            if into.nbytes != total:
                into = into[:total]
            into[:] = body
            body = into
            receive.landed = True
        elif body.readonly:
            body = memoryview(bytearray(body))
        receive.data = body
        receive.done = True
        if receive.on_done is not None:
            self._complete(receive, body)
        return True

    def _point(self, frame: Frame, now: float) -> None:
        """Process a whole frame of a point-to-point message."""
        arrived = self._arrive(frame, now)
        if arrived is None:
            self.duplicates += 1
        else:
            stream, message = arrived
            self._store(frame, frame.body, message, stream, False)

    def _arrive(self, frame: Frame, now: float) -> tuple[ReorderBuffer, Incoming] | None:
        """Return the stream and the message of a frame, None for a duplicate.

        Messages that the frame releases are matched with posted receives.
        """
        context, source = frame.context, frame.source
        state = self._contexts.get(context) or self._begin(context)
        if state is None:
            return None
        stream = state.streams.get(source)
        if stream is None:
            stream = state.streams[source] = ReorderBuffer()
        message, released = stream.receive(frame, now)
        for head in released:
            taker = self._matcher.arrive(head)
            if taker is not None:
                self._match(head, taker)
        if not stream.settled:
            self._unsettled[context, source] = stream
        return None if message is None else (stream, message)

    def _store(
        self,
        frame: Frame,
        body: memoryview,
        message: Incoming,
        stream: ReorderBuffer,
        in_place: bool,
    ) -> None:
        """Add the body of a frame to its message; the last one completes the receive."""
        assembly = message.assembly
        # a message of one frame needs no check at its first frame, which saves 2 % of a receive
        if (assembly.chunks > 1 or assembly.body is not None) and not assembly.agrees(
            frame, body.nbytes
        ):
            self.dropped += 1
            return
        if message.receive is None and assembly.body is None:
            self._hold(frame.total, frame.source)
        if not assembly.add(frame.chunk, frame.offset, body, in_place):
            self.duplicates += 1
            return
        if assembly.complete:
            if not stream.settled:
                stream.close(message)
                if stream.settled:
                    self._unsettled.pop((frame.context, frame.source), None)
            self._finish(message)

    def _match(self, message: Incoming, receive: Receive) -> None:
        """Give a message to a receive, and acknowledge it if it is synchronous."""
        if self.on_match is not None:
            self.on_match(message.envelope, message.seq)
        message.receive = receive
        receive.envelope = envelope = message.envelope
        self.held_bytes -= message.assembly.held
        if receive.into is not None and receive.into.nbytes >= envelope.nbytes:
            message.assembly.attach_buffer(receive.into)
        if message.sync:
            self._acknowledge(message)
        self._finish(message)

    def _finish(self, message: Incoming) -> None:
        """Complete the receive of a message, if it has been matched and its body is complete."""
        receive = message.receive
        if not isinstance(receive, Receive) or not message.assembly.complete:
            return
        body = message.assembly.body
        assert body is not None
        into = receive.into
        if into is not None and into.nbytes >= body.nbytes:
            body = _moved(body, into, body.nbytes)
            receive.landed = True
        self._complete(receive, body)

    def _complete(self, receive: Receive, body: memoryview) -> None:
        """End a receive with its payload, and call `on_done`."""
        receive.data = body
        receive.done = True
        # dropped, so that no reference cycle keeps the payload alive
        on_done, receive.on_done = receive.on_done, None
        if on_done is not None:
            on_done(receive)

    def _acknowledge(self, message: Incoming) -> None:
        """Queue the acknowledgement that a synchronous send waits for."""
        context, source = message.envelope.context, message.envelope.source
        if source == self.rank:
            self._ack(context, source, message.seq)
        else:
            self.outbox += self._cut(Kind.ACK, 0, context, source, 0, message.seq, (), (source,))

    def _ack(self, context: int, source: int, seq: int) -> None:
        """Process the acknowledgement of message `seq` to rank `source`."""
        on_matched = self._unacked.pop((context, source, seq), None)
        if on_matched is None:
            self.duplicates += 1
        else:
            on_matched()

    def _whole_step(self, frame: Frame) -> bool:
        """Process a frame that is the whole of a step that is awaited.

        Returns False, and does nothing, for any other frame: `_step` processes it.
        """
        _, _, context, source, _, slot, seq, _, _, _, _, body = frame
        name = (context, source, seq, slot)
        receive = self._expected.get(name)
        if receive is None:
            return False
        state = self._contexts.get(context) or self._begin(context)
        if state is None or state.completed.contains(seq):
            return False
        steps = state.steps.get(seq)
        if steps is None:
            steps = state.steps[seq] = {}
        elif (source, slot) in steps:  # received, or frames that this one contradicts
            return False
        del self._expected[name]
        if self.on_step is not None:
            self.on_step(name)
        steps[source, slot] = None
        self._complete(receive, memoryview(bytearray(body)) if body.readonly else body)
        return True

    def _step(self, frame: Frame) -> None:
        """Process a frame of a collective's step, which may precede this rank's call."""
        context, source, seq, slot = frame.context, frame.source, frame.seq, frame.tag
        state = self._contexts.get(context) or self._begin(context)
        if state is None or state.completed.contains(seq):
            self.duplicates += 1
            return
        steps = state.steps.get(seq)
        if steps is None:
            steps = state.steps[seq] = {}
        step = (source, slot)
        assembly = steps.get(step)
        if assembly is None:
            if step in steps:  # received
                self.duplicates += 1
                return
            assembly = Assembly(frame.total, frame.chunks)
        # see _store
        if (assembly.chunks > 1 or assembly.body is not None) and not assembly.agrees(
            frame, frame.body.nbytes
        ):
            self.dropped += 1
            return
        name = (context, source, seq, slot)
        receive = self._expected.get(name)
        if receive is None and assembly.body is None:
            self._hold(frame.total, source)
        if not assembly.add(frame.chunk, frame.offset, frame.body):
            self.duplicates += 1
        elif receive is not None and assembly.complete:
            del self._expected[name]
            self._step_is_over(name)
            assert assembly.body is not None
            self._complete(receive, assembly.body)
        else:
            steps[step] = assembly

    def _step_is_over(self, name: StepName) -> None:
        """Mark a step as received, so that late duplicates of it are recognized."""
        if self.on_step is not None:
            self.on_step(name)
        context, source, seq, slot = name
        self._contexts[context].steps[seq][source, slot] = None

    def _hold(self, nbytes: int, source: int) -> None:
        """Count memory that is about to be used for a message that no receive has asked for."""
        held = self.held_bytes + nbytes
        if held > self._max_held:
            raise MPIException(
                ERR_NO_MEM,
                f"rank {self.rank} would hold {held} bytes of messages that it has not asked for, "
                f"the last from rank {source}; receive them, or raise SMPI_MAX_HELD_BYTES "
                f"(now {self._max_held})",
            )
        self.held_bytes = held

    # --- what will never come ---------------------------------------------------------------------

    def posted(self) -> list[Receive]:
        """Return the posted receives that no message has matched."""
        return self._matcher.receives()

    def expected(self) -> list[tuple[int, Receive]]:
        """Return (context, receive) of each awaited step of a collective."""
        return [(name[0], receive) for name, receive in self._expected.items()]

    def drop_steps(self, context: int, seq: int) -> None:
        """Await no further step of a collective, and retire its number.

        Parameters
        ----------
        context, seq
            Context of the communicator, and number of the collective.
        """
        for name in [name for name in self._expected if name[0] == context and name[2] == seq]:
            del self._expected[name]
        self.retire(context, seq)

    def drop_synchronous(
        self, lost: Callable[[int, int], bool]
    ) -> list[tuple[int, int, Callable[[], None]]]:
        """Withdraw synchronous sends whose acknowledgement will never come.

        Parameters
        ----------
        lost
            lost(context, dest) is whether it will not.

        Returns
        -------
        list of tuple
            (context, dest, `on_matched`) of each.
        """
        names = [name for name in self._unacked if lost(name[0], name[1])]
        return [(name[0], name[1], self._unacked.pop(name)) for name in names]

    def drop_incomplete(self, source: int) -> list[Receive]:
        """Drop the messages of a rank of which a part has not arrived.

        Parameters
        ----------
        source
            World rank that sends no further frame.

        Returns
        -------
        list of Receive
            Those that one of the messages had matched; the caller ends them.
        """
        receives = []
        for name in [name for name in self._unsettled if name[1] == source]:
            stream = self._unsettled.pop(name)
            for message in (*stream.open.values(), *stream.waiting.values()):
                if isinstance(message.receive, Receive):
                    receives.append(message.receive)
                else:
                    self._matcher.remove(message)
                    self.held_bytes -= message.assembly.held
            stream.open.clear()
            stream.waiting.clear()
        return receives

    # --- what is awaited --------------------------------------------------------------------------

    def awaits(self) -> bool:
        """Return whether any frame is awaited, that is, whether `wanted` is not empty."""
        return bool(
            self._matcher.waiting
            or self.watched
            or self._unsettled
            or self._unacked
            or self._expected
        )

    def wanted(self) -> list[ExpectedFrame]:
        """Return the next frames that receives, probes and synchronous sends wait for."""
        names: dict[ExpectedFrame, None] = {}
        for context, source, tag in (*self._matcher.posted(), *self.watched):
            seq = 0
            if source != ANY_SOURCE:
                state = self._contexts.get(context)
                stream = None if state is None else state.streams.get(source)
                seq = 0 if stream is None else stream.next_seq
            names[ExpectedFrame(Kind.POINT, context, source, self.rank, seq, tag, 0)] = None
        for (context, source), stream in self._unsettled.items():
            for seq, message in stream.open.items():
                names[
                    ExpectedFrame(
                        Kind.POINT, context, source, self.rank, seq, 0, message.assembly.missing()
                    )
                ] = None
        for context, dest, seq in self._unacked:
            names[ExpectedFrame(Kind.ACK, context, dest, self.rank, seq, 0, 0)] = None
        for name, receive in self._expected.items():
            context, source, seq, slot = name
            state = self._contexts.get(context)
            assembly = None if state is None else state.step(source, seq, slot)
            chunk = 0 if assembly is None else assembly.missing()
            names[ExpectedFrame(Kind.STEP, context, source, receive.dest, seq, slot, chunk)] = None
        return list(names)

    def awaited(self) -> list[tuple[str, int, int, int | None]]:
        """Return what is awaited, for reports: (what, context, world rank or any, tag or None)."""
        awaited: list[tuple[str, int, int, int | None]] = []
        for context, source, tag in [*self._matcher.posted(), *self.watched]:
            if context == CONTEXT_FAULTS:
                continue  # always awaited
            awaited.append(("a message from", context, source, tag))
        for context, source in self._unsettled:
            awaited.append(("the rest of a message from", context, source, None))
        for context, dest, _ in self._unacked:
            awaited.append(("a receive by", context, dest, None))
        for context, source, _, _ in self._expected:
            awaited.append(("the collective call of", context, source, None))
        return list(dict.fromkeys(awaited))

    def next_deadline(self) -> float | None:
        """Return when `check` would raise if no further frame arrived; None: never."""
        times = [stream.progress_at for stream in self._unsettled.values()]
        return min(times) + GAP_TIMEOUT_S if times else None

    def check(self, now: float) -> None:
        """Raise if the channel has lost a frame.

        Parameters
        ----------
        now
            Seconds of the clock by which frames are received.

        Raises
        ------
        ChannelError
            Part of a stream has been missing for `GAP_TIMEOUT_S` without any further frame of it.
        """
        for (_, source), stream in self._unsettled.items():
            if now - stream.progress_at >= GAP_TIMEOUT_S:
                raise ChannelError(
                    f"rank {self.rank}: message {stream.next_seq} from rank {source}, or part of "
                    "it, has "
                    f"not arrived {GAP_TIMEOUT_S:.0f} s after later ones; the channel lost it or "
                    "rank "
                    f"{source} stopped while sending"
                )


def _moved(body: memoryview, into: memoryview, nbytes: int) -> memoryview:
    """Put a body of `nbytes` into memory, unless it is there already, and return it."""
    if nbytes != into.nbytes:
        into = into[:nbytes]
    if into.obj is not body.obj:
        into[:] = body
    return into
