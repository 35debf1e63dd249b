"""One rank's end of all its communicators, without IO: bytes and the time in, frames and
completions out.

Composes wire, delivery and matching.  It never blocks, and nothing in it is
thread-safe: `runtime/` holds the lock, the clock and the channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serverless_mpi.core.delivery import Assembly, CompletedSet, Freed, Incoming, ReorderBuffer
from serverless_mpi.core.envelope import ANY_SOURCE, CONTEXT_SELF, Envelope
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
)
from serverless_mpi.errors import ERR_COMM, ERR_NO_MEM, ChannelError, MPIException, WireError

GAP_TIMEOUT_S = (
    120.0  # a channel loses nothing; what is missing after two minutes without a frame never comes
)
_NOTHING = memoryview(b"")

Pattern = tuple[int, int, int]
StepName = tuple[int, int, int, int]  # context, source, seq, slot


class Receive:
    """A receive, point-to-point or of a collective's step, and what it got.

    done: the body is complete; data: the whole payload, writable; envelope: of
    the message; landed: the payload is in `into`; dest: under which name the
    frames of a step come (MANY, EACH).
    """

    __slots__ = ("pattern", "into", "dest", "envelope", "data", "done", "landed", "on_done")

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


class ReceiveSlot:
    """A frame whose header is here and whose body is still to come, and the memory for it."""

    __slots__ = ("memory", "_frame", "_message", "_stream")

    def __init__(
        self, memory: memoryview, frame: Frame, message: Incoming, stream: ReorderBuffer
    ) -> None:
        self.memory = memory
        self._frame = frame
        self._message = message
        self._stream = stream


class _Context:
    """What one context has of state: numbers of messages sent, streams that come, collectives."""

    __slots__ = ("sent", "streams", "completed", "steps")

    def __init__(self) -> None:
        self.sent: dict[int, int] = {}  # dest -> next sequence number
        self.streams: dict[int, ReorderBuffer] = {}  # by source
        self.completed = CompletedSet()
        # collective that is not over -> (source, slot) of a step -> its body, or None once it was
        # received
        self.steps: dict[int, dict[tuple[int, int], Assembly | None]] = {}

    def step(self, source: int, seq: int, slot: int) -> Assembly | None:
        """The body of a step, as far as it is here; None if nothing is, or it was received."""
        steps = self.steps.get(seq)
        return None if steps is None else steps.get((source, slot))


class Endpoint:
    """The protocol state of one rank.

    rank: world rank; job: 8 bytes; key: 32 bytes; max_frame_bytes: the
    channel's; max_held_bytes: how many bytes that no receive has asked for may
    be kept before the rank fails with ERR_NO_MEM; guarded: nobody else can
    reach the channel's bytes.

    An observer may set `on_send(kind, context, tag or slot, seq, dests)`, called before a message
    is cut into frames, `on_match(envelope, seq)`, called before a receive takes a message, and
    `on_step((context, source, seq, slot))`, called when a step of a collective has been received.
    They run under the caller's lock and must not call the endpoint."""

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
        self.dropped = (
            0  # frames that failed authentication, were of another job or contradict others
        )
        self.duplicates = 0
        self._contexts: dict[int, _Context] = {}
        self._closing: set[int] = set()  # freed, but an operation still waits for frames of theirs
        self._freed = Freed()
        self._unsettled: dict[
            tuple[int, int], ReorderBuffer
        ] = {}  # (context, source): miss something
        self._matcher: Matcher[Incoming, Receive] = Matcher()
        self._unacked: dict[tuple[int, int, int], Callable[[], None]] = {}  # (context, dest, seq)
        self._expected: dict[StepName, Receive] = {}
        self.watched: list[Pattern] = []  # what probes ask for
        # hooks of an observer; None costs one attribute test per message
        self.on_send: Callable[[int, int, int, int, tuple[int, ...]], None] | None = None
        self.on_match: Callable[[Envelope, int], None] | None = None
        self.on_step: Callable[[StepName], None] | None = None
        self.outbox: list[OutgoingFrame] = []  # acknowledgements to be put

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
        """The frames of a point-to-point message; none for a message to oneself, which is delivered
        here.

        on_matched is called when a receive has taken it (a synchronous send).

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
        return self._cut(Kind.POINT, flags, context, dest, tag, seq, data, (dest,))

    def publish(
        self, context: int, seq: int, slot: int, dests: Sequence[int], data: Sequence[memoryview]
    ) -> list[OutgoingFrame]:
        """The frames of one step of a collective, the same for every rank in `dests` (world ranks,
        not oneself).
        """
        return self._cut(Kind.STEP, 0, context, SHARED, slot, seq, data, tuple(dests))

    def deal(
        self, context: int, seq: int, slot: int, blobs: Sequence[tuple[int, Sequence[memoryview]]]
    ) -> list[OutgoingFrame]:
        """The frames of one step of a collective, for each (world rank, data) its own; the k-th
        frames of all in one parcel.
        """
        cut = [
            self._cut(Kind.STEP, 0, context, dest, slot, seq, data, (dest,)) for dest, data in blobs
        ]
        parcels = []
        for chunk in range(max(len(frames) for frames in cut)):
            own = [frames[chunk] for frames in cut if chunk < len(frames)]
            name = FrameName(Kind.STEP, context, self.rank, SCATTERED, seq, slot, chunk)
            parcels.append(
                OutgoingFrame(
                    tuple(one.dests[0] for one in own), name, (), tuple(one.parts for one in own)
                )
            )
        return parcels

    def _cut(
        self,
        kind: Kind,
        flags: int,
        context: int,
        dest: int,
        tag: int,
        seq: int,
        data: Sequence[memoryview],
        dests: tuple[int, ...],
    ) -> list[OutgoingFrame]:
        if self.on_send is not None:
            self.on_send(kind, context, tag, seq, dests)
        total = 0
        for part in data:
            total += part.nbytes
        most, source, flags = self._max_body, self.rank, flags | self._flags
        if total <= most:
            name = FrameName(kind, context, source, dest, seq, tag, 0)
            parts = encode(
                kind,
                flags,
                context,
                source,
                dest,
                tag,
                seq,
                0,
                1,
                0,
                total,
                data,
                total,
                self._job,
                self._key,
            )
            return [OutgoingFrame(dests, name, parts)]
        chunks = -(-total // most)
        parcels = []
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
            parcels.append(OutgoingFrame(dests, name, parts))
        return parcels

    # --- receiving --------------------------------------------------------------------------------

    def post(self, context: int, source: int, tag: int, into: memoryview | None = None) -> Receive:
        """Post a receive for (context, source, tag); it may be done at once."""
        receive = Receive((context, source, tag), into)
        message = self._matcher.post(receive)
        if message is not None:
            self._match(message, receive)
        return receive

    def cancel(self, receive: Receive) -> bool:
        """Withdraw a posted receive; False if it has been matched."""
        cancelled = self._matcher.cancel(receive)
        if self._closing:
            self._close_settled(receive.pattern[0])
        return cancelled

    def probe(self, context: int, source: int, tag: int) -> Envelope | None:
        """The envelope of the message a receive would get now."""
        message = self._matcher.probe((context, source, tag))
        return None if message is None else message.envelope

    def mprobe(self, context: int, source: int, tag: int) -> Incoming | None:
        """Take the message a receive would get now, for `post_matched` alone."""
        return self._matcher.take((context, source, tag))

    def post_matched(self, message: Incoming, into: memoryview | None = None) -> Receive:
        """Receive the message that `mprobe` took."""
        envelope = message.envelope
        receive = Receive((envelope.context, envelope.source, envelope.tag), into)
        self._match(message, receive)
        return receive

    def expect(
        self, context: int, source: int, seq: int, slot: int, scattered: bool = False
    ) -> Receive:
        """Receive one step of a collective; it may be done at once."""
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
        """Collective number `seq` of a context is over, or has failed.

        Steps of it that nobody took are dropped, and what still comes of it is a duplicate.
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
        """Nobody on this rank can begin anything on `context` any more; what is under way ends as
        usual.

        Its state goes once no operation waits for frames of it: messages that nobody received are
        dropped, and so is all that still comes.  The predefined contexts stay."""
        if context > CONTEXT_SELF and context not in self._freed:
            self._closing.add(context)
            self._close_settled(context)

    def _begin(self, context: int) -> _Context | None:
        """The state of a context that has none yet; None for one that was freed."""
        if context in self._freed:
            return None
        state = self._contexts[context] = _Context()
        return state

    def _close_settled(self, context: int) -> None:
        """Drop the state of a context that is being freed, unless an operation still waits for its
        frames.
        """
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
                self.held_bytes -= sum(one.assembly.held for one in stream.waiting.values())
                self._unsettled.pop((context, source), None)
            for steps in state.steps.values():
                self.held_bytes -= sum(one.held for one in steps.values() if one is not None)
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
        """Take bytes from the channel.  What is not a frame of this job is counted and dropped.

        leaves: see `wire.decode`.
        """
        try:
            frame = decode(data, self._job, self._key, self._guarded, leaves)
        except WireError:
            self.dropped += 1
            return
        if frame.dest not in (self.rank, SHARED):
            self.dropped += 1
        elif frame.kind == Kind.POINT:
            self._point(frame, now)
        elif frame.kind == Kind.STEP:
            self._step(frame)
        else:
            self._ack(frame.context, frame.source, frame.seq)
        if self._closing:
            self._close_settled(frame.context)

    def land(self, head: memoryview, nbytes: int, now: float) -> ReceiveSlot | None:
        """Memory for the body of the frame that begins with `head` (84 bytes), of a guarded
        channel.

        The receiver's own, if a receive is posted already. The caller fills it and hands it to
        `landed`. None: for this one there is no such memory; the whole frame goes to `receive`.
        nbytes: of the body."""
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
        """The body is in `landing.memory`."""
        self._store(landing._frame, landing.memory, landing._message, landing._stream, True)
        if self._closing:
            self._close_settled(landing._frame.context)

    def _point(self, frame: Frame, now: float) -> None:
        arrived = self._arrive(frame, now)
        if arrived is None:
            self.duplicates += 1
        else:
            stream, message = arrived
            self._store(frame, frame.body, message, stream, False)

    def _arrive(self, frame: Frame, now: float) -> tuple[ReorderBuffer, Incoming] | None:
        """The message of a frame (None: it is over), after matching whatever this frame is the
        first of.
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
        self, frame: Frame, body: memoryview, message: Incoming, stream: ReorderBuffer, there: bool
    ) -> None:
        assembly = message.assembly
        # the first frame of a message of one frame agrees with itself: not to ask saves 2 %
        if (assembly.chunks > 1 or assembly.body is not None) and not assembly.agrees(
            frame, body.nbytes
        ):
            self.dropped += 1
            return
        if message.receive is None and assembly.body is None:
            self._hold(frame.total, frame.source)
        if not assembly.add(frame.chunk, frame.offset, body, there):
            self.duplicates += 1
            return
        if assembly.complete:
            if not stream.settled:
                stream.close(message)
                if stream.settled:
                    self._unsettled.pop((frame.context, frame.source), None)
            self._finish(message)

    def _match(self, message: Incoming, receive: Receive) -> None:
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
        receive = message.receive
        if not isinstance(receive, Receive) or not message.assembly.complete:
            return
        body = message.assembly.body
        assert body is not None
        into = receive.into
        if into is not None and into.nbytes >= body.nbytes:
            if not _same_memory(into, body):
                into[: body.nbytes] = body
            body = into[: body.nbytes]
            receive.landed = True
        self._complete(receive, body)

    def _complete(self, receive: Receive, body: memoryview) -> None:
        receive.data = body
        receive.done = True
        on_done, receive.on_done = (
            receive.on_done,
            None,
        )  # dropped, so that no cycle keeps the payload
        if on_done is not None:
            on_done(receive)

    def _acknowledge(self, message: Incoming) -> None:
        context, source = message.envelope.context, message.envelope.source
        if source == self.rank:
            self._ack(context, source, message.seq)
        else:
            self.outbox += self._cut(Kind.ACK, 0, context, source, 0, message.seq, (), (source,))

    def _ack(self, context: int, source: int, seq: int) -> None:
        on_matched = self._unacked.pop((context, source, seq), None)
        if on_matched is None:
            self.duplicates += 1
        else:
            on_matched()

    def _step(self, frame: Frame) -> None:
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
        """A step is received; until its collective is over this tells its late duplicates from
        another step.
        """
        if self.on_step is not None:
            self.on_step(name)
        context, source, seq, slot = name
        self._contexts[context].steps[seq][source, slot] = None

    def _hold(self, nbytes: int, source: int) -> None:
        """Count memory that is about to be taken for a message that no receive has asked for."""
        held = self.held_bytes + nbytes
        if held > self._max_held:
            raise MPIException(
                ERR_NO_MEM,
                f"rank {self.rank} would hold {held} bytes of messages that it has not asked for, "
                "the last from rank "
                f"{source}; receive them, or raise SMPI_MAX_HELD_BYTES (now {self._max_held})",
            )
        self.held_bytes = held

    # --- what is awaited --------------------------------------------------------------------------

    def awaits(self) -> bool:
        """Whether `wanted` names anything."""
        return bool(
            self._matcher.waiting
            or self.watched
            or self._unsettled
            or self._unacked
            or self._expected
        )

    def wanted(self) -> list[ExpectedFrame]:
        """The frames that receives, probes and synchronous sends wait for."""
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
        """The same for people: (what, context, world rank or ANY_SOURCE, tag or None)."""
        found: list[tuple[str, int, int, int | None]] = []
        for context, source, tag in [*self._matcher.posted(), *self.watched]:
            found.append(("a message from", context, source, tag))
        for context, source in self._unsettled:
            found.append(("the rest of a message from", context, source, None))
        for context, dest, _ in self._unacked:
            found.append(("a receive by", context, dest, None))
        for context, source, _, _ in self._expected:
            found.append(("the collective call of", context, source, None))
        return list(dict.fromkeys(found))

    def next_deadline(self) -> float | None:
        """When `check` would find a message given up, if nothing comes until then."""
        times = [stream.progress_at for stream in self._unsettled.values()]
        return min(times) + GAP_TIMEOUT_S if times else None

    def check(self, now: float) -> None:
        """Raise ChannelError if the channel has lost a message."""
        for (_, source), stream in self._unsettled.items():
            if now - stream.progress_at >= GAP_TIMEOUT_S:
                raise ChannelError(
                    f"rank {self.rank}: message {stream.next_seq} from rank {source}, or part of "
                    "it, has not come "
                    f"{GAP_TIMEOUT_S:.0f} s after later ones; the channel lost it or rank {source} "
                    "stopped while sending"
                )


def _same_memory(into: memoryview, body: memoryview) -> bool:
    return into.obj is body.obj
