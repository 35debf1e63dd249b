"""The target side of one-sided communication, without IO: requests in, answers out.

An origin sends *requests*: batches of commands, one message each.  A command reads or changes the
target's memory (PUT, GET, ACCUMULATE, FETCH, SWAP), takes or releases the target's lock
(LOCK_SHARED, LOCK_EXCLUSIVE, UNLOCK), or synchronizes (POST: an exposure epoch has begun at the
sender; COMPLETE: the sender's access epoch is over).  `Target` performs them and returns the
answers.  How a command changes memory is a function that the caller gives (`execute`).

Rules:

- Commands of one origin are performed in the order in which they were sent.  So accumulates of one
  origin are ordered, and the answer to a batch confirms every earlier command of that origin.
- A command is performed as a whole before another one begins.  So every operation is atomic.
- A lock is granted in the order of the requests, shared ones together.  An origin whose lock is not
  granted yet is *stalled*: its further commands wait, those of other origins do not.
- The first error of an origin is kept until its next answer, since a batch without an answer may
  have failed.  After an error, further commands that touch memory are not performed until then.

If you add a command, also add it to `_OPERATIONS` or to `Target._perform`.

References
----------
MPI 4.1, sections 12.5 (synchronization) and 12.7 (semantics and correctness).
"""

from __future__ import annotations

import collections
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from serverless_mpi.errors import ERR_OTHER, MPIException, WireError

PUT, GET, ACCUMULATE, FETCH, SWAP, LOCK_SHARED, LOCK_EXCLUSIVE, UNLOCK, POST, COMPLETE = range(
    1, 11
)
_OPERATIONS = frozenset((PUT, GET, ACCUMULATE, FETCH, SWAP))
_READING = frozenset((GET, FETCH, SWAP))
_HEAD = struct.Struct("<BxxxI")  # whether an answer is wanted, number of commands
# code, operation, basic type, bytes of the layout, offset, packed bytes, bytes of data
_ITEM = struct.Struct("<BBHIqQQ")
_ANSWER = struct.Struct("<II")  # error class or 0, bytes of its text
_JOINED_BYTES = 4096  # data up to this length are copied into the head, which saves a part
_NOTHING = memoryview(b"")


class Command(NamedTuple):
    """One command of a request.

    Attributes
    ----------
    code : int
        PUT, GET, ...
    op : int
        Number of the reduction operation.
    basic : int
        Number of the predefined datatype of the elements.
    offset : int
        First byte in the window; in a dynamic window its address.
    nbytes : int
        Packed bytes of the target's elements.
    layout : bytes-like
        How the elements lie in memory; empty if they are one run of bytes.
    data : memoryview
        Packed elements of the origin; of a SWAP the compared one and the new one.
    """

    code: int
    op: int = 0
    basic: int = 0
    offset: int = 0
    nbytes: int = 0
    layout: bytes | memoryview = b""
    data: memoryview = _NOTHING

    @property
    def reads(self) -> bool:
        """Whether the command returns what was in memory."""
        return self.code in _READING


class Answer(NamedTuple):
    """An answer: the world or window rank that gets it, and its bytes."""

    dest: int
    parts: list[memoryview]


Execute = Callable[[Command], "memoryview | None"]


def encode_request(commands: Sequence[Command], answer: bool) -> list[memoryview]:
    """Return the bytes of a request.

    Parameters
    ----------
    commands
        Their data are borrowed by the result if they are long.
    answer
        Whether the target answers.
    """
    parts: list[memoryview] = []
    head = bytearray(_HEAD.pack(answer, len(commands)))
    for code, op, basic, offset, nbytes, layout, data in commands:
        head += _ITEM.pack(code, op, basic, len(layout), offset, nbytes, data.nbytes)
        head += layout
        if data.nbytes <= _JOINED_BYTES:
            head += data
        else:
            parts += [memoryview(head), data]
            head = bytearray()
    if head:
        parts.append(memoryview(head))
    return parts


def decode_request(message: memoryview) -> tuple[bool, list[Command]]:
    """Return whether an answer is wanted, and the commands, whose data are views of `message`.

    Parameters
    ----------
    message
        Bytes of a request.

    Raises
    ------
    WireError
        The bytes are not a request.
    """
    try:
        answer, number = _HEAD.unpack_from(message)
        at = _HEAD.size
        commands = []
        for _ in range(number):
            code, op, basic, described, offset, nbytes, length = _ITEM.unpack_from(message, at)
            at += _ITEM.size
            layout = message[at : at + described]
            at += described
            data = message[at : at + length]
            at += length
            commands.append(Command(code, op, basic, offset, nbytes, layout, data))
    except struct.error as error:
        raise WireError(f"a request to a window is cut off: {error}") from None
    if at != message.nbytes:
        raise WireError(f"a request to a window has {message.nbytes} bytes and states {at}")
    return bool(answer), commands


def encode_answer(error: MPIException | None, results: Iterable[memoryview]) -> list[memoryview]:
    """Return the bytes of an answer.

    Parameters
    ----------
    error
        The first error since the last answer to the same origin.
    results
        What the commands of the batch read, in their order; borrowed.
    """
    if error is None:
        return [memoryview(_ANSWER.pack(0, 0)), *results]
    text = (error.message or "").encode()
    return [memoryview(_ANSWER.pack(error.Get_error_class(), len(text)) + text)]


def decode_answer(message: memoryview) -> tuple[MPIException | None, memoryview]:
    """Return the error, and the bytes that were read, one result after the other.

    Parameters
    ----------
    message
        Bytes of an answer.
    """
    code, length = _ANSWER.unpack_from(message)
    rest = message[_ANSWER.size :]
    if code:
        return MPIException(code, str(rest[:length], "utf-8") or None), _NOTHING
    return None, rest


class LockTable:
    """The lock of one target: who holds it, and who waits for it, in order."""

    def __init__(self) -> None:
        self._holders: dict[int, bool] = {}  # origin -> whether its lock is exclusive
        self._waiting: collections.deque[tuple[int, bool]] = collections.deque()

    def holds(self, origin: int) -> bool:
        """Return whether an origin has the lock.

        Parameters
        ----------
        origin
            Its rank.
        """
        return origin in self._holders

    def acquire(self, origin: int, exclusive: bool) -> bool:
        """Request the lock; return whether it is granted now.

        Parameters
        ----------
        origin
            Its rank; it neither has the lock nor waits for it.
        exclusive
            Whether no other origin may have it meanwhile.
        """
        self._waiting.append((origin, exclusive))
        self._grant()
        return origin in self._holders

    def release(self, origin: int) -> list[int]:
        """Release the lock; return the origins to which it is granted now.

        Parameters
        ----------
        origin
            Its rank.
        """
        self._holders.pop(origin, None)
        return self._grant()

    def _grant(self) -> list[int]:
        """Grant the lock to those at the head of the queue that may have it together."""
        granted = []
        while self._waiting:
            origin, exclusive = self._waiting[0]
            if self._holders and (exclusive or any(self._holders.values())):
                break
            self._waiting.popleft()
            self._holders[origin] = exclusive
            granted.append(origin)
        return granted


class _Batch:
    """A request in progress."""

    __slots__ = ("wants_answer", "commands", "results")

    def __init__(self, wants_answer: bool, commands: Iterator[Command]) -> None:
        self.wants_answer = wants_answer
        self.commands = commands
        self.results: list[memoryview] = []


class Target:
    """One process as the target of one window.  Not thread-safe: the caller has a lock.

    Parameters
    ----------
    execute
        Performs a command on memory and returns what it read, or None.  An MPIException is
        reported to the origin.

    Attributes
    ----------
    posts : Counter
        Rank of a target -> exposure epochs that it has begun for this process and that no access
        epoch of this process has used.
    completions : Counter
        Rank of an origin -> access epochs that it has completed here and that no exposure epoch of
        this process has used.
    """

    def __init__(self, execute: Execute) -> None:
        self._execute = execute
        self._lock = LockTable()
        self._stalled: dict[int, collections.deque[_Batch]] = {}
        self._errors: dict[int, MPIException] = {}
        self.posts: collections.Counter[int] = collections.Counter()
        self.completions: collections.Counter[int] = collections.Counter()

    def receive(self, source: int, message: memoryview) -> list[Answer]:
        """Process a request; return the answers that are due now.

        Parameters
        ----------
        source
            Rank of the origin.
        message
            Bytes of the request; not kept, unless the origin is stalled.
        """
        try:
            wants_answer, commands = decode_request(message)
        except WireError as error:
            return [Answer(source, encode_answer(MPIException(ERR_OTHER, str(error)), ()))]
        batch = _Batch(wants_answer, iter(commands))
        stalled = self._stalled.get(source)
        if stalled is not None:
            stalled.append(batch)
            return []
        answers: list[Answer] = []
        self._resume(collections.deque([(source, batch)]), answers)
        return answers

    def acquire(self, origin: int, exclusive: bool) -> bool:
        """Request the lock for this process itself; return whether it is granted now.

        Parameters
        ----------
        origin
            Rank of this process.
        exclusive
            Whether no other origin may have it meanwhile.
        """
        return self._lock.acquire(origin, exclusive)

    def holds(self, origin: int) -> bool:
        """Return whether an origin has the lock.

        Parameters
        ----------
        origin
            Its rank.
        """
        return self._lock.holds(origin)

    def release(self, origin: int) -> list[Answer]:
        """Release the lock of this process itself; return the answers that are due now.

        Parameters
        ----------
        origin
            Rank of this process.
        """
        answers: list[Answer] = []
        self._resume(self._unstall(self._lock.release(origin)), answers)
        return answers

    def _unstall(self, granted: Sequence[int]) -> collections.deque[tuple[int, _Batch]]:
        """The batches of origins that have got the lock, in order."""
        return collections.deque(
            (origin, batch) for origin in granted for batch in self._stalled.pop(origin, ())
        )

    def _resume(
        self, batches: collections.deque[tuple[int, _Batch]], answers: list[Answer]
    ) -> None:
        """Perform batches, and those of the origins to which they leave the lock."""
        while batches:
            source, batch = batches.popleft()
            stalled = self._stalled.get(source)
            if stalled is not None:  # an earlier batch of it has asked for the lock again
                stalled.append(batch)
                continue
            if not self._run(source, batch, batches):
                self._stalled[source] = collections.deque([batch])
            elif batch.wants_answer:
                error = self._errors.pop(source, None)
                answers.append(Answer(source, encode_answer(error, batch.results)))

    def _run(
        self, source: int, batch: _Batch, batches: collections.deque[tuple[int, _Batch]]
    ) -> bool:
        """Perform the commands of a batch; False if its origin has to wait for the lock.

        The batches of origins that get the lock are added to `batches`.
        """
        for command in batch.commands:
            code = command.code
            if code in _OPERATIONS:
                self._operate(source, command, batch.results)
            elif code == UNLOCK:
                batches.extend(self._unstall(self._lock.release(source)))
            elif code in (LOCK_SHARED, LOCK_EXCLUSIVE):
                if not self._lock.acquire(source, code == LOCK_EXCLUSIVE):
                    return False
            elif code == POST:
                self.posts[source] += 1
            elif code == COMPLETE:
                self.completions[source] += 1
            else:
                self._errors.setdefault(
                    source, MPIException(ERR_OTHER, f"no command of a window has code {code}")
                )
        return True

    def _operate(self, source: int, command: Command, results: list[memoryview]) -> None:
        """Perform a command on memory, unless an earlier one of its origin has failed."""
        if source in self._errors:
            return
        try:
            result = self._execute(command)
        except MPIException as error:
            self._errors[source] = error
        except Exception as error:  # it must not end the thread that receives
            self._errors[source] = MPIException(ERR_OTHER, f"the target failed: {error!r}")
        else:
            if result is not None:
                results.append(result)
