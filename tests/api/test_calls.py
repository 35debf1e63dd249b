"""Calls of a communicator on ranks that are threads; results are compared with NumPy or the
definition.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from serverless_mpi import MPI
from tests.harness import run

SIZES = [1, 2, 3, 5]


def test_objects_and_arrays_keep_their_order_and_status() -> None:
    def body(c: Any) -> None:
        if c.rank == 0:
            for i in range(20):
                c.send({"i": i}, 1, tag=i % 3)
            c.Send(np.arange(6, dtype="i4"), 1, tag=9)
        elif c.rank == 1:
            status = MPI.Status()
            assert [c.recv(source=0, tag=t)["i"] for t in (2, 1, 0)] == [2, 1, 0]
            assert [c.recv(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG)["i"] for _ in range(17)] == list(
                range(3, 20)
            )
            c.Probe(0, 9, status)
            assert (status.Get_source(), status.Get_tag(), status.Get_count(MPI.INT)) == (0, 9, 6)
            room = np.zeros(10, "i4")
            c.Recv(room, 0, 9, status)
            assert (room[:6] == np.arange(6)).all() and status.Get_count(MPI.INT) == 6

    run(2, body)


def test_a_large_array_is_received_without_a_pickle_copy() -> None:
    def body(c: Any) -> None:
        data = np.arange(100_000.0)
        if c.rank == 0:
            c.send(data, 1)
        else:
            got = c.recv(source=0)
            assert (got == data).all() and got.flags.writeable and not got.flags.owndata

    run(2, body)


@pytest.mark.parametrize("size", SIZES)
def test_object_collectives(size: int) -> None:
    def body(c: Any) -> None:
        n, r, last = c.size, c.rank, c.size - 1
        assert c.bcast([r, "x"], root=last) == [last, "x"]
        assert c.gather(r * r, root=last) == ([i * i for i in range(n)] if r == last else None)
        assert (
            c.scatter([f"for {i}" for i in range(n)] if r == last else None, root=last)
            == f"for {r}"
        )
        assert c.allgather((r,)) == [(i,) for i in range(n)]
        assert c.alltoall([(r, i) for i in range(n)]) == [(i, r) for i in range(n)]
        assert c.reduce(str(r), op=lambda a, b: a + b, root=last) == (
            "".join(map(str, range(n))) if r == last else None
        )
        assert c.allreduce(r) == sum(range(n))
        assert c.allreduce((r % 2, r), op=MPI.MAXLOC) == max(((i % 2, -i) for i in range(n)))[
            :1
        ] + (min(1, n - 1),)
        assert c.scan(str(r), op=lambda a, b: a + b) == "".join(map(str, range(r + 1)))
        assert c.exscan(str(r), op=lambda a, b: a + b) == (
            "".join(map(str, range(r))) if r else None
        )
        c.barrier()

    run(size, body)


@pytest.mark.parametrize("size", SIZES)
def test_buffer_collectives(size: int) -> None:
    def body(c: Any) -> None:
        n, r, last = c.size, c.rank, c.size - 1
        own = np.arange(4, dtype="f8") + 10 * r
        every = np.stack([np.arange(4.0) + 10 * i for i in range(n)])
        got = own.copy()
        c.Bcast(got, root=last)
        assert (got == every[last]).all()
        table = np.zeros((n, 4))
        c.Gather(own, table if r == last else None, root=last)
        assert r != last or (table == every).all()
        c.Scatter(every if r == last else None, got, root=last)
        assert (got == own).all()
        table[:] = 0
        c.Allgather(own, table)
        assert (table == every).all()
        inplace = np.zeros((n, 4))
        inplace[r] = own
        c.Allgather(MPI.IN_PLACE, inplace)
        assert (inplace == every).all()
        c.Alltoall(np.repeat(np.arange(n), 2) + 100 * r, pairs := np.zeros(2 * n, "i8"))
        assert (pairs == np.repeat(np.arange(n) * 100 + r, 2)).all()
        c.Alltoall(MPI.IN_PLACE, pairs)
        assert (pairs == np.repeat(np.arange(n) + 100 * r, 2)).all()
        for op, function in (
            (MPI.SUM, np.sum),
            (MPI.MAX, np.max),
            (MPI.PROD, np.prod),
            (MPI.MIN, np.min),
        ):
            c.Allreduce(own, got, op=op)
            assert (got == function(every, axis=0)).all()
        c.Reduce(
            MPI.IN_PLACE if r == last else own,
            own.copy() if r == last else None,
            op=MPI.SUM,
            root=last,
        )
        c.Scan(own, got)
        assert (got == every[: r + 1].sum(axis=0)).all()
        got[:] = -1
        c.Exscan(own, got)
        assert (got == (every[:r].sum(axis=0) if r else -1)).all()
        block = np.zeros(1)
        c.Reduce_scatter_block(np.arange(float(n)) + r, block)
        assert block[0] == sum(r + i for i in range(n))
        counts = [i + 1 for i in range(n)]
        part = np.zeros(r + 1)
        c.Reduce_scatter(np.ones(sum(counts)), part, counts)
        assert (part == n).all()

    run(size, body)


@pytest.mark.parametrize("size", SIZES)
def test_vector_collectives(size: int) -> None:
    def body(c: Any) -> None:
        n, r = c.size, c.rank
        counts = [i + 1 for i in range(n)]
        whole = np.concatenate([np.full(i + 1, float(i)) for i in range(n)])
        own = np.full(r + 1, float(r))
        got = np.zeros(len(whole))
        c.Gatherv(own, [got, counts] if r == 0 else None, root=0)
        assert r or (got == whole).all()
        c.Allgatherv(own, [got, counts])
        assert (got == whole).all()
        part = np.zeros(r + 1)
        c.Scatterv([whole, counts] if r == 0 else None, part, root=0)
        assert (part == r).all()
        send = np.concatenate([np.full(i, 10.0 * r + i) for i in range(n)])
        back = np.zeros(n * r)
        c.Alltoallv([send, list(range(n))], [back, [r] * n])
        assert (back == np.repeat(10.0 * np.arange(n) + r, r)).all()
        column = MPI.DOUBLE.Create_vector(n, 1, n).Commit()
        square, turned = np.arange(n * n, dtype="f8").reshape(n, n) + 1000 * r, np.zeros((n, n))
        types = [column] * n
        c.Alltoallw(
            [square, [1] * n, [8 * i for i in range(n)], types],
            [turned, [n] * n, [8 * n * i for i in range(n)], [MPI.DOUBLE] * n],
        )
        assert (turned == [np.arange(n) * n + r + 1000 * i for i in range(n)]).all()

    run(size, body)


def test_user_operations_keep_rank_order_in_memory_too() -> None:
    def matrices(a: Any, b: Any, datatype: Any) -> None:
        left, right = (np.frombuffer(one, "i8").reshape(2, 2) for one in (a, b))
        right[:] = left @ right

    op = MPI.Op.Create(matrices, commute=False)

    def body(c: Any) -> np.ndarray[Any, Any]:
        own = np.array([[1, c.rank], [c.rank + 1, 1]])
        got = np.zeros((2, 2), "i8")
        c.Allreduce([own, 4, MPI.LONG], [got, 4, MPI.LONG], op=op)
        return got

    expected = np.eye(2, dtype="i8")
    for rank in range(5):
        expected = expected @ np.array([[1, rank], [rank + 1, 1]])
    assert all((got == expected).all() for got in run(5, body))


def test_maxloc_on_pairs() -> None:
    def body(c: Any) -> None:
        pair = np.dtype([("value", "f8"), ("index", "i4")], align=True)
        own, got = np.array([(c.rank % 2, c.rank)], pair), np.zeros(1, pair)
        c.Allreduce([own, 1, MPI.DOUBLE_INT], [got, 1, MPI.DOUBLE_INT], op=MPI.MAXLOC)
        assert got[0].tolist() == (1.0, 1)

    run(4, body)


def test_requests() -> None:
    def body(c: Any) -> None:
        other = 1 - c.rank
        receives = [c.irecv(source=other, tag=t) for t in range(4)]
        sends = [c.isend(t * t, other, tag=t) for t in range(3)]
        index, value = MPI.Request.waitany(receives)
        assert value == index**2 and not receives[index]
        rest = [one for one in receives[:3] if one]
        assert sorted([value, *MPI.Request.waitall(rest)]) == [0, 1, 4]
        MPI.Request.waitall(sends)
        assert MPI.Request.testany(receives)[1] is False
        receives[3].Cancel()
        status = MPI.Status()
        receives[3].wait(status)
        assert status.Is_cancelled()
        assert MPI.Request.waitany(receives) == (MPI.UNDEFINED, None) and MPI.Request.waitsome(
            receives
        ) == (None, None)
        both = [c.Ibarrier(), c.Ibcast(np.zeros(2), 0)]
        assert MPI.Request.Waitall(both)

    run(2, body)


def test_send_forms_probe_and_proc_null() -> None:
    def body(c: Any) -> None:
        other = 1 - c.rank
        with pytest.raises(MPI.Exception) as caught:
            c.bsend("no buffer", other)
        assert caught.value.Get_error_class() == MPI.ERR_BUFFER
        c.Attach_buffer(bytearray(200 + MPI.BSEND_OVERHEAD))
        with pytest.raises(MPI.Exception):
            c.Bsend(bytes(300), other)
        for name in ("bsend", "isend", "ibsend", "issend"):
            getattr(c, name)(name, other)
            assert c.recv(source=other) == name
        assert c.sendrecv("x", MPI.PROC_NULL, source=MPI.PROC_NULL) is None
        if c.rank == 0:
            c.ssend("sync", 1)
        else:
            message = c.mprobe(source=0)
            assert c.iprobe(source=0) is False and message.recv() == "sync" and not message
        swap = np.full(3, c.rank)
        c.Sendrecv_replace(swap, other, source=other)
        assert (swap == other).all()

    run(2, body)


def test_communicators() -> None:
    def body(c: Any) -> None:
        dup = c.Dup()
        assert MPI.Comm.Compare(c, dup) == MPI.CONGRUENT and MPI.Comm.Compare(c, c) == MPI.IDENT
        if c.rank == 0:
            c.send("world", 1)
            dup.send("dup", 1)
        elif c.rank == 1:
            assert dup.recv(source=0) == "dup" and c.recv(source=0) == "world"
        half = c.Split(c.rank % 2, -c.rank)
        assert half.allgather(c.rank) == sorted(
            (r for r in range(5) if r % 2 == c.rank % 2), reverse=True
        )
        assert not c.Split(MPI.UNDEFINED if c.rank else 0) or c.rank == 0
        low = c.Get_group().Incl([1, 0])
        made = c.Create(low)
        grouped = c.Create_group(low) if c.rank < 2 else MPI.COMM_NULL
        assert bool(made) is bool(grouped) is (c.rank < 2)
        if made:
            assert made.rank == 1 - c.rank and made.allreduce(1) == grouped.allreduce(1) == 2
            made.Free()
            with pytest.raises(MPI.Exception) as caught:
                made.barrier()
            assert caught.value.Get_error_class() == MPI.ERR_COMM

    run(5, body)


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda c: c.send(1, 5), MPI.ERR_RANK),
        (lambda c: c.recv(source=-7), MPI.ERR_RANK),
        (lambda c: c.send(1, 0, tag=-3), MPI.ERR_TAG),
        (lambda c: c.bcast(1, root=1), MPI.ERR_ROOT),
        (lambda c: c.Send([np.zeros(2), 5, MPI.DOUBLE], 0), MPI.ERR_BUFFER),
        (lambda c: c.Send([np.zeros(2), 0, MPI.DATATYPE_NULL], 0), MPI.ERR_TYPE),
        (lambda c: c.Send([np.zeros(2), MPI.INT.Create_contiguous(2)], 0), MPI.ERR_TYPE),
        (lambda c: c.Send([np.zeros(2), -1, MPI.DOUBLE], 0), ValueError),
        (lambda c: c.Send([np.zeros(2), MPI.DATATYPE_NULL], 0), ValueError),
        (lambda c: c.Send(np.zeros((4, 4))[:, 1], 0), BufferError),
        (lambda c: c.Recv(b"read-only", 0), BufferError),
        (
            lambda c: c.Recv([np.zeros(2), 2, MPI.DOUBLE.Create_resized(0, 4).Commit()], 0),
            MPI.ERR_TYPE,
        ),
        (lambda c: c.send(threading.Lock(), 0), TypeError),  # what pickle says, as in mpi4py
        (lambda c: c.Allreduce(np.zeros(1), np.zeros(1), op=MPI.BAND), MPI.ERR_OP),
        (lambda c: c.Allreduce(np.zeros(1), np.zeros(1), op=MPI.OP_NULL), MPI.ERR_OP),
        (lambda c: MPI.COMM_NULL.barrier(), MPI.ERR_COMM),
    ],
)
def test_bad_input_has_the_right_class_and_loses_nothing(call: Any, error: Any) -> None:
    def body(c: Any) -> None:
        with pytest.raises(MPI.Exception if isinstance(error, int) else error) as caught:
            call(c)
        assert not isinstance(error, int) or caught.value.Get_error_class() == error
        c.send("still here", 0)
        assert c.recv(source=0) == "still here"

    run(1, body)


def test_truncation_is_the_receivers_error() -> None:
    def body(c: Any) -> None:
        if c.rank == 0:
            c.Send(np.arange(10.0), 1)
        else:
            room = np.zeros(4)
            with pytest.raises(MPI.Exception) as caught:
                c.Recv(room, 0)
            assert caught.value.Get_error_class() == MPI.ERR_TRUNCATE and (room == 0).all()

    run(2, body)


def test_mismatched_lengths_of_a_collective_are_told() -> None:
    def body(c: Any) -> None:
        room = np.zeros(2 + c.rank)
        if c.rank == 0:
            c.Bcast(room, root=0)
        else:
            with pytest.raises(MPI.Exception, match="root 0 sent 16 bytes"):
                c.Bcast(room, root=0)

    run(2, body)
