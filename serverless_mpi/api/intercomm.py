"""Communicators of two groups: each rank communicates with those of the other group.

Point-to-point ranks are those of the remote group. In a rooted collective the root passes MPI.ROOT,
the other ranks of its group MPI.PROC_NULL, and the other group the root's rank. Here are the
methods of `Plans` and `Collective` that differ between one group and two.

References
----------
MPI 4.1, sections 6.2.3 and 7.6.
"""

from __future__ import annotations

from typing import Any

from serverless_mpi.api.buffers import InPlaceType
from serverless_mpi.api.comm import Comm, internal
from serverless_mpi.api.comm_state import KINDS, Kind, State
from serverless_mpi.api.errhandler import Errhandler
from serverless_mpi.api.group import Group, check_own, group_of, group_ranks
from serverless_mpi.api.info import INFO_NULL, Info
from serverless_mpi.api.intracomm import Intracomm, from_nothing
from serverless_mpi.collectives.operations import BETWEEN, OPERATIONS, Layout
from serverless_mpi.core.envelope import PROC_NULL, ROOT, derive_context
from serverless_mpi.errors import ERR_ARG, ERR_BUFFER, ERR_GROUP, ERR_ROOT, MPIException
from serverless_mpi.runtime import get_runtime
from serverless_mpi.signals import uninterrupted


class Intercomm(Comm):
    """A communicator that joins two groups."""

    __module__ = "serverless_mpi.MPI"

    _what = "a communicator of two groups"

    @classmethod
    def _takes(cls, comm: Comm) -> bool:
        return comm._made is not None and comm._made.remote is not None

    @classmethod
    @uninterrupted
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
        """Make an intercommunicator of two groups, without a parent communicator.

        Parameters
        ----------
        local_group, remote_group
            Groups without a common process; only their members call it.
        local_leader, remote_leader
            Not used: the groups need no message to agree.
        stringtag
            Distinguishes concurrent calls for the same groups.
        info
            Not used.
        errhandler
            Error handler of the new communicator.

        Notes
        -----
        Sends nothing.

        References
        ----------
        MPI 4.1, section 7.6.2.
        """
        runtime = get_runtime()
        local, remote = group_ranks(local_group, runtime), group_ranks(remote_group, runtime)
        check_own(local + remote)
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
        comm = cls._of(state)
        if errhandler is not None:
            comm.Set_errhandler(errhandler)
        return comm

    # --- facts ---------------------------------------------------------------

    def Get_remote_group(self) -> Group:
        """Return the remote group."""
        self._live()
        return group_of(self._runtime, self._peers, self._state.session)

    def Get_remote_size(self) -> int:
        """Return the number of processes in the remote group."""
        self._live()
        return len(self._peers)

    remote_group = property(Get_remote_group, doc="The remote group.")
    remote_size = property(Get_remote_size, doc="Number of processes in the remote group.")

    @uninterrupted
    def Merge(self, high: bool = False) -> Intracomm:
        """Make an intracommunicator of both groups.

        Parameters
        ----------
        high
            The group that passes False comes first; if both pass the same, the one of the lower
            world ranks. All processes of a group must pass the same.

        Notes
        -----
        One allgather.

        References
        ----------
        MPI 4.1, section 7.6.2.
        """
        self._live()
        state = self._state
        assert state.remote is not None
        number = next(state.children)
        high_of = dict(zip(state.everyone, self._agree(bool(high)), strict=True))
        for group in (state.ranks, state.remote):
            if len({high_of[world] for world in group}) > 1:
                raise MPIException(
                    ERR_ARG, "the processes of a group must all give the same `high`"
                )
        groups = sorted((state.ranks, state.remote), key=lambda group: (high_of[group[0]], group))
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
        local, remote = self._groups()
        return local[self._rank] if root == ROOT else None if root == PROC_NULL else remote[root]

    def _groups(self) -> tuple[range, range]:
        """The numbers of this group and of the other one, as algorithms count ranks."""
        state = self._state
        local, remote = len(state.ranks), len(state.peers)
        if state.ranks < state.peers:
            return range(local), range(local, local + remote)
        return range(remote, remote + local), range(remote)

    def _in_place(self, spec: Any, allowed: bool = True) -> bool:
        if isinstance(spec, InPlaceType):
            raise MPIException(ERR_BUFFER, "IN_PLACE is not valid on an intercommunicator")
        return False

    def _common(self, nbytes: int) -> int | None:
        return None

    def _get_size(self) -> int:
        return len(self._state.ranks)

    _kind = BETWEEN

    def _place(self) -> tuple[Any, ...]:
        return self._rank, self._groups()

    def _layout(self, operation: str, arguments: tuple[Any, ...]) -> Layout:
        local, remote = self._groups()
        first = local if local[0] == 0 else remote
        if not OPERATIONS[operation].rooted:
            return len(first), 0
        # a rank that takes no part passes None for the root, and is of the root's group
        return len(first), (remote if arguments[0] in remote else local)[0]


def _commctx_inter(comm: Intercomm) -> tuple[Intercomm, int, Intracomm, bool]:
    """Return a hidden duplicate, its next tag, this group alone, and whether it is the first group.

    mpi4py.util calls it.
    """
    state, tag = internal(comm)
    if state.local is None:  # made once: it numbers its collectives
        state.local = comm._child(state.ranks, "local", state.ranks)
    return Intercomm._of(state), tag, Intracomm._of(state.local), state.ranks < state.peers


KINDS[Kind.INTER] = Intercomm

__all__ = ["Intercomm", "_commctx_inter"]
