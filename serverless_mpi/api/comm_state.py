"""The state that all handles to one communicator share.

It holds the groups, the context, and the counters that number what is made from the communicator.
Invariant: every member counts the same calls in the same order, so equal numbers give equal
contexts on all members without a message. A counter for calls that only some ranks make is kept
per key (`State.count`).

Programs make communicators in loops, so what most of them never use (attributes, hints, a buffer)
is made at first use.
"""

from __future__ import annotations

import enum
import itertools
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from serverless_mpi.api.bsend import Attached
from serverless_mpi.api.topologies import Cart, Dist, Graph
from serverless_mpi.runtime import Runtime


class Kind(enum.Enum):
    """What a communicator is, which decides the class of its handles."""

    __hash__ = object.__hash__  # Enum's is a Python call in each look-up

    INTRA = enum.auto()
    INTER = enum.auto()
    CART = enum.auto()
    GRAPH = enum.auto()
    DIST_GRAPH = enum.auto()


# Each class of handles enters itself here when its module is imported, so a parent class makes
# handles of its subclasses without importing their modules. `serverless_mpi.MPI` imports them all.
KINDS: dict[Kind, type[Any]] = {}

_KIND_OF_TOPOLOGY = {Cart: Kind.CART, Graph: Kind.GRAPH, Dist: Kind.DIST_GRAPH}


def null_handle(kind: Kind) -> Any:
    """Make a null handle of the class of `kind`.

    Parameters
    ----------
    kind
        What the handle's communicators are; the module of its class must have been imported.
    """
    return KINDS[kind]._of(None)


class State:
    """The state of one communicator.

    Parameters
    ----------
    ranks
        World ranks of this process's group.
    remote
        World ranks of the other group; None within one group.

    Attributes
    ----------
    peers
        World ranks that point-to-point ranks number: the remote group's, if there is one.
    everyone
        World ranks that collectives number: both groups in an order on which both agree.
    nodes
        Node of each rank of `everyone`; empty between two groups, or if the job has one node.
    places
        World rank -> rank among `peers`.
    session
        Buffer of the session that it derives from.
    constant
        MPI.COMM_WORLD or MPI.COMM_SELF, of those two.
    local
        Between two groups: the communicator of this group alone, once it is needed.
    """

    freed = False
    revoked = False
    unusable = False  # freed or revoked: one test for the calls that both prevent
    internal: State | None = None  # see internal() in comm.py
    session: Attached | None = None
    constant: Any = None
    errhandler: Any = None
    local: State | None = None

    def __init__(
        self,
        runtime: Runtime,
        context: int,
        ranks: Sequence[int],
        name: str = "",
        remote: Sequence[int] | None = None,
        topology: Cart | Graph | Dist | None = None,
    ) -> None:
        self.runtime = runtime
        self.context = context
        self.ranks = tuple(ranks)
        self.rank = self.ranks.index(runtime.rank)
        self.remote = None if remote is None else tuple(remote)
        self.topology = topology
        self.peers = self.ranks if self.remote is None else self.remote
        self.everyone = (
            self.ranks
            if self.remote is None
            else (*min(self.ranks, self.remote), *max(self.ranks, self.remote))
        )
        of_job = runtime.nodes if self.remote is None else ()
        self.nodes = tuple(of_job[rank] for rank in self.everyone) if of_job else ()
        self.places = dict(zip(self.peers, range(len(self.peers)), strict=True))
        self.name = name
        self.calls = itertools.count()  # numbers the collectives
        self.children = itertools.count()  # numbers the communicators made from it
        self.requests = itertools.count()  # numbers the persistent collectives
        self.counters: dict[Any, int] = {}  # see count()
        self.lock = threading.Lock()
        # (operation, bytes) -> algorithm, see collective.py
        self.choices: dict[Any, Any] = {}
        self.internal_tags = itertools.count()
        self.attributes: dict[int, Any] = {}
        self.info: dict[str, str] = {}
        runtime.own(self, context)

    @cached_property
    def attached(self) -> Attached:
        """The buffer that a program attaches for buffered sends."""
        return Attached()

    @cached_property
    def locks(self) -> dict[Any, threading.Lock]:
        """Locks of programs, by key; see _comm_lock in comm.py."""
        return {}

    def revoke(self) -> None:
        """Have calls that communicate raise ERR_REVOKED; under the runtime's lock."""
        self.revoked = self.unusable = True

    @property
    def kind(self) -> Kind:
        """What this communicator is: between two groups, with a topology, or neither."""
        if self.remote is not None:
            return Kind.INTER
        return _KIND_OF_TOPOLOGY.get(type(self.topology), Kind.INTRA)

    def handle(self) -> Any:
        """Make a handle of the class that this communicator is of."""
        return KINDS[self.kind]._of(self)

    def count(self, key: Any) -> int:
        """Return how many times this was called for `key` before.

        Parameters
        ----------
        key
            Names the counter; hashable. For calls that only some ranks make, it contains those
            ranks.
        """
        with self.lock:
            before = self.counters.get(key, 0)
            self.counters[key] = before + 1
        return before
