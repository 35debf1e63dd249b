"""Ports and services of one machine: files, locks, and who meets whom."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serverless_mpi import MPI
from serverless_mpi.processes import ports
from serverless_mpi.processes.bridge import Member


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of ports, in a temporary folder of the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path / f"smpi-ports-{os.getuid()}"
    ports.close_all()


def _error(call: Callable[..., Any], *arguments: Any) -> int:
    with pytest.raises(MPI.Exception) as caught:
        call(*arguments)
    return int(caught.value.Get_error_class())


def test_files_are_this_users_alone_and_go_with_the_port(folder: Path) -> None:
    port = MPI.Open_port()
    MPI.Publish_name("service", port)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.iterdir())
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
    assert "service" not in port and len(port) < MPI.MAX_PORT_NAME
    assert MPI.Lookup_name("service") == port
    assert _error(MPI.Publish_name, "service", port) == MPI.ERR_SERVICE
    assert _error(MPI.Unpublish_name, "service", "another port") == MPI.ERR_SERVICE
    MPI.Unpublish_name("service", port)
    assert _error(MPI.Lookup_name, "service") == MPI.ERR_NAME
    MPI.Close_port(port)
    assert _error(MPI.Close_port, port) == MPI.ERR_PORT
    assert not folder.exists()


def test_a_folder_that_others_can_enter_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    assert _error(MPI.Open_port) == MPI.ERR_PORT
    folder.rmdir()
    folder.symlink_to("/")
    assert _error(MPI.Open_port) == MPI.ERR_PORT


def test_what_a_killed_process_left_is_absent(folder: Path, tmp_path: Path) -> None:
    program = (
        "import os; from serverless_mpi import MPI; p = MPI.Open_port();"
        "MPI.Publish_name('service', p); print(p); os.sys.stdout.flush(); os.kill(os.getpid(), 9)"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    left = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    port = left.stdout.strip()
    assert len(list(folder.iterdir())) == 2
    assert _error(MPI.Lookup_name, "service") == MPI.ERR_NAME
    assert _error(MPI.COMM_SELF.Connect, port) == MPI.ERR_PORT
    MPI.Publish_name("service", "now mine")
    assert len(list(folder.iterdir())) == 1


def test_a_port_that_is_closed_refuses_those_who_wait() -> None:
    port = ports.open_port()
    errors: list[int] = []
    waiting = threading.Thread(
        target=lambda: errors.append(_error(ports.connect, port, [Member("00" * 8, 0, "@1")]))
    )
    waiting.start()
    ports.close_port(port)
    waiting.join(60)
    assert errors == [MPI.ERR_PORT]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(["group", "group", "garbage", "gone"]), min_size=1, max_size=8))
def test_each_accept_meets_one_group_whatever_strangers_do(callers: list[str]) -> None:
    port = ports.open_port()
    address = ports._ports[port].listener.getsockname()
    groups = callers.count("group")
    met: dict[int, ports.Met] = {}
    threads = []
    for number, kind in enumerate(callers):
        if kind == "group":
            own = [Member("cc" * 8, number, "@1")]
            threads.append(
                threading.Thread(
                    target=lambda at=number, own=own: met.__setitem__(at, ports.connect(port, own))
                )
            )
            threads[-1].start()
        else:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(address)
                if kind == "garbage":
                    sock.sendall(b"x" * 200)
    accepted = [ports.accept(port, [Member("aa" * 8, at, "@2")]) for at in range(groups)]
    for thread in threads:
        thread.join(60)
    ports.close_port(port)
    assert len({one.bridge_id for one in accepted}) == groups == len(met)
    for at, one in enumerate(accepted):
        (caller,) = (member.rank for member in one.remote)
        other = met[caller]
        assert (other.bridge_id, other.key) == (one.bridge_id, one.key)
        assert [member.rank for member in other.remote] == [at]
