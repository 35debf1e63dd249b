"""direct: who is let in, what a lost or finished peer looks like, and where a long body goes."""

from __future__ import annotations

import secrets
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverless_mpi.channels import handshake
from serverless_mpi.channels.base import Delivery, FrameName, OutgoingFrame
from serverless_mpi.channels.direct import (
    GOODBYE,
    LENGTH,
    MAX_FRAME_BYTES,
    DirectChannel,
    _Incoming,
)
from serverless_mpi.channels.sealing import Sealer
from serverless_mpi.core.tags import PROOF_BYTES, TAG_BYTES
from serverless_mpi.errors import ChannelError
from serverless_mpi.job import JobSpec
from serverless_mpi.metering import Meter
from serverless_mpi.runtime import Runtime

GIVE_UP_S = 30.0  # only reached by a failure
SETTINGS = settings(derandomize=True, deadline=None, max_examples=200)
Make = Callable[..., list[DirectChannel]]


@pytest.fixture
def job() -> Iterator[Make]:
    made: list[DirectChannel] = []

    def make(size: int = 2, **settings: str) -> list[DirectChannel]:
        spec = JobSpec.new(size, "direct", settings=settings)
        spec = replace(spec, settings=DirectChannel.provision(spec))
        made.extend(DirectChannel(spec.with_rank(rank), Meter()) for rank in range(size))
        return made

    yield make
    for channel in made:
        channel.close()


def frame(body: bytes, dest: int = 1, seq: int = 0) -> OutgoingFrame:
    return OutgoingFrame((dest,), FrameName(0, 7, 0, dest, seq, 0, 0), (memoryview(body),))


def connect(address: str | tuple[str, int]) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.settimeout(GIVE_UP_S)
    sock.connect(address)
    return sock


def hears_nothing(sock: socket.socket) -> bool:
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        return True


def test_what_goes_by_tcp_is_encrypted(job: Make) -> None:
    a, b = job(host="127.0.0.1")
    written: list[bytes] = []
    a.put([frame(b"first")])  # connects
    sock = a._outgoing[1]

    class Tapped:
        fileno = sock.fileno
        close = sock.close

        def sendmsg(self, views: list[memoryview]) -> int:
            written.extend(map(bytes, views))
            return sock.sendmsg(views)

    a._outgoing[1] = Tapped()  # type: ignore[assignment]
    bodies = [b"a short secret", b"a long secret " * 20_000]
    for body in bodies:
        a.put([frame(body)])
    got: list[bytes] = []
    while len(got) < 3:
        got += [bytes(one.data) for one in b.get(GIVE_UP_S, list)]
    assert got == [b"first", *bodies]
    assert len(b"".join(written)) > sum(map(len, bodies)) and b"secret" not in b"".join(written)


def test_a_record_that_was_changed_in_transit_is_not_delivered(job: Make) -> None:
    _, b = job(host="127.0.0.1")
    peer = Proven(b)
    with peer.sock:
        peer.send(LENGTH.pack(4) + b"true")
        assert [bytes(one.data) for one in b.get(GIVE_UP_S, list)] == [b"true"]
        header, payload = peer._sealer.seal([memoryview(LENGTH.pack(4) + b"evil")])
        changed = bytearray(payload)
        changed[9] ^= 1
        peer.sock.sendall(bytes(header) + changed)
        with pytest.raises(ChannelError, match="rank 0 vanished: .* damaged or changed in transit"):
            b.get(GIVE_UP_S, list)


def test_without_the_package_for_encryption_nothing_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serverless_mpi.channels.link.CAN_SEAL", False)
    with pytest.raises(ChannelError, match="--host needs the package cryptography"):
        DirectChannel.provision(JobSpec.new(1, "direct", settings={"host": "127.0.0.1"}))


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
def test_strangers_are_dropped(job: Make, host: str | None) -> None:
    a, b = job(**({} if host is None else {"host": host}))
    address = b._addresses[1]
    spec = a.spec
    for hello in (
        b"GET / HTTP/1.1\r\nHost: somebody else's\r\n\r\n",
        handshake.HELLO.pack(
            handshake.MAGIC, secrets.token_bytes(8), 0, 1, bytes(16)
        ),  # another job
        handshake.HELLO.pack(
            handshake.MAGIC, bytes.fromhex(spec.job_id), 0, 0, bytes(16)
        ),  # for another rank
        handshake.HELLO.pack(
            handshake.MAGIC, bytes.fromhex(spec.job_id), 9, 1, bytes(16)
        ),  # from no rank
    ):
        with connect(address) as sock:
            sock.sendall(hello)
            assert hears_nothing(sock)
    with connect(address) as sock:  # knows everything but the key, and sends a frame at once
        sock.sendall(
            handshake.HELLO.pack(handshake.MAGIC, bytes.fromhex(spec.job_id), 0, 1, bytes(16))
        )
        assert len(sock.recv(100)) == handshake.NONCE_BYTES + PROOF_BYTES
        sock.sendall(bytes(PROOF_BYTES) + LENGTH.pack(4) + b"evil")
        assert hears_nothing(sock)
    a.put([frame(b"honest")])
    assert [bytes(one.data) for one in b.get(GIVE_UP_S, list)] == [b"honest"]


def test_another_users_process_is_not_let_in(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = job()
    monkeypatch.setattr(handshake.os, "geteuid", lambda: 12345)
    with connect(b._addresses[1]) as sock:
        assert hears_nothing(sock)
    with pytest.raises(ChannelError, match="rank 1 is another user's"):
        a.put([frame(b"x")])


def test_whoever_answers_must_know_the_key(job: Make) -> None:
    a, _ = job()
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind("")
        impostor.listen()
        a._addresses[1] = "\0" + impostor.getsockname()[1:].decode()

        def answer() -> None:
            sock, _ = impostor.accept()
            with sock:
                sock.recv(handshake.HELLO.size)
                sock.sendall(bytes(handshake.NONCE_BYTES + PROOF_BYTES))
                sock.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ChannelError, match="does not know the key"):
            a.put([frame(b"secret")])
        thread.join(GIVE_UP_S)


def test_a_peer_that_vanishes_is_named_and_one_that_ends_is_not(job: Make) -> None:
    a, b, c = job(3)
    a.put([frame(b"x", 1), frame(b"y", 2)])
    b.get(GIVE_UP_S, list)
    c.get(GIVE_UP_S, list)
    a._outgoing[1].close()
    with pytest.raises(ChannelError, match="rank 0 vanished: its connection to rank 1 broke"):
        b.get(GIVE_UP_S, list)
    del a._outgoing[1]
    a.close()
    assert c.get(0.0, list) == [] and c.get(0.0, list) == []
    c.put([frame(b"late", 0)])  # discarded: a send may outlast the rank that does not receive it


def test_an_address_that_is_not_here() -> None:
    with pytest.raises(
        ChannelError, match="cannot listen on 203.0.113.1: .*--host takes an address"
    ):
        DirectChannel.provision(JobSpec.new(1, "direct", settings={"host": "203.0.113.1"}))


@pytest.mark.parametrize("nbytes", [10, 100_000, 40 << 20])
def test_a_body_is_received_into_the_users_array(nbytes: int) -> None:
    spec = JobSpec.new(2, "direct")
    spec = replace(spec, settings=DirectChannel.provision(spec))
    a, b = (Runtime(spec.with_rank(rank)) for rank in range(2))
    data = secrets.token_bytes(1 << 10) * (nbytes >> 10) or secrets.token_bytes(nbytes)
    into = memoryview(bytearray(len(data)))
    landed: list[object] = []
    land = b._channel.land
    assert land is not None
    b._channel.land = lambda head, length: landed.append(land(head, length)) or landed[-1]  # type: ignore[func-returns-value]
    receive = b.irecv(9, 0, 4, into)
    sender = threading.Thread(target=lambda: a.wait([a.isend(9, 1, 4, [memoryview(data)])]))
    sender.start()
    assert b.wait([receive], timeout=GIVE_UP_S)
    sender.join(GIVE_UP_S)
    assert receive.landed and into == data
    frames = -(-nbytes // ((16 << 20) - 80)) if nbytes > 65536 else 0
    assert len(landed) == frames
    assert all(one is not None and one.memory.obj is into.obj for one in landed)  # type: ignore[attr-defined]
    finals = [threading.Thread(target=runtime.finalize) for runtime in (a, b)]
    for thread in finals:
        thread.start()
    for thread in finals:
        thread.join(GIVE_UP_S)


class Proven:
    """A connection by TCP to `channel` that rank 0 has proven."""

    def __init__(self, channel: DirectChannel) -> None:
        self.sock = connect(channel._addresses[channel.spec.rank])
        spec = channel.spec.with_rank(0)
        secrets = handshake.authenticate(self.sock, spec, channel.spec.rank, lambda: None)
        self.farewell = secrets.farewell
        self._sealer = Sealer(secrets.key)

    def send(self, data: bytes) -> None:
        self.sock.sendall(b"".join(self._sealer.seal([memoryview(data)])))


@pytest.mark.parametrize("nbytes", [MAX_FRAME_BYTES + 1, 1 << 33, 1 << 36, 1 << 63, GOODBYE - 1])
def test_a_length_that_no_rank_sends_breaks_the_connection(job: Make, nbytes: int) -> None:
    _, b = job(host="127.0.0.1")
    peer = Proven(b)
    with peer.sock:
        peer.send(LENGTH.pack(4) + b"true" + LENGTH.pack(nbytes) + bytes(100))
        assert [bytes(one.data) for one in b.get(GIVE_UP_S, list)] == [b"true"]
        tracemalloc.start()
        try:
            with pytest.raises(
                ChannelError, match=f"rank 0 vanished: .* rank 1 announced .* {nbytes} bytes"
            ):
                b.get(GIVE_UP_S, list)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


def test_only_the_rank_itself_says_goodbye(job: Make) -> None:
    _, b = job(host="127.0.0.1")
    peer, other = Proven(b), Proven(b)
    with peer.sock, other.sock:
        peer.send(LENGTH.pack(4) + b"true" + LENGTH.pack(GOODBYE) + peer.farewell[:5])
        assert [bytes(one.data) for one in b.get(GIVE_UP_S, list)] == [b"true"]
        peer.send(peer.farewell[5:])
        while not b._ended:
            assert b.get(0.01, list) == []
        assert hears_nothing(peer.sock)  # b has closed it
        assert b._ended == {0} and not b._lost
        other.send(LENGTH.pack(GOODBYE) + peer.farewell)  # another connection's
        with pytest.raises(ChannelError, match="rank 0 .* carried a goodbye that the rank did not"):
            b.get(GIVE_UP_S, list)


@SETTINGS
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=300),
            st.builds(LENGTH.pack, st.one_of(st.integers(0, 300), st.integers(0, GOODBYE))),
            st.just(LENGTH.pack(GOODBYE) + bytes(TAG_BYTES)),
        ),
        max_size=6,
    )
)
def test_any_bytes_are_frames_or_break_the_connection(pieces: list[bytes]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    inbox: list[Delivery] = []
    with ours, theirs:
        ours.setblocking(False)
        incoming = _Incoming(ours, 0, bytes(TAG_BYTES))
        open_yet = True
        for piece in pieces:
            theirs.sendall(piece)
            open_yet = open_yet and incoming.read(inbox, None)
    data = b"".join(pieces)
    for delivery in inbox:
        (nbytes,) = LENGTH.unpack_from(data)
        assert delivery.data == data[LENGTH.size : LENGTH.size + nbytes]
        data = data[LENGTH.size + nbytes :]
    if not open_yet:
        (nbytes,) = LENGTH.unpack_from(data)
        assert nbytes > MAX_FRAME_BYTES and incoming.ended == (
            data.startswith(LENGTH.pack(GOODBYE) + bytes(TAG_BYTES))
        )
