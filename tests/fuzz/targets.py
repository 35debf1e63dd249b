"""Targets: frames, references, handshakes, answers of services, what ranks and launchers tell each other."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from serverless_mpi import metering
from serverless_mpi.aws import figures as files
from serverless_mpi.aws import retry
from serverless_mpi.aws.connection import AHEAD_BYTES, Answer, Connection, Lost
from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.limits import AWS
from serverless_mpi.aws.s3 import S3
from serverless_mpi.aws.sns import Sns
from serverless_mpi.aws.sqs import Sqs
from serverless_mpi.channels import direct, handshake, link, linker, routed
from serverless_mpi.channels.base import SCATTERED, Delivery, OutgoingFrame
from serverless_mpi.channels.cleanup import decode_report, encode_report
from serverless_mpi.channels.hybrid import HybridChannel
from serverless_mpi.channels.object import Store, side_by_side
from serverless_mpi.core import wire
from serverless_mpi.core.endpoint import Endpoint
from serverless_mpi.core.frames import FrameName
from serverless_mpi.core.tags import PROOF_BYTES, TAG_BYTES, Purpose, make
from serverless_mpi.deadlock import detect_deadlock
from serverless_mpi.env import ENV_JOB, ENV_KEY, ENV_RANK
from serverless_mpi.errors import (
    ChannelError,
    JobError,
    MPIException,
    ServerlessMPIError,
    UsageError,
    WireError,
)
from serverless_mpi.job import JobSpec
from serverless_mpi.launch import console
from serverless_mpi.launch.invocation import Invocation, Task
from serverless_mpi.launch.local import LocalLauncher
from serverless_mpi.metering import Meter
from serverless_mpi.stack import bucket
from tests.fuzz.run import Target

JOB, KEY = bytes(range(8)), bytes(range(32))
SETTINGS = {"bucket": "b", "queues": json.dumps(["q"] * 3), "topics": json.dumps(["t"])}
SPEC = JobSpec(JOB.hex(), 1, 3, "hybrid", KEY, "http://127.0.0.1:1", settings=SETTINGS)
REPORT = "a/000001/000002/000000"  # name of a report of rank 2 to rank 1
FAREWELL = bytes(range(TAG_BYTES))
HELD_BYTES = 1 << 20
_CREDENTIALS = Credentials(SPEC.endpoint)
LOOPS = 200  # an answer that asks for more requests, or for the rest of a list, ends by then


# --- frames ---------------------------------------------------------------------------------------


def _frame(kind: int, flags: int, dest: int, seq: int, body: bytes, **more: int) -> bytes:
    fields = {"tag": 5, "chunk": 0, "chunks": 1, "offset": 0, "total": len(body), **more}
    parts = wire.encode(
        kind, flags, 7, 2, dest, fields["tag"], seq, fields["chunk"], fields["chunks"],
        fields["offset"], fields["total"], (memoryview(body),), len(body), JOB, KEY,
    )  # fmt: skip
    return b"".join(parts)


def frames() -> list[bytes]:
    """Good frames of each kind, for rank 1."""
    point, ack, step = (int(kind) for kind in wire.Kind)
    return [
        _frame(point, 0, 1, 0, b"hello"),
        _frame(point, wire.FLAG_SYNC, 1, 0, b""),
        _frame(point, 0, 1, 0, b"x" * 300, chunk=1, chunks=3, offset=300, total=900),
        _frame(point, 0, 1, 3, bytes(20_000)),
        _frame(step, 0, -1, 2, b"step", tag=1),
        _frame(step, 0, 1, 2, b"dealt" * 40, tag=1),
        _frame(ack, 0, 1, 0, b""),
        _frame(point, wire.FLAG_GUARDED, 1, 0, b"guarded"),
    ]


def retag_frame(data: bytes) -> bytes:
    """The same header and body with the tag they should have."""
    if len(data) < wire.HEADER_BYTES:
        return data
    fields = wire._HEAD.unpack_from(data)
    kind, flags, context, source, dest, tag, seq, chunk, chunks, offset, total = (
        *fields[2:4], *fields[5:14],
    )  # fmt: skip
    body = memoryview(data)[wire.HEADER_BYTES :]
    return b"".join(
        wire.encode(
            kind, flags, context, source, dest, tag, seq, chunk, chunks, offset, total, (body,),
            body.nbytes, JOB, KEY,
        )
    )  # fmt: skip


def _decode(data: bytes) -> object:
    return wire.decode(memoryview(data), JOB, KEY)


def _receive(data: bytes) -> object:
    """An endpoint takes the frame twice, then what it waits for and what is posted."""
    endpoint = Endpoint(1, JOB, KEY, 1 << 20, HELD_BYTES)
    endpoint.post(7, 2, 5)
    endpoint.expect(7, 2, 2, 1)
    for _ in range(2):
        endpoint.receive(memoryview(bytearray(data)), 0.0)
    endpoint.wanted()
    endpoint.retire(7, 2)
    endpoint.receive(memoryview(bytearray(data)), 1.0)
    return endpoint.dropped


def _land(data: bytes) -> object:
    """A frame on a guarded medium, its body put where the endpoint says."""
    endpoint = Endpoint(1, JOB, KEY, 1 << 20, HELD_BYTES, guarded=True)
    into = bytearray(1000)
    endpoint.post(7, 2, 5, memoryview(into))
    head, body = data[: wire.HEADER_BYTES], data[wire.HEADER_BYTES :]
    if len(head) == wire.HEADER_BYTES:
        landing = endpoint.land(memoryview(head), len(body), 0.0)
        if landing is not None:
            landing.memory[:] = body
            endpoint.landed(landing)
    endpoint.receive(memoryview(bytearray(data)), 0.0)
    return endpoint.dropped


def _guarded_frames() -> list[bytes]:
    point = int(wire.Kind.POINT)
    return [
        _frame(point, wire.FLAG_GUARDED, 1, 0, b"guarded"),
        _frame(
            point, wire.FLAG_GUARDED, 1, 0, bytes(300), chunk=1, chunks=3, offset=300, total=900
        ),
        *frames(),
    ]


# --- references and dealt objects -----------------------------------------------------------------


class _Objects:
    """An S3 that holds one object under every key."""

    def __init__(self, body: bytes) -> None:
        self._body = memoryview(body)

    def get(
        self, key: str, start: int = 0, length: int | None = None, *words: Any, **more: Any
    ) -> tuple[memoryview, int] | None:
        part = self._body[start : None if length is None else start + length]
        return memoryview(bytearray(part)), self._body.nbytes


def _dealt() -> OutgoingFrame:
    name = FrameName(int(wire.Kind.STEP), 7, 2, SCATTERED, 2, 1, 0)
    own = tuple((memoryview(_frame(2, 0, dest, 2, b"d" * 50, tag=1)),) for dest in range(3))
    return OutgoingFrame((0, 1, 2), name, (), own)


def _objects() -> list[bytes]:
    return [b"".join(side_by_side(_dealt()))]


def _get_dealt(data: bytes) -> object:
    return _CACHE.store(data).get_scattered("key", 1)


class _Cache:
    """Channels, which are costly to make, with the input as their objects."""

    def __init__(self) -> None:
        self._channel: HybridChannel | None = None

    def store(self, body: bytes) -> Store:
        store = self.channel()._store
        store._s3 = _Objects(body)  # type: ignore[assignment]
        return store

    def channel(self) -> HybridChannel:
        if self._channel is None:
            self._channel = HybridChannel(SPEC, Meter())
            self.store(bytes(500))
        return self._channel


_CACHE = _Cache()


def _references() -> list[bytes]:
    from serverless_mpi.channels.hybrid import reference

    plain = OutgoingFrame((1,), FrameName(0, 7, 2, 1, 0, 5, 0), (memoryview(b"frame"),))
    return [
        retag_reference(magic + bytes(16) + text)
        for magic, text in map(reference, (plain, _dealt()))
    ]


def retag_reference(data: bytes) -> bytes:
    """The same reference with the tag it should have."""
    magic, text = data[:2], data[18:]
    return magic + make(KEY, Purpose.REFERENCE, magic + text) + text


def _resolve(data: bytes) -> object:
    return _CACHE.channel()._resolve(Delivery(memoryview(data), "handle"))


# --- streams and handshakes -----------------------------------------------------------------------


class _Stream:
    """A socket that has the input to read, in pieces, and takes whatever is written."""

    family = 0  # neither Unix nor TCP: no credentials to ask for

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._place = 0
        self.written = b""

    def recv_into(self, into: Any) -> int:
        size = len(memoryview(into).cast("B")) if not isinstance(into, memoryview) else into.nbytes
        part = self._data[self._place : self._place + min(size, 1000)]
        into[: part.nbytes] = part
        self._place += part.nbytes
        return part.nbytes

    def recv(self, size: int) -> bytes:
        part = bytes(self._data[self._place : self._place + size])
        self._place += len(part)
        return part

    def send(self, data: bytes) -> int:
        self.written += data
        return len(data)

    def sendall(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        pass


def _streams() -> list[bytes]:
    one, two, *_ = frames()
    pack = direct.LENGTH.pack
    goodbye = pack(direct.GOODBYE) + FAREWELL
    long = _frame(0, 0, 1, 0, bytes(70_000))
    return [
        pack(len(one)) + one + pack(len(two)) + two + goodbye,
        pack(len(one)) + one,
        pack(len(long)) + long + goodbye,
    ]


def _read_stream(data: bytes) -> object:
    incoming = direct._Incoming(_Stream(data), 2, FAREWELL)  # type: ignore[arg-type]
    inbox: deque[Delivery] = deque()
    for _ in range(LOOPS):
        if not incoming.read(inbox, None):
            return len(inbox)
    raise AssertionError("a stream at its end is read again and again")


class _NoSelector:
    def unregister(self, sock: object) -> None:
        pass


def _hellos() -> list[bytes]:
    hello = handshake.HELLO.pack(handshake.MAGIC, JOB, 2, 1, bytes(16))
    return [hello + bytes(PROOF_BYTES)]


def _accept(data: bytes) -> object:
    """The acceptor's side: HELLO, then the proof."""
    keeper = handshake.Acceptor.__new__(handshake.Acceptor)
    admitted: list[int] = []
    stranger = handshake._PendingConnection(_Stream(data), 0.0)  # type: ignore[arg-type]
    keeper._spec, keeper._admit = SPEC, lambda sock, rank, farewell: admitted.append(rank)
    keeper._selector = _NoSelector()  # type: ignore[assignment]
    keeper._pending = {stranger.sock: stranger}
    for _ in range(LOOPS):
        if stranger.sock not in keeper._pending:
            return admitted
        keeper._on_readable(stranger)
    raise AssertionError("a stranger that says nothing more is heard again and again")


def _introduce(data: bytes) -> object:
    """The connector's side: the acceptor's nonce and proof."""
    stream = _Stream(data)
    if data[:1] == b"\1":  # a right proof, cut or extended like the input

        def send(hello: bytes) -> int:
            nonce = data[1:17].ljust(16)
            proof = make(KEY, Purpose.ACCEPT, hello + nonce, PROOF_BYTES)
            stream._data = memoryview(nonce + proof + data[49:])[: len(data)]
            return len(hello)

        stream.send = send  # type: ignore[method-assign]
    handshake.authenticate(stream, SPEC, 2, lambda: None)  # type: ignore[arg-type]
    return True


# --- links ----------------------------------------------------------------------------------------


def _records(form: link.Records) -> bytes:
    """A stream of every kind of record."""
    long = bytes(link.RECORD_BYTES + 1)
    pieces: list[bytes | memoryview] = []
    for kind, payload in (
        (link.FRAME, b"a frame"),
        (link.BEGIN, link.COUNT.pack(len(long))),
        (link.MORE, long[: link.RECORD_BYTES]),
        (link.MORE, long[link.RECORD_BYTES :]),
        (link.ACK, link.COUNT.pack(0)),
        (link.GOODBYE, b""),
    ):
        pieces += form.write(kind, (payload,), len(payload))
    return b"".join(pieces)


def _read_link(form: link.Records, data: bytes) -> object:
    frames: list[Delivery] = []
    end = link.Link(_Stream(data), 2, form, 1 << 20, retains=True)  # type: ignore[arg-type]
    for _ in range(LOOPS):
        if not end.read(frames.append):
            return len(frames)
    raise AssertionError("a link at its end is read again and again")


def _shake_hands(data: bytes) -> object:
    """The side that was connected: HELLO, then the proof."""
    side, start = linker.Handshake(SPEC, None), 0
    while side.needed and start < len(data):
        piece = data[start : start + side.needed]
        start += len(piece)
        if side.feed(piece) is None:
            return None
    return side.needed


# --- HTTP and the services ------------------------------------------------------------------------


def _answers() -> list[bytes]:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    return [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx-amz-request-id: 1\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 206 Partial\r\nContent-Range: bytes 0-4/90\r\n"
        b"Content-Length: 5\r\nConnection: close\r\n\r\nhello",
        chunked,
        b"HTTP/1.0 503 Slow Down\r\n\r\n<Error><Code>SlowDown</Code></Error>",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ]


def _connection(data: bytes) -> Connection:
    connection = Connection.__new__(Connection)
    connection._sock = _Stream(data)  # type: ignore[assignment]
    connection._timeout_s = connection._longest_s = 1.0
    connection._ahead = bytearray(AHEAD_BYTES)
    connection._view = memoryview(connection._ahead)
    connection._have = 0
    connection.used, connection.reusable = False, True
    return connection


def _exchange(data: bytes) -> object:
    into: Any = (None, memoryview(bytearray(64)), lambda headers: memoryview(bytearray(64)))[
        len(data) % 3
    ]
    connection = _connection(data)
    answer = connection.exchange(b"GET / HTTP/1.1\r\n\r\n", (), "GET", into)
    return retry.event_of(answer)


class _Client(Client):
    """Answers each request of a service by the input: its first line has status and headers, the rest is the body.

    Pauses take no time, and are as long as they may be.
    """

    def __init__(self, service: str, data: bytes) -> None:
        passed = [0.0]

        def sleep(seconds: float) -> None:
            passed[0] += seconds

        super().__init__(
            service, "us-east-1", SPEC.endpoint, _CREDENTIALS, Meter(), sleep,
            lambda low, high: high, lambda: passed[0],
        )  # fmt: skip
        head, _, body = data.partition(b"\n")
        status, _, headers = head.decode("latin-1").partition(" ")
        self._status = int(status) if len(status) == 3 and status.isdecimal() else 200
        self._headers = {
            name: value for name, _, value in (pair.partition("=") for pair in headers.split(" "))
        }
        self._body = body
        self._requests = 0

    def request(self, action: str, *words: Any, into: Any = None, **more: Any) -> Answer:
        self._requests += 1
        if self._requests > LOOPS:
            raise AssertionError("requests without end")
        if callable(into):
            into(self._headers)
        return Answer(self._status, memoryview(bytearray(self._body)), self._headers)


def _received() -> list[bytes]:
    frame = base64.b64encode(frames()[0]).decode()
    messages = [
        {
            "MessageId": "1", "ReceiptHandle": "handle", "Body": ".", "MD5OfBody": "x",
            "MessageAttributes": {"f": {"DataType": "Binary", "BinaryValue": frame}},
        },
        {"ReceiptHandle": "other", "Body": "."},
    ]  # fmt: skip
    error = json.dumps({"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "none"})
    return [
        b"200 x-prompt-long-poll=1\n" + json.dumps({"Messages": messages}).encode(),
        b"200 \n{}",
        b"200 \n",
        b"400 \n" + error.encode(),
    ]


def _sent() -> list[bytes]:
    failed = {"Id": "1", "SenderFault": False, "Code": "InternalError", "Message": "m"}
    return [
        b"200 \n"
        + json.dumps({"Successful": [{"Id": "0", "MessageId": "1"}], "Failed": [failed]}).encode(),
        b"200 \n" + json.dumps({"Successful": [{"Id": "0"}]}).encode(),
        b"200 \n" + json.dumps({"Failed": [{**failed, "SenderFault": True}]}).encode(),
    ]


def _sqs(call: Callable[[Sqs], object]) -> Callable[[bytes], object]:
    return lambda data: call(Sqs(_Client("sqs", data)))


def _published() -> list[bytes]:
    member = "<member><Id>{}</Id><Code>InternalError</Code><SenderFault>{}</SenderFault></member>"
    failed = f"<Failed>{member.format(1, 'false')}</Failed>"
    blamed = f"<Failed>{member.format(0, 'true')}</Failed>"
    good = "<Successful><member><Id>0</Id><MessageId>m</MessageId></member></Successful>"
    page = "200 \n<PublishBatchResponse><PublishBatchResult>{}</PublishBatchResult></PublishBatchResponse>"
    return [
        *(page.format(text).encode() for text in (good + failed, good, blamed)),
        b"403 \n<ErrorResponse><Error><Code>AuthorizationError</Code><Message>no</Message></Error></ErrorResponse>",
    ]


def _publish(data: bytes) -> object:
    Sns(_Client("sns", data)).publish("topic", [(b"frame", [0, 1]), (b"other", [1])])
    return True


def _s3_answers() -> list[bytes]:
    key = "<Contents><Key>r/000001/a&amp;b</Key></Contents>"
    return [
        f"200 \n<ListBucketResult>{key * 3}</ListBucketResult>".encode(),
        b"206 content-range=bytes/90 content-length=5 etag=e\nhello",
        b"200 content-length=5 etag=e\n<R><UploadId>u</UploadId></R>",
        b"200 etag=e\n<DeleteResult><Error><Key>k</Key><Code>InternalError</Code></Error></DeleteResult>",
        b"404 \n<Error><Code>NoSuchKey</Code></Error>",
        b"416 \n<Error><Code>InvalidRange</Code></Error>",
        b"412 \n",
        b"409 \n",
        b"301 x-amz-bucket-region=eu-west-1\n<Error><Code>PermanentRedirect</Code></Error>",
    ]


def _s3(data: bytes) -> object:
    """Every call of S3 that reads an answer; each may refuse."""
    refusal: ChannelError | None = None
    calls: Sequence[Callable[[S3], object]] = (
        lambda s3: s3.list("r/"),
        lambda s3: s3.get("key", 0, 100, lambda size: memoryview(bytearray(min(size, 1000)))),
        lambda s3: s3.create("key", b"body"),
        lambda s3: s3.delete(["a", "b"]),
        lambda s3: s3.put_multipart("key", [[memoryview(b"1")]], lambda call, items: list(map(call, items))),
    )  # fmt: skip
    for call in calls:
        try:
            call(S3(_Client("s3", data), "bucket"))
        except ChannelError as error:
            refusal = error
    if refusal is not None:
        raise refusal
    return True


# --- jobs -----------------------------------------------------------------------------------------


def _words() -> list[bytes]:
    words = (
        console.ConsoleMessage(1, 0, console.UP, facts={"cold": True, "init_s": 0.2}),
        console.ConsoleMessage(1, 1, console.OUT, b"hello\n"),
        console.ConsoleMessage(1, -1, console.END, facts={"code": 1, "reason": "killed"}),
    )
    return [console.encode(word, JOB.hex(), KEY) for word in words]


def _retag_word(data: bytes) -> bytes:
    return make(KEY, Purpose.CONSOLE, data[TAG_BYTES:]) + data[TAG_BYTES:]


def _hear(data: bytes) -> object:
    word = console.decode(data, JOB.hex(), KEY)
    return None if word is None else list(console.InOrderReader().push(word))


def _stops() -> list[bytes]:
    return [bucket.stop_message(JOB.hex(), KEY, "rank 1 ended with exit code 1")]


def _reports() -> list[bytes]:
    return [
        encode_report(
            REPORT, ["m/0000000000000007/2/000000000003/000001.000000.000000", "m/y"], KEY
        )
    ]


def _decode_report(data: bytes) -> object:
    return decode_report(REPORT, memoryview(data), KEY)


def _environment() -> list[bytes]:
    good = SPEC.with_rank(1).to_env()
    return [
        json.dumps([good[name] for name in (ENV_JOB, ENV_RANK, ENV_KEY)]).encode(),
        good[ENV_JOB].encode(),
    ]


def _from_env(data: bytes) -> object:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = None
    if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
        values = [data.decode(errors="replace"), "1", KEY.hex()]
    values += [""] * 3
    return JobSpec.from_env(dict(zip((ENV_JOB, ENV_RANK, ENV_KEY), values)))


def _events() -> list[bytes]:
    order = Invocation(
        SPEC, (Task("script", ("a.py", "x"), 3, bucket.zip_key(b"zip")),), "function", 2, "queue"
    )
    return [order.to_event()]


def _from_event(data: bytes) -> object:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):  # the platform refuses it
        return None
    if not isinstance(event, dict):
        return None
    invocation = Invocation.from_event(event)
    return [invocation.task(rank) for rank in invocation.ranks]


_FOLDER = Path(
    tempfile.mkdtemp(prefix="smpi-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)


def _waits() -> list[bytes]:
    record = {
        "at": 90.0,
        "since": 1.0,
        "waits": ["Comm.recv(source=0) at p.py:3"],
        "awaited": ["a message"],
    }
    return [json.dumps(record).encode()]


def _verdict(data: bytes) -> object:
    (_FOLDER / "waits-0.json").write_bytes(data)
    return detect_deadlock(_FOLDER, [0], 10.0)


def _stats() -> list[bytes]:
    meter = Meter()
    meter.count("sqs", "SendMessageBatch", nbytes=1000, messages=2)
    record = {"rank": 0, "seconds": 1.5, "meter": meter.snapshot(), "dropped": 0, "duplicates": 1,
              "collectives": [["bcast", "binomial", 3, 100, 1]]}  # fmt: skip
    return [json.dumps(record).encode()]


_PRICES = metering.Prices.load()


def _report(data: bytes) -> object:
    """The launcher's end: the counters of ranks, summed and printed."""
    folder = _FOLDER / "stats"
    folder.mkdir(exist_ok=True)
    (folder / "rank-0.json").write_bytes(data)
    (folder / "rank-1.json").write_bytes(_stats()[0])
    for stats in ("json", "text"):
        plan: Any = SimpleNamespace(
            explain=False,
            stats=stats,
            region=_PRICES.region,
            channel="queue",
            size=2,
            trace=None,
            profile=None,
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            LocalLauncher._report(plan, folder, _PRICES, None)
    return True


def _prices() -> list[bytes]:
    return [(Path(metering.__file__).parent / "prices.json").read_bytes()]


def _load_prices(data: bytes) -> object:
    path = _FOLDER / "prices.json"
    path.write_bytes(data)
    return metering.Prices.load(path)


_PROFILE = b"[default]\naws_access_key_id = A\naws_secret_access_key = S\nregion = eu-west-1\n[profile x]\nrole_arn = r\nsource_profile = default\n[services s]\nsqs =\n  endpoint_url = http://127.0.0.1:1\n"


def _config(data: bytes) -> object:
    """The user's configuration files of AWS."""
    from serverless_mpi.aws.config import Config
    from serverless_mpi.aws.credentials import Credentials

    path = _FOLDER / "config"
    path.write_bytes(data)
    environ = {
        "AWS_CONFIG_FILE": str(path), "AWS_SHARED_CREDENTIALS_FILE": str(path),
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    config = Config(environ)
    config.region()
    config.endpoint("sqs", "us-east-1")
    if b"credential_process" in data or b"role" in data:  # these ask others
        return None
    return Credentials(None, environ).get()


_JSON = (
    b"null", b"true", b"[]", b"{}", b'""', b"-1", b"1e308", b'"\\ud800"', b'{"a":' * 500, b"[" * 100_000,
)  # fmt: skip
_LENGTHS = tuple(struct.pack("<Q", 1 << bits) for bits in (16, 24, 31, 33, 36, 48, 63))

TARGETS = (
    Target("frame", frames, _decode, (WireError,), retag_frame),
    Target("endpoint", frames, _receive, (MPIException,), retag_frame, bytes_constant=3 * HELD_BYTES),
    Target("landing", _guarded_frames, _land, (MPIException,), retag_frame, bytes_constant=3 * HELD_BYTES),
    Target("reference", _references, _resolve, (ChannelError,), retag_reference),
    Target("table", _objects, _get_dealt, (ChannelError,), words=_LENGTHS),
    Target(
        "stream", _streams, _read_stream, words=(*_LENGTHS, struct.pack("<Q", direct.GOODBYE)),
        bytes_constant=direct.MAX_FRAME_BYTES + (2 << 20),
    ),
    Target("hello", _hellos, _accept),
    Target("proof", lambda: [b"\1" + bytes(47)], _introduce, (ChannelError, OSError)),
    Target(
        "link", lambda: [_records(link.PlainRecords())],
        lambda data: _read_link(link.PlainRecords(), data), words=_LENGTHS, bytes_constant=3 << 20,
    ),
    Target(
        "sealed link", lambda: [_records(link.SealedRecords(KEY, KEY))],
        lambda data: _read_link(link.SealedRecords(KEY, KEY), data), bytes_constant=3 << 20,
    ),
    Target(
        "link hello", lambda: [linker.HELLO.pack(linker.MAGIC, JOB, 2, 1, bytes(16)) + bytes(PROOF_BYTES)],
        _shake_hands,
    ),
    Target(
        "link offer", lambda: [routed.seal_offer(KEY, 2, 1, 1, ("10.0.0.1", 4000))],
        lambda data: routed.open_offer(memoryview(data), KEY, 1),
    ),
    Target(
        "figures", lambda: [files.to_json(AWS).encode()],
        lambda data: files.from_json(data.decode(errors="replace"), "x"), (UsageError,), words=_JSON, bytes_per_byte=20,
    ),
    Target(
        "http", _answers, _exchange, (Lost,),
        words=(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1 ", b"0\r\n\r\n"),
    ),
    Target("sqs receive", _received, _sqs(lambda sqs: sqs.receive("queue", 0)), (ChannelError,), words=_JSON, bytes_per_byte=20),
    Target("sqs send", _sent, _sqs(lambda sqs: sqs.send("queue", [b"a", b"b"])), (ChannelError,), words=_JSON, bytes_per_byte=20),
    Target("sqs delete", _sent, _sqs(lambda sqs: sqs.delete("queue", ["a", "b"])), (ChannelError,), words=_JSON, bytes_per_byte=20),
    Target("sns", _published, _publish, (ChannelError,), words=(b"<Failed>", b"</Failed>", b"<member>", b"&#0;", b"&#xd800;"), bytes_per_byte=20),
    Target("s3", _s3_answers, _s3, (ChannelError,), words=(b"<Key>", b"</Key>", b"<UploadId>", b"&#xd800;", b"&#99999999;"), bytes_per_byte=20),
    Target("console", _words, _hear, (ServerlessMPIError,), _retag_word, words=_JSON, bytes_per_byte=20),
    Target("stop", _stops, lambda data: bucket.stop_reason(data, JOB.hex(), KEY), words=_JSON, bytes_per_byte=20),
    Target("read report", _reports, _decode_report),
    Target("environment", _environment, _from_env, (JobError,), words=_JSON, bytes_per_byte=20),
    Target("order", _events, _from_event, (JobError,), words=_JSON, bytes_per_byte=20),
    Target("waits", _waits, _verdict, words=_JSON, bytes_per_byte=20),
    Target("stats", _stats, _report, words=_JSON, bytes_per_byte=20),
    Target("prices", _prices, _load_prices, (UsageError,), words=_JSON, bytes_per_byte=20),
    Target("aws files", lambda: [_PROFILE], _config, (UsageError,), words=(b"[", b"=", b"%(x)s", b"\n  "), bytes_per_byte=20),
)  # fmt: skip
