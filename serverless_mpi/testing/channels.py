"""The contract of a channel, checked with real frames between three ranks of one process.

`check_channel` does what a launcher and the core do: it provisions a job, makes
the channels of its ranks, puts and gets frames of any length, and destroys the
job.  A channel that loses, changes or misdelivers a frame, ignores `wake`, or
leaves something behind fails.  `channels/base.py` is the contract in words.

A check uses frames only, never the medium, so it applies to any channel.  Things
that a channel leaves behind are searched where channels can leave them: at its AWS
services, at paths in its settings, and in the folders for temporary files.

If you add a promise to `channels/base.py`, write a check of it and add it to `CHECKS`.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from serverless_mpi import channels as table
from serverless_mpi.channels.base import (
    SCATTERED,
    SHARED,
    Channel,
    ExpectedFrame,
    FrameName,
    OutgoingFrame,
)
from serverless_mpi.core.envelope import ANY_SOURCE
from serverless_mpi.errors import ServerlessMPIError
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter

__all__ = ["CHECKS", "check_channel", "provisioned"]

PATIENCE_S = 30.0  # only a failing check waits so long
RANKS = 3
_ORDERED, _STEP = 0, 2  # kinds of frames: point-to-point, and a step of a collective
_CONTEXT = 7

Make = Callable[[int], list[Channel]]  # number of ranks -> their channels
Leftovers = Callable[[JobSpec], Collection[object]]


def check_channel(
    channel: str | type[Channel],
    *,
    endpoint: str | None = None,
    leftovers: Leftovers | None = None,
    skip: Collection[str] = (),
    patience_s: float = PATIENCE_S,
) -> None:
    """Check a channel against its contract.

    Parameters
    ----------
    channel
        A registered name, or a class, which needs no entry point.
    endpoint
        URL of an AWS emulator; required if the channel has `services`.
    leftovers
        Returns what still exists of a job; for media that `find_leftovers` cannot search.
    skip
        Names of `CHECKS` to omit, for an emulator that lacks a feature.
    patience_s
        Seconds after which a frame that has not arrived counts as lost.

    Raises
    ------
    AssertionError
        The contract is broken; the message names the check.
    ServerlessMPIError
        The channel raised an error in a correct call.

    Notes
    -----
    Takes one provisioned job of three ranks per check: 0.1 s on `direct`, some seconds on
    an emulator.  Needs no launcher.
    """
    kind = table.load(channel) if isinstance(channel, str) else channel
    if kind.services and endpoint is None:
        raise ServerlessMPIError(
            f"{kind.__name__} needs {', '.join(sorted(kind.services))}: pass the endpoint of an"
            " emulator"
        )
    with provisioned(kind, endpoint, leftovers or find_leftovers) as make:
        for check in CHECKS:
            if check.__name__ in skip:
                continue
            job = _Job(make(RANKS), patience_s)
            try:
                check(job)
            except AssertionError as error:
                error.args = (f"{kind.__name__}, {check.__name__}: {error}",)
                raise
            finally:
                for member in job.channels:
                    member.close()


@contextlib.contextmanager
def provisioned(kind: type[Channel], endpoint: str | None, leftovers: Leftovers) -> Iterator[Make]:
    """Provision and destroy jobs on a channel as a launcher does; a context manager.

    Parameters
    ----------
    kind
        The channel's class; the channel's name in its jobs is the class's name.
    endpoint
        URL of an emulator; None for none.
    leftovers
        Returns what still exists of a job.

    Yields
    ------
    Make
        Returns the channels of a new job of a number of ranks; the caller closes them.

    Raises
    ------
    AssertionError
        `destroy` left something behind.
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
        remaining = {spec.job_id: names for spec in after if (names := list(leftovers(spec)))}
        assert not remaining, f"{kind.__name__}: destroy left {remaining}"
        # Again; and with the spec before `provision`, as after one that failed half-way.
        for spec in (*after, *before):
            kind.destroy(spec)


def find_leftovers(spec: JobSpec) -> list[str]:
    """Return what still exists of a job.

    Parameters
    ----------
    spec
        The job, with the settings that `provision` returned.

    Returns
    -------
    list of str
        Paths in its settings, files in temporary folders that have its id in their names, and what
        exists of it at its endpoint.
    """
    leftovers = [path for path in spec.settings.values() if os.path.isabs(path) and _exists(path)]
    for folder in {tempfile.gettempdir(), "/dev/shm"}:
        with contextlib.suppress(FileNotFoundError):
            leftovers += [
                os.path.join(folder, name) for name in os.listdir(folder) if spec.job_id in name
            ]
    if spec.endpoint is not None:
        # boto3 takes most of a second, which checks without services need not wait for.
        from serverless_mpi.aws import control

        if spec.job_id in control.leftovers(spec.endpoint, spec.region):
            leftovers.append(f"queues, topics or a bucket at {spec.endpoint}")
    return leftovers


def _exists(path: str) -> bool:
    with contextlib.suppress(ValueError, OSError):  # a text that cannot be a path
        return os.path.lexists(path)
    return False


# --- frames --------------------------------------------------------------------------------


def outgoing(source: int, dests: Sequence[int], seq: int, body: bytes) -> OutgoingFrame:
    """Return a frame whose body is in two parts.

    Parameters
    ----------
    source
        The rank that puts it.
    dests
        The ranks that read it. A frame for one rank is point-to-point, one for several is a step
        of a collective.
    seq
        Sequence number of the message.
    body
        Its body; borrowed.
    """
    single = len(dests) == 1
    name = FrameName(
        _ORDERED if single else _STEP, _CONTEXT, source, dests[0] if single else SHARED, seq, 0, 0
    )
    half = len(body) // 2
    return OutgoingFrame(tuple(dests), name, (memoryview(body[:half]), memoryview(body[half:])))


def scattered(source: int, seq: int, bodies: dict[int, bytes]) -> OutgoingFrame:
    """Return a frame with a separate body for each reader.

    Parameters
    ----------
    source, seq
        As in `outgoing`.
    bodies
        Rank -> its body; borrowed.
    """
    own = tuple((memoryview(body[:5]), memoryview(body[5:])) for body in bodies.values())
    name = FrameName(_STEP, _CONTEXT, source, SCATTERED, seq, 0, 0)
    return OutgoingFrame(tuple(bodies), name, (), own)


def expected(frame: OutgoingFrame) -> ExpectedFrame:
    """Return what a receiver that knows the name of a frame awaits.

    Parameters
    ----------
    frame
        The frame.
    """
    name = frame.name
    return ExpectedFrame(
        name.kind, name.context, name.source, name.dest, name.seq, name.tag, name.chunk
    )


def content(source: int, seq: int, length: int, chance: random.Random) -> bytes:
    """Return random bytes after a mark by which `_Job.collect` recognizes the frame.

    Parameters
    ----------
    source, seq
        Rank and sequence number, for the mark.
    length
        Number of random bytes.
    chance
        Source of randomness.
    """
    return b"%d/%d;" % (source, seq) + chance.randbytes(length)


def _joined(frames: Sequence[OutgoingFrame]) -> list[bytes]:
    return sorted(b"".join(frame.parts) for frame in frames)


@dataclass
class _Job:
    """The channels of a job, by rank."""

    channels: list[Channel]
    patience_s: float

    @property
    def longest(self) -> int:
        """Length of the longest frame that is tried, in bytes; at most 3 MiB, to save time."""
        return min(self.channels[0].limits.max_frame_bytes, 3 << 20)

    def collect(self, rank: int, count: int, awaited: Sequence[ExpectedFrame] = ()) -> list[bytes]:
        """Get and acknowledge `count` different frames; return their bodies, sorted.

        Duplicates are dropped, as the core does.
        """
        channel, bodies = self.channels[rank], dict[bytes, None]()
        pending = list(awaited)
        deadline = time.monotonic() + self.patience_s
        while len(bodies) < count:
            left = deadline - time.monotonic()
            deliveries = channel.get(max(0.0, left), lambda: pending)
            assert deliveries or left > 0, (
                f"rank {rank} got {len(bodies)} of {count} frames within {self.patience_s:g} s"
            )
            channel.ack(
                [delivery.receipt for delivery in deliveries if delivery.receipt is not None]
            )
            for delivery in deliveries:
                body = bytes(delivery.data)
                bodies[body] = None
                pending = [
                    frame
                    for frame in pending
                    if not body.startswith(b"%d/%d;" % (frame.source, frame.seq))
                ]
        return sorted(bodies)

    @contextlib.contextmanager
    def putting(self, rank: int, frames: Sequence[OutgoingFrame]) -> Iterator[None]:
        """Put frames in a thread while the block reads: a put may block until they are read."""
        with ThreadPoolExecutor(1) as pool:
            put = pool.submit(self.channels[rank].put, frames)
            yield
            put.result(self.patience_s)


# --- checks --------------------------------------------------------------------------------


def every_frame_arrives_unchanged(job: _Job) -> None:
    """Put frames of any length up to the limit, many at once, in both directions.

    Parameters
    ----------
    job
        The channels of a new job of `RANKS` ranks.

    Raises
    ------
    AssertionError
        A rank received other bytes than were put, or too few frames in time.
    """
    chance = random.Random(1)
    lengths = [0, 1, 100, 65_536, 100_000, *[50] * 21, job.longest - 10]
    there = [
        outgoing(0, (1,), seq, content(0, seq, length, chance))
        for seq, length in enumerate(lengths)
    ]
    back = [outgoing(1, (0,), seq, content(1, seq, 200, chance)) for seq in range(5)]
    job.channels[1].put(back)
    with job.putting(0, there):
        for rank, frames in ((1, there), (0, back)):
            arrived = job.collect(rank, len(frames), [expected(frame) for frame in frames])
            assert arrived == _joined(frames), f"rank {rank} got other bytes than were put"


def one_put_reaches_any_subset(job: _Job) -> None:
    """Put a frame for several ranks: it reaches each of them, and no other rank.

    Parameters
    ----------
    job
        The channels of a new job of `RANKS` ranks.

    Raises
    ------
    AssertionError
        A rank received other frames than its own, or too few in time.
    """
    chance = random.Random(2)
    both = outgoing(0, (1, 2), 0, content(0, 0, 1000, chance))
    large = outgoing(0, (1, 2), 1, content(0, 1, min(job.longest, 1 << 20) - 10, chance))
    single = outgoing(0, (2,), 2, content(0, 2, 10, chance))
    with job.putting(0, [both, large, single]):
        for rank, frames in ((1, [both, large]), (2, [both, large, single])):
            arrived = job.collect(rank, len(frames), [expected(frame) for frame in frames])
            assert arrived == _joined(frames), f"rank {rank} got other frames than its own"


def each_reader_of_a_scattered_frame_gets_its_own(job: _Job) -> None:
    """Put bodies of any lengths for each reader; without ranges the runtime puts them singly.

    Parameters
    ----------
    job
        The channels of a new job of `RANKS` ranks.

    Raises
    ------
    AssertionError
        A rank received other bodies than its own, or too few in time.
    """
    chance = random.Random(4)
    lengths = [(0, 0), (10, 1000), (70_000, 3), (300_000, 300_000)]
    if not job.channels[0].figures.ranges:
        lengths.pop()
    frames: list[OutgoingFrame] = []
    bodies: dict[int, list[bytes]] = {1: [], 2: []}
    for seq, (first, second) in enumerate(lengths):
        own = {1: content(0, seq, min(first, 100_000), chance), 2: content(0, seq, second, chance)}
        frames.append(scattered(0, seq, own))
        for rank, body in own.items():
            bodies[rank].append(body)
    if not job.channels[0].figures.ranges:
        frames = [single for frame in frames for single in frame.split_per_reader()]
    awaited = [
        ExpectedFrame(_STEP, _CONTEXT, 0, SCATTERED, seq, 0, 0) for seq in range(len(lengths))
    ]
    with job.putting(0, frames):
        for rank in (1, 2):
            arrived = job.collect(rank, len(awaited), awaited)
            assert arrived == sorted(bodies[rank]), f"rank {rank} got other bodies than its own"


def an_empty_medium_delivers_nothing(job: _Job) -> None:
    """Get without waiting: no frame is returned if none was put.

    Parameters
    ----------
    job
        The channels of a new job of `RANKS` ranks.

    Raises
    ------
    AssertionError
        A frame was returned.
    """
    awaited = [ExpectedFrame(_ORDERED, 9, 1, 0, 0, 0, 0)]
    assert job.channels[0].get(0.0, lambda: awaited) == [], (
        "a frame was delivered that no rank has put"
    )


def a_wildcard_receives_from_any_source(job: _Job) -> None:
    """Get without naming the sender: the frames of all senders arrive.

    Parameters
    ----------
    job
        The channels of a new job of `RANKS` ranks.

    Raises
    ------
    AssertionError
        The receiver got other bytes than were put, or too few frames in time.
    """
    chance = random.Random(3)
    sent = [outgoing(source, (2,), 0, content(source, 0, 20, chance)) for source in (0, 1)]
    for source in (0, 1):
        job.channels[source].put(sent[source : source + 1])
    arrived = job.collect(2, 2, [ExpectedFrame(_ORDERED, _CONTEXT, ANY_SOURCE, 2, 0, 0, 0)])
    assert arrived == _joined(sent), "a receive from any source got other bytes than were put"


def puts_of_several_threads_all_arrive(job: _Job) -> None:
    """Put in several threads of a rank: no frame is lost or mixed with another.

    Parameters
    ----------
    job
        The channels of a new job of `RANKS` ranks.

    Raises
    ------
    AssertionError
        Frames were changed or mixed, or too few arrived in time.
    """
    chance = random.Random(5)
    frames = [outgoing(0, (1,), seq, content(0, seq, 3000, chance)) for seq in range(12)]
    with ThreadPoolExecutor(3) as pool:
        puts = [pool.submit(job.channels[0].put, frames[start::3]) for start in range(3)]
        arrived = job.collect(1, len(frames), [expected(frame) for frame in frames])
        for put in puts:
            put.result(job.patience_s)
    assert arrived == _joined(frames), "frames of several threads were mixed"


def wake_ends_a_wait(job: _Job) -> None:
    """Wake a get in another thread: it returns without a frame, long before its time limit.

    Parameters
    ----------
    job
        The channels of a new job of `RANKS` ranks.

    Raises
    ------
    AssertionError
        `get` still waits, or returned a frame.
    """
    got: list[object] = []
    channel, longest_s = job.channels[0], job.patience_s * 10
    waiter = threading.Thread(target=lambda: got.append(channel.get(longest_s, list)), daemon=True)
    waiter.start()
    channel.wake()
    waiter.join(job.patience_s)
    assert not waiter.is_alive(), f"get still waits {job.patience_s:g} s after wake"
    assert got == [[]], f"get returned {got} after wake"


def close_may_be_called_again(job: _Job) -> None:
    """Close twice: the second call has no effect.

    Parameters
    ----------
    job
        The channels of a new job of `RANKS` ranks.
    """
    job.channels[0].close()
    job.channels[0].close()


CHECKS: tuple[Callable[[_Job], None], ...] = (
    every_frame_arrives_unchanged,
    one_put_reaches_any_subset,
    each_reader_of_a_scattered_frame_gets_its_own,
    an_empty_medium_delivers_nothing,
    a_wildcard_receives_from_any_source,
    puts_of_several_threads_all_arrive,
    wake_ends_a_wait,
    close_may_be_called_again,
)
