"""Windows of one-sided communication: making them, their facts, their end (MPI 4.1, chapter 12).

`Win` is put together from the modules that hold its calls: win_calls.py (operations) and
win_sync.py (epochs). win_state.py has the state and the messages, win_memory.py performs
operations, win_shared.py makes shared memory, and the protocol is in core/window.py and
core/epochs.py.

Making and freeing a window is collective. Every process learns the size and the displacement unit
of the others, so a range is checked by the call that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import Any, TypeVar

import numpy as np

from serverless_mpi.api.attributes import Attributed
from serverless_mpi.api.buffers import Buffer
from serverless_mpi.api.comm import MAX_NAME, Comm
from serverless_mpi.api.comm_constructors import agree, hidden_duplicate
from serverless_mpi.api.environ import Get_processor_name
from serverless_mpi.api.errhandler import Guarded
from serverless_mpi.api.exporting import Exporting
from serverless_mpi.api.group import Group, group_of
from serverless_mpi.api.handle import Handle, forget, name_constant, state_of
from serverless_mpi.api.info import INFO_NULL, Info
from serverless_mpi.api.intracomm import COMM_SELF, Intracomm
from serverless_mpi.api.memory import BottomType, buffer
from serverless_mpi.api.win_calls import Calls
from serverless_mpi.api.win_memory import Exposed
from serverless_mpi.api.win_shared import SharedFile, identity
from serverless_mpi.api.win_state import REQUEST, WinState
from serverless_mpi.api.win_sync import Synchronization
from serverless_mpi.core.envelope import PROC_NULL
from serverless_mpi.errors import (
    ERR_ARG,
    ERR_DISP,
    ERR_NO_MEM,
    ERR_RANK,
    ERR_RMA_ATTACH,
    ERR_RMA_FLAVOR,
    ERR_RMA_SHARED,
    ERR_SIZE,
    ERR_WIN,
    MPIException,
)
from serverless_mpi.signals import uninterrupted

WIN_BASE, WIN_SIZE, WIN_DISP_UNIT, WIN_CREATE_FLAVOR, WIN_MODEL = 11, 12, 13, 14, 15
WIN_FLAVOR = WIN_CREATE_FLAVOR
WIN_FLAVOR_CREATE, WIN_FLAVOR_ALLOCATE, WIN_FLAVOR_DYNAMIC, WIN_FLAVOR_SHARED = 1, 2, 3, 4
WIN_SEPARATE, WIN_UNIFIED = 1, 2

_NO_BYTES = memoryview(bytearray())
# predefined attribute -> its value, of the state of a window
_FACTS: dict[int, Callable[[WinState], int]] = {
    WIN_BASE: lambda state: state.memory.address if state.memory.size else 0,
    WIN_SIZE: lambda state: state.sizes[state.rank],
    WIN_DISP_UNIT: lambda state: state.units[state.rank],
    WIN_CREATE_FLAVOR: lambda state: state.flavor,
    WIN_MODEL: lambda state: WIN_UNIFIED,
}

W = TypeVar("W", bound="Win")


class Win(Handle, Synchronization, Calls, Attributed, Guarded, Exporting):
    """A window: memory of each process of a group that the others can access."""

    __module__ = "serverless_mpi.MPI"
    _ob: WinState | None

    def __new__(cls, win: Win | None = None) -> Win:
        if win is not None and not isinstance(win, Win):
            raise TypeError(f"expecting a Win, not {type(win).__name__}")
        return cls._of_state(None if win is None else state_of(win))

    @classmethod
    def _of_state(cls: type[W], state: WinState | None) -> W:
        self = cls._bare(_NO_BYTES if state is None else state.memory.data)
        self._ob = state
        return self

    @property
    def _window(self) -> WinState:
        """The state; ERR_WIN for a null handle."""
        state = self._ob
        if state is None or state.freed:
            raise MPIException(ERR_WIN, "the window is null or has been freed")
        return state

    def _check_live(self) -> None:
        """Raise ERR_WIN if the handle is null or the window has been freed."""
        _ = self._window

    def _attribute_table(self) -> dict[int, Any]:
        return self._window.attributes

    def _exported(self) -> memoryview:
        return self._window.memory.data

    # --- making one -------------------------------------------------------------------------------

    @classmethod
    @uninterrupted
    def Create(
        cls: type[W],
        memory: Buffer | BottomType | None,
        disp_unit: int = 1,
        info: Info = INFO_NULL,
        comm: Intracomm = COMM_SELF,
    ) -> W:
        """Make a window of memory of the program; collective.

        Parameters
        ----------
        memory
            A writable contiguous buffer, borrowed until `Free`; None or MPI.BOTTOM for no memory.
        disp_unit
            Bytes of a displacement of 1.
        info
            Hints, which are kept and have no effect.
        comm
            Its processes are those of the window.

        Raises
        ------
        MPIException
            ERR_DISP: `disp_unit` is not positive. ERR_COMM: the communicator is null or freed.

        Notes
        -----
        An allgather. With several processes a thread receives requests until `Free`.

        References
        ----------
        MPI 4.1, section 12.2.1.
        """
        none = memory is None or isinstance(memory, BottomType)
        view = buffer() if none else buffer.frombuffer(memory)
        return _make(cls, WIN_FLAVOR_CREATE, lambda: view, view.nbytes, disp_unit, info, comm)

    @classmethod
    @uninterrupted
    def Allocate(
        cls: type[W],
        size: int,
        disp_unit: int = 1,
        info: Info = INFO_NULL,
        comm: Intracomm = COMM_SELF,
    ) -> W:
        """Make a window of new memory; collective.

        Parameters
        ----------
        size
            Bytes of memory of this process; they are 0.
        disp_unit, info, comm
            As for `Create`.

        Raises
        ------
        MPIException
            ERR_SIZE: `size` is negative. ERR_NO_MEM: there is not so much memory. Otherwise as for
            `Create`.

        References
        ----------
        MPI 4.1, section 12.2.2.
        """

        def memory() -> buffer:
            try:
                return buffer.allocate(size, clear=True)
            except MemoryError as error:
                raise MPIException(
                    ERR_NO_MEM, f"{size} bytes of memory cannot be allocated"
                ) from error

        return _make(cls, WIN_FLAVOR_ALLOCATE, memory, size, disp_unit, info, comm)

    @classmethod
    @uninterrupted
    def Allocate_shared(
        cls: type[W],
        size: int,
        disp_unit: int = 1,
        info: Info = INFO_NULL,
        comm: Intracomm = COMM_SELF,
    ) -> W:
        """Make a window of new memory that all its processes have mapped; collective.

        Parameters
        ----------
        size
            Bytes of this process's segment; they are 0. The segments follow each other in the
            order of ranks, without gaps.
        disp_unit, info, comm
            As for `Create`; the processes of `comm` are on one machine, as of
            `Split_type(MPI.COMM_TYPE_SHARED)`.

        Raises
        ------
        MPIException
            ERR_RMA_SHARED: the processes cannot share memory. Otherwise as for `Allocate`.

        Notes
        -----
        Three allgathers.

        References
        ----------
        MPI 4.1, section 12.2.3.
        """
        _check_new(size, disp_unit, comm)
        child = hidden_duplicate(comm)
        facts = agree(child, (size, disp_unit, identity(Get_processor_name())))
        sizes, units, places = map(list, zip(*facts, strict=True))
        if any(place != places[0] for place in places):
            other = next(rank for rank, place in enumerate(places) if place != places[0])
            raise MPIException(
                ERR_RMA_SHARED,
                f"ranks 0 and {other} are not on one machine; use a communicator of"
                " Split_type(MPI.COMM_TYPE_SHARED)",
            )
        whole = _share(child, sum(sizes))
        bounds = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        segments = [whole[low:high] for low, high in zip(bounds[:-1], bounds[1:], strict=True)]
        own = buffer.frombuffer(segments[child.rank]) if size else buffer()
        state = WinState(child, WIN_FLAVOR_SHARED, own, sizes, units, _hints(info), segments)
        state.reachable |= {
            rank: Exposed(segment) for rank, segment in enumerate(segments) if rank != state.rank
        }
        return cls._of_state(state)

    @classmethod
    @uninterrupted
    def Create_dynamic(cls: type[W], info: Info = INFO_NULL, comm: Intracomm = COMM_SELF) -> W:
        """Make a window without memory, to which `Attach` adds some; collective.

        Parameters
        ----------
        info, comm
            As for `Create`.

        Notes
        -----
        Displacements are addresses of the target (`MPI.Get_address`), which its program sends to
        the others.

        References
        ----------
        MPI 4.1, section 12.2.4.
        """
        new = _make(cls, WIN_FLAVOR_DYNAMIC, buffer, 0, 1, info, comm)
        return new

    def Attach(self, memory: Buffer) -> None:
        """Let others access memory through a dynamic window.

        Parameters
        ----------
        memory
            A writable contiguous buffer, borrowed until `Detach`.

        Raises
        ------
        MPIException
            ERR_RMA_FLAVOR: the window is not dynamic. ERR_RMA_ATTACH: a part of the memory is
            attached already.

        References
        ----------
        MPI 4.1, section 12.2.4.
        """
        regions, kept = self._regions("Attach")
        view = buffer.frombuffer(memory)
        start, nbytes = view.address, view.nbytes
        for other, length in regions.items():
            if start == other or (start < other + length and other < start + nbytes):
                raise MPIException(
                    ERR_RMA_ATTACH,
                    f"the {nbytes} bytes at {start:#x} overlap attached memory; detach it first",
                )
        kept[start] = view
        regions[start] = nbytes

    def Detach(self, memory: Buffer) -> None:
        """End what `Attach` began; no access to the memory may be in progress.

        Parameters
        ----------
        memory
            The buffer that was attached.

        Raises
        ------
        MPIException
            ERR_RMA_FLAVOR: the window is not dynamic. ERR_RMA_ATTACH: it is not attached.

        References
        ----------
        MPI 4.1, section 12.2.4.
        """
        regions, kept = self._regions("Detach")
        start = buffer.frombuffer(memory).address
        if start not in regions:
            raise MPIException(ERR_RMA_ATTACH, f"no attached memory begins at {start:#x}")
        del regions[start], kept[start]

    def _regions(self, call: str) -> tuple[dict[int, int], dict[int, Any]]:
        """The attached regions, and what keeps them alive; ERR_RMA_FLAVOR for other windows."""
        state = self._window
        if state.exposed.regions is None:
            raise MPIException(ERR_RMA_FLAVOR, f"{call} needs a window of Create_dynamic")
        return state.exposed.regions, state.attached

    def Shared_query(self, rank: int) -> tuple[buffer, int]:
        """Return a process's segment of a shared window as this process has it mapped.

        Parameters
        ----------
        rank
            The process; MPI.PROC_NULL for the first one whose segment is not empty.

        Returns
        -------
        tuple
            The memory, empty if it cannot be reached from here, and its displacement unit.

        Raises
        ------
        MPIException
            ERR_RANK: the window has no such rank. ERR_RMA_FLAVOR: the window is dynamic.

        References
        ----------
        MPI 4.1, section 12.2.3.
        """
        state = self._window
        if state.flavor == WIN_FLAVOR_DYNAMIC:
            raise MPIException(ERR_RMA_FLAVOR, "a dynamic window has no segments")
        if rank == PROC_NULL:
            rank = next((place for place, size in enumerate(state.sizes) if size), 0)
        if not 0 <= rank < state.size:
            raise MPIException(ERR_RANK, f"the window has no rank {rank}")
        if rank == state.rank:
            return state.memory, state.units[rank]
        if rank < len(state.segments) and state.sizes[rank]:
            return buffer.frombuffer(state.segments[rank]), state.units[rank]
        return buffer(), state.units[rank]

    # --- its end ----------------------------------------------------------------------------------

    def Free(self) -> None:
        """Free the window when every process has called this; the handle becomes null.

        Raises
        ------
        MPIException
            ERR_WIN: the window is null or has been freed. ERR_RMA_SYNC: an epoch is open.

        Notes
        -----
        A barrier.

        References
        ----------
        MPI 4.1, section 12.2.5.
        """
        state = self._window
        with state.lock:
            state.epochs.freeable()
        if state.attributes:
            self._delete_attributes()
        if state.size > 1:
            state.comm.Barrier()
            state.runtime.end_service(state.context, REQUEST)
        state.freed = True
        forget(state)
        self._ob = None

    # --- facts ------------------------------------------------------------------------------------

    def Get_group(self) -> Group:
        """Return the group of the window's processes."""
        state = self._window
        return group_of(state.runtime, state.ranks)

    def Set_info(self, info: Info) -> None:
        """Set hints, which are kept and have no effect.

        Parameters
        ----------
        info
            Hints, which are copied and added to those that are set.

        Raises
        ------
        MPIException
            ERR_ARG: `info` is null or has been freed.

        References
        ----------
        MPI 4.1, section 12.2.7.
        """
        state = self._window
        if not info:
            raise MPIException(ERR_ARG, "the info is null or has been freed")
        state.info.update(_hints(info))

    def Get_info(self) -> Info:
        """Return a copy of the hints."""
        return Info.Create(self._window.info)

    def Get_attr(self, keyval: int) -> object:
        """Return the value cached under a key, or None.

        Parameters
        ----------
        keyval
            A key of `Create_keyval`, or a predefined one: MPI.WIN_BASE, MPI.WIN_SIZE,
            MPI.WIN_DISP_UNIT, MPI.WIN_CREATE_FLAVOR or MPI.WIN_MODEL.

        References
        ----------
        MPI 4.1, section 12.2.6.
        """
        state = self._window
        if keyval in _FACTS:
            return _FACTS[keyval](state)
        return super().Get_attr(keyval)

    def Get_name(self) -> str:
        """Return the name of the window."""
        return "MPI_WIN_NULL" if self._ob is None else self._window.name

    def Set_name(self, name: str) -> None:
        """Name the window.

        Parameters
        ----------
        name
            The name, which is cut to 127 characters. It is local to this process.

        References
        ----------
        MPI 4.1, section 7.8.
        """
        state = self._window
        state.name = name[: MAX_NAME - 1]
        state.comm.Set_name(name)

    def tomemory(self) -> buffer:
        """Return this process's memory of the window."""
        return self._window.memory

    attrs = property(
        lambda self: tuple(self.Get_attr(key) for key in (WIN_BASE, WIN_SIZE, WIN_DISP_UNIT)),
        doc="Address, bytes, and displacement unit of this process's memory.",
    )
    flavor = property(
        lambda self: self._window.flavor, doc="How it was made: MPI.WIN_FLAVOR_CREATE, ..."
    )
    model = property(
        lambda self: self.Get_attr(WIN_MODEL), doc="Its memory model, MPI.WIN_UNIFIED."
    )
    info = property(Get_info, Set_info, doc="Hints, as an Info object.")
    group = property(Get_group, doc="Group of its processes.")
    group_size = property(lambda self: self._window.size, doc="Number of processes.")
    group_rank = property(lambda self: self._window.rank, doc="Rank of this process.")
    name = property(Get_name, Set_name, doc="Name of the window.")


def _hints(info: Info) -> dict[str, str]:
    return dict(info.items()) if info else {}


def _check_new(size: int, disp_unit: int, comm: Intracomm) -> None:
    """Raise unless a window can be made of these arguments."""
    if not isinstance(comm, Intracomm):
        raise TypeError(f"expecting an Intracomm, not {type(comm).__name__}")
    comm.Get_size()  # ERR_COMM of a null or freed one
    if index(size) < 0:
        raise MPIException(ERR_SIZE, f"a window cannot have {size} bytes")
    if index(disp_unit) <= 0:
        raise MPIException(ERR_DISP, f"a displacement unit of {disp_unit} is not positive")


def _make(
    cls: type[W],
    flavor: int,
    memory: Callable[[], buffer],
    size: int,
    disp_unit: int,
    info: Info,
    comm: Intracomm,
) -> W:
    """Make a window of one of the flavors without shared memory."""
    _check_new(size, disp_unit, comm)
    own = memory()
    child = hidden_duplicate(comm)
    facts = agree(child, (size, disp_unit)) if child.size > 1 else [(size, disp_unit)]
    sizes, units = map(list, zip(*facts, strict=True))
    state = WinState(child, flavor, own, sizes, units, _hints(info))
    if flavor == WIN_FLAVOR_DYNAMIC:
        state.exposed.regions = {}
    return cls._of_state(state)


def _share(comm: Comm, nbytes: int) -> memoryview:
    """Map memory that all processes of a communicator share; ERR_RMA_SHARED if one cannot."""
    file, fault, origin = None, "", None
    try:
        if comm.rank == 0:
            file, origin = SharedFile.create(nbytes)
    except OSError as error:
        fault = f"rank 0 cannot make {nbytes} bytes of shared memory ({error.strerror})"
    origin = agree(comm, origin)[0]
    view = memoryview(b"")
    try:
        if origin is not None:
            file = file or SharedFile.open(nbytes, origin)
            view = file.map()
    except (OSError, ValueError) as error:
        fault = f"rank {comm.rank} cannot map the memory of rank 0 ({error})"
    faults = [text for text in agree(comm, fault) if text]
    if file is not None:
        file.close()
    if faults:
        raise MPIException(ERR_RMA_SHARED, faults[0])
    return view


WIN_NULL: Win = name_constant(Win(), "WIN_NULL")

__all__ = [
    "WIN_BASE",
    "WIN_CREATE_FLAVOR",
    "WIN_DISP_UNIT",
    "WIN_FLAVOR",
    "WIN_FLAVOR_ALLOCATE",
    "WIN_FLAVOR_CREATE",
    "WIN_FLAVOR_DYNAMIC",
    "WIN_FLAVOR_SHARED",
    "WIN_MODEL",
    "WIN_NULL",
    "WIN_SEPARATE",
    "WIN_SIZE",
    "WIN_UNIFIED",
    "Win",
]
