"""What communicators, persistent requests and failed collectives leave in a rank's tables: nothing."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serverless_mpi import MPI
from serverless_mpi.api.intracomm import Intracomm
from serverless_mpi.core.endpoint import Endpoint
from serverless_mpi.core.envelope import CONTEXT_SELF
from tests.harness import run

TIMES = 300
COLLECTING = threading.Lock()


def endpoint_of(world: Intracomm) -> Endpoint:
    runtime = world._runtime
    runtime.progress()  # frees what the garbage collector has found meanwhile
    endpoint: Endpoint = runtime._endpoint
    return endpoint


def left(world: Intracomm) -> set[int]:
    """Contexts, but the predefined ones, that have state."""
    world.barrier()  # nothing is under way any more
    with COLLECTING:  # a collection that begins during another one does nothing
        gc.collect()
    world.barrier()
    endpoint = endpoint_of(world)
    assert endpoint.held_bytes == 0 and not endpoint._closing
    return {context for context in endpoint._contexts if context > CONTEXT_SELF}


def use(comm: Any) -> None:
    """Messages both ways, and a collective."""
    peer = (comm.rank + 1) % comm.size
    assert comm.sendrecv(comm.rank, peer, source=ANY) == (comm.rank - 1) % comm.size
    assert comm.allreduce(1) == comm.size


ANY = MPI.ANY_SOURCE

MAKERS: dict[str, Callable[[Intracomm, int], Any]] = {
    "Dup": lambda world, _: world.Dup(),
    "Split": lambda world, time: world.Split(time % 3, -world.rank),
    "Create": lambda world, _: world.Create(world.Get_group()),
    "Cart": lambda world, _: world.Create_cart((world.size,), periods=(True,)),
}


@pytest.mark.parametrize("free", [True, False], ids=["freed", "dropped"])
@pytest.mark.parametrize("maker", MAKERS)
def test_communicators_leave_eight_bytes_each(maker: str, free: bool) -> None:
    def body(world: Intracomm) -> tuple[set[int], int]:
        for time in range(TIMES // 10):
            comm = MAKERS[maker](world, time)
            use(comm)
            if free:
                comm.Free()
            del comm
        remaining = left(world)
        return remaining, len(endpoint_of(world)._freed)

    assert run(2, body) == [(set(), TIMES // 10)] * 2


def test_communicators_that_carried_nothing_leave_eight_bytes_too() -> None:
    def body(world: Intracomm) -> int:
        for _ in range(TIMES):
            world.Dup().Free()
        assert len(world._runtime._unowned) <= 1  # without any communication
        return len(left(world))

    assert run(2, body) == [0, 0]


def test_intercommunicators_leave_nothing() -> None:
    def body(world: Intracomm) -> int:
        for _ in range(5):
            half = world.Split(world.rank)
            inter = half.Create_intercomm(0, world, 1 - world.rank)
            assert inter.allreduce(world.rank) == 1 - world.rank
            merged = inter.Merge()
            use(merged)
            for comm in (merged, inter, half):
                comm.Free()
        return len(left(world))

    # the context in which leaders meet belongs to the world, and stays
    assert run(2, body) == [1, 1]


def test_persistent_and_partitioned_requests_leave_nothing() -> None:
    def body(world: Intracomm) -> int:
        peer = 1 - world.rank
        for _ in range(10):
            total, here = np.zeros(3), np.full(3, world.rank + 1.0)
            reduce = world.Allreduce_init(here, total)
            send, receive = world.Psend_init(here, 3, peer), world.Precv_init(total, 3, peer, 0)
            reduce.Start()
            reduce.Wait()
            assert (total == 3).all()
            MPI.Prequest.Startall([send, receive])
            send.Pready_range(0, 2)
            MPI.Request.Waitall([send, receive])
            assert (total == peer + 1).all()
            for request in (reduce, send, receive):
                request.Free()
        return len(left(world))

    assert run(2, body) == [0, 0]


def test_a_partitioned_pair_with_oneself_keeps_what_was_sent_before_the_receive_was_made() -> None:
    def body(world: Intracomm) -> None:
        sent, got = np.arange(4.0), np.zeros(4)
        send = world.Psend_init(sent, 2, world.rank)
        send.Start()
        send.Pready_range(0, 1)
        send.Wait()
        send.Free()
        world.Dup().Free()
        receive = world.Precv_init(got, 2, world.rank, 0)
        receive.Start()
        receive.Wait()
        assert (got == sent).all()

    run(1, body)


def test_a_receive_ends_after_its_communicator_was_freed() -> None:
    def body(world: Intracomm) -> None:
        peer = 1 - world.rank
        comm = world.Dup()
        into, total, status = np.zeros(9, int), np.zeros(9, int), MPI.Status()
        receives = [comm.Irecv(into, peer, 3), comm.irecv(source=MPI.ANY_SOURCE, tag=4)]
        world.barrier()
        sends = [comm.Issend(np.full(9, world.rank), peer, 3), comm.issend(world.rank, peer, 4)]
        reduce = comm.Iallreduce(np.full(9, 1), total)
        comm.Free()
        gc.collect()
        world.Dup().Free()  # frees what nothing waits for
        receives[0].Wait(status)
        assert (into == peer).all() and (status.source, status.tag) == (peer, 3)
        assert receives[1].wait(status) == peer and (status.source, status.tag) == (peer, 4)
        MPI.Request.Waitall([*sends, reduce])
        assert (total == 2).all()
        assert not left(world)

    run(2, body)


def test_a_collective_that_failed_is_over() -> None:
    def broken(a: Any, b: Any) -> Any:
        raise ZeroDivisionError

    def body(world: Intracomm) -> tuple[int, int]:
        for _ in range(5):
            try:
                world.reduce(1, op=broken)
            except ZeroDivisionError:
                pass
            assert world.bcast(7) == 7
        world.barrier()
        state = endpoint_of(world)._contexts[world._context]
        return len(state.completed.above), len(state.steps)

    assert run(2, body) == [(0, 0)] * 2


def test_an_owner_of_two_contexts_frees_both() -> None:
    class Owner:
        pass

    def body(world: Intracomm) -> None:
        owner = Owner()
        runtime = world._runtime
        for context in (77, 78):
            runtime.own(owner, context)
            runtime.isend(context, 0, 1, (memoryview(b"unread"),))
        runtime.progress()
        assert {77, 78} <= set(endpoint_of(world)._contexts)
        del owner
        gc.collect()
        runtime.own(world, 79)  # frees what has lost its owner
        assert not {77, 78} & set(endpoint_of(world)._contexts)
        assert not {77, 78} & set(runtime._owners)

    run(1, body)
