"""What a channel is: a medium that takes frames, gives frames, and loses none.

A channel may duplicate and reorder; `core/delivery.py` makes order above it.
It knows nothing of communicators, tags or collectives.  A new channel is one
file that defines a `Channel` and one row in `channels/__init__.py`; the
contract suite in `tests/channels` then holds for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from serverless_mpi.core.frames import SCATTERED, SHARED, ExpectedFrame, FrameName, OutgoingFrame
from serverless_mpi.job import JobSpec

__all__ = [
    "SCATTERED",
    "SHARED",
    "Channel",
    "Delivery",
    "CostParameters",
    "FrameName",
    "Limits",
    "OutgoingFrame",
    "ExpectedFrame",
]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One frame that arrived; `receipt` acknowledges it (None: nothing to acknowledge).

    landing: where `Channel.land` had its body put; `data` is empty then.
    leaves: `core.wire.digests` of the body, where the channel has them.
    """

    data: memoryview
    receipt: object
    landing: Any = None
    leaves: Sequence[bytes] = ()


@dataclass(frozen=True)
class Limits:
    """What the medium can carry.

    max_frame_bytes: largest frame, header included.
    async_put: a put takes about a round trip, so the runtime puts from a
    sender thread and gathers what has been queued meanwhile.
    trusted_transport: nobody but the two ranks' own user can read or write what is on
    its way, so frames need no tag over their bodies.
    serial: the medium does one thing at a time, as an emulator does; who waits
    puts first and asks for frames then.
    """

    max_frame_bytes: int
    async_put: bool
    trusted_transport: bool = False
    serial: bool = False


@dataclass(frozen=True)
class CostParameters:
    """What the medium costs; collective algorithms are chosen by it, so all ranks must see the same.

    latency_s: one small message from put to get; bandwidth_Bps: bytes per
    second of one large message; put_usd, get_usd: dollars per small frame;
    fanout: one put reaches many ranks at one price; batch: frames per request;
    ranges: a reader can take a part of what was put, so dealt parcels come to
    `put` whole (else one by one).
    put_s, get_s: how long a rank is busy with one put, one get, beside its
    bytes; lanes: how many ranks can be busy at once (cores of one machine; 0: each has a machine of its own);
    billed_bytes: a longer message is billed as several (0: never); beyond:
    (nbytes, the figures of messages longer than that).
    """

    latency_s: float
    bandwidth_Bps: float
    put_usd: float
    get_usd: float
    fanout: bool
    batch: int
    ranges: bool = False
    put_s: float = 0.0
    get_s: float = 0.0
    parallelism: int = 0
    billed_bytes: int = 0
    large: tuple[int, CostParameters] | None = None


class Channel(ABC):
    """A medium between the ranks of one job, seen from one rank.

    `put` and `wake` may be called from any thread, also while `get` runs;
    `get` and `ack` are called by one thread at a time.

    services: what it needs of AWS, by the names of boto3's clients; a launcher
    starts an emulator of them where no endpoint is given.
    contained: `provision` and the ranks make things at `services` only. An
    emulator that ends with the job takes them along, so `destroy` is not called
    then; for any other channel a launcher always calls it.
    options: settings of the user's that `provision` takes, by their names on the
    command line.
    """

    services: ClassVar[frozenset[str]] = frozenset()
    contained: ClassVar[bool] = False
    options: ClassVar[frozenset[str]] = frozenset()
    limits: Limits
    figures: CostParameters
    # Set by the runtime of a guarded channel: given a frame's first 84 bytes and the length of the rest, it names memory
    # for the rest (an object with `memory`), or None.  To be called without a lock that `put` or `wake` need.
    land: Callable[[memoryview, int], Any] | None = None

    def __init__(self, spec: JobSpec, meter: Any) -> None:
        self.spec = spec
        self.meter = meter

    @classmethod
    def provision(cls, spec: JobSpec) -> dict[str, str]:
        """Make what the job needs (queues, topics, a bucket); the launcher calls it once.

        Returns settings that every rank gets in its JobSpec.
        """
        return {}

    @classmethod
    def destroy(cls, spec: JobSpec) -> None:
        """Remove everything `provision` and the ranks made; may be called again.

        `spec.settings` is what `provision` returned, or what it was given if it failed. The key is not the job's.
        """

    @classmethod
    def inherited(cls, spec: JobSpec) -> tuple[int, ...]:
        """Open files that the process of rank `spec.rank` must inherit under the same numbers."""
        return ()

    @abstractmethod
    def put(self, parcels: Sequence[OutgoingFrame]) -> None:
        """Give frames to the medium; returns when it has them, which may be when their readers take them.

        Raises ChannelError when it cannot; frames of the batch may then be there or not.
        """

    @abstractmethod
    def get(self, max_wait_s: float, wanted: Callable[[], list[ExpectedFrame]]) -> list[Delivery]:
        """Frames for this rank, after at most `max_wait_s` seconds; [] if none came.

        0 asks only for what is there now.  `wanted` names what receives wait
        for; a medium that delivers by itself need not look.
        """

    def ack(self, receipts: Sequence[object]) -> None:
        """The frames are stored; the medium may forget them.  May be done lazily, until close."""

    @abstractmethod
    def wake(self) -> None:
        """Make a `get` that waits in another thread return soon."""

    def abandon(self) -> None:  # noqa: B027
        """In a forked child: close this process's copies of descriptors, and say nothing to anybody.

        Needed where a copy would keep something alive that the other ranks watch.  Threads and locks are the parent's.
        """

    @abstractmethod
    def close(self) -> None:
        """Flush and let go of everything on this rank's side; may be called again."""
