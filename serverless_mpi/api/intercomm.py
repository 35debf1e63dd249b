"""Communicators of two groups: each rank speaks with those of the other group (MPI 4.1, sections 6.2.3 and 7.6).

Point-to-point ranks are the remote group's.  In a rooted collective the root
says ROOT, the others of its group PROC_NULL, and the other group the root's rank.
"""

from __future__ import annotations

from typing import Any

from serverless_mpi.api.buffers import InPlaceType
from serverless_mpi.api.comm import Comm, internal
from serverless_mpi.api.comm_state import KINDS, Kind, State
from serverless_mpi.api.errhandler import Errhandler
from serverless_mpi.api.group import Group, group_of, group_ranks
from serverless_mpi.api.info import INFO_NULL, Info
from serverless_mpi.api.intracomm import Intracomm, from_nothing
from serverless_mpi.collectives.operations import BETWEEN, OPERATIONS, Layout
from serverless_mpi.core.envelope import PROC_NULL, ROOT, derive_context
from serverless_mpi.errors import ERR_ARG, ERR_BUFFER, ERR_GROUP, ERR_ROOT, MPIException
from serverless_mpi.runtime import get_runtime


class Intercomm(Comm):
    """A communicator that joins two groups."""

    __module__ = "serverless_mpi.MPI"

    _what = "a communicator of two groups"

    @classmethod
    def _takes(cls, comm: Comm) -> bool:
        return comm._made is not None and comm._made.remote is not None

    @classmethod
    def Create_from_groups(
        cls,
        local_group: Group,
        local_leader: int,
        remote_group: Group,
        remote_leader: int,
        stringtag: str = "org.mpi4py",
        info: Info = INFO_NULL,
        errhandler: Errhandler | None = None,
    ) -> Intercomm:
        """Join two groups, whose members alone call it; no communicator is needed, and nothing is sent."""
        local, remote = group_ranks(local_group), group_ranks(remote_group)
        runtime = get_runtime()
        if runtime.rank not in local:
            raise MPIException(ERR_GROUP, f"rank {runtime.rank} is not in the local group")
        if not remote or set(local) & set(remote):
            raise MPIException(
                ERR_GROUP, "the remote group must have processes, and none of the local group"
            )
        facts = ("groups", stringtag, *sorted((local, remote)))
        state = State(
            runtime, derive_context(0, *facts, from_nothing(runtime, facts)), local, remote=remote
        )
        state.session = local_group._session
        made = cls._of(state)
        if errhandler is not None:
            made.Set_errhandler(errhandler)
        return made

    # --- facts ---------------------------------------------------------------

    def Get_remote_group(self) -> Group:
        """The processes of the other group."""
        self._live()
        return group_of(self._peers, self._runtime.rank, self._state.session)

    def Get_remote_size(self) -> int:
        """Their number."""
        self._live()
        return len(self._peers)

    remote_group = property(Get_remote_group, doc="The processes of the other group.")
    remote_size = property(Get_remote_size, doc="Their number.")

    def Merge(self, high: bool = False) -> Intracomm:
        """Both groups in one: first the one that says `high` False; if both say the same, that of the lower world ranks."""
        self._live()
        state = self._state
        assert state.remote is not None
        number = next(state.children)
        given = dict(zip(state.everyone, self._agree(bool(high)), strict=True))
        for group in (state.ranks, state.remote):
            if len({given[world] for world in group}) > 1:
                raise MPIException(
                    ERR_ARG, "the processes of a group must all give the same `high`"
                )
        groups = sorted((state.ranks, state.remote), key=lambda group: (given[group[0]], group))
        return Intracomm._of(self._child([*groups[0], *groups[1]], "merge", number))

    # --- collectives ---------------------------------------------------------

    def _role(self, root: int) -> tuple[bool, bool]:
        self._live()
        if root == ROOT:
            return True, False
        if root != PROC_NULL and not 0 <= root < len(self._peers):
            raise MPIException(
                ERR_ROOT,
                f"root {root} is neither MPI.ROOT, MPI.PROC_NULL nor in 0..{len(self._peers) - 1}",
            )
        return False, root != PROC_NULL

    def _number(self, root: int) -> int | None:
        mine, theirs = self._groups()
        return mine[self._rank] if root == ROOT else None if root == PROC_NULL else theirs[root]

    def _groups(self) -> tuple[range, range]:
        """(numbers of this group, of the other one) in what the algorithms count."""
        state = self._state
        mine, theirs = len(state.ranks), len(state.peers)
        if state.ranks < state.peers:
            return range(mine), range(mine, mine + theirs)
        return range(theirs, theirs + mine), range(theirs)

    def _in_place(self, spec: Any, allowed: bool = True) -> bool:
        if isinstance(spec, InPlaceType):
            raise MPIException(ERR_BUFFER, "IN_PLACE has no meaning between two groups")
        return False

    def _common(self, nbytes: int) -> int | None:
        return None

    def _get_size(self) -> int:
        return len(self._state.ranks)

    _kind = BETWEEN

    def _place(self) -> tuple[Any, ...]:
        return self._rank, self._groups()

    def _layout(self, operation: str, arguments: tuple[Any, ...]) -> Layout:
        mine, theirs = self._groups()
        first = mine if mine[0] == 0 else theirs
        if not OPERATIONS[operation].rooted:
            return len(first), 0
        # who has no part in a call gives None for the root, and is of its group
        return len(first), (theirs if arguments[0] in theirs else mine)[0]


def _commctx_inter(comm: Intercomm) -> tuple[Intercomm, int, Intracomm, bool]:
    """(a duplicate that no program sees, the next tag to use in it, this group alone, whether it is the first one).

    mpi4py.util asks for it.
    """
    state, tag = internal(comm)
    if state.local is None:  # made once: it numbers its collectives
        state.local = comm._child(state.ranks, "local", state.ranks)
    return Intercomm._of(state), tag, Intracomm._of(state.local), state.ranks < state.peers


KINDS[Kind.INTER] = Intercomm

__all__ = ["Intercomm", "_commctx_inter"]
