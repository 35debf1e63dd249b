"""What MPICH answers with an error, this package answers with the same error class."""

from __future__ import annotations

from typing import Any

import pytest

from serverless_mpi import MPI
from tests.harness import run

# (call, class that MPICH 5.0 gives); c is a communicator of one rank, b8 a buffer of 8 bytes
ANSWERS = [
    ("MPI.INT.Create_contiguous(-1)", "ERR_COUNT"),
    ("MPI.INT.Create_vector(-1,1,1)", "ERR_COUNT"),
    ("MPI.INT.Create_vector(1,-1,1)", "ERR_COUNT"),
    ("MPI.INT.Create_indexed([-1],[0])", "ERR_COUNT"),
    ("MPI.INT.Create_subarray([4],[1],[0],order=3)", "ERR_ARG"),
    ("MPI.INT.Create_darray(4,5,[4],[121],[-49767],[4])", "ERR_RANK"),
    ("MPI.Datatype.Create_f90_real(100,10000)", "ERR_OTHER"),
    ("MPI.Datatype.Create_f90_integer(100)", "ERR_OTHER"),
    ("MPI.Datatype.Match_size(1,3)", "ERR_ARG"),
    ("MPI.Datatype.Match_size(9,4)", "ERR_ARG"),
    ("MPI.INT.Get_contents()", "ERR_TYPE"),
    ("c.Isend([b8,1,MPI.INT.Create_contiguous(2)],0)", "ERR_TYPE"),
    ("c.Allreduce([b8,MPI.DOUBLE],[b8,MPI.DOUBLE],MPI.BAND)", "ERR_OP"),
    ("c.Allreduce(MPI.IN_PLACE,[b8,MPI.BYTE],MPI.SUM)", "ERR_OP"),
    ("c.Allreduce(MPI.IN_PLACE,[b8,MPI.C_BOOL],MPI.SUM)", "ERR_OP"),
    ("c.Allreduce(MPI.IN_PLACE,[b8,MPI.FLOAT],MPI.LAND)", "ERR_OP"),
    ("c.Allreduce(MPI.IN_PLACE,[b8,MPI.INT.Create_contiguous(2).Commit()],MPI.SUM)", "ERR_OP"),
    ("c.Allreduce(MPI.IN_PLACE,[b8,MPI.FLOAT_INT],MPI.SUM)", "ERR_OP"),
    ("c.Allreduce(MPI.IN_PLACE,[b8,MPI.INT],MPI.MAXLOC)", "ERR_OP"),
    ("c.Bsend(b8,0)", "ERR_BUFFER"),
    ("c.bsend(1,0)", "ERR_BUFFER"),
    ("c.Set_attr(MPI.TAG_UB,1)", "ERR_KEYVAL"),
    ("c.Send(b8,5)", "ERR_RANK"),
    ("c.Send(b8,0,-1)", "ERR_TAG"),
    ("c.Recv(b8,7)", "ERR_RANK"),
    ("c.Irecv(b8,0,-5)", "ERR_TAG"),
    ("c.Bcast(b8,3)", "ERR_ROOT"),
    ("c.bcast(1,-1)", "ERR_ROOT"),
    ("c.Gather(b8,b8,1)", "ERR_ROOT"),
    ("c.Scatter(b8,b8,9)", "ERR_ROOT"),
    ("c.Reduce(b8,b8,MPI.SUM,4)", "ERR_ROOT"),
    ("c.Split_type(999)", "ERR_ARG"),
    ("c.Create_cart([5])", "ERR_ARG"),
    ("c.Get_attr(123456)", "ERR_KEYVAL"),
    ("MPI.Comm.Free_keyval(12345)", "ERR_KEYVAL"),
    ("MPI.Datatype.Free_keyval(12345)", "ERR_KEYVAL"),
    ("MPI.Group.Incl(c.Get_group(),[3])", "ERR_RANK"),
    ("MPI.Group.Excl(c.Get_group(),[0,0])", "ERR_OTHER"),
    ("c.Get_group().Range_incl([(0,3,1)])", "ERR_ARG"),
    ("c.Get_group().Range_incl([(0,0,0)])", "ERR_ARG"),
    ("c.Get_group().Range_incl([(0,1,-1)])", "ERR_ARG"),
    ("c.Get_group().Translate_ranks([7],c.Get_group())", "ERR_RANK"),
    ("MPI.Compute_dims(7,[2,0])", "ERR_DIMS"),
    ("MPI.Compute_dims(-1,[0])", "ERR_ARG"),
    ("MPI.Compute_dims(4,[-1,0])", "ERR_DIMS"),
    ("MPI.Info.Create().Get_nthkey(5)", "ERR_ARG"),
    ('MPI.Info.Create().Set("k"*300,"x")', "ERR_INFO_KEY"),
    ('MPI.Info.Create().Set("k","x"*2000)', "ERR_INFO_VALUE"),
    ('MPI.Info.Create().Delete("q")', "ERR_INFO_NOKEY"),
    ("MPI.Session.Init().Get_nth_pset(99)", "ERR_ARG"),
    ('MPI.Session.Init().Create_group("mpi://nope")', "ERR_ARG"),
    ('MPI.Session.Init().Get_pset_info("mpi://nope")', "ERR_ARG"),
    ("MPI.REQUEST_NULL.Free()", "ERR_REQUEST"),
    ("MPI.REQUEST_NULL.Cancel()", "ERR_REQUEST"),
    ("MPI.Grequest().Complete()", "ERR_REQUEST"),
    ("MPI.Prequest().Start()", "ERR_REQUEST"),
    ("MPI.MESSAGE_NULL.recv()", "ERR_REQUEST"),
    ("MPI.MESSAGE_NULL.Recv(b8)", "ERR_REQUEST"),
    ("c.Create(MPI.GROUP_NULL)", "ERR_GROUP"),
    ("MPI.COMM_SELF.Free()", "ERR_COMM"),
    ("MPI.COMM_NULL.Get_rank()", "ERR_COMM"),
    ("MPI.COMM_NULL.Send(b8,0)", "ERR_COMM"),
    ("MPI.COMM_NULL.barrier()", "ERR_COMM"),
    ("MPI.SUM.Free()", "ERR_OP"),
    ("MPI.OP_NULL.Free()", "ERR_OP"),
    ("MPI.OP_NULL.Reduce_local([b8,MPI.INT],[b8,MPI.INT])", "ERR_OP"),
    ("MPI.Alloc_mem(-1)", "ERR_ARG"),
    ("MPI.Remove_error_class(3)", "ERR_OTHER"),
    ("MPI.Status().Get_count(MPI.DATATYPE_NULL)", "ERR_TYPE"),
    ("c.Set_errhandler(MPI.ERRHANDLER_NULL)", "ERR_ERRHANDLER"),
    ("MPI.ERRHANDLER_NULL.Free()", "ERR_ERRHANDLER"),
    ("c.send(1,0,-7)", "ERR_TAG"),
    ("c.Psend_init(b8,0,0)", "ERR_ARG"),
    ("c.Create_intercomm(5,c,0)", "ERR_RANK"),
    ("c.Create_graph([1],[5])", "ERR_ARG"),
]


@pytest.mark.parametrize("call, error", ANSWERS)
def test_the_error_class_is_mpichs(call: str, error: str) -> None:
    def body(c: Any) -> None:
        names = {"MPI": MPI, "c": c, "b8": bytearray(8), "bytearray": bytearray}
        with pytest.raises(MPI.Exception) as caught:
            eval(call, names)
        assert caught.value.Get_error_class() == getattr(MPI, error)
        c.send("still here", 0)
        assert c.recv(source=0) == "still here"

    run(1, body)
