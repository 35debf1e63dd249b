"""Handles, Info, attributes, error handlers, generalized requests, memory and sessions."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serverless_mpi import MPI
from tests.harness import ROOT, run, smpirun


def raises(error_class: int, call: Any, *arguments: Any) -> None:
    with pytest.raises(MPI.Exception) as caught:
        call(*arguments)
    assert caught.value.Get_error_class() == error_class


# --- handles --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "INT",
        "DATATYPE_NULL",
        "SUM",
        "OP_NULL",
        "INFO_NULL",
        "GROUP_EMPTY",
        "REQUEST_NULL",
        "WIN_NULL",
    ],
)
def test_a_constant_is_itself_wherever_it_goes(name: str) -> None:
    constant = getattr(MPI, name)
    assert pickle.loads(pickle.dumps(constant)) is constant
    copy = type(constant)(constant)
    assert (
        copy == constant and copy is not constant and pickle.loads(pickle.dumps(copy)) == constant
    )
    assert type(constant).fromhandle(constant.handle) == constant
    copy.free()
    assert not copy and bool(constant) == (not name.endswith("NULL"))
    with pytest.raises(TypeError):
        hash(constant)
    with pytest.raises(TypeError):
        type(constant)("something else")


def test_what_belongs_to_a_process_does_not_pickle() -> None:
    with pytest.raises(ValueError):
        pickle.dumps(MPI.Session.Init())
    with pytest.raises(ValueError):
        pickle.dumps(MPI.Grequest.Start())


# --- Info -----------------------------------------------------------------------


def test_an_info_is_a_mapping_of_text() -> None:
    info = MPI.Info.Create({"a": "1"})
    info.update([("b", "2")], c="3")
    assert (
        dict(info) == {"a": "1", "b": "2", "c": "3"}
        and info.Get_nthkey(1) == "b"
        and len(info) == 3
    )
    copy = pickle.loads(pickle.dumps(info))
    del info["a"]
    assert copy["a"] == "1" and info.get("a") is None and info.Get("a") is None
    raises(MPI.ERR_INFO_NOKEY, info.Delete, "a")
    raises(MPI.ERR_INFO_KEY, info.Set, "k" * 300, "v")
    raises(MPI.ERR_INFO_VALUE, info.Set, "k", "v" * 2000)
    info.Free()
    raises(MPI.ERR_ARG, info.Get, "b")
    raises(MPI.ERR_INFO, MPI.INFO_ENV.Free)


# --- attributes -----------------------------------------------------------------


def test_attributes_are_copied_and_deleted_by_the_programs_functions() -> None:
    gone: list[Any] = []
    key = MPI.Datatype.Create_keyval(
        lambda _, key, value: [*value, "copy"], lambda _, key, value: gone.append(value)
    )
    datatype = MPI.INT.Dup()
    datatype.Set_attr(key, ["first"])
    twin = datatype.Dup()
    assert twin.Get_attr(key) == ["first", "copy"] and datatype.Get_attr(key) == ["first"]
    datatype.Set_attr(key, ["second"])
    assert gone == [["first"]]
    twin.Free()
    datatype.Delete_attr(key)
    assert gone == [["first"], ["first", "copy"], ["second"]] and datatype.Get_attr(key) is None
    assert MPI.Datatype.Free_keyval(key) == MPI.KEYVAL_INVALID
    raises(MPI.ERR_KEYVAL, datatype.Set_attr, key, 1)
    raises(MPI.ERR_KEYVAL, datatype.Get_attr, MPI.KEYVAL_INVALID)
    raises(MPI.ERR_KEYVAL, MPI.COMM_SELF.Set_attr, MPI.TAG_UB, 1)


def test_a_failing_callback_fails_the_call_and_tells_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = MPI.Datatype.Create_keyval(None, lambda *_: 1 / 0)
    datatype = MPI.INT.Dup()
    datatype.Set_attr(key, "x")
    raises(MPI.ERR_OTHER, datatype.Delete_attr, key)
    assert "ZeroDivisionError" in capsys.readouterr().err and datatype.Get_attr(key) is None
    datatype.Free()


# --- error handlers -------------------------------------------------------------


def test_an_error_handler_sees_the_error_once_and_the_call_still_raises() -> None:
    def body(c: Any) -> None:
        seen: list[tuple[Any, int]] = []
        handler = MPI.Comm.Create_errhandler(lambda comm, code: seen.append((comm, code)))
        c.Set_errhandler(handler)
        assert c.Get_errhandler() == handler
        raises(MPI.ERR_RANK, c.send, 1, 7)  # send is made of other calls, which are guarded too
        assert [(comm == c, code) for comm, code in seen] == [(True, MPI.ERR_RANK)]
        twin = c.Dup()
        assert twin.Get_errhandler() == handler
        c.Set_errhandler(MPI.ERRORS_RETURN)
        raises(MPI.ERR_RANK, c.send, 1, 7)
        assert len(seen) == 1
        handler.Free()
        assert handler == MPI.ERRHANDLER_NULL
        raises(MPI.ERR_ERRHANDLER, c.Set_errhandler, handler)

    run(1, body)


def test_a_fatal_error_ends_the_job(tmp_path: Any) -> None:
    program = tmp_path / "prog.py"
    program.write_text(
        "from serverless_mpi import MPI\nc = MPI.COMM_WORLD\nc.Set_errhandler(MPI.ERRORS_ARE_FATAL)\n"
        "try:\n    c.send(1, 9) if c.rank == 0 else c.recv()\nfinally:\n    print('not reached')\n"
    )
    done = smpirun("-n", 2, "--channel", "direct", program)
    assert (
        done.returncode != 0
        and "fatal MPI error" in done.stderr
        and "MPI_ERR_RANK" in done.stderr
        and "not reached" not in done.stdout
    )


def test_error_codes_of_the_program() -> None:
    kind = MPI.Add_error_class()
    code = MPI.Add_error_code(kind)
    MPI.Add_error_string(code, "the program's own")
    error = MPI.Exception(code)
    assert MPI.COMM_SELF.Get_attr(MPI.LASTUSEDCODE) == code
    assert (error.Get_error_class(), str(error)) == (kind, "the program's own")
    raises(MPI.ERR_OTHER, MPI.Remove_error_class, kind)
    MPI.Remove_error_string(code)
    MPI.Remove_error_code(code)
    MPI.Remove_error_class(kind)
    raises(MPI.ERR_OTHER, MPI.Add_error_code, kind)


# --- requests of the program ----------------------------------------------------


def test_a_request_of_the_program_is_completed_by_another_thread() -> None:
    called: list[Any] = []

    def query(status: Any, name: str) -> None:
        status.Set_source(3)
        status.Set_elements(MPI.INT, 2)

    request = MPI.Grequest.Start(
        query,
        lambda name: called.append(name),
        lambda done, name: called.append((done, name)),
        args=("x",),
    )
    assert not request.Test() and not request.Get_status()
    request.Cancel()
    threading.Thread(target=request.complete, args=("result",)).start()
    status = MPI.Status()
    assert request.wait(status) == "result" and not request
    assert (status.source, status.Get_count(MPI.INT)) == (3, 2)
    assert called == [(False, "x"), "x"]
    raises(MPI.ERR_REQUEST, request.Complete)


def test_a_status_can_be_looked_at_before_the_request_is_taken() -> None:
    def body(c: Any) -> None:
        room = np.zeros(4, "i4")
        request = c.Irecv(room, 0, 5)
        c.Send(np.arange(3, dtype="i4"), 0, 5)
        status = MPI.Status()
        assert (
            request.Get_status(status)
            and request
            and status.Get_count(MPI.INT) == 3
            and status.tag == 5
        )
        statuses: list[Any] = []
        assert MPI.Request.Get_status_all([request], statuses) and statuses[0].tag == 5
        request.Wait()
        assert not request and room.tolist() == [0, 1, 2, 0]

    run(1, body)


# --- memory ---------------------------------------------------------------------


def test_a_buffer_is_a_view() -> None:
    owner = bytearray(b"abcdef")
    view = MPI.buffer(owner)
    view[1:3] = b"XY"
    assert (
        owner == b"aXYdef"
        and view[1] == ord("X")
        and view[4:].tobytes() == b"ef"
        and view.obj is owner
    )
    assert np.frombuffer(view, "u1").tolist() == list(owner)
    same = MPI.buffer.fromaddress(view.address, 6, readonly=True)
    assert same.tobytes() == bytes(owner) and same.readonly
    with pytest.raises(TypeError):
        same[0] = 0
    view.release()
    assert len(view) == 0 and view.address == 0 and owner == b"aXYdef"
    memory = MPI.Alloc_mem(16)
    assert len(memory) == 16
    MPI.Free_mem(memory)
    raises(MPI.ERR_ARG, MPI.Alloc_mem, -1)


def test_addresses_may_stand_for_a_buffer() -> None:
    def body(c: Any) -> None:
        first, second = np.arange(3.0), np.arange(10.0, 12.0)
        places = [MPI.Get_address(first), MPI.Get_address(second)]
        both = MPI.Datatype.Create_hindexed(MPI.DOUBLE, [3, 2], places).Commit()
        got = np.zeros(5)
        c.Sendrecv([MPI.BOTTOM, 1, both], 0, recvbuf=got, source=0)
        assert got.tolist() == [0, 1, 2, 10, 11]
        c.Sendrecv(-got, 0, recvbuf=[MPI.BOTTOM, 1, both], source=0)
        assert second.tolist() == [-10, -11]

    run(1, body)


class _OnDevice:
    """An array as a GPU library describes it."""

    def __init__(self, address: int) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": (4,),
            "typestr": "<i4",
            "data": (address, False),
        }


def test_memory_of_a_device_is_used_where_it_can_be_read() -> None:
    def body(c: Any) -> None:
        managed, got = np.arange(4, dtype="i4"), np.zeros(4, "i4")
        c.Sendrecv(_OnDevice(managed.ctypes.data), 0, recvbuf=got, source=0)
        assert (got == managed).all()
        with pytest.raises(BufferError, match="device"):
            c.Send(_OnDevice(4096), 0)

    run(1, body)


# --- sessions -------------------------------------------------------------------


def test_a_session_leads_to_a_communicator(tmp_path: Any) -> None:
    program = tmp_path / "prog.py"
    program.write_text(
        "from serverless_mpi import MPI\ns = MPI.Session.Init()\n"
        "names = [s.Get_nth_pset(i) for i in range(s.Get_num_psets())]\n"
        "c = MPI.Intracomm.Create_from_group(s.Create_group('mpi://WORLD'), 'tag')\n"
        "print(c.allgather(c.rank), names, s.Get_pset_info('mpi://WORLD').Get('mpi_size'))\n"
    )
    done = smpirun("-n", 3, "--channel", "direct", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0, 1, 2] ['mpi://WORLD', 'mpi://SELF'] 3\n" * 3


def test_a_sessions_buffer_serves_the_communicators_of_its_groups(tmp_path: Any) -> None:
    program = tmp_path / "prog.py"
    program.write_text(
        "from serverless_mpi import MPI\ns = MPI.Session.Init()\ns.Attach_buffer(bytearray(1000))\n"
        "c = MPI.Intracomm.Create_from_group(s.Create_group('mpi://WORLD').Incl([0]))\n"
        "for comm in (c, c.Dup(), c.Split()):\n"
        "    comm.Bsend(b'x' * 100, 0, 1)\n    comm.Recv(bytearray(100), 0, 1)\n"
        "try:\n    MPI.COMM_SELF.Bsend(b'x', 0, 1)\n"
        "except MPI.Exception as error:\n    print(error.Get_error_class() == MPI.ERR_BUFFER, len(s.Detach_buffer()))\n"
    )
    done = smpirun("--channel", "direct", program)
    assert (done.returncode, done.stdout) == (0, "True 1000\n"), done.stderr


# --- operations -----------------------------------------------------------------


def test_a_programs_operation_sees_derived_types_as_they_lie_in_memory() -> None:
    def body(c: Any) -> None:
        spaced = MPI.INT.Create_resized(0, 8).Commit()

        def add(left: Any, right: Any, datatype: Any) -> None:
            a, b = np.frombuffer(left, "i4"), np.frombuffer(right, "i4")
            assert datatype == spaced and len(a) == 2 * 3
            b[::2] += a[::2]

        op = MPI.Op.Create(add, commute=True)
        give = np.arange(6, dtype="i4") + 10 * c.rank
        got = np.full(6, -1, "i4")
        c.Allreduce([give, 3, spaced], [got, 3, spaced], op)
        assert got.tolist() == [10, -1, 14, -1, 18, -1]
        raises(MPI.ERR_OP, c.Allreduce, [give, 3, spaced], [got, 3, spaced], MPI.SUM)
        c.barrier()
        if c.rank == 0:
            op.Free()

    run(2, body)


def test_what_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "dynamic processes are missing there")
    for call in (MPI.Open_port, lambda: MPI.COMM_SELF.Spawn("x")):
        with pytest.raises(NotImplementedError) as caught:
            call()
        assert (
            isinstance(caught.value, MPI.Exception)
            and caught.value.Get_error_class() == MPI.ERR_UNSUPPORTED_OPERATION
        )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_importing_is_cheap_in_memory() -> None:
    program = "from serverless_mpi import MPI; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert int(done.stdout) < 45 * 1024  # kilobytes
