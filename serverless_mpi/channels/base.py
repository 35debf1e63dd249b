"""What a channel is: a medium that carries frames between the ranks of one job and loses none.

The rule: every frame that `put` accepted is returned by a `get` of each of its
readers at least once.  A channel may reorder and duplicate; `core/delivery.py`
restores order and drops duplicates above it.  A channel knows nothing of
communicators, tags or collectives: to it a frame is bytes with a name.

Everything that launchers, the simulation and the planner must know of a
channel is a class attribute of its `Channel`, so nothing outside of the
channel's own file compares channel names.

Invariants of the caller (`runtime.py`), on which a channel may rely:

- A frame is never addressed to the rank that puts it.
- `OutgoingFrame.parts` do not change until `put` returns; a channel that keeps
  a frame for longer copies it.
- `get` and `ack` are called by one thread at a time, `put` and `wake` by any
  thread at any time until `close`.

If you change this contract, also change `testing/channels.py`, which holds
every registered channel to it, and docs/how-to/add-a-channel.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from serverless_mpi.aws.figures import of_job
from serverless_mpi.aws.limits import Figures
from serverless_mpi.core.frames import SCATTERED, SHARED, ExpectedFrame, FrameName, OutgoingFrame
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter, Prices

__all__ = [
    "SCATTERED",
    "SHARED",
    "Channel",
    "CostParameters",
    "Delivery",
    "ExpectedFrame",
    "FrameName",
    "Limits",
    "OutgoingFrame",
]


class Delivery(NamedTuple):
    """One frame that arrived.

    Attributes
    ----------
    data
        The frame, header included.  Its memory must be writable and belong to the
        receiver alone: the core returns it to the user without a copy.  Memory
        that is read-only is copied.
    receipt
        What `Channel.ack` is given once the frame is stored; None if there is
        nothing to acknowledge.
    landing
        The object that `Channel.land` returned, if the body was received into its
        memory.  `data` is empty then.
    leaves
        `core.wire.digests` of the body, if the channel has computed them; empty otherwise.
    """

    data: memoryview
    receipt: object
    landing: Any = None
    leaves: Sequence[bytes] = ()


@dataclass(frozen=True)
class Limits:
    """What the medium can carry, and how.

    Attributes
    ----------
    max_frame_bytes
        Largest frame in bytes, header included.  Longer messages are cut.
    async_put
        A put takes about a round trip.  The runtime then puts from a sender thread, and
        gathers the frames that are queued meanwhile into one put.
    trusted_transport
        Only processes of the user who runs the ranks can read or write what is in transit,
        so frames need no authentication tag over their bodies.
    serial
        The medium serves one request at a time, as an emulator does.  A caller that waits
        puts its queued frames itself before it asks for frames.
    """

    max_frame_bytes: int
    async_put: bool
    trusted_transport: bool = False
    serial: bool = False


@dataclass(frozen=True)
class CostParameters:
    """What the medium costs, in time and money.

    Collective algorithms are chosen by these figures, so all ranks of a job must have equal ones.

    Attributes
    ----------
    latency_s
        Seconds from the put of one small frame to its get.
    bandwidth_Bps
        Bytes per second of one large message.
    put_usd, get_usd
        US dollars per small frame.
    fanout
        One put reaches many ranks at one price.
    batch
        Frames per request.
    ranges
        A reader can read a part of what was put.  `put` then receives scattered frames as
        one `OutgoingFrame` with `bodies`; otherwise the runtime splits them first.
    put_s, get_s
        Seconds for which a rank is busy with one put or get, its bytes not included.
    parallelism
        Ranks that can be busy at once: the cores of one machine; 0 if each has its own.
    billed_bytes
        A message is billed once per started `billed_bytes` bytes; 0 if it is billed once.
    put_usd_per_byte, get_usd_per_byte
        US dollars per byte, on top of `put_usd` and `get_usd`.
    large
        (limit in bytes, the cost parameters of messages longer than that); None if all
        lengths have the same.
    near
        The cost parameters between ranks of one node; None if they are the same.
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
    put_usd_per_byte: float = 0.0
    get_usd_per_byte: float = 0.0
    large: tuple[int, CostParameters] | None = None
    near: CostParameters | None = None


class Channel(ABC):
    """A medium between the ranks of one job, as one rank uses it.

    Parameters
    ----------
    spec
        The job as this rank sees it; `spec.settings` is what `provision` returned.
    meter
        Counts requests and bytes.  Call `meter.count(service, operation, nbytes=...,
        messages=...)` for every request, retries included.  An AWS service has the name of its
        boto3 client, and its requests are priced by `prices.json`; anything else is counted
        under the channel's own name and is free: `meter.count("folder", "put", ...)`.

    Attributes
    ----------
    services
        AWS services that it needs, by the names of boto3's clients.  A launcher starts an
        emulator of them if the user names no endpoint.
    contained
        `provision` and the ranks create things at `services` only.  An emulator that ends
        with the job takes them with it, so the launcher does not call `destroy` then.
        For any other channel a launcher always calls `destroy`.
    options
        Command-line options that `provision` reads from `spec.settings`, without dashes.
    platforms
        Platforms on which it works, by the names of launchers; None for every platform.
    one_process
        It connects threads of one process, so a launcher refuses it for more than one rank.
    predictable
        Whether its figures hold before a job has begun.  A planner considers another channel only
        if it is named.
    limits
        What the medium can carry.  An instance may narrow what the class states.
    figures
        Cost parameters on AWS, or everywhere if the channel uses no AWS service.  An instance
        has those of the medium that it is connected to.
    emulator_figures
        Cost parameters on an emulator; None if they are `figures`.
    model
        Its simulation model, as "module:class" of a subclass of
        `simulation.media.ChannelModel`, imported only to simulate.
        "serverless_mpi.simulation.media:Parametric" derives a model from the cost parameters.
        None: `--simulate` refuses the channel.
    land
        Set by the runtime if `limits.trusted_transport`.  Given a frame's first 84 bytes and the
        number of bytes that follow, it returns an object whose `memory` receives those, or None.
        Call it without holding a lock that `put` or `wake` need.
    """

    services: ClassVar[frozenset[str]] = frozenset()
    contained: ClassVar[bool] = False
    options: ClassVar[frozenset[str]] = frozenset()
    platforms: ClassVar[frozenset[str] | None] = None
    one_process: ClassVar[bool] = False
    predictable: ClassVar[bool] = True
    limits: Limits
    figures: CostParameters
    emulator_figures: ClassVar[CostParameters | None] = None
    model: ClassVar[str | None] = None
    land: Callable[[memoryview, int], Any] | None = None

    def __init__(self, spec: JobSpec, meter: Meter) -> None:
        self.spec = spec
        self.meter = meter

    @classmethod
    def cost(cls, *, aws: bool, prices: Prices, store: str = "s3") -> CostParameters:
        """Return the cost parameters on AWS or on an emulator, without a job.

        Parameters
        ----------
        aws
            On AWS; otherwise on the embedded emulator.
        prices
            Price table, for channels that choose a way by price.
        store
            Where objects are, for channels that store some: "s3" or "s3express".
        """
        if aws or cls.emulator_figures is None:
            return cls.figures
        return cls.emulator_figures

    @classmethod
    def cost_by(cls, figures: Figures, prices: Prices, *, store: str = "s3") -> CostParameters:
        """Return the cost parameters on AWS by given figures of its services.

        A channel that uses a service of AWS derives them; any other has those of `cost`.

        Parameters
        ----------
        figures
            Times and rates of AWS, perhaps measured (`smpi calibrate`).
        prices, store
            As for `cost`.
        """
        return cls.cost(aws=True, prices=prices, store=store)

    @classmethod
    def cost_of_job(cls, spec: JobSpec, prices: Prices, *, store: str = "s3") -> CostParameters:
        """Return the cost parameters of a job: by its own figures if its launcher passed some.

        Without such figures they are those on AWS, or on an emulator if the job has an endpoint.

        Parameters
        ----------
        spec
            The job as this rank sees it; `settings` and `endpoint` are used.
        prices, store
            As for `cost`.
        """
        figures = of_job(spec.settings)
        if figures is None:
            return cls.cost(aws=spec.endpoint is None, prices=prices, store=store)
        return cls.cost_by(figures, prices, store=store)

    @classmethod
    def provision(cls, spec: JobSpec) -> dict[str, str]:
        """Create what the job needs: queues, topics, a bucket, sockets.

        The launcher calls it once per job, before any rank starts.

        Parameters
        ----------
        spec
            The job; `spec.settings` has the values of the command-line options.

        Returns
        -------
        dict[str, str]
            Settings that every rank finds in its `JobSpec.settings`.

        Raises
        ------
        ChannelError
            Something cannot be created.
        """
        return {}

    @classmethod
    def destroy(cls, spec: JobSpec) -> None:
        """Remove everything that `provision` and the ranks created.

        It may run in another process than `provision`, more than once, and after a `provision`
        that failed half-way.

        Parameters
        ----------
        spec
            The job.  After a `provision` that failed, `spec.settings` is what `provision` was
            given, so names should derive from `spec.job_id`.  `spec.key` is not the job's key.

        Raises
        ------
        ChannelError
            Something is left; it will be called again by `smpirun --cleanup`.
        """

    @classmethod
    def inherited(cls, spec: JobSpec) -> tuple[int, ...]:
        """Return the file descriptors that the process of a rank inherits, numbers unchanged.

        Parameters
        ----------
        spec
            The job as rank `spec.rank` sees it; `spec.settings` is what `provision` returned.
        """
        return ()

    @abstractmethod
    def put(self, parcels: Sequence[OutgoingFrame]) -> None:
        """Hand frames to the medium, in any order.

        Returns when the medium holds them; a medium without storage may block until their
        readers take them.  Thread-safe.

        Parameters
        ----------
        parcels
            Frames, each for one or several ranks, never for this one.  Their memory is
            borrowed until `put` returns.

        Raises
        ------
        ChannelError
            The medium cannot take them.  Any part of the batch may have been delivered.
        """

    @abstractmethod
    def get(self, max_wait_s: float, wanted: Callable[[], list[ExpectedFrame]]) -> list[Delivery]:
        """Return frames for this rank, or [] if none arrived within `max_wait_s` seconds.

        Parameters
        ----------
        max_wait_s
            Longest wait in seconds; 0 returns what is there now.
        wanted
            Returns the frames that receives wait for at the moment of the call.  A medium that
            delivers by itself need not call it; what it delivers may be anything.

        Raises
        ------
        ChannelError
            The medium failed, or a peer is lost.
        """

    def watch_peers(self, ended: Callable[[int, bool], None]) -> None:
        """Connect to every other rank, and report each one that ends, until the channel closes.

        Only for channels whose connections break if and only if a process ends.

        Parameters
        ----------
        ended
            Called as ended(rank, died) in any thread, perhaps inside of a call of the channel, so
            it must not call the channel.  `died` is False if the rank closed its channel.
        """
        raise NotImplementedError

    def at_once(self, dests: Sequence[int]) -> bool:
        """Return whether a put of a frame for these ranks takes no round trip.

        Asked only if `limits.async_put`: the caller then puts the frame itself, instead of the
        sender thread.  Called often.

        Parameters
        ----------
        dests
            World ranks of the frame's readers.
        """
        return False

    def ack(self, receipts: Sequence[object]) -> None:
        """Release frames that are stored; the medium may do so as late as `close`.

        Parameters
        ----------
        receipts
            `Delivery.receipt` of each, those that are None not included.
        """

    @abstractmethod
    def wake(self) -> None:
        """Make a `get` that waits in another thread return soon.  Thread-safe.

        If no `get` waits, the next one returns early instead.
        """

    def abandon(self) -> None:  # noqa: B027
        """Close this process's copies of descriptors after a fork, without sending anything.

        Called in the child.  Needed where a copy would keep something alive that the other
        ranks watch.  Threads and locks are the parent's: do not touch them.
        """

    @abstractmethod
    def close(self) -> None:
        """Flush, and release everything on this rank's side; may be called again."""
