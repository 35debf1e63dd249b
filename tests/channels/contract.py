"""What every channel must do.  `check_channel` is handed a maker of connected channels; it sees no medium."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from serverless_mpi.channels.base import (
    SCATTERED,
    SHARED,
    Channel,
    Delivery,
    ExpectedFrame,
    FrameName,
    OutgoingFrame,
)
from serverless_mpi.core.envelope import ANY_SOURCE
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter

POINT, STEP = 0, 2
GIVE_UP_S = 30.0  # only reached by a failure

Make = Callable[[int], list[Channel]]  # number of ranks -> their channels


@contextlib.contextmanager
def provisioned(
    kind: type[Channel], endpoint: str | None, left: Callable[[JobSpec], Sequence[object]]
) -> Iterator[Make]:
    """Make channels as a launcher does, and destroy what they made as a launcher does.

    Parameters
    ----------
    kind
        The channel's class; `channel` of its specs is its class's name, so it needs no entry in the table.
    endpoint
        Of an emulator, None for none.
    left
        What there still is of a job.
    """
    before: list[JobSpec] = []
    after: list[JobSpec] = []

    def make(size: int) -> list[Channel]:
        before.append(JobSpec.new(size, kind.__name__, endpoint=endpoint))
        after.append(replace(before[-1], settings=kind.provision(before[-1])))
        return [kind(after[-1].with_rank(rank), Meter()) for rank in range(size)]

    try:
        yield make
    finally:
        for spec in after:
            kind.destroy(spec)
        remains = {spec.job_id: found for spec in after if (found := list(left(spec)))}
        assert not remains, f"destroy left {remains}"
        for spec in (
            *after,
            *before,
        ):  # again, and after a `provision` that did not come to its end
            kind.destroy(spec)


def parcel(
    source: int, dests: Sequence[int], seq: int, body: bytes, context: int = 7
) -> OutgoingFrame:
    """A frame to one rank, ordered, or to several, named."""
    alone = len(dests) == 1
    name = FrameName(
        POINT if alone else STEP, context, source, dests[0] if alone else SHARED, seq, 0, 0
    )
    half = len(body) // 2
    return OutgoingFrame(tuple(dests), name, (memoryview(body[:half]), memoryview(body[half:])))


def wanted(one: OutgoingFrame) -> ExpectedFrame:
    name = one.name
    return ExpectedFrame(
        name.kind, name.context, name.source, name.dest, name.seq, name.tag, name.chunk
    )


def collect(channel: Channel, count: int, want: Sequence[ExpectedFrame] = ()) -> list[bytes]:
    """`count` different frames, acknowledged; what comes twice is left out, as the core does."""
    found: dict[bytes, None] = {}
    pending = list(want)
    while len(found) < count:
        deliveries: list[Delivery] = channel.get(GIVE_UP_S, lambda: pending)
        assert deliveries, f"{len(found)} of {count} frames came"
        channel.ack([one.receipt for one in deliveries if one.receipt is not None])
        for one in deliveries:
            body = bytes(one.data)
            found[body] = None
            pending = [w for w in pending if body != b"" and not body.startswith(_mark(w))]
    return list(found)


def _mark(want: ExpectedFrame) -> bytes:
    return b"%d/%d;" % (want.source, want.seq)


def frame(source: int, seq: int, length: int, chance: random.Random) -> bytes:
    return b"%d/%d;" % (source, seq) + chance.randbytes(length)


@contextlib.contextmanager
def putting(channel: Channel, frames: Sequence[OutgoingFrame]) -> Iterator[None]:
    """`parcels` are put in a thread while the block reads: a put may wait until somebody does."""
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(channel.put, frames)
        yield
        put.result(GIVE_UP_S)


def check_channel(make: Make, without: Sequence[str] = ()) -> None:
    """Run every check but those named in `without`; each makes channels of its own and closes them."""
    for check in (
        every_frame_arrives_as_it_was,
        one_put_reaches_any_subset,
        each_reader_of_a_dealt_parcel_gets_its_own,
        nothing_there_is_no_frame,
        a_wildcard_finds_what_nobody_named,
        wake_ends_a_wait,
        closing_twice_is_closing,
    ):
        if check.__name__ in without:
            continue
        channels = make(3)
        try:
            check(channels)
        finally:
            for channel in channels:
                channel.close()


def every_frame_arrives_as_it_was(channels: list[Channel]) -> None:
    """Of any length from 0 to the limit, many at once, both ways."""
    a, b, _ = channels
    chance = random.Random(1)
    longest = min(a.limits.max_frame_bytes, 3 << 20)
    lengths = [0, 1, 100, 65_536, 100_000, *[50] * 21, longest - 10]
    there = [
        parcel(0, (1,), seq, frame(0, seq, length, chance)) for seq, length in enumerate(lengths)
    ]
    back = [parcel(1, (0,), seq, frame(1, seq, 200, chance)) for seq in range(5)]
    b.put(back)
    with putting(a, there):
        for channel, frames in ((b, there), (a, back)):
            expected = sorted(b"".join(one.parts) for one in frames)
            assert (
                sorted(collect(channel, len(frames), [wanted(one) for one in frames])) == expected
            )


def one_put_reaches_any_subset(channels: list[Channel]) -> None:
    """A frame to several ranks reaches each of them, and nobody else."""
    chance = random.Random(2)
    both = parcel(0, (1, 2), 0, frame(0, 0, 1000, chance))
    large = parcel(
        0, (1, 2), 1, frame(0, 1, min(channels[0].limits.max_frame_bytes, 1 << 20) - 10, chance)
    )
    single = parcel(0, (2,), 2, frame(0, 2, 10, chance))
    with putting(channels[0], [both, large, single]):
        for rank, mine in ((1, [both, large]), (2, [both, large, single])):
            expected = sorted(b"".join(one.parts) for one in mine)
            assert (
                sorted(collect(channels[rank], len(mine), [wanted(one) for one in mine]))
                == expected
            )


def scattered(source: int, seq: int, bodies: dict[int, bytes]) -> OutgoingFrame:
    """A frame of his own for each reader."""
    own = tuple((memoryview(body[:5]), memoryview(body[5:])) for body in bodies.values())
    return OutgoingFrame(tuple(bodies), FrameName(STEP, 7, source, SCATTERED, seq, 0, 0), (), own)


def each_reader_of_a_dealt_parcel_gets_its_own(channels: list[Channel]) -> None:
    """Of whatever lengths; where a medium has no ranges, the runtime deals one by one."""
    chance = random.Random(4)
    lengths = [(0, 0), (10, 1000), (70_000, 3), (300_000, 300_000)]
    expected: dict[int, list[bytes]] = {1: [], 2: []}
    frames = []
    for seq, pair in enumerate(lengths):
        bodies = {
            rank: frame(0, seq, min(n, 100_000) if rank == 1 else n, chance)
            for rank, n in zip((1, 2), pair)
        }
        frames.append(scattered(0, seq, bodies))
        for rank in (1, 2):
            expected[rank].append(bodies[rank])
    if not channels[0].figures.ranges:
        frames = [one for parcel in frames[:-1] for one in parcel.split_per_reader()]
        expected = {rank: bodies[:-1] for rank, bodies in expected.items()}
    names = [ExpectedFrame(STEP, 7, 0, SCATTERED, seq, 0, 0) for seq in range(len(expected[1]))]
    with putting(channels[0], frames):
        for rank in (1, 2):
            assert sorted(collect(channels[rank], len(names), names)) == sorted(expected[rank])


def nothing_there_is_no_frame(channels: list[Channel]) -> None:
    """A get that may not wait comes back with nothing."""
    assert channels[0].get(0.0, lambda: [ExpectedFrame(POINT, 9, 1, 0, 0, 0, 0)]) == []


def a_wildcard_finds_what_nobody_named(channels: list[Channel]) -> None:
    """A receiver that does not know the sender gets its frame."""
    chance = random.Random(3)
    sent = [parcel(source, (2,), 0, frame(source, 0, 20, chance)) for source in (0, 1)]
    channels[0].put(sent[:1])
    channels[1].put(sent[1:])
    got = collect(channels[2], 2, [ExpectedFrame(POINT, 7, ANY_SOURCE, 2, 0, 0, 0)])
    assert sorted(got) == sorted(b"".join(one.parts) for one in sent)


def wake_ends_a_wait(channels: list[Channel]) -> None:
    """A get in another thread comes back without a frame, long before its time."""
    asked = threading.Event()

    def want() -> list[ExpectedFrame]:
        asked.set()
        return []

    got: list[list[Delivery]] = []
    waiter = threading.Thread(target=lambda: got.append(channels[0].get(GIVE_UP_S * 10, want)))
    waiter.start()
    channels[0].wake()
    waiter.join(GIVE_UP_S)
    assert not waiter.is_alive() and got == [[]]


def closing_twice_is_closing(channels: list[Channel]) -> None:
    """close may be called again."""
    channels[0].close()
    channels[0].close()
