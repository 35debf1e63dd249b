"""Groups: ordered sets of world ranks (MPI 4.1, section 7.3)."""

from __future__ import annotations

from collections.abc import Sequence

from serverless_mpi.core.envelope import PROC_NULL, UNDEFINED
from serverless_mpi.errors import ERR_ARG, ERR_GROUP, ERR_RANK, MPIException

IDENT = 0
CONGRUENT = 1
SIMILAR = 2
UNEQUAL = 3


class Group:
    """An ordered set of processes; `rank` is this process's place in it, or UNDEFINED."""

    def __new__(cls, group: Group | None = None) -> Group:
        self = super().__new__(cls)
        self._ranks: tuple[int, ...] | None = None if group is None else group._ranks
        self._me = -1 if group is None else group._me
        return self

    @classmethod
    def _of(cls, ranks: Sequence[int], me: int) -> Group:
        self = cls()
        self._ranks, self._me = tuple(ranks), me
        return self

    def _live(self) -> tuple[int, ...]:
        if self._ranks is None:
            raise MPIException(ERR_GROUP, "the group is null or has been freed")
        return self._ranks

    def __bool__(self) -> bool:
        return self._ranks is not None

    def __eq__(self, other: object) -> bool:
        return (self._ranks, self._me) == (other._ranks, other._me) if isinstance(other, Group) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._ranks)

    def Get_size(self) -> int:
        """Number of processes."""
        return len(self._live())

    def Get_rank(self) -> int:
        """This process's rank in the group, or UNDEFINED."""
        ranks = self._live()
        return ranks.index(self._me) if self._me in ranks else UNDEFINED

    size = property(Get_size, doc="Number of processes.")
    rank = property(Get_rank, doc="This process's rank in the group, or UNDEFINED.")

    def Translate_ranks(self, ranks: Sequence[int] | None = None, group: Group | None = None) -> list[int]:
        """The ranks in `group` of `ranks` of this one."""
        mine = self._live()
        theirs = mine if group is None else group._live()
        places = {world: rank for rank, world in enumerate(theirs)}
        wanted = range(len(mine)) if ranks is None else ranks
        return [PROC_NULL if rank == PROC_NULL else places.get(self._world(rank), UNDEFINED) for rank in wanted]

    def _world(self, rank: int) -> int:
        ranks = self._live()
        if not 0 <= rank < len(ranks):
            raise MPIException(ERR_RANK, f"rank {rank} is not in a group of {len(ranks)}")
        return ranks[rank]

    @classmethod
    def Compare(cls, group1: Group, group2: Group) -> int:
        """IDENT, SIMILAR (other order) or UNEQUAL."""
        a, b = group1._live(), group2._live()
        return IDENT if a == b else SIMILAR if set(a) == set(b) else UNEQUAL

    def Dup(self) -> Group:
        """The same group."""
        return Group._of(self._live(), self._me)

    @classmethod
    def Union(cls, group1: Group, group2: Group) -> Group:
        """The first's processes, then those of the second that are not in it."""
        a = group1._live()
        return Group._of([*a, *(rank for rank in group2._live() if rank not in a)], group1._me)

    @classmethod
    def Intersection(cls, group1: Group, group2: Group) -> Group:
        """The first's processes that are in the second."""
        b = set(group2._live())
        return Group._of([rank for rank in group1._live() if rank in b], group1._me)

    Intersect = Intersection

    @classmethod
    def Difference(cls, group1: Group, group2: Group) -> Group:
        """The first's processes that are not in the second."""
        b = set(group2._live())
        return Group._of([rank for rank in group1._live() if rank not in b], group1._me)

    def Incl(self, ranks: Sequence[int]) -> Group:
        """The processes of `ranks`, in that order."""
        if len(set(ranks)) != len(ranks):
            raise MPIException(ERR_RANK, f"ranks {list(ranks)} name a process twice")
        return Group._of([self._world(rank) for rank in ranks], self._me)

    def Excl(self, ranks: Sequence[int]) -> Group:
        """All but the processes of `ranks`."""
        if len(set(ranks)) != len(ranks):
            raise MPIException(ERR_RANK, f"ranks {list(ranks)} name a process twice")
        out = {self._world(rank) for rank in ranks}
        return Group._of([rank for rank in self._live() if rank not in out], self._me)

    def Range_incl(self, ranks: Sequence[tuple[int, int, int]]) -> Group:
        """The processes of (first, last, stride) ranges."""
        return self.Incl(_expand(ranks))

    def Range_excl(self, ranks: Sequence[tuple[int, int, int]]) -> Group:
        """All but those."""
        return self.Excl(_expand(ranks))

    def Free(self) -> None:
        """Give the group up."""
        self._live()
        self._ranks = None

    free = Free


def _expand(ranges: Sequence[tuple[int, int, int]]) -> list[int]:
    ranks: list[int] = []
    for first, last, stride in ranges:
        if stride == 0:
            raise MPIException(ERR_ARG, "a range needs a stride other than 0")
        ranks += range(first, last + (1 if stride > 0 else -1), stride)
    return ranks


GROUP_NULL = Group()
GROUP_EMPTY = Group._of((), -1)

__all__ = ["CONGRUENT", "GROUP_EMPTY", "GROUP_NULL", "Group", "IDENT", "SIMILAR", "UNEQUAL"]
