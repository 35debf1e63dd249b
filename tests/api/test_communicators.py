"""Intercommunicators, topologies, persistent and partitioned calls, end to end over the memory channel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serverless_mpi import MPI
from tests.harness import run


def halves(comm: Any) -> Any:
    """An intercommunicator of the lower and the upper half."""
    upper = comm.rank >= comm.size // 2
    local = comm.Split(int(upper), comm.rank)
    return local.Create_intercomm(0, comm, 0 if upper else comm.size // 2, tag=5)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_two_groups_speak_with_each_other(size: int) -> None:
    def body(comm: Any) -> None:
        inter = halves(comm)
        low, high = comm.size // 2, comm.size - comm.size // 2
        upper = comm.rank >= low
        assert isinstance(inter, MPI.Intercomm) and inter.is_inter
        assert (inter.size, inter.remote_size) == ((high, low) if upper else (low, high))
        if inter.rank < inter.remote_size:  # point-to-point ranks are the other group's
            status = MPI.Status()
            inter.send(("from", comm.rank), inter.rank, tag=1)
            got = (
                inter.recv(source=inter.rank, tag=1, status=status)
                if inter.rank < inter.remote_size
                else None
            )
            assert (
                got == ("from", inter.rank if upper else inter.rank + low)
                and status.source == inter.rank
            )
        assert inter.allgather(comm.rank) == (list(range(low)) if upper else list(range(low, size)))
        total = np.zeros(3, int)
        inter.Allreduce(np.full(3, comm.rank), total)
        assert (total == sum(range(low)) if upper else total == sum(range(low, size))).all()
        for high_says in (False, True):
            merged = inter.Merge(high_says if upper else not high_says)
            assert merged.rank == (
                comm.rank if high_says else (comm.rank - low if upper else comm.rank + high)
            )
            assert merged.allgather(comm.rank)[merged.rank] == comm.rank
        assert MPI.Comm.Compare(inter, inter.Dup()) == MPI.CONGRUENT
        alone = inter.Split(inter.rank, 0)
        assert bool(alone) == (inter.rank < min(low, high))
        with pytest.raises(MPI.Exception) as caught:
            inter.bcast(None, root=inter.remote_size)
        assert caught.value.Get_error_class() == MPI.ERR_ROOT

    run(size, body)


def test_a_leader_that_does_not_exist_is_told_to_the_whole_group() -> None:
    def body(comm: Any) -> None:
        local = comm.Split(comm.rank % 2, comm.rank)
        with pytest.raises(MPI.Exception) as caught:
            local.Create_intercomm(0, comm, 99)
        assert caught.value.Get_error_class() == MPI.ERR_RANK

    run(4, body)


def test_a_handle_of_the_wrong_class_is_refused() -> None:
    def body(comm: Any) -> None:
        inter, cart = halves(comm), comm.Create_cart([2])
        for kind, wrong in (
            (MPI.Intracomm, inter),
            (MPI.Intercomm, comm),
            (MPI.Graphcomm, cart),
            (MPI.Topocomm, comm),
        ):
            with pytest.raises(TypeError):
                kind(wrong)
        assert MPI.Cartcomm(cart) == cart and isinstance(cart.Dup(), MPI.Cartcomm)

    run(2, body)


@pytest.mark.parametrize("start", ["blocking", "nonblocking", "persistent"])
def test_a_halo_of_a_grid_without_rings(start: str) -> None:
    def body(comm: Any) -> None:
        cart = comm.Create_cart([2, 3], periods=[False, True])
        give = np.arange(4) + 10 * cart.rank
        got = np.full(4, -1)
        if start == "blocking":
            cart.Neighbor_alltoall(give, got)
        elif start == "nonblocking":
            cart.Ineighbor_alltoall(give, got).Wait()
        else:
            request = cart.Neighbor_alltoall_init(give, got)
            for _ in range(3):
                got[:] = -1
                request.Start()
                request.Wait()
            request.Free()
        for direction in (0, 1):
            below, above = cart.Shift(direction, 1)
            assert got[2 * direction] == (
                -1 if below == MPI.PROC_NULL else 10 * below + 2 * direction + 1
            )
            assert got[2 * direction + 1] == (
                -1 if above == MPI.PROC_NULL else 10 * above + 2 * direction
            )
        assert cart.neighbor_allgather(cart.rank) == [
            None if one == MPI.PROC_NULL else one for one in cart.inedges
        ]

    run(6, body)


def test_a_distributed_graph_is_put_together_from_what_all_give() -> None:
    def body(comm: Any) -> None:
        sources, degrees, dests, weights = (
            ([0, 2], [2, 1], [1, 2, 0], [5, 6, 7]) if comm.rank == 1 else ([], [], [], [])
        )
        graph = comm.Create_dist_graph(sources, degrees, dests, weights)
        expected = {
            0: ([2], [1, 2], ([7], [5, 6])),
            1: ([0], [], ([5], [])),
            2: ([0], [0], ([6], [7])),
        }
        assert graph.Get_dist_neighbors() == expected[comm.rank]
        assert graph.neighbor_alltoall([f"{comm.rank}>{dest}" for dest in graph.outedges]) == [
            f"{source}>{comm.rank}" for source in graph.inedges
        ]

    run(3, body)


def test_persistent_collectives_may_be_started_in_any_order() -> None:
    def body(comm: Any) -> None:
        a, b = np.array([float(comm.rank)]), np.array([10.0 * comm.rank])
        sums = np.zeros(1), np.zeros(1)
        requests = [comm.Allreduce_init(a, sums[0]), comm.Allreduce_init(b, sums[1])]
        for turn in range(3):
            a[0] = comm.rank + turn
            for request in requests if comm.rank % 2 else reversed(requests):
                request.Start()
            MPI.Request.Waitall(requests)
            assert (sums[0][0], sums[1][0]) == (3 + 3 * turn, 30)
            assert all(requests)
        with pytest.raises(MPI.Exception) as caught:
            requests[0].Start()
            requests[0].Start()
        assert caught.value.Get_error_class() == MPI.ERR_REQUEST
        requests[0].Wait()
        for request in requests:
            request.Free()
        assert requests[0] == MPI.REQUEST_NULL

    run(3, body)


@pytest.mark.parametrize("cuts", [(4, 4), (2, 8), (8, 2), (3, 6), (1, 4)])
def test_partitions_arrive_as_they_become_ready(cuts: tuple[int, int]) -> None:
    def body(comm: Any) -> None:
        total = 24
        if comm.rank == 0:
            data = np.zeros(total, "i4")
            request = comm.Psend_init(data, cuts[0], 1, tag=9)
            for turn in range(2):
                request.Start()
                for piece in reversed(range(cuts[0])):
                    length = total // cuts[0]
                    data[piece * length : (piece + 1) * length] = (
                        np.arange(piece * length, (piece + 1) * length) + turn
                    )
                    request.Pready(piece)
                    comm.barrier()
                    comm.barrier()
                request.Wait()
        else:
            room = np.full(total, -1, "i4")
            request = comm.Precv_init(room, cuts[1], 0, tag=9)
            for turn in range(2):
                room[:] = -1
                request.Start()
                for piece in reversed(range(cuts[0])):
                    comm.barrier()
                    length, first = total // cuts[1], piece * total // cuts[0]
                    for mine in range(
                        cuts[1]
                    ):  # all that lie in what has been sent, and only those
                        sent = mine * length >= first
                        while sent and not request.Parrived(mine):
                            pass
                        assert sent or not request.Parrived(mine)
                        part = slice(mine * length, (mine + 1) * length)
                        assert not sent or (room[part] == np.arange(total)[part] + turn).all()
                    comm.barrier()
                request.Wait()
        request.Free()

    run(2, body)


def refuse(call: Callable[[Any], Any], code: int) -> Callable[[Any], None]:
    def body(comm: Any) -> None:
        with pytest.raises(MPI.Exception) as caught:
            call(comm)
        assert caught.value.Get_error_class() == code

    return body


@pytest.mark.parametrize(
    "call, code",
    [
        (lambda comm: comm.Create_cart([9]), MPI.ERR_ARG),
        (lambda comm: comm.Create_graph([1], [5]), MPI.ERR_ARG),
        (lambda comm: comm.Create_cart([1]).Get_coords(3), MPI.ERR_RANK),
        (lambda comm: comm.Create_cart([1]).Get_cart_rank([3]), MPI.ERR_ARG),
        (lambda comm: comm.Create_cart([1]).Shift(3, 1), MPI.ERR_ARG),
        (lambda comm: comm.Cart_map([4]), MPI.ERR_DIMS),
        (lambda comm: comm.Create_graph([1], [0]).Get_neighbors(4), MPI.ERR_RANK),
        (lambda comm: comm.Create_intercomm(0, comm, 0), MPI.ERR_RANK),
        (lambda comm: comm.Split_type(99), MPI.ERR_ARG),
        (lambda comm: comm.Psend_init(np.zeros(4), 0, 0), MPI.ERR_ARG),
        (lambda comm: comm.Psend_init(np.zeros(4), 2, 7), MPI.ERR_RANK),
        (lambda comm: comm.Precv_init(np.zeros(4), 2, MPI.ANY_SOURCE, 0), MPI.ERR_RANK),
        (lambda comm: comm.Precv_init(np.zeros(4), 2, 0, MPI.ANY_TAG), MPI.ERR_TAG),
        (lambda comm: comm.Psend_init(np.zeros(4), 2, 0).Pready(0), MPI.ERR_REQUEST),
    ],
)
def test_bad_input_gets_the_class_that_mpich_gives(call: Callable[[Any], Any], code: int) -> None:
    run(1, refuse(call, code))


def test_a_rank_may_be_a_number_that_c_would_cut_to_one() -> None:
    def body(comm: Any) -> None:
        other = 1 - comm.rank / 1
        assert comm.sendrecv(comm.rank, other, source=other) == int(other)
        request = comm.irecv(source=other)
        comm.send("x", other)
        assert request.wait() == "x"

    run(2, body)


def test_the_group_alone_of_two_groups_numbers_its_collectives_on() -> None:
    def body(c: Any) -> None:
        half = c.rank // 2
        inter = c.Split(half, c.rank).Create_intercomm(0, c, 2 - 2 * half)
        for i in range(3):
            _, _, local, _ = MPI._commctx_inter(inter)
            assert local.bcast((half, i) if local.rank == 0 else None) == (half, i)

    run(4, body)


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda comm, group: comm.Create_group(group), 32),
        (lambda comm, group: comm.Dup(), 30),
        (lambda comm, group: comm.Split(0, comm.rank), 55),
    ],
)
def test_making_a_communicator_takes_few_python_calls(make: Any, most: int) -> None:
    comm, calls = MPI.COMM_SELF, 0
    group = comm.Get_group()
    make(comm, group).Free()

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(profile)
    try:
        make(comm, group).Free()
    finally:
        sys.setprofile(None)
    assert calls <= most


def test_numpy_integers_are_integers_in_constructors() -> None:
    def body(comm: Any) -> tuple[Any, ...]:
        even = comm.rank % 2 == 0
        # equal numbers of different types on the ranks give the same communicators
        made = [
            comm.Create_group(comm.group, np.int64(7) if even else 7),
            comm.Split(np.uint8(3) if even else 3, np.int8(-comm.rank)),
            comm.Create_cart([np.uint8(2), 2], [np.bool_(True), True]),
        ]
        sums = [part.allreduce(comm.rank) for part in made]
        order = [made[1].rank, *made[2].Shift(0, np.int8(1))]
        steps = comm.group.Range_incl([tuple(np.uint8([3, 0, 255]))[:2] + (-1,)]).size
        return sums, order, steps

    for rank, (sums, order, steps) in enumerate(run(4, body)):
        assert sums == [6, 6, 6] and steps == 4
        assert order == [3 - rank, (rank + 2) % 4, (rank + 2) % 4]
    for wrong in (lambda: MPI.COMM_SELF.Split(0.0), lambda: MPI.COMM_SELF.Create_cart([1.0])):
        with pytest.raises(TypeError):
            wrong()
