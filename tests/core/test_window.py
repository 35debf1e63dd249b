"""Windows without IO: any interleaving of origins gives what some order of their epochs gives."""

from __future__ import annotations

import collections
import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.core.epochs import Access, Epochs
from serverless_mpi.core.window import (
    ACCUMULATE,
    COMPLETE,
    FETCH,
    GET,
    LOCK_EXCLUSIVE,
    LOCK_SHARED,
    POST,
    PUT,
    SWAP,
    UNLOCK,
    Command,
    LockTable,
    Target,
    decode_answer,
    decode_request,
    encode_request,
)
from serverless_mpi.errors import ERR_RMA_RANGE, ERR_RMA_SYNC, MPIException, WireError

CELLS = 3
CODES = {"put": PUT, "get": GET, "add": ACCUMULATE, "fetch": FETCH, "swap": SWAP}


def joined(parts: list[memoryview]) -> memoryview:
    return memoryview(b"".join(parts))


def number(value: int) -> bytes:
    return struct.pack("<q", value)


class Cells:
    """The memory of a target: numbers, and the log of what was done to them."""

    def __init__(self) -> None:
        self.values = [0] * CELLS
        self.log: list[tuple[str, int, int]] = []

    def execute(self, command: Command) -> memoryview | None:
        cell = command.offset // 8
        if not 0 <= cell < CELLS:
            raise MPIException(ERR_RMA_RANGE, "outside")
        kind = next(name for name, code in CODES.items() if code == command.code)
        old, result = self.values[cell], None
        if kind == "put":
            (self.values[cell],) = struct.unpack("<q", command.data)
        elif kind in ("add", "fetch"):
            self.values[cell] = old + struct.unpack("<q", command.data)[0]
        elif kind == "swap":
            compared, new = struct.unpack("<qq", command.data)
            self.values[cell] = new if old == compared else old
        if command.reads:
            result = memoryview(number(old))
        return result


def command(kind: str, cell: int, value: int) -> Command:
    data = b"" if kind == "get" else number(value)
    if kind == "swap":
        data = number(value % 2) + number(value)
    return Command(CODES[kind], 0, 0, 8 * cell, 8, b"", memoryview(data))


Operation = tuple[str, int, int]
operations = st.tuples(st.sampled_from(sorted(CODES)), st.integers(0, CELLS - 1), st.integers(0, 5))


@dataclass
class Epoch:
    exclusive: bool
    flushed: list[list[Operation]]  # the operations between two flushes


epochs_of_origin = st.lists(
    st.builds(Epoch, st.booleans(), st.lists(st.lists(operations, max_size=3), max_size=3)),
    max_size=3,
)


@dataclass
class Origin:
    """A process that performs its epochs one after the other, over a link that keeps order."""

    rank: int
    program: list[Epoch]
    link: collections.deque[memoryview] = field(default_factory=collections.deque)
    epochs: Epochs = field(default_factory=Epochs)
    results: list[int] = field(default_factory=list)
    sinks: collections.deque[list] = field(default_factory=collections.deque)  # per answer awaited
    step: int = 0

    def requests(self) -> list[list[memoryview]]:
        """All messages of the next epoch, and what each answer will fill."""
        epoch = self.program[self.step]
        self.step += 1
        self.epochs.lock(0, epoch.exclusive, True)
        messages = []
        for place, batch in enumerate([*epoch.flushed, []]):
            for operation in batch:
                made = command(*operation)
                self.epochs.check(0, operation[0])
                self.epochs.add(0, made, self.take if made.reads else None, 8 * made.reads)
            waiting = self.epochs.take(0, last=place == len(epoch.flushed))
            if waiting.commands:
                messages.append(encode_request(waiting.commands, True))
                self.sinks.append(waiting.sinks)
        self.epochs.unlocked(0)
        return messages

    def take(self, data: memoryview) -> None:
        self.results.extend(struct.unpack("<q", data))

    def answered(self, message: memoryview) -> None:
        error, rest = decode_answer(message)
        assert error is None
        for nbytes, sink in self.sinks.popleft():
            sink(rest[:nbytes])
            rest = rest[nbytes:]
        assert not rest


def replay(programs: list[list[Epoch]], order: list[tuple[int, int]]) -> tuple[list[int], dict]:
    """The sequential model: whole epochs, in an order."""
    values, results = [0] * CELLS, collections.defaultdict(list)
    for rank, step in order:
        for kind, cell, value in [each for part in programs[rank][step].flushed for each in part]:
            old = values[cell]
            if kind == "put":
                values[cell] = value
            elif kind in ("add", "fetch"):
                values[cell] = old + value
            elif kind == "swap" and old == value % 2:
                values[cell] = value
            if kind in ("get", "fetch", "swap"):
                results[rank].append(old)
    return values, results


@settings(max_examples=150, deadline=None)
@given(st.lists(epochs_of_origin, min_size=1, max_size=3), st.data())
def test_exclusive_epochs_are_as_if_one_after_the_other(
    programs: list[list[Epoch]], data: st.DataObject
) -> None:
    """Messages arrive in any order that keeps the order of each origin; locks are exclusive."""
    for program in programs:
        for epoch in program:
            epoch.exclusive = True
    cells = Cells()
    order: list[tuple[int, int]] = []
    steps: collections.Counter[int] = collections.Counter()
    target = Target(cells.execute)
    origins = [Origin(rank, program) for rank, program in enumerate(programs)]
    grant = target._lock._grant

    def granting() -> list[int]:
        granted = grant()
        for rank in granted:  # an epoch without an operation asks for no lock: skip those
            while not any(programs[rank][steps[rank]].flushed):
                steps[rank] += 1
            order.append((rank, steps[rank]))
            steps[rank] += 1
        return granted

    target._lock._grant = granting  # type: ignore[method-assign]
    while True:
        active = [each for each in origins if each.link or each.step < len(each.program)]
        if not active:
            break
        origin = data.draw(st.sampled_from(active))
        if origin.step < len(origin.program) and (not origin.link or data.draw(st.booleans())):
            origin.link.extend(joined(parts) for parts in origin.requests())
        elif origin.link:
            for answer in target.receive(origin.rank, origin.link.popleft()):
                origins[answer.dest].answered(joined(answer.parts))
    values, results = replay(programs, order)
    assert cells.values == values
    for origin in origins:
        assert origin.results == results[origin.rank] and not origin.sinks
    assert not target._stalled and not any(target.holds(each.rank) for each in origins)


@settings(max_examples=100, deadline=None)
@given(st.lists(epochs_of_origin, min_size=2, max_size=3), st.data())
def test_shared_and_exclusive_epochs_all_end_and_operations_are_atomic(
    programs: list[list[Epoch]], data: st.DataObject
) -> None:
    """Sums of fetches: each sees a different partial sum, and the last one is the total."""
    for program in programs:
        for epoch in program:
            epoch.flushed = [[("fetch", 0, 1) for _ in batch] for batch in epoch.flushed]
    cells = Cells()
    target = Target(cells.execute)
    origins = [Origin(rank, program) for rank, program in enumerate(programs)]
    while active := [each for each in origins if each.link or each.step < len(each.program)]:
        origin = data.draw(st.sampled_from(active))
        if origin.step < len(origin.program):
            origin.link.extend(joined(parts) for parts in origin.requests())
        if origin.link:
            for answer in target.receive(origin.rank, origin.link.popleft()):
                origins[answer.dest].answered(joined(answer.parts))
    fetched = sorted(value for origin in origins for value in origin.results)
    assert fetched == list(range(cells.values[0]))
    for origin in origins:  # accumulates of one origin are ordered
        assert origin.results == sorted(origin.results)
    assert not target._stalled


requests = st.lists(
    st.builds(
        Command,
        st.integers(1, 10),
        st.integers(0, 255),
        st.integers(0, 60_000),
        st.integers(-(2**63), 2**63 - 1),
        st.integers(0, 2**40),
        st.binary(max_size=40),
        st.binary(max_size=5000).map(memoryview),
    ),
    max_size=5,
)


@given(requests, st.booleans())
def test_a_request_survives_the_wire(commands: list[Command], answer: bool) -> None:
    wanted, decoded = decode_request(joined(encode_request(commands, answer)))
    assert wanted is answer
    assert [(*each[:5], bytes(each[5]), bytes(each[6])) for each in decoded] == [
        (*each[:5], bytes(each[5]), bytes(each[6])) for each in commands
    ]


@given(requests, st.integers(0, 200))
def test_a_request_that_is_cut_off_is_refused(commands: list[Command], missing: int) -> None:
    message = joined(encode_request([*commands, Command(POST)], True))
    with pytest.raises(WireError):
        decode_request(message[: max(0, message.nbytes - 1 - missing)])
    with pytest.raises(WireError):
        decode_request(joined([message, memoryview(b"x")]))
    (answer,) = Target(Cells().execute).receive(3, message[:4])
    assert answer.dest == 3 and decode_answer(joined(answer.parts))[0] is not None


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=30))
def test_a_lock_is_never_held_by_two_unless_both_share_it(
    calls: list[tuple[int, bool, bool]],
) -> None:
    table, asked = LockTable(), {}
    for origin, exclusive, release in calls:
        if release and table.holds(origin):
            table.release(origin)
            del asked[origin]
        elif origin not in asked:
            asked[origin] = exclusive
            table.acquire(origin, exclusive)
        holders = [each for each in asked if table.holds(each)]
        assert len(holders) <= 1 or not any(asked[each] for each in holders)
        assert bool(holders) == bool(asked)
    for _ in range(len(asked)):  # everybody gets it in the end
        origin = next(each for each in asked if table.holds(each))
        table.release(origin)
        del asked[origin]
    assert not asked


def test_a_shared_lock_does_not_pass_a_waiting_exclusive_one() -> None:
    table = LockTable()
    assert table.acquire(0, False)
    assert not table.acquire(1, True)
    assert not table.acquire(2, False)
    assert table.release(0) == [1]
    assert table.release(1) == [2]


def test_an_error_is_kept_until_the_next_answer_and_stops_what_follows() -> None:
    cells = Cells()
    target = Target(cells.execute)
    wrong, right = command("put", 9, 1), command("put", 0, 7)
    assert target.receive(1, joined(encode_request([wrong, right], False))) == []
    assert cells.values[0] == 0
    (answer,) = target.receive(1, joined(encode_request([], True)))
    error, _ = decode_answer(joined(answer.parts))
    assert error is not None and error.Get_error_class() == ERR_RMA_RANGE
    (answer,) = target.receive(1, joined(encode_request([right], True)))
    assert decode_answer(joined(answer.parts))[0] is None and cells.values[0] == 7


def test_a_fault_of_the_target_reaches_the_origin() -> None:
    def execute(command: Command) -> memoryview | None:
        raise ZeroDivisionError

    (answer,) = Target(execute).receive(
        0, joined(encode_request([command("get", 0, 0), Command(77)], True))
    )
    error, _ = decode_answer(joined(answer.parts))
    assert error is not None and "ZeroDivisionError" in str(error)


def test_post_and_complete_are_counted() -> None:
    target = Target(Cells().execute)
    target.receive(2, joined(encode_request([Command(POST)], False)))
    target.receive(1, joined(encode_request([command("put", 0, 1), Command(COMPLETE)], False)))
    assert target.posts == {2: 1} and target.completions == {1: 1}


def test_a_lock_goes_with_the_first_request_and_its_release_with_the_last() -> None:
    epochs = Epochs()
    epochs.lock(4, False, True)
    assert epochs.take(4).commands == []
    epochs.add(4, command("put", 0, 1), None, 0)
    assert [each.code for each in epochs.take(4).commands] == [LOCK_SHARED, PUT]
    assert [each.code for each in epochs.take(4, last=True).commands] == [UNLOCK]
    epochs.unlocked(4)
    epochs.lock(4, True, True)
    epochs.add(4, command("put", 0, 1), None, 0)
    codes = [each.code for each in epochs.take(4, last=True).commands]
    assert codes == [LOCK_EXCLUSIVE, PUT, UNLOCK]
    epochs.unlocked(4)
    epochs.lock(4, True, False)
    epochs.add(4, command("put", 0, 1), None, 0)
    assert [each.code for each in epochs.take(4, last=True).commands] == [PUT]


CALLS = {
    "fence": lambda epochs: epochs.fence(False),
    "last fence": lambda epochs: epochs.fence(True),
    "start": lambda epochs: epochs.start([1]),
    "complete": lambda epochs: (epochs.complete(), epochs.end()),
    "post": lambda epochs: epochs.post([1]),
    "wait": lambda epochs: (epochs.exposed("Wait"), setattr(epochs, "posted", None)),
    "lock": lambda epochs: epochs.lock(1, True, True),
    "unlock": lambda epochs: (epochs.locked(1, "Unlock"), epochs.unlocked(1)),
    "lock all": lambda epochs: epochs.lock_all(range(2), True),
    "unlock all": lambda epochs: (epochs.locked_all(), [epochs.unlocked(n) for n in range(2)]),
    "flush": lambda epochs: epochs.locked(1, "Flush"),
    "flush all": lambda epochs: epochs.passive("Flush_all"),
    "put": lambda epochs: (epochs.check(1, "Put"), setattr(epochs, "used", True)),
    "free": lambda epochs: epochs.freeable(),
}


@pytest.mark.parametrize(
    ("calls", "fault"),
    [
        ("put", "Put outside"),
        ("fence put fence put", ""),
        ("last-fence put", "Put outside"),
        ("fence lock put unlock", ""),
        ("fence put lock", "Lock in an epoch that Fence"),
        ("lock fence", "Fence in an epoch that Lock"),
        ("lock lock", "locked already"),
        ("lock lock-all", "Lock_all in an epoch"),
        ("lock-all put flush flush-all unlock-all free", ""),
        ("lock-all unlock", "Unlock of rank 1"),
        ("unlock", "Unlock of rank 1"),
        ("unlock-all", "Unlock_all without"),
        ("flush", "Flush of rank 1"),
        ("flush-all", "Flush_all without"),
        ("start put complete", ""),
        ("start start", "Start in an epoch"),
        ("complete", "Complete without Start"),
        ("start free", "Free in an epoch"),
        ("post post", "Post in an exposure"),
        ("post start complete wait", ""),
        ("post fence", "Fence in an exposure"),
        ("post free", "Free in an exposure"),
        ("wait", "Wait without Post"),
        ("fence put post", "Post in an epoch"),
        ("fence free", ""),
        ("lock free", "Free in an epoch"),
    ],
)
def test_calls_in_a_wrong_order_are_refused(calls: str, fault: str) -> None:
    epochs = Epochs()
    *before, last = [call.replace("-", " ") for call in calls.split()]
    for call in before:
        CALLS[call](epochs)
    if fault:
        with pytest.raises(MPIException, match=fault) as error:
            CALLS[last](epochs)
        assert error.value.Get_error_class() == ERR_RMA_SYNC
    else:
        CALLS[last](epochs)


def test_an_operation_on_no_process_needs_an_epoch_all_the_same() -> None:
    epochs = Epochs()
    with pytest.raises(MPIException):
        epochs.check(None, "Put")
    epochs.lock(0, True, True)
    epochs.check(None, "Put")
    assert epochs.access is Access.LOCK
