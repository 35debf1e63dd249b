"""The acceptor of `direct`: invalid bytes, exhausted descriptors, time limits; with a fake clock."""

from __future__ import annotations

import errno
import secrets
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serverless_mpi.channels import handshake
from serverless_mpi.channels.handshake import ACCEPT_PAUSE_S, HANDSHAKE_S, Acceptor, authenticate
from serverless_mpi.core.tags import PROOF_BYTES
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec

GIVE_UP_S = 30.0  # only reached by a failure
SETTINGS = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SPEC = JobSpec.new(3, "direct")


def listening() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")
    listener.listen()
    return listener


def connect(listener: socket.socket) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(GIVE_UP_S)
    sock.connect(listener.getsockname())
    return sock


class Admitted:
    """Takes proven connections."""

    def __init__(self) -> None:
        self.ranks: list[int] = []
        self.farewells: list[bytes] = []
        self.came = threading.Event()

    def __call__(self, sock: socket.socket, rank: int, farewell: bytes) -> None:
        sock.close()
        self.ranks.append(rank)
        self.farewells.append(farewell)
        self.came.set()


@pytest.fixture
def running() -> Iterator[tuple[Acceptor, socket.socket, Admitted]]:
    listener, admitted = listening(), Admitted()
    keeper = Acceptor(SPEC.with_rank(1), listener, admitted)
    keeper.start()
    yield keeper, listener, admitted
    keeper.stop()


def prove(listener: socket.socket, admitted: Admitted, rank: int = 2) -> bytes:
    """An honest handshake; what ends the connection."""
    admitted.came.clear()
    with connect(listener) as sock:
        farewell = authenticate(sock, SPEC.with_rank(rank), 1, lambda: None)
        assert admitted.came.wait(GIVE_UP_S)
    return farewell


def test_both_sides_know_what_ends_a_connection_and_no_other(
    running: tuple[Acceptor, socket.socket, Admitted],
) -> None:
    _, listener, admitted = running
    farewells = [prove(listener, admitted) for _ in range(2)]
    assert admitted.farewells == farewells and farewells[0] != farewells[1]


HELLO = st.builds(
    handshake.HELLO.pack,
    st.sampled_from([handshake.MAGIC, b"SMPI/1\r\n", bytes(8)]),
    st.sampled_from([bytes.fromhex(SPEC.job_id), bytes(8)]),
    st.integers(0, 4),
    st.integers(0, 2),
    st.binary(min_size=16, max_size=16),
)


@SETTINGS
@given(st.one_of(st.just(b""), HELLO), st.binary(max_size=200), st.integers(0, 100))
def test_no_bytes_of_a_stranger_end_the_acceptor(
    running: tuple[Acceptor, socket.socket, Admitted], hello: bytes, odd: bytes, place: int
) -> None:
    keeper, listener, admitted = running
    before = len(admitted.ranks)
    data = hello + odd
    with connect(listener) as sock:
        try:
            sock.sendall(data[:place])
            sock.sendall(data[place:])
        except (BrokenPipeError, ConnectionResetError):  # dropped already
            pass
    prove(listener, admitted)
    assert keeper.is_alive() and admitted.ranks[before:] == [2]


@SETTINGS
@given(st.binary(max_size=200))
def test_no_bytes_of_an_impostor_are_taken_for_a_proof(odd: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        theirs.sendall(odd)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises((ChannelError, OSError)):
            authenticate(ours, SPEC.with_rank(2), 1, lambda: None)


class Clock:
    """An acceptor that no thread runs, on a listener that fails as the test says."""

    def __init__(self) -> None:
        self.real = listening()
        self.error: OSError | None = None
        self.asked = 0
        self.admitted = Admitted()
        self.keeper = Acceptor(SPEC.with_rank(1), self, self.admitted)  # type: ignore[arg-type]

    def setblocking(self, flag: bool) -> None:
        self.real.setblocking(flag)

    def fileno(self) -> int:
        return self.real.fileno()

    def accept(self) -> tuple[socket.socket, Any]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.real.accept()

    def listens(self) -> bool:
        return self in [key.fileobj for key in self.keeper._selector.get_map().values()]

    def close(self) -> None:
        for stranger in list(self.keeper._pending.values()):
            self.keeper._drop(stranger)
        self.keeper._selector.close()
        self.real.close()


@pytest.fixture
def clock() -> Iterator[Clock]:
    made = Clock()
    yield made
    made.close()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_a_file_descriptor_accepting_pauses(clock: Clock, code: int) -> None:
    clock.error = OSError(code, "none left")
    keeper = clock.keeper
    with connect(clock.real):
        now = 100.0
        assert keeper._patience(now) is None
        keeper._accept(now)
        assert not clock.listens() and keeper._patience(now) == pytest.approx(ACCEPT_PAUSE_S)
        keeper._tick(now + ACCEPT_PAUSE_S / 2)
        assert not clock.listens() and clock.asked == 1
        keeper._tick(now + ACCEPT_PAUSE_S)
        assert clock.listens() and keeper._patience(now + ACCEPT_PAUSE_S) is None
        clock.error = None
        keeper._accept(now + ACCEPT_PAUSE_S)
        assert len(keeper._pending) == 1


def test_a_connection_that_is_gone_again_does_not_pause_accepting(clock: Clock) -> None:
    for code in (errno.ECONNABORTED, errno.EAGAIN):
        clock.error = OSError(code, "gone")
        clock.keeper._accept(100.0)
        assert clock.listens()


def test_what_the_system_refuses_about_one_connection_closes_that_one(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no watch left")

    with connect(clock.real) as sock:
        monkeypatch.setattr(clock.keeper._selector, "register", full)
        clock.keeper._accept(100.0)
        assert sock.recv(1) == b"" and not clock.keeper._pending


def test_a_stranger_who_says_nothing_is_dropped_in_time(clock: Clock) -> None:
    keeper = clock.keeper
    with connect(clock.real) as sock:
        keeper._accept(100.0)
        assert keeper._patience(101.0) == HANDSHAKE_S - 1
        keeper._tick(100.0 + HANDSHAKE_S - 0.001)
        assert keeper._pending
        keeper._tick(100.0 + HANDSHAKE_S)
        assert not keeper._pending and sock.recv(1) == b""


def test_sizes_before_a_proof_are_fixed(clock: Clock) -> None:
    """What a stranger sends beyond that is not read."""
    with connect(clock.real) as sock:
        clock.keeper._accept(100.0)
        (stranger,) = clock.keeper._pending.values()
        hello = handshake.HELLO.pack(
            handshake.MAGIC, bytes.fromhex(SPEC.job_id), 0, 1, secrets.token_bytes(16)
        )
        sock.sendall(hello + bytes(1 << 16))
        clock.keeper._on_readable(stranger)
        assert len(sock.recv(1000)) == handshake.NONCE_BYTES + PROOF_BYTES
        clock.keeper._on_readable(stranger)
        assert not clock.keeper._pending and not clock.admitted.ranks
