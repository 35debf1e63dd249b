"""Groups: ordered sets of processes, named by their world ranks. No call communicates.

A process of another job, which a communicator of a bridge may have, is named by its job and its
rank there (`Runtime.process_names`), so groups of different communicators can be compared.

References
----------
MPI 4.1, section 7.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

from serverless_mpi.api.bsend import Attached
from serverless_mpi.api.handle import Handle, forget, handle_of, name_constant
from serverless_mpi.core.envelope import PROC_NULL, UNDEFINED
from serverless_mpi.errors import ERR_ARG, ERR_GROUP, ERR_OTHER, ERR_RANK, MPIException
from serverless_mpi.runtime import Runtime

IDENT = 0
CONGRUENT = 1
SIMILAR = 2
UNEQUAL = 3


class _State:
    """State of a group: world ranks, this process's world rank (-1: unknown), and its session.

    session: whose buffer communicators made from the group use.
    """

    def __init__(self, ranks: Sequence[int], me: int, session: Attached | None = None) -> None:
        self.ranks, self.me, self.session = tuple(ranks), me, session
        self.constant: Group | None = None


class Group(Handle):
    """An ordered set of processes; `rank` is this process's rank in it, or MPI.UNDEFINED."""

    __module__ = "serverless_mpi.MPI"

    def __new__(cls, group: Group | None = None) -> Group:
        return cls._copy(group)  # type: ignore[no-any-return]

    @classmethod
    def _of(cls, ranks: Sequence[int], me: int, session: Attached | None = None) -> Group:
        """Make the group of world ranks, as world rank `me` sees it."""
        return cls._of_state(_State(ranks, me, session)) if ranks else cls(GROUP_EMPTY)

    def _part(self, ranks: Sequence[int]) -> Group:
        """A group of some of the processes."""
        return type(self)._of(ranks, self._me, self._session)

    @property
    def _session(self) -> Attached | None:
        return self._ob.session  # type: ignore[no-any-return]

    def _live(self) -> tuple[int, ...]:
        """World ranks of the group; ERR_GROUP for a null handle."""
        if self._ob is None:
            raise MPIException(ERR_GROUP, "the group is null or has been freed")
        return self._ob.ranks  # type: ignore[no-any-return]

    @property
    def _me(self) -> int:
        return self._ob.me  # type: ignore[no-any-return]

    def Get_size(self) -> int:
        """Return the number of processes."""
        return len(self._live())

    def Get_rank(self) -> int:
        """Return this process's rank in the group, or MPI.UNDEFINED."""
        ranks = self._live()
        return ranks.index(self._me) if self._me in ranks else UNDEFINED

    size = property(Get_size, doc="Number of processes.")
    rank = property(Get_rank, doc="This process's rank in the group, or UNDEFINED.")

    def Translate_ranks(
        self, ranks: Sequence[int] | None = None, group: Group | None = None
    ) -> list[int]:
        """Translate ranks of this group to ranks of another one.

        Parameters
        ----------
        ranks
            Ranks of this group; by default all. MPI.PROC_NULL stays.
        group
            The other group; by default this one.

        Returns
        -------
        list of int
            MPI.UNDEFINED for a process that is not in `group`.

        References
        ----------
        MPI 4.1, section 7.3.1.
        """
        own = self._live()
        others = own if group is None else group._live()
        places = {world: rank for rank, world in enumerate(others)}
        asked = range(len(own)) if ranks is None else ranks
        return [
            PROC_NULL if rank == PROC_NULL else places.get(self._world(rank), UNDEFINED)
            for rank in asked
        ]

    def _world(self, rank: int) -> int:
        """World rank of a rank; ERR_RANK if it is not in the group."""
        ranks = self._live()
        if not 0 <= index(rank) < len(ranks):
            raise MPIException(ERR_RANK, f"rank {rank} is not in a group of {len(ranks)}")
        return ranks[rank]

    def Compare(self, group: Group) -> int:
        """Return MPI.IDENT, MPI.SIMILAR (other order) or MPI.UNEQUAL.

        Parameters
        ----------
        group
            Group to compare with.

        References
        ----------
        MPI 4.1, section 7.3.1.
        """
        a, b = self._live(), group._live()
        return IDENT if a == b else SIMILAR if set(a) == set(b) else UNEQUAL

    def Dup(self) -> Group:
        """Return a group of the same processes."""
        return self._part(self._live())

    @classmethod
    def Union(cls, group1: Group, group2: Group) -> Group:
        """Return the processes of the first group, then those only in the second.

        Parameters
        ----------
        group1, group2
            Groups to join.

        References
        ----------
        MPI 4.1, section 7.3.2.
        """
        a = group1._live()
        return cls._of(
            [*a, *(rank for rank in group2._live() if rank not in a)], *_seen(group1, group2)
        )

    @classmethod
    def Intersection(cls, group1: Group, group2: Group) -> Group:
        """Return the processes of the first group that are in the second.

        Parameters
        ----------
        group1, group2
            Groups to intersect; the first gives the order.

        References
        ----------
        MPI 4.1, section 7.3.2.
        """
        b = set(group2._live())
        return cls._of([rank for rank in group1._live() if rank in b], *_seen(group1, group2))

    Intersect = Intersection

    @classmethod
    def Difference(cls, group1: Group, group2: Group) -> Group:
        """Return the processes of the first group that are not in the second.

        Parameters
        ----------
        group1, group2
            Group to take processes from, and group of the processes to omit.

        References
        ----------
        MPI 4.1, section 7.3.2.
        """
        b = set(group2._live())
        return cls._of([rank for rank in group1._live() if rank not in b], *_seen(group1, group2))

    def Incl(self, ranks: Sequence[int]) -> Group:
        """Return the group of the processes of `ranks`, in that order.

        Parameters
        ----------
        ranks
            Ranks in this group.

        Raises
        ------
        MPIException
            ERR_RANK: a rank is not in the group, or is given twice.

        References
        ----------
        MPI 4.1, section 7.3.2.
        """
        members = [self._world(rank) for rank in ranks]
        if len(set(members)) != len(members):
            raise MPIException(ERR_RANK, f"ranks {list(ranks)} name a process twice")
        return self._part(members)

    def Excl(self, ranks: Sequence[int]) -> Group:
        """Return the group without the processes of `ranks`.

        Parameters
        ----------
        ranks
            Ranks in this group, each at most once.

        Raises
        ------
        MPIException
            ERR_RANK: a rank is not in the group. ERR_OTHER: a rank is given twice.

        References
        ----------
        MPI 4.1, section 7.3.2.
        """
        excluded = {self._world(rank) for rank in ranks}
        if len(excluded) != len(ranks):
            raise MPIException(ERR_OTHER, f"ranks {list(ranks)} name a process twice")
        return self._part([rank for rank in self._live() if rank not in excluded])

    def Range_incl(self, ranks: Sequence[tuple[int, int, int]]) -> Group:
        """Return the group of the processes of ranges.

        Parameters
        ----------
        ranks
            (first, last, stride) of each range; the last rank is included.
        """
        return self.Incl(_expand(ranks, len(self._live())))

    def Range_excl(self, ranks: Sequence[tuple[int, int, int]]) -> Group:
        """Return the group without the processes of (first, last, stride) ranges.

        Parameters
        ----------
        ranks
            (first, last, stride) of each range; the last rank is included.

        Raises
        ------
        MPIException
            ERR_ARG: a range has the stride 0 or does not lie in the group. ERR_OTHER: a rank is
            given twice.

        References
        ----------
        MPI 4.1, section 7.3.2.
        """
        return self.Excl(_expand(ranks, len(self._live())))

    @classmethod
    def Create_from_session_pset(cls, session: Any, pset_name: str) -> Group:
        """Return the group of a process set of a session.

        Parameters
        ----------
        session
            Session that has the process set.
        pset_name
            Name of the process set.

        References
        ----------
        MPI 4.1, section 7.3.2.
        """
        return cls(session.Create_group(pset_name))

    def Free(self) -> None:
        """Free the group; this handle becomes null."""
        self._live()
        if self is self._constant():
            raise MPIException(ERR_GROUP, "GROUP_EMPTY is predefined and cannot be freed")
        if self._constant() is None:
            forget(self._ob)
        self._ob = None


def _expand(ranges: Sequence[tuple[int, int, int]], size: int) -> list[int]:
    """The ranks of ranges."""
    ranks: list[int] = []
    for bounds in ranges:
        first, last, stride = map(index, bounds)  # NumPy's small types wrap
        if stride == 0:
            raise MPIException(ERR_ARG, "a range needs a stride other than 0")
        if not (0 <= first < size and 0 <= last < size) or (last - first) * stride < 0:
            raise MPIException(
                ERR_ARG,
                f"the range from {first} to {last} by {stride} does not lie in a group of {size}",
            )
        ranks += range(first, last + (1 if stride > 0 else -1), stride)
    return ranks


def _seen(group1: Group, group2: Group) -> tuple[int, Attached | None]:
    """This process's world rank and the session's buffer; an empty group has neither."""
    known = group1 if group1._me >= 0 else group2
    return known._me, known._session


# For the modules of communicators. Functions, because mpi4py's Group has no such methods.


def group_of(runtime: Runtime, ranks: Sequence[int], session: Attached | None = None) -> Group:
    """Return the group of world ranks of a runtime.

    Parameters
    ----------
    runtime
        Of the calling rank.
    ranks
        World ranks in this runtime.
    session
        Whose buffer communicators made from the group use.
    """
    names = runtime.process_names
    if not names:
        return make_group(ranks, runtime.rank, session)
    return make_group([names[rank] for rank in ranks], names[runtime.rank], session)


def group_ranks(group: Group, runtime: Runtime) -> tuple[Any, ...]:
    """Return the world ranks of a group in a runtime; see `Runtime.ranks`.

    Parameters
    ----------
    group
        Any group.
    runtime
        Of the calling rank.
    """
    ranks = names_in(group)
    return tuple(runtime.ranks(ranks)) if runtime.process_names else ranks


def check_own(ranks: Sequence[int]) -> None:
    """Raise ERR_GROUP if `group_ranks` has found processes of another job.

    Parameters
    ----------
    ranks
        What it returned.
    """
    if not all(isinstance(rank, int) for rank in ranks):
        raise MPIException(
            ERR_GROUP,
            "the group has processes of another job; make the communicator from one that has them",
        )


make_group = Group._of
names_in = Group._live

GROUP_NULL: Group = name_constant(Group(), "GROUP_NULL")
GROUP_EMPTY: Group = name_constant(handle_of(Group, _State((), -1)), "GROUP_EMPTY")

__all__ = ["CONGRUENT", "GROUP_EMPTY", "GROUP_NULL", "Group", "IDENT", "SIMILAR", "UNEQUAL"]
