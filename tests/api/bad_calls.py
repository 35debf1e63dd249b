"""Wrong calls, and the error class that MPICH 5 returns for each.

As a program under the real MPI it prints what that MPI returns.

In a call, `c` is a communicator of one rank, `b8` and `o8` are buffers of 8 bytes, and the functions
below make what is wrong. PAIRS are of two ranks. What MPICH does not detect, or dies of, is in the
tables OF_THE_STANDARD, of which MPICH is not asked.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

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
    ("c.Send(b8,0,MPI.COMM_WORLD.Get_attr(MPI.TAG_UB)+1)", "ERR_TAG"),
    ("c.Recv(b8,MPI.ROOT)", "ERR_RANK"),
    ("c.Recv(b8,-7)", "ERR_RANK"),
    ("c.Send([b8,1,MPI.DATATYPE_NULL],0)", "ERR_TYPE"),
    ("c.Recv([b8,1,MPI.DATATYPE_NULL],0)", "ERR_TYPE"),
    ("c.Send([b8,1,freed_type()],0)", "ERR_TYPE"),
    ("c.Recv([b8,1,MPI.INT.Create_contiguous(2)],0)", "ERR_TYPE"),
    ("c.Bcast([b8,1,MPI.INT.Create_contiguous(2)],0)", "ERR_TYPE"),
    ("c.Bcast([b8,1,MPI.DATATYPE_NULL],0)", "ERR_TYPE"),
    ("c.Reduce([b8,1,MPI.DOUBLE],[o8,1,MPI.DOUBLE],MPI.OP_NULL,0)", "ERR_OP"),
    ("c.Allreduce([b8,1,MPI.DOUBLE],[o8,1,MPI.DOUBLE],MPI.OP_NULL)", "ERR_OP"),
    ("c.Reduce([b8,1,MPI.DOUBLE],[o8,1,MPI.DOUBLE],freed_op(),0)", "ERR_OP"),
    ("c.Allreduce([b8,MPI.DOUBLE],[b8,MPI.DOUBLE],MPI.SUM)", "ERR_BUFFER"),
    ("c.Reduce([b8,MPI.DOUBLE],[b8,MPI.DOUBLE],MPI.SUM,0)", "ERR_BUFFER"),
    ("c.Allgather([b8,MPI.DOUBLE],[b8,MPI.DOUBLE])", "ERR_BUFFER"),
    ("c.Alltoall([b8,MPI.DOUBLE],[b8,MPI.DOUBLE])", "ERR_BUFFER"),
    ("c.Gather([b8,MPI.DOUBLE],[b8,MPI.DOUBLE],0)", "ERR_BUFFER"),
    ("c.Scatter([b8,MPI.DOUBLE],[b8,MPI.DOUBLE],0)", "ERR_BUFFER"),
    ("c.Scan([b8,MPI.DOUBLE],[b8,MPI.DOUBLE],MPI.SUM)", "ERR_BUFFER"),
    ("c.Exscan([b8,MPI.DOUBLE],[b8,MPI.DOUBLE],MPI.SUM)", "ERR_BUFFER"),
    ("c.Reduce_scatter_block([b8,1,MPI.DOUBLE],[o8,1,MPI.DOUBLE],MPI.MAXLOC)", "ERR_OP"),
    ("c.Scatterv([b8,[-1],[0],MPI.BYTE],[o8,1,MPI.BYTE],0)", "ERR_COUNT"),
    ("c.Gatherv([b8,1,MPI.BYTE],[o8,[-1],[0],MPI.BYTE],0)", "ERR_COUNT"),
    ("c.Alltoallv([b8,[-8],[0],MPI.BYTE],[o8,[8],[0],MPI.BYTE])", "ERR_COUNT"),
    ("c.Alltoallw([b8,[1],[0],[MPI.DATATYPE_NULL]],[o8,[1],[0],[MPI.BYTE]])", "ERR_TYPE"),
    ("c.Sendrecv([b8,8,MPI.BYTE],0,0,[o8,4,MPI.BYTE],0,0)", "ERR_TRUNCATE"),
    ("c.Sendrecv(b8,9,0,o8,0,0)", "ERR_RANK"),
    ("c.Sendrecv(b8,0,-3,o8,0,0)", "ERR_TAG"),
    ("c.Sendrecv(b8,0,0,o8,9,0)", "ERR_RANK"),
    ("c.Sendrecv(b8,0,0,o8,0,-9)", "ERR_TAG"),
    ("c.Sendrecv_replace(b8,4,0,0,0)", "ERR_RANK"),
    ("c.Sendrecv_replace(b8,0,0,4,0)", "ERR_RANK"),
    ("c.Probe(5,0)", "ERR_RANK"),
    ("c.Iprobe(0,-5)", "ERR_TAG"),
    ("c.Mprobe(5,0)", "ERR_RANK"),
    ("c.Improbe(-8,0)", "ERR_RANK"),
    ("c.Ssend(b8,3)", "ERR_RANK"),
    ("c.Isend(b8,-9)", "ERR_RANK"),
    ("c.Issend(b8,0,-2)", "ERR_TAG"),
    ("c.Ibsend(b8,5)", "ERR_RANK"),
    ("c.Rsend(b8,5)", "ERR_RANK"),
    ("c.Send_init(b8,5)", "ERR_RANK"),
    ("c.Recv_init(b8,0,-9)", "ERR_TAG"),
    ("c.Ssend_init(b8,0,-9)", "ERR_TAG"),
    ("c.Bsend_init(b8,7)", "ERR_RANK"),
    ("c.Precv_init(b8,0,0)", "ERR_ARG"),
    ("c.Precv_init(b8,1,9)", "ERR_RANK"),
    ("c.Psend_init(b8,1,9)", "ERR_RANK"),
    ("c.Bcast_init(b8,4)", "ERR_ROOT"),
    ("c.Reduce_init(b8,o8,MPI.SUM,4)", "ERR_ROOT"),
    ("c.Ibcast(b8,-4)", "ERR_ROOT"),
    ("c.Igather(b8,o8,9)", "ERR_ROOT"),
    ("c.Ireduce([b8,MPI.DOUBLE],[o8,MPI.DOUBLE],MPI.BAND,0)", "ERR_OP"),
    ("c.Iallreduce([b8,MPI.DOUBLE],[o8,MPI.DOUBLE],MPI.OP_NULL)", "ERR_OP"),
    ("freed_comm(c).Send(b8,0)", "ERR_COMM"),
    ("freed_comm(c).Get_rank()", "ERR_COMM"),
    ("freed_comm(c).Barrier()", "ERR_COMM"),
    ("freed_comm(c).Dup()", "ERR_COMM"),
    ("freed_comm(c).Free()", "ERR_COMM"),
    ("MPI.COMM_NULL.Dup()", "ERR_COMM"),
    ("MPI.COMM_NULL.Free()", "ERR_COMM"),
    ("MPI.COMM_NULL.Split(0,0)", "ERR_COMM"),
    ("MPI.COMM_NULL.Get_group()", "ERR_COMM"),
    ('MPI.COMM_NULL.Set_name("x")', "ERR_COMM"),
    ("MPI.COMM_NULL.Get_topology()", "ERR_COMM"),
    ("MPI.COMM_NULL.Get_attr(MPI.TAG_UB)", "ERR_COMM"),
    ("MPI.COMM_NULL.Recv(b8,0)", "ERR_COMM"),
    ("MPI.COMM_NULL.Bcast(b8,0)", "ERR_COMM"),
    ("MPI.COMM_NULL.Is_inter()", "ERR_COMM"),
    ("MPI.COMM_NULL.Get_errhandler()", "ERR_COMM"),
    ("MPI.COMM_NULL.Get_info()", "ERR_COMM"),
    ("MPI.Comm.Compare(c,MPI.COMM_NULL)", "ERR_COMM"),
    ("MPI.Comm.Compare(MPI.COMM_NULL,c)", "ERR_COMM"),
    ("MPI.COMM_WORLD.Free()", "ERR_COMM"),
    ("c.Create_group(MPI.GROUP_NULL)", "ERR_GROUP"),
    ("c.Create_group(c.Get_group(),-1)", "ERR_TAG"),
    ("c.Create_cart([2,2])", "ERR_ARG"),
    ("MPI.Intracomm(c).Cart_map([5])", "ERR_DIMS"),
    ("c.Create_cart([1]).Get_coords(4)", "ERR_RANK"),
    ("c.Create_cart([1]).Get_coords(-1)", "ERR_RANK"),
    ("c.Create_cart([1]).Get_cart_rank([3])", "ERR_ARG"),
    ("c.Create_cart([1]).Get_cart_rank([-1])", "ERR_ARG"),
    ("c.Create_cart([1]).Shift(3,1)", "ERR_ARG"),
    ("c.Create_cart([1]).Shift(-1,1)", "ERR_ARG"),
    ("c.Create_graph([1],[-1])", "ERR_ARG"),
    ("c.Create_graph([2,1],[0])", "ERR_ARG"),
    ("c.Create_graph([-1],[])", "ERR_ARG"),
    ("c.Create_graph([1,2],[0,0])", "ERR_ARG"),
    ("c.Create_graph([1],[0]).Get_neighbors(4)", "ERR_RANK"),
    ("c.Create_graph([1],[0]).Get_neighbors_count(-1)", "ERR_RANK"),
    ("c.Create_intercomm(0,c,0)", "ERR_RANK"),
    ("c.Create_intercomm(0,c,0,-4)", "ERR_TAG"),
    ("c.Get_group().Incl([-1])", "ERR_RANK"),
    ("c.Get_group().Excl([4])", "ERR_RANK"),
    ("c.Get_group().Range_excl([(0,3,1)])", "ERR_ARG"),
    ("c.Get_group().Range_incl([(-1,0,1)])", "ERR_ARG"),
    ("MPI.GROUP_NULL.Get_size()", "ERR_GROUP"),
    ("MPI.GROUP_NULL.Get_rank()", "ERR_GROUP"),
    ("MPI.GROUP_NULL.Incl([0])", "ERR_GROUP"),
    ("MPI.GROUP_NULL.Free()", "ERR_GROUP"),
    ("MPI.Group.Union(MPI.GROUP_NULL,c.Get_group())", "ERR_GROUP"),
    ("MPI.Group.Intersection(c.Get_group(),MPI.GROUP_NULL)", "ERR_GROUP"),
    ("MPI.Group.Difference(c.Get_group(),MPI.GROUP_NULL)", "ERR_GROUP"),
    ("MPI.Group.Compare(c.Get_group(),MPI.GROUP_NULL)", "ERR_GROUP"),
    ("c.Get_group().Translate_ranks([0],MPI.GROUP_NULL)", "ERR_GROUP"),
    ("MPI.DATATYPE_NULL.Get_size()", "ERR_TYPE"),
    ("MPI.DATATYPE_NULL.Commit()", "ERR_TYPE"),
    ("MPI.DATATYPE_NULL.Free()", "ERR_TYPE"),
    ("MPI.DATATYPE_NULL.Dup()", "ERR_TYPE"),
    ("MPI.DATATYPE_NULL.Create_contiguous(2)", "ERR_TYPE"),
    ("MPI.DATATYPE_NULL.Get_extent()", "ERR_TYPE"),
    ("MPI.INT.Free()", "ERR_TYPE"),
    ("MPI.INT.Create_hvector(-1,1,1)", "ERR_COUNT"),
    ("MPI.INT.Create_hvector(1,-1,1)", "ERR_COUNT"),
    ("MPI.INT.Create_hindexed([-1],[0])", "ERR_COUNT"),
    ("MPI.INT.Create_indexed_block(-1,[0])", "ERR_COUNT"),
    ("MPI.INT.Create_hindexed_block(-1,[0])", "ERR_COUNT"),
    ("MPI.Datatype.Create_struct([-1],[0],[MPI.INT])", "ERR_COUNT"),
    ("MPI.Datatype.Create_struct([1],[0],[MPI.DATATYPE_NULL])", "ERR_TYPE"),
    ("MPI.INT.Create_subarray([4],[1],[-1])", "ERR_COUNT"),
    (
        "MPI.INT.Create_darray(1,1,[4],[MPI.DISTRIBUTE_BLOCK],[MPI.DISTRIBUTE_DFLT_DARG],[1])",
        "ERR_RANK",
    ),
    (
        "MPI.INT.Create_darray(1,-1,[4],[MPI.DISTRIBUTE_BLOCK],[MPI.DISTRIBUTE_DFLT_DARG],[1])",
        "ERR_RANK",
    ),
    (
        "MPI.INT.Create_darray(0,0,[4],[MPI.DISTRIBUTE_BLOCK],[MPI.DISTRIBUTE_DFLT_DARG],[1])",
        "ERR_RANK",
    ),
    ("MPI.INT.Create_darray(1,0,[4],[MPI.DISTRIBUTE_BLOCK],[0],[1])", "ERR_ARG"),
    ("MPI.INT.Create_darray(1,0,[4],[MPI.DISTRIBUTE_BLOCK],[2],[1])", "ERR_ARG"),
    ("MPI.INT.Create_darray(1,0,[4],[MPI.DISTRIBUTE_CYCLIC],[-3],[1])", "ERR_ARG"),
    (
        "MPI.INT.Create_darray(1,0,[4],[MPI.DISTRIBUTE_BLOCK],[MPI.DISTRIBUTE_DFLT_DARG],[1],order=7)",
        "ERR_ARG",
    ),
    ("MPI.DATATYPE_NULL.Create_resized(0,4)", "ERR_TYPE"),
    ("MPI.Datatype.Create_f90_complex(100,10000)", "ERR_OTHER"),
    ("MPI.INT.Pack_size(-1,c)", "ERR_COUNT"),
    ("MPI.INT.Pack_size(1,MPI.COMM_NULL)", "ERR_COMM"),
    ("MPI.INT.Create_contiguous(2).Pack(b8,o8,0,c)", "ERR_TYPE"),
    ("MPI.INT.Set_attr(99999,1)", "ERR_KEYVAL"),
    ("MPI.INT.Delete_attr(99999)", "ERR_KEYVAL"),
    ("c.Set_attr(99999,1)", "ERR_KEYVAL"),
    ("c.Delete_attr(99999)", "ERR_KEYVAL"),
    ("c.Delete_attr(MPI.TAG_UB)", "ERR_KEYVAL"),
    ("c.Get_attr(MPI.KEYVAL_INVALID)", "ERR_KEYVAL"),
    ("MPI.Comm.Free_keyval(MPI.KEYVAL_INVALID)", "ERR_KEYVAL"),
    ("MPI.Comm.Free_keyval(MPI.TAG_UB)", "ERR_KEYVAL"),
    ('MPI.INFO_NULL.Get("k")', "ERR_ARG"),
    ('MPI.INFO_NULL.Set("k","v")', "ERR_ARG"),
    ("MPI.INFO_NULL.Dup()", "ERR_ARG"),
    ("MPI.INFO_NULL.Get_nkeys()", "ERR_ARG"),
    ("MPI.INFO_NULL.Free()", "ERR_ARG"),
    ('MPI.Info.Create().Set("","x")', "ERR_INFO_KEY"),
    ('MPI.Info.Create().Get("")', "ERR_INFO_KEY"),
    ('MPI.Info.Create().Get("k"*300)', "ERR_INFO_KEY"),
    ('MPI.Info.Create().Delete("")', "ERR_INFO_KEY"),
    ("MPI.Info.Create().Get_nthkey(-1)", "ERR_ARG"),
    ("MPI.OP_NULL.Is_commutative()", "ERR_OP"),
    ("MPI.SUM.Reduce_local([b8,MPI.BYTE],[o8,MPI.BYTE])", "ERR_OP"),
    ("MPI.SUM.Reduce_local([b8,1,MPI.INT],[b8,1,MPI.INT])", "ERR_BUFFER"),
    ("MPI.BAND.Reduce_local([b8,1,MPI.DOUBLE],[o8,1,MPI.DOUBLE])", "ERR_OP"),
    ("MPI.REPLACE.Reduce_local([b8,1,MPI.INT],[o8,1,MPI.INT])", "ERR_OP"),
    ("MPI.NO_OP.Reduce_local([b8,1,MPI.INT],[o8,1,MPI.INT])", "ERR_OP"),
    ("c.Allreduce([b8,MPI.INT],[o8,MPI.INT],MPI.REPLACE)", "ERR_OP"),
    ("c.Allreduce([b8,MPI.INT],[o8,MPI.INT],MPI.NO_OP)", "ERR_OP"),
    ("MPI.Request().Free()", "ERR_REQUEST"),
    ("c.Send_init(b8,0).Cancel()", "ERR_REQUEST"),
    ("started(c).Start()", "ERR_REQUEST"),
    ("MPI.Prequest().Pready(0)", "ERR_REQUEST"),
    ("MPI.Errhandler().Free()", "ERR_ERRHANDLER"),
    ("MPI.Add_error_code(-5)", "ERR_OTHER"),
    ('MPI.Add_error_string(999999,"x")', "ERR_ARG"),
    ("MPI.Remove_error_code(3)", "ERR_OTHER"),
    ("MPI.Remove_error_string(3)", "ERR_OTHER"),
    ("MPI.Attach_buffer(bytearray(10))", "ERR_BUFFER"),
    ("twice()", "ERR_OTHER"),
    ("MPI.Compute_dims(6,[4,0])", "ERR_DIMS"),
    ("MPI.Status().Get_elements(MPI.DATATYPE_NULL)", "ERR_TYPE"),
    ("MPI.Status().Set_elements(MPI.INT,-1)", "ERR_COUNT"),
    ("MPI.Status().Set_elements(MPI.DATATYPE_NULL,1)", "ERR_TYPE"),
    ("MPI.Session.Init().Get_info().Get_nthkey(99)", "ERR_ARG"),
    ("MPI.SESSION_NULL.Finalize()", "ERR_SESSION"),
    ("MPI.SESSION_NULL.Get_num_psets()", "ERR_SESSION"),
    ("MPI.Session.Init().Get_nth_pset(-1)", "ERR_ARG"),
    ("MPI.Intracomm.Create_from_group(MPI.GROUP_NULL)", "ERR_GROUP"),
    ('MPI.Group.Create_from_session_pset(MPI.SESSION_NULL,"mpi://WORLD")', "ERR_SESSION"),
    ("c.Get_parent().Get_size()", "ERR_COMM"),
    ("MPI.Intercomm().Get_remote_size()", "ERR_COMM"),
    ("MPI.Intercomm().Merge()", "ERR_COMM"),
    ("MPI.Cartcomm().Get_topo()", "ERR_COMM"),
    ("MPI.Intracomm().Create_cart([1])", "ERR_COMM"),
    ("c.gather(1,-3)", "ERR_ROOT"),
    ("c.reduce(1,MPI.SUM,9)", "ERR_ROOT"),
    ("c.recv(source=9)", "ERR_RANK"),
    ("c.isend(1,9)", "ERR_RANK"),
    ("c.irecv(source=0,tag=-9)", "ERR_TAG"),
    ("c.sendrecv(1,9)", "ERR_RANK"),
    ("c.probe(9)", "ERR_RANK"),
    ("c.mprobe(9)", "ERR_RANK"),
    ("c.ssend(1,0,-2)", "ERR_TAG"),
    ("c.Set_info(MPI.INFO_NULL)", "ERR_ARG"),
    ("c.Split_type(-3)", "ERR_ARG"),
    ("short(c)", "ERR_TRUNCATE"),
    ("short_of_many(c)", "ERR_IN_STATUS"),
    ("short_matched(c)", "ERR_TRUNCATE"),
    ("ready_beyond(c)", "ERR_OTHER"),
    ("ready_early(c)", "ERR_REQUEST"),
    ("completed_twice(c)", "ERR_REQUEST"),
    ("c.Precv_init(b8,1,0)", "ERR_TAG"),
    ("MPI.INT.Pack(b8,o8,0,MPI.COMM_NULL)", "ERR_COMM"),
    ("MPI.INT.Unpack(b8,0,o8,MPI.COMM_NULL)", "ERR_COMM"),
    ("arrived_beyond(c)", "ERR_OTHER"),
    ("c.Ireduce_scatter_block([b8,1,MPI.DOUBLE],[b8,1,MPI.DOUBLE],MPI.SUM)", "ERR_BUFFER"),
    ("c.Reduce_scatter([b8,1,MPI.DOUBLE],[b8,1,MPI.DOUBLE],[1],MPI.SUM)", "ERR_BUFFER"),
    ("c.Iallreduce([b8,MPI.DOUBLE],[b8,MPI.DOUBLE],MPI.SUM)", "ERR_BUFFER"),
    ("c.Allgatherv([b8,1,MPI.DOUBLE],[b8,[1],[0],MPI.DOUBLE])", "ERR_BUFFER"),
    ("c.Gatherv([b8,1,MPI.DOUBLE],[b8,[1],[0],MPI.DOUBLE])", "ERR_BUFFER"),
    ("c.Scatterv([b8,[1],[0],MPI.DOUBLE],[b8,1,MPI.DOUBLE])", "ERR_BUFFER"),
    ("open_file(RDONLY)", "ERR_NO_SUCH_FILE"),
    ("open_file(RDWR|MPI.MODE_CREATE|MPI.MODE_EXCL,True)", "ERR_FILE_EXISTS"),
    ("open_file(0)", "ERR_AMODE"),
    ("open_file(MPI.MODE_CREATE)", "ERR_AMODE"),
    ("open_file(RDONLY|RDWR)", "ERR_AMODE"),
    ("open_file(RDONLY|MPI.MODE_CREATE)", "ERR_AMODE"),
    ("open_file(RDONLY|MPI.MODE_EXCL)", "ERR_AMODE"),
    ("open_file(RDWR|MPI.MODE_SEQUENTIAL)", "ERR_AMODE"),
    ('MPI.File.Open(c,"/no/such/folder/file",WRITE)', "ERR_NO_SUCH_FILE"),
    ('MPI.File.Open(c,"/tmp/"+"a"*300,WRITE)', "ERR_BAD_FILE"),
    ('MPI.File.Open(c,"/tmp",RDWR)', "ERR_BAD_FILE"),
    ('MPI.File.Delete("/no/such/folder/file")', "ERR_NO_SUCH_FILE"),
    ('MPI.File.Delete("/tmp")', "ERR_BAD_FILE"),
    ("MPI.FILE_NULL.Close()", "ERR_FILE"),
    ("MPI.FILE_NULL.Get_size()", "ERR_FILE"),
    ("MPI.FILE_NULL.Read(b8)", "ERR_FILE"),
    ("MPI.FILE_NULL.Write_at_all(0,b8)", "ERR_FILE"),
    ("MPI.FILE_NULL.Sync()", "ERR_FILE"),
    ("MPI.FILE_NULL.Get_view()", "ERR_FILE"),
    ("MPI.FILE_NULL.Seek(0)", "ERR_FILE"),
    ("MPI.FILE_NULL.Set_errhandler(MPI.ERRHANDLER_NULL)", "ERR_ERRHANDLER"),
    ("closed_file().Read(b8)", "ERR_FILE"),
    ("closed_file().Close()", "ERR_FILE"),
    ("closed_file().Get_amode()", "ERR_FILE"),
    ('on_file("Set_size",-1)', "ERR_ARG"),
    ('on_file("Preallocate",-1)', "ERR_ARG"),
    ('on_file("Set_view",-1)', "ERR_ARG"),
    ('on_file("Set_view",MPI.DISPLACEMENT_CURRENT)', "ERR_ARG"),
    ('on_file("Set_view",0,MPI.DATATYPE_NULL)', "ERR_TYPE"),
    ('on_file("Set_view",0,MPI.INT,MPI.BYTE)', "ERR_ARG"),
    ('on_file("Set_view",0,MPI.INT,MPI.INT.Create_contiguous(2))', "ERR_TYPE"),
    ('on_file("Set_view",0,MPI.INT,MPI.INT.Create_hindexed([1,1],[8,0]).Commit())', "ERR_IO"),
    ('on_file("Set_view",0,MPI.INT,MPI.INT.Create_hindexed([1],[-4]).Commit())', "ERR_IO"),
    ('on_file("Set_view",0,MPI.INT,MPI.INT,"nope")', "ERR_UNSUPPORTED_DATAREP"),
    ('on_file("Read_at",-1,b8)', "ERR_ARG"),
    ('on_file("Write_at_all",-1,b8)', "ERR_ARG"),
    ('on_file("Iwrite_at",-1,b8)', "ERR_ARG"),
    ('on_file("Seek",-1)', "ERR_ARG"),
    ('on_file("Seek",0,5)', "ERR_ARG"),
    ('on_file("Seek_shared",-1)', "ERR_ARG"),
    ('on_file("Seek_shared",0,5)', "ERR_ARG"),
    ('on_file("Get_byte_offset",-1)', "ERR_ARG"),
    ('on_file("Get_type_extent",MPI.DATATYPE_NULL)', "ERR_TYPE"),
    ('on_file("Write",[b8,1,MPI.DATATYPE_NULL])', "ERR_TYPE"),
    ('on_file("Write",[b8,1,MPI.INT.Create_contiguous(2)])', "ERR_TYPE"),
    ('on_file("Write_all_end",b8)', "ERR_IO"),
    ('on_file("Read_ordered_end",b8)', "ERR_IO"),
    ('on_file("Write",b8,mode=RDONLY)', "ERR_READ_ONLY"),
    ('on_file("Write_at_all",0,b8,mode=RDONLY)', "ERR_READ_ONLY"),
    ('on_file("Set_size",3,mode=RDONLY)', "ERR_READ_ONLY"),
    ('on_file("Sync",mode=RDONLY)', "ERR_READ_ONLY"),
    ('on_file("Read",b8,mode=MPI.MODE_WRONLY)', "ERR_ACCESS"),
    ('on_file("Read_at_all",0,b8,mode=MPI.MODE_WRONLY)', "ERR_ACCESS"),
    ('on_file("Write",b8,mode=SEQUENTIAL)', "ERR_UNSUPPORTED_OPERATION"),
    ('on_file("Write_at",0,b8,mode=SEQUENTIAL)', "ERR_UNSUPPORTED_OPERATION"),
    ('on_file("Seek",0,mode=SEQUENTIAL)', "ERR_UNSUPPORTED_OPERATION"),
    ('on_file("Seek_shared",0,mode=SEQUENTIAL)', "ERR_UNSUPPORTED_OPERATION"),
    ('on_file("Get_position",mode=SEQUENTIAL)', "ERR_UNSUPPORTED_OPERATION"),
    ('on_file("Get_position_shared",mode=SEQUENTIAL)', "ERR_UNSUPPORTED_OPERATION"),
    ('on_file("Set_size",3,mode=SEQUENTIAL)', "ERR_UNSUPPORTED_OPERATION"),
    ('on_file("Set_view",0,mode=SEQUENTIAL)', "ERR_ARG"),
    ('MPI.Register_datarep("",None,None,len)', "ERR_ARG"),
    ('MPI.Register_datarep("z"*200,None,None,len)', "ERR_ARG"),
    ('on_win("Put",b8,0)', "ERR_RMA_SYNC"),
    ('on_win("Get",b8,0)', "ERR_RMA_SYNC"),
    ('on_win("Accumulate",d8,0)', "ERR_RMA_SYNC"),
    ('on_win("Get_accumulate",d8,e8,0)', "ERR_RMA_SYNC"),
    ('on_win("Fetch_and_op",d8,e8,0)', "ERR_RMA_SYNC"),
    ('on_win("Compare_and_swap",i8,i8,j8,0)', "ERR_RMA_SYNC"),
    ('on_win("Rput",b8,0)', "ERR_RMA_SYNC"),
    ('on_win("Rget",b8,0)', "ERR_RMA_SYNC"),
    ('on_win("Raccumulate",d8,0)', "ERR_RMA_SYNC"),
    ('on_win("Unlock",0)', "ERR_RMA_SYNC"),
    ('on_win("Unlock_all")', "ERR_RMA_SYNC"),
    ('on_win("Unlock",0,within="Lock_all")', "ERR_RMA_SYNC"),
    ('on_win("Unlock_all",within="Lock")', "ERR_RMA_SYNC"),
    ('on_win("Complete")', "ERR_RMA_SYNC"),
    ('on_win("Complete",within="Lock")', "ERR_RMA_SYNC"),
    ('on_win("Wait")', "ERR_RMA_SYNC"),
    ('on_win("Test")', "ERR_RMA_SYNC"),
    ('on_win("Flush",0)', "ERR_RMA_SYNC"),
    ('on_win("Flush",0,within="Fence")', "ERR_RMA_SYNC"),
    ('on_win("Flush_all")', "ERR_RMA_SYNC"),
    ('on_win("Flush_local",0)', "ERR_RMA_SYNC"),
    ('on_win("Flush_local_all")', "ERR_RMA_SYNC"),
    ('on_win("Flush",5,within="Lock_all")', "ERR_RANK"),
    ('on_win("Lock",0,within="Lock")', "ERR_RMA_SYNC"),
    ('on_win("Lock",0,within="Lock_all")', "ERR_RMA_SYNC"),
    ('on_win("Lock",0,within="Start")', "ERR_RMA_SYNC"),
    ('on_win("Lock_all",within="Lock")', "ERR_RMA_SYNC"),
    ('on_win("Lock_all",within="Lock_all")', "ERR_RMA_SYNC"),
    ('on_win("Lock_all",within="Start")', "ERR_RMA_SYNC"),
    ('on_win("Start",everyone,within="Lock")', "ERR_RMA_SYNC"),
    ('on_win("Start",everyone,within="Start")', "ERR_RMA_SYNC"),
    ('on_win("Start",MPI.GROUP_NULL)', "ERR_GROUP"),
    ('on_win("Post",MPI.GROUP_NULL)', "ERR_GROUP"),
    ('on_win("Post",everyone,within="Post")', "ERR_RMA_SYNC"),
    ('on_win("Fence",within="Lock")', "ERR_RMA_SYNC"),
    ('on_win("Fence",within="Lock_all")', "ERR_RMA_SYNC"),
    ('on_win("Fence",within="Start")', "ERR_RMA_SYNC"),
    ('on_win("Fence",within="Post")', "ERR_RMA_SYNC"),
    ('on_win("Free",within="Lock")', "ERR_RMA_SYNC"),
    ('on_win("Free",within="Lock_all")', "ERR_RMA_SYNC"),
    ('on_win("Free",within="Start")', "ERR_RMA_SYNC"),
    ('on_win("Lock",5)', "ERR_RANK"),
    ('on_win("Lock",-7)', "ERR_RANK"),
    ('on_win("Unlock",5)', "ERR_RANK"),
    ('on_win("Lock",0,99)', "ERR_ARG"),
    ('on_win("Lock",0,MPI.LOCK_SHARED,1<<20)', "ERR_ARG"),
    ('on_win("Lock_all",1<<20)', "ERR_ARG"),
    ('on_win("Fence",1<<20)', "ERR_ARG"),
    ('on_win("Post",everyone,1<<20)', "ERR_ARG"),
    ('on_win("Start",everyone,1<<20)', "ERR_ARG"),
    ('on_win("Put",b8,5,within="Fence")', "ERR_RANK"),
    ('on_win("Put",b8,-7,within="Fence")', "ERR_RANK"),
    ('on_win("Get",b8,5,within="Lock_all")', "ERR_RANK"),
    ('on_win("Put",b8,0,-1,within="Fence")', "ERR_DISP"),
    ('on_win("Get",b8,0,-1,within="Fence")', "ERR_DISP"),
    ('on_win("Put",b8,0,[0,-1,MPI.BYTE],within="Fence")', "ERR_COUNT"),
    ('on_win("Accumulate",d8,0,-1,within="Fence")', "ERR_DISP"),
    ('on_win("Fetch_and_op",d8,e8,0,-1,within="Lock")', "ERR_DISP"),
    ('on_win("Compare_and_swap",d8,d8,e8,0,0,within="Lock")', "ERR_TYPE"),
    ('on_win("Compare_and_swap",i8,i8,j8,5,0,within="Lock_all")', "ERR_RANK"),
    ('on_win("Put",[b8,1,MPI.DATATYPE_NULL],0,within="Fence")', "ERR_TYPE"),
    ('on_win("Put",[b8,1,MPI.INT.Create_contiguous(2)],0,within="Fence")', "ERR_TYPE"),
    ('on_win("Put",[b8,1,freed_type()],0,within="Fence")', "ERR_TYPE"),
    ('on_win("Put",b8,0,[0,1,MPI.INT.Create_contiguous(2)],within="Fence")', "ERR_TYPE"),
    ('on_win("Get",[b8,1,MPI.DATATYPE_NULL],0,within="Fence")', "ERR_TYPE"),
    ('on_win("Accumulate",d8,0,0,MPI.OP_NULL,within="Fence")', "ERR_OP"),
    ('on_win("Accumulate",d8,0,0,MPI.Op.Create(max),within="Fence")', "ERR_OP"),
    ('on_win("Accumulate",d8,0,0,MPI.NO_OP,within="Fence")', "ERR_OP"),
    ('on_win("Get_accumulate",d8,e8,0,0,MPI.OP_NULL,within="Fence")', "ERR_OP"),
    ('on_win("Fetch_and_op",d8,e8,0,0,MPI.OP_NULL,within="Lock")', "ERR_OP"),
    ('on_win("Fetch_and_op",d8,e8,5,0,within="Lock_all")', "ERR_RANK"),
    ('on_win("Attach",b8)', "ERR_RMA_FLAVOR"),
    ('on_win("Detach",b8)', "ERR_RMA_FLAVOR"),
    ('on_win("Attach",b8,made=shared())', "ERR_RMA_FLAVOR"),
    ('on_win("Shared_query",5)', "ERR_RANK"),
    ('on_win("Shared_query",0,made=dynamic())', "ERR_RMA_FLAVOR"),
    ('on_win("Shared_query",5,made=shared())', "ERR_RANK"),
    ('on_win("Shared_query",-7,made=shared())', "ERR_RANK"),
    ('on_win("Set_info",MPI.INFO_NULL)', "ERR_ARG"),
    ('on_win("Get_attr",123456)', "ERR_KEYVAL"),
    ('on_win("Set_attr",MPI.WIN_BASE,1)', "ERR_KEYVAL"),
    ('on_win("Set_attr",99999,1)', "ERR_KEYVAL"),
    ('on_win("Delete_attr",99999)', "ERR_KEYVAL"),
    ('on_win("Delete_attr",MPI.WIN_SIZE)', "ERR_KEYVAL"),
    ('on_win("Set_errhandler",MPI.ERRHANDLER_NULL)', "ERR_ERRHANDLER"),
    ("freed_win().Fence()", "ERR_WIN"),
    ("freed_win().Free()", "ERR_WIN"),
    ("freed_win().Put(b8,0)", "ERR_WIN"),
    ("freed_win().Lock(0)", "ERR_WIN"),
    ("freed_win().Get_group()", "ERR_WIN"),
    ("MPI.WIN_NULL.Fence()", "ERR_WIN"),
    ("MPI.WIN_NULL.Free()", "ERR_WIN"),
    ("MPI.WIN_NULL.Lock(0)", "ERR_WIN"),
    ("MPI.WIN_NULL.Put(b8,0)", "ERR_WIN"),
    ("MPI.WIN_NULL.Get_group()", "ERR_WIN"),
    ("MPI.WIN_NULL.Get_info()", "ERR_WIN"),
    ('MPI.WIN_NULL.Set_name("x")', "ERR_WIN"),
    ("MPI.WIN_NULL.Attach(b8)", "ERR_WIN"),
    ("MPI.WIN_NULL.Shared_query(0)", "ERR_WIN"),
    ("MPI.WIN_NULL.Get_attr(MPI.WIN_BASE)", "ERR_WIN"),
    ("MPI.Win.Create(b8,0,comm=c)", "ERR_DISP"),
    ("MPI.Win.Create(b8,-1,comm=c)", "ERR_DISP"),
    ("MPI.Win.Create(b8,1,comm=freed_comm(c))", "ERR_COMM"),
    ("MPI.Win.Allocate(-1,1,comm=c)", "ERR_SIZE"),
    ("MPI.Win.Allocate(8,0,comm=c)", "ERR_DISP"),
    ("MPI.Win.Allocate_shared(-1,1,comm=c)", "ERR_SIZE"),
    ("MPI.Win.Allocate_shared(8,-1,comm=c)", "ERR_DISP"),
    ("MPI.Win.Free_keyval(12345)", "ERR_KEYVAL"),
    ("MPI.Win.Free_keyval(MPI.WIN_BASE)", "ERR_KEYVAL"),
    ("MPI.COMM_NULL.Is_revoked()", "ERR_COMM"),
    ("MPI.COMM_NULL.Shrink()", "ERR_COMM"),
    ("MPI.COMM_NULL.Agree(1)", "ERR_COMM"),
    ("MPI.COMM_NULL.Get_failed()", "ERR_COMM"),
    ("MPI.COMM_NULL.Ack_failed()", "ERR_COMM"),
    ("freed_comm(c).Agree(1)", "ERR_COMM"),
    ("freed_comm(c).Shrink()", "ERR_COMM"),
    ('on_file("Iread_at",-1,b8)', "ERR_ARG"),
    ('on_file("Read_at",0,[b8,1,MPI.DATATYPE_NULL])', "ERR_TYPE"),
    ('on_file("Read_all_end",b8)', "ERR_IO"),
    ('on_file("Read_at_all_end",b8)', "ERR_IO"),
    ('on_file("Write_at_all_end",b8)', "ERR_IO"),
    ('on_file("Write_ordered_end",b8)', "ERR_IO"),
    ('on_file("Read_shared",b8,mode=MPI.MODE_WRONLY)', "ERR_ACCESS"),
    ('on_file("Iwrite",b8,mode=RDONLY)', "ERR_READ_ONLY"),
    ('on_file("Iread",b8,mode=MPI.MODE_WRONLY)', "ERR_ACCESS"),
    ('on_file("Read_all_begin",b8,mode=MPI.MODE_WRONLY)', "ERR_ACCESS"),
    ('on_file("Write_at_all_begin",-1,b8)', "ERR_ARG"),
    ('on_file("Read_at_all_begin",-1,b8)', "ERR_ARG"),
    ('on_file("Seek",-1,MPI.SEEK_CUR)', "ERR_ARG"),
    ('on_file("Seek",-1,MPI.SEEK_END)', "ERR_ARG"),
    ('on_file("Seek_shared",-1,MPI.SEEK_CUR)', "ERR_ARG"),
    ('on_file("Read_at",0,b8,mode=SEQUENTIAL)', "ERR_ACCESS"),
    ("closed_file().Get_size()", "ERR_FILE"),
    ("closed_file().Write(b8)", "ERR_FILE"),
    ("closed_file().Seek(0)", "ERR_FILE"),
    ("closed_file().Sync()", "ERR_FILE"),
    ('MPI.File.Open(freed_comm(c),"/no/such",RDONLY)', "ERR_COMM"),
    ('on_win("Free",within="Post")', "ERR_RMA_SYNC"),
    ('on_win("Raccumulate",d8,0,0,MPI.NO_OP,within="Lock")', "ERR_OP"),
    ('begun("Write_all_begin",b8)', "ERR_IO"),
    ('begun("Write_at_all_begin",0,b8)', "ERR_IO"),
    ('begun("Read_all_end",b8)', "ERR_IO"),
    ('begun("Write_ordered_end",b8)', "ERR_IO"),
]


# What MPICH does not check, or dies of, and what the standard says.
# Dynamic processes: of a port that does not exist MPICH answers ERR_OTHER, and its process manager ends the job of a program that
# cannot be spawned, or of a service that is not published; these are the standard's classes
OF_THE_STANDARD = [
    ('c.Connect("nowhere")', "ERR_PORT"),
    ('c.Connect("smpi-port:0123456789abcdef")', "ERR_PORT"),
    ('c.Accept("nowhere")', "ERR_PORT"),
    ('MPI.Close_port("nowhere")', "ERR_PORT"),
    ('MPI.Publish_name("service","")', "ERR_PORT"),
    ('MPI.Lookup_name("no service")', "ERR_NAME"),
    ('MPI.Unpublish_name("no service","nowhere")', "ERR_SERVICE"),
    ('c.Spawn("/no/such/program")', "ERR_SPAWN"),
    ('c.Spawn("no-such-program.py")', "ERR_SPAWN"),
    ('c.Spawn("")', "ERR_ARG"),
    ('c.Spawn("x",maxprocs=0)', "ERR_ARG"),
    ('c.Spawn_multiple(["x"],maxprocs=[-1])', "ERR_ARG"),
    ('c.Spawn("x",root=1)', "ERR_ROOT"),
    ('c.Spawn_multiple(["x"],root=-1)', "ERR_ROOT"),
    ('c.Accept("nowhere",root=1)', "ERR_ROOT"),
    ('c.Connect("nowhere",root=-1)', "ERR_ROOT"),
    ("MPI.Comm.Join(-1)", "ERR_ARG"),
    ("MPI.Intracomm().Spawn('x')", "ERR_COMM"),
    ("MPI.Intercomm().Disconnect()", "ERR_COMM"),
    # windows: MPICH does not check ranges and attached memory; it takes or dies of the operations
    ('on_win("Put",b8,0,1,within="Fence")', "ERR_RMA_RANGE"),
    ('on_win("Get",b8,0,1,within="Fence")', "ERR_RMA_RANGE"),
    ('on_win("Put",b8,0,[0,9,MPI.BYTE],within="Fence")', "ERR_RMA_RANGE"),
    ('on_win("Accumulate",d8,0,1,within="Fence")', "ERR_RMA_RANGE"),
    ('on_win("Get_accumulate",d8,e8,0,1,within="Lock")', "ERR_RMA_RANGE"),
    ('on_win("Fetch_and_op",d8,e8,0,1,within="Lock")', "ERR_RMA_RANGE"),
    ('on_win("Compare_and_swap",i8,i8,j8,0,1,within="Lock")', "ERR_RMA_RANGE"),
    ('on_win("Accumulate",d8,0,0,MPI.BAND,within="Fence")', "ERR_OP"),
    ('on_win("Accumulate",[b8,MPI.BYTE],0,0,MPI.SUM,within="Fence")', "ERR_OP"),
    ('on_win("Fetch_and_op",d8,e8,0,0,MPI.BAND,within="Lock")', "ERR_OP"),
    ('on_win("Detach",b8,made=dynamic())', "ERR_RMA_ATTACH"),
    ('on_win("Put",b8,0,0,within="Fence",made=dynamic())', "ERR_RMA_RANGE"),
    ('on_win("Put",b8,0,4096,within="Lock",made=dynamic())', "ERR_RMA_RANGE"),
    ('attached("Attach")', "ERR_RMA_ATTACH"),
    ('attached("Detach",b8)', "ERR_RMA_ATTACH"),
    # revoked communicators: mpi4py on MPICH has no Revoke
    ("revoked().Send(b8,0)", "ERR_REVOKED"),
    ("revoked().Isend(b8,0)", "ERR_REVOKED"),
    ("revoked().Isend(b8,0).Wait()", "ERR_REVOKED"),
    ("revoked().Recv(b8,0)", "ERR_REVOKED"),
    ("revoked().Irecv(b8,0)", "ERR_REVOKED"),
    ("revoked().Irecv(b8,0).Wait()", "ERR_REVOKED"),
    ("revoked().send(1,0)", "ERR_REVOKED"),
    ("revoked().recv(source=0)", "ERR_REVOKED"),
    ("revoked().Sendrecv(b8,0,0,o8,0,0)", "ERR_REVOKED"),
    ("revoked().Probe(0)", "ERR_REVOKED"),
    ("revoked().Iprobe(0)", "ERR_REVOKED"),
    ("revoked().Mprobe(0)", "ERR_REVOKED"),
    ("revoked().Improbe(0)", "ERR_REVOKED"),
    ("revoked().Barrier()", "ERR_REVOKED"),
    ("revoked().Bcast(b8,0)", "ERR_REVOKED"),
    ("revoked().bcast(1,0)", "ERR_REVOKED"),
    ("revoked().Allreduce(b8,o8,MPI.BAND)", "ERR_REVOKED"),
    ("revoked().allgather(1)", "ERR_REVOKED"),
    ("revoked().Dup()", "ERR_REVOKED"),
    ("revoked().Split(0,0)", "ERR_REVOKED"),
    ("revoked().Create(everyone)", "ERR_REVOKED"),
    ("revoked().Create_cart([1])", "ERR_REVOKED"),
    ("MPI.COMM_NULL.Revoke()", "ERR_COMM"),
    ("freed_comm(c).Revoke()", "ERR_COMM"),
    ("MPI.Win.Create(b8,1,comm=revoked())", "ERR_REVOKED"),
    ('MPI.File.Open(revoked(),"/no/such",RDONLY)', "ERR_REVOKED"),
    ("revoked().Ibarrier().Wait()", "ERR_REVOKED"),
    ("revoked().Ibcast(b8,0).Wait()", "ERR_REVOKED"),
    # files: MPICH leaves these checks to the operating system, and answers ERR_IO or nothing
    ('on_file("Write_shared",b8,mode=RDONLY)', "ERR_READ_ONLY"),
    ('on_file("Read_ordered",b8,mode=MPI.MODE_WRONLY)', "ERR_ACCESS"),
    ('on_file("Write_ordered",b8,mode=RDONLY)', "ERR_READ_ONLY"),
    ('on_file("Preallocate",3,mode=RDONLY)', "ERR_READ_ONLY"),
    ('on_file("Write_all_begin",b8,mode=RDONLY)', "ERR_READ_ONLY"),
    ('on_file("Iread_shared",b8,mode=MPI.MODE_WRONLY)', "ERR_ACCESS"),
]


NONE = "no error"
# the calls of rank 0 and of rank 1, and what each ends with
PAIRS = [
    ("c.Send(b8,1)", "c.Recv(b4,0)", NONE, "ERR_TRUNCATE"),
    ("c.Ssend(b8,1)", "c.Recv(b4,0)", NONE, "ERR_TRUNCATE"),
    ("c.Isend(b8,1).Wait()", "c.Irecv(b4,0).Wait()", NONE, "ERR_TRUNCATE"),
    ("c.Send(b8,1)", "c.Mprobe(0).Recv(b4)", NONE, "ERR_TRUNCATE"),
    ("c.Sendrecv_replace(b8,1,0,1)", "c.Sendrecv_replace(b4,0,0,0)", NONE, "ERR_TRUNCATE"),
    ("c.Bcast(b8,0)", "c.Bcast(b4,0)", NONE, "ERR_TRUNCATE"),
    ("c.Gather(b4,b8,0)", "c.Gather(b8,None,0)", "ERR_TRUNCATE", NONE),
    ("c.Scatter(o8*2,b8,0)", "c.Scatter(None,b4,0)", NONE, "ERR_TRUNCATE"),
    ("c.Scatterv([o8*2,(8,8)],b8,0)", "c.Scatterv(None,b4,0)", NONE, "ERR_TRUNCATE"),
    ("c.Reduce(b4,o8[:4],MPI.BXOR,0)", "c.Reduce(b8,None,MPI.BXOR,0)", "ERR_TRUNCATE", NONE),
    ("c.Create_cart([3])", "c.Create_cart([3])", "ERR_ARG", "ERR_ARG"),
    ("c.Create_graph([1,2,3],[0,1,2])", "c.Create_graph([1,2,3],[0,1,2])", "ERR_ARG", "ERR_ARG"),
    ("c.Create(MPI.GROUP_NULL)", "c.Create(MPI.GROUP_NULL)", "ERR_GROUP", "ERR_GROUP"),
    (
        'on_win("Get",b8,2,within="Fence")',
        'on_win("Get",b8,2,within="Fence")',
        "ERR_RANK",
        "ERR_RANK",
    ),
]

# Windows of two ranks: MPICH accepts the first two and the last two, and dies of the third.
PAIRS_OF_THE_STANDARD = [
    (call, call, error, error)
    for call, error in [
        ('on_win("Put",b8,1,within="Lock")', "ERR_RMA_SYNC"),
        ('on_win("Flush",1,within="Lock")', "ERR_RMA_SYNC"),
        ('on_win("Unlock",1,within="Lock")', "ERR_RMA_SYNC"),
        ('on_win("Get",b8,1,1,within="Fence")', "ERR_RMA_RANGE"),
        ('on_win("Put",b8,1,1,within="Lock_all")', "ERR_RMA_RANGE"),
    ]
]


def names(MPI: Any, c: Any) -> dict[str, Any]:
    """What a call is evaluated with."""

    def freed_type() -> Any:
        made = MPI.INT.Create_contiguous(1).Commit()
        made.Free()
        return made

    def freed_op() -> Any:
        made = MPI.Op.Create(lambda a, b, datatype: None)
        made.Free()
        return made

    def freed_comm(c: Any) -> Any:
        made = c.Dup()
        made.Free()
        return made

    def started(c: Any) -> Any:
        request = c.Recv_init(bytearray(8), 0, 77)
        request.Start()
        return request

    def twice() -> None:
        MPI.Attach_buffer(bytearray(4096))
        try:
            MPI.Attach_buffer(bytearray(4096))
        finally:
            MPI.Detach_buffer()

    def short(c: Any) -> None:
        send = c.Isend(bytearray(8), 0, 9)
        try:
            c.Recv(bytearray(4), 0, 9)
        finally:
            send.Wait()

    def short_of_many(c: Any) -> None:
        MPI.Request.Waitall([c.Isend(bytearray(8), 0, 9), c.Irecv(bytearray(4), 0, 9)])

    def short_matched(c: Any) -> None:
        send = c.Isend(bytearray(8), 0, 9)
        try:
            c.Mprobe(0, 9).Recv(bytearray(4))
        finally:
            send.Wait()

    def beyond(c: Any, tag: int, wrong: Any) -> None:
        send, receive = c.Psend_init(bytearray(8), 2, 0, tag), c.Precv_init(bytearray(8), 2, 0, tag)
        send.Start()
        receive.Start()
        try:
            wrong(send, receive)
        finally:
            send.Pready_range(0, 1)
            send.Wait()
            receive.Wait()

    def ready_beyond(c: Any) -> None:
        beyond(c, 55, lambda send, receive: send.Pready(5))

    def arrived_beyond(c: Any) -> None:
        beyond(c, 57, lambda send, receive: receive.Parrived(5))

    def ready_early(c: Any) -> None:
        c.Psend_init(bytearray(8), 2, 0, 56).Pready(0)

    def completed_twice(c: Any) -> None:
        request = MPI.Grequest.Start()
        request.Complete()
        request.Wait()
        request.Complete()

    modes = {
        "RDONLY": MPI.MODE_RDONLY,
        "RDWR": MPI.MODE_RDWR,
        "WRITE": MPI.MODE_RDWR | MPI.MODE_CREATE,
        "SEQUENTIAL": MPI.MODE_WRONLY | MPI.MODE_SEQUENTIAL,
    }

    def open_file(mode: int, there: bool = False) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "file")
            if there:
                open(path, "x").close()
            return MPI.File.Open(c, path, mode)

    def on_file(call: str, *arguments: Any, mode: int = MPI.MODE_RDWR) -> None:
        with tempfile.NamedTemporaryFile() as file:
            opened = MPI.File.Open(c, file.name, mode)
            try:
                getattr(opened, call)(*arguments)
            finally:
                opened.Close()

    def closed_file() -> Any:
        with tempfile.NamedTemporaryFile() as file:
            opened = MPI.File.Open(c, file.name, MPI.MODE_RDWR)
            opened.Close()
            return opened

    everyone = c.Get_group()
    # what begins an epoch, and what ends it
    epochs: dict[str, tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]] = {
        "no epoch": ([], []),
        "Fence": ([("Fence",)], [("Fence", MPI.MODE_NOSUCCEED)]),
        "Start": ([("Post", everyone), ("Start", everyone)], [("Complete",), ("Wait",)]),
        "Post": ([("Post", everyone)], [("Start", everyone), ("Complete",), ("Wait",)]),
        "Lock": ([("Lock", 0)], [("Unlock", 0)]),
        "Lock_all": ([("Lock_all",)], [("Unlock_all",)]),
    }

    def on_win(call: str, *arguments: Any, within: str = "no epoch", made: Any = None) -> None:
        win = made or MPI.Win.Allocate(8, 8, comm=c)
        begin, end = epochs[within]
        for name, *more in begin:
            getattr(win, name)(*more)
        try:
            getattr(win, call)(*arguments)
        finally:
            for name, *more in end:
                getattr(win, name)(*more)
            win.Free()

    def dynamic() -> Any:
        return MPI.Win.Create_dynamic(comm=c)

    def shared() -> Any:
        return MPI.Win.Allocate_shared(8, 8, comm=c)

    def freed_win() -> Any:
        win = MPI.Win.Allocate(8, 8, comm=c)
        win.Free()
        return win

    def attached(call: str, *arguments: Any) -> None:
        win, memory = dynamic(), MPI.Alloc_mem(64)
        win.Attach(memory)
        try:
            getattr(win, call)(*(arguments or (memory,)))
        finally:
            win.Detach(memory)
            win.Free()

    def revoked() -> Any:
        made = c.Dup()
        made.Revoke()
        return made

    def begun(call: str, *arguments: Any) -> None:
        with tempfile.NamedTemporaryFile() as file:
            opened = MPI.File.Open(c, file.name, MPI.MODE_RDWR)
            memory = bytearray(8)
            opened.Write_all_begin(memory)
            try:
                getattr(opened, call)(*arguments)
            finally:
                opened.Write_all_end(memory)
                opened.Close()

    b8, o8 = bytearray(8), bytearray(8)
    d8, e8 = [b8, MPI.DOUBLE], [o8, MPI.DOUBLE]
    i8, j8 = [b8, MPI.INT64_T], [o8, MPI.INT64_T]
    return {**locals(), **modes, "b4": bytearray(4)}


def answer(MPI: Any, c: Any, call: str) -> str:
    """The name of the class of the error that a call ends with."""
    try:
        eval(call, names(MPI, c))
    except MPI.Exception as error:
        found = error.Get_error_class()
        return next(
            name for name in vars(MPI) if name.startswith("ERR_") and getattr(MPI, name) == found
        )
    return NONE


def answer_of_two(MPI: Any, c: Any, pair: tuple[str, str, str, str]) -> str:
    """What this rank of two answers to its call, and nothing is left of it."""
    found = answer(MPI, c, pair[c.rank])
    c.Barrier()
    return found


def main() -> None:
    """Print what this MPI answers to each call; of a rank of two, on one line."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.size == 1:
        found = [answer(MPI, MPI.COMM_SELF.Dup(), call) for call, _ in ANSWERS]
    else:
        found = [answer_of_two(MPI, MPI.COMM_WORLD.Dup(), pair) for pair in PAIRS]
    sys.stdout.write(json.dumps([MPI.COMM_WORLD.rank, found]) + "\n")


if __name__ == "__main__":
    main()
