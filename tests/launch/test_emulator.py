"""The embedded emulator serves only the launcher and the ranks of its job."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials
from uvicorn.server import ServerState

from serverless_mpi.aws import control
from serverless_mpi.aws.credentials import DUMMY, Credentials, emulator_keys
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.s3 import S3
from serverless_mpi.aws.sigv4 import Keys, Signer, canonical_query
from serverless_mpi.aws.sqs import Sqs
from serverless_mpi.errors import JobError
from serverless_mpi.launch import emulator as emulator_module
from serverless_mpi.launch import server
from serverless_mpi.launch.emulator import Emulator
from serverless_mpi.launch.server import SKEW_S, UNPROVEN_S, Refusal, UnprovenConnections, Verifier
from serverless_mpi.metering import Meter
from tests.harness import GIVE_UP_S, smpirun

KEYS = emulator_keys(bytes(range(32)))
REGION = "us-east-1"
NOW = 1_800_000_000.0
FUNCTION = b'{"FunctionName":"f","Runtime":"python3.12","Handler":"a.b","Role":"r","Code":{}}'
# (method, path, headers, body) of what another user or a web page would like to do
WISHES: list[tuple[str, str, dict[str, str], bytes]] = [
    ("POST", "/2015-03-31/functions", {"content-type": "text/plain"}, FUNCTION),
    ("POST", "/", {"x-amz-target": "AmazonSQS.ListQueues"}, b"{}"),
    ("GET", "/?Action=ListQueues&Version=2012-11-05", {}, b""),
    ("POST", "/", {"x-amz-target": "AmazonSQS.SendMessage"}, b'{"QueueUrl":"q","MessageBody":"x"}'),
    ("GET", "/bucket/object", {}, b""),
    ("PUT", "/bucket", {}, b""),
    ("POST", "/_ministack/reset", {}, b""),
    ("GET", "/_ministack/sqs/messages", {}, b""),
    ("GET", "/_ministack/health", {}, b""),
]
# headers that a browser adds by itself, and no page can take away
BROWSER: list[dict[str, str]] = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"host": "evil.example"},
    {"host": "localhost:80"},
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with Emulator(tmp_path_factory.mktemp("guarded"), keys=KEYS) as emulator:
        yield emulator


def ask(
    url: str, method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of the answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.putrequest(method, path, skip_host="host" in headers)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, named, answer.read()
    finally:
        connection.close()


def signed(
    url: str,
    method: str = "GET",
    path: str = "/bucket/object",
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    keys: Keys = KEYS,
    service: str = "s3",
    region: str = REGION,
) -> dict[str, str]:
    """Headers with a good signature."""
    path, _, query = path.partition("?")
    pairs = dict(pair.split("=") for pair in query.split("&")) if query else {}
    return Signer(service, region).headers(
        keys, method, urlsplit(url).netloc, path, pairs, headers or {}, sha256(body).hexdigest()
    )


@pytest.mark.parametrize("wish", WISHES, ids=lambda wish: wish[1])
def test_an_unsigned_request_is_refused(
    running: Emulator, wish: tuple[str, str, dict[str, str], bytes]
) -> None:
    method, path, headers, body = wish
    assert ask(running.url, method, path, headers, body)[0] == 403
    # the keys that any emulator takes, and the right ones of another job
    for keys in (DUMMY, emulator_keys(bytes(32))):
        more = signed(running.url, method, path, headers, body, keys)
        assert ask(running.url, method, path, more, body)[0] == 403


@pytest.mark.parametrize("wish", WISHES, ids=lambda wish: wish[1])
@pytest.mark.parametrize("browser", BROWSER, ids=lambda browser: "-".join(*browser.items()))
def test_a_web_page_is_refused_even_with_a_signature(
    running: Emulator, browser: dict[str, str], wish: tuple[str, str, dict[str, str], bytes]
) -> None:
    method, path, headers, body = wish
    more = {**signed(running.url, method, path, headers, body), **browser}
    status, named, _ = ask(running.url, method, path, more, body)
    assert status == 403 and not any(name.startswith("access-control") for name in named)


def test_a_preflight_is_refused(running: Emulator) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "PUT"}
    status, named, _ = ask(running.url, "OPTIONS", "/bucket/object", headers)
    assert status == 403 and not any(name.startswith("access-control") for name in named)


def test_a_web_page_is_refused_where_no_signature_is_required(ministack_endpoint: str) -> None:
    for browser in BROWSER:
        assert ask(ministack_endpoint, "GET", "/bucket/object", dict(browser))[0] == 403
    assert ask(ministack_endpoint, "POST", "/_ministack/reset", {})[0] == 403


def test_only_the_services_of_the_job_are_there(running: Emulator, ministack_endpoint: str) -> None:
    path = "/2015-03-31/functions"
    headers = signed(running.url, "POST", path, {}, FUNCTION, service="lambda")
    status, _, text = ask(running.url, "POST", path, headers, FUNCTION)
    assert status == 403 and b"service" in text
    # without a check of signatures the emulator itself has no such service
    headers = signed(ministack_endpoint, "POST", path, {}, FUNCTION, DUMMY, "lambda")
    assert ask(ministack_endpoint, "POST", path, headers, FUNCTION)[0] >= 400


def test_the_emulators_own_paths_are_closed_to_the_job_as_well(running: Emulator) -> None:
    for path in ("/_ministack/reset", "/_ministack/health", "/%5Fministack/reset"):
        for method in ("GET", "POST"):
            status, _, text = ask(running.url, method, path, signed(running.url, method, path))
            assert status == 403 and b"closed" in text


def test_the_job_is_served(running: Emulator) -> None:
    made = [control.client(service, running.url, REGION, KEYS) for service in ("sqs", "sns", "s3")]
    queue = made[0].create_queue(QueueName="q")["QueueUrl"]
    assert made[1].create_topic(Name="t")["TopicArn"].endswith(":t")
    made[2].create_bucket(Bucket="bucket")
    credentials = Credentials(running.url, fixed=KEYS)
    clients = [
        Client(service, REGION, running.url, credentials, Meter()) for service in ("sqs", "s3")
    ]
    try:
        sqs, s3 = Sqs(clients[0]), S3(clients[1], "bucket")
        sqs.send(queue, [b"frame"])
        (received,) = sqs.receive(queue, 20)
        assert received.frame == b"frame" and sqs.prompt
        body = os.urandom(3 << 20)
        s3.put("r/a key+ü", [memoryview(body)])  # a body that is not hashed, and a name to quote
        found = s3.get("r/a key+ü")
        assert found is not None and found[0] == body and s3.list("r/") == ["r/a key+ü"]
    finally:
        for client in clients:
            client.close()


def test_a_refused_body_is_not_waited_for(running: Emulator) -> None:
    head = b"POST / HTTP/1.1\r\nHost: %b\r\nContent-Length: 1000000000\r\n\r\n"
    netloc = urlsplit(running.url).netloc.encode()
    with socket.create_connection(tuple(netloc.decode().split(":")), 30) as sock:  # type: ignore[arg-type]
        sock.sendall(head % netloc)
        answer = b"".join(iter(lambda: sock.recv(4096), b""))  # and the connection is closed
    assert answer.startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    "service, more, status",
    [
        ("sqs", {"content-length": str((2 << 20) + 1)}, 413),
        ("s3", {"content-length": str((5 << 30) + 1)}, 413),
        ("s3", {"transfer-encoding": "chunked"}, 411),
    ],
)
def test_bodies_are_bounded(
    running: Emulator, service: str, more: dict[str, str], status: int
) -> None:
    headers = {**signed(running.url, "POST", "/", service=service), **more}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    address = urlsplit(running.url)
    with socket.create_connection((address.hostname, address.port), 30) as sock:
        sock.sendall(f"POST / HTTP/1.1\r\n{lines}\r\n".encode())
        assert sock.recv(4096).startswith(f"HTTP/1.1 {status}".encode())


def test_a_head_without_end_is_cut_off(running: Emulator) -> None:
    address = urlsplit(running.url)
    with socket.create_connection((address.hostname, address.port), 30) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX: ")
        with pytest.raises(OSError):  # reset, since there is more than is read
            for _ in range(1000):
                sock.sendall(b"x" * 65536)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="another user's process needs root and setpriv",
)
def test_another_user_gets_nothing_of_a_job(tmp_path: Path) -> None:
    attack = (
        "import http.client, sys\n"
        f"for method, path, headers, body in {WISHES!r}:\n"
        "    c = http.client.HTTPConnection(sys.argv[1], timeout=30)\n"
        "    c.request(method, path, body, headers)\n"
        "    print(c.getresponse().status, end=' ')\n"
        "try: print(open(f'/proc/{sys.argv[2]}/environ').read())\n"
        "except PermissionError: print('private')\n"
    )
    prog = tmp_path / "victim.py"
    prog.write_text(
        "import os, subprocess, sys\nfrom serverless_mpi import MPI\n"
        "from serverless_mpi.runtime import get_runtime\n"
        "c = MPI.COMM_WORLD\nc.barrier()\n"
        "if c.rank == 0:\n"
        "    address = get_runtime().spec.endpoint.removeprefix('http://')\n"
        "    words = ['setpriv', '--reuid', '65534', '--clear-groups', sys.executable, '-I', '-c',"
        f" {attack!r}, address, str(os.getpid())]\n"
        "    subprocess.run(words, check=True, cwd='/', env={})\n"
        "c.barrier()\n"
    )
    done = smpirun("-n", 2, "--channel", "queue", prog)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["403"] * len(WISHES) + ["private"]


# -- the check of a signature, without a server


def scope_of(
    method: str, path: str, query: str, headers: dict[str, str]
) -> tuple[dict[str, Any], dict[bytes, bytes]]:
    named = {name.lower().encode(): value.encode() for name, value in headers.items()}
    return {"method": method, "raw_path": path.encode(), "query_string": query.encode()}, named


def verifier(now: float = NOW) -> Verifier:
    return Verifier(KEYS.access, KEYS.secret, REGION, ["sqs", "s3"], lambda: now)


def lean(service: str = "sqs", region: str = REGION, keys: Keys = KEYS) -> dict[str, str]:
    query = {"prefix": "a b/ü", "list-type": "2"}
    return Signer(service, region).headers(
        keys, "GET", "h:1", "/b/k", query, {"x-amz-target": "t"}, "abc", NOW
    )


QUERY = canonical_query({"prefix": "a b/ü", "list-type": "2"})


def test_the_clients_signatures_are_good() -> None:
    checked = verifier()
    for service in ("sqs", "s3", "sqs"):  # one of them by the kept key
        checked.check(*scope_of("GET", "/b/k", QUERY, lean(service)))


@pytest.mark.parametrize(
    "service, kind, path", [("sqs", SigV4Auth, "/"), ("s3", S3SigV4Auth, "/b/k%20%2B")]
)
def test_botocores_signatures_are_good(service: str, kind: Any, path: str) -> None:
    url = f"http://127.0.0.1:80{path}?uploads&prefix=a%20b&list-type=2"
    request = AWSRequest(
        "POST", url, {"X-Amz-Content-SHA256": sha256(b"body").hexdigest()}, b"body"
    )
    kind(BotoCredentials(KEYS.access, KEYS.secret), service, REGION).add_auth(request)
    headers = {**dict(request.headers.items()), "host": "127.0.0.1"}
    query = "uploads&prefix=a%20b&list-type=2"
    stamp = headers["X-Amz-Date"]
    checked = Verifier(
        KEYS.access, KEYS.secret, REGION, [service], lambda: server.calendar.timegm(_parsed(stamp))
    )
    checked.check(*scope_of("POST", path, query, headers))


def _parsed(stamp: str) -> Any:
    return server.time.strptime(stamp, "%Y%m%dT%H%M%SZ")


Change = Callable[[dict[str, str]], object]


@pytest.mark.parametrize(
    "method, path, query, change",
    [
        ("PUT", "/b/k", QUERY, None),
        ("GET", "/b/other", QUERY, None),
        ("GET", "/b/k", QUERY + "&x=1", None),
        ("GET", "/b/k", "", None),
        ("GET", "/b/k", QUERY, lambda h: h.update({"x-amz-target": "other"})),
        ("GET", "/b/k", QUERY, lambda h: h.update({"x-amz-content-sha256": "abd"})),
        ("GET", "/b/k", QUERY, lambda h: h.update({"host": "h:2"})),
        ("GET", "/b/k", QUERY, lambda h: h.pop("x-amz-target")),
        ("GET", "/b/k", QUERY, lambda h: h.pop("x-amz-date")),
        ("GET", "/b/k", QUERY, lambda h: h.update({"x-amz-date": h["x-amz-date"][:9] + "nonsens"})),
        ("GET", "/b/k", QUERY, lambda h: h.pop("authorization")),
        ("GET", "/b/k", QUERY, lambda h: h.update(authorization=h["authorization"][:-1] + "x")),
        (
            "GET",
            "/b/k",
            QUERY,
            lambda h: h.update(authorization=h["authorization"][:-64] + "0" * 64),
        ),
        (
            "GET",
            "/b/k",
            QUERY,
            lambda h: h.update(authorization=h["authorization"].replace("host;", "")),
        ),
        ("GET", "/b/k", QUERY, lambda h: h.update(lean("sns"))),
        ("GET", "/b/k", QUERY, lambda h: h.update(lean(region="eu-west-1"))),
        ("GET", "/b/k", QUERY, lambda h: h.update(lean(keys=Keys("other", KEYS.secret)))),
        ("GET", "/b/k", QUERY, lambda h: h.update(lean(keys=DUMMY))),
    ],
)
def test_a_change_of_what_is_signed_is_refused(
    method: str, path: str, query: str, change: Change | None
) -> None:
    headers = lean()
    if change is not None:
        change(headers)
    checked = verifier()
    with pytest.raises(Refusal):
        checked.check(*scope_of(method, path, query, headers))
    assert len(checked._keys) <= 1  # keys of invalid scopes are not kept


@pytest.mark.parametrize("late", [-SKEW_S - 1, -SKEW_S + 1, SKEW_S - 1, SKEW_S + 1])
def test_a_signature_is_good_for_a_quarter_of_an_hour(late: int) -> None:
    request = scope_of("GET", "/b/k", QUERY, lean())
    if abs(late) < SKEW_S:
        verifier(NOW + late).check(*request)
    else:
        with pytest.raises(Refusal, match="too old"):
            verifier(NOW + late).check(*request)


def test_an_unproven_connection_is_closed_after_a_while() -> None:
    unproven, closed = UnprovenConnections(), []
    unproven.opened("late", lambda: closed.append("late"))
    unproven.opened("accepted", lambda: closed.append("accepted"))
    unproven.accepted("accepted")
    for _ in range(UNPROVEN_S):
        unproven.tick()
    unproven.opened("new", lambda: closed.append("new"))
    assert not closed
    unproven.tick()
    assert closed == ["late"]
    for _ in range(UNPROVEN_S):
        unproven.tick()
    assert closed == ["late", "new"] and not unproven


def test_the_oldest_of_too_many_unproven_connections_is_closed() -> None:
    unproven, closed = UnprovenConnections(most=2), []
    for name in "abc":
        unproven.opened(name, lambda name=name: closed.append(name))  # type: ignore[misc]
    assert closed == ["a"]
    unproven.accepted("b")
    unproven.opened("d", lambda: closed.append("d"))
    assert closed == ["a"]


def test_the_server_counts_its_unproven_connections() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/good":
            unproven.accepted(scope["client"])
        await server._refuse(send, Refusal("done"))

    async def main() -> None:
        config = uvicorn.Config(app, log_level="critical")
        config.load()
        made = server.protocol(unproven)
        listening = await asyncio.get_running_loop().create_server(
            lambda: made(config, ServerState(), {}), "127.0.0.1", 0
        )
        port = listening.sockets[0].getsockname()[1]

        async def connect(head: bytes) -> asyncio.StreamReader:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(writer)
            writer.write(head)
            return reader

        writers: list[asyncio.StreamWriter] = []
        idle = await connect(b"GET /good HTT")
        while not unproven:
            await asyncio.sleep(0)
        refused = await connect(b"GET /bad HTTP/1.1\r\n\r\n")
        assert b" 403 " in await refused.read()
        accepted = await connect(b"GET /good HTTP/1.1\r\n\r\n")
        assert b" 403 " in await accepted.readline() and len(unproven) == 1
        for _ in range(UNPROVEN_S + 1):
            unproven.tick()
        with contextlib.suppress(ConnectionResetError):
            assert await idle.read() == b""
        assert not unproven
        for writer in writers:
            writer.close()
        listening.close()

    unproven = UnprovenConnections()
    asyncio.run(asyncio.wait_for(main(), GIVE_UP_S))


# -- the port, and the end


def _bind(port: int) -> None:
    socket.create_server(("127.0.0.1", port)).close()


def test_the_port_is_taken_before_the_process_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def spawn(words: list[str], **more: Any) -> Any:
        (number,) = more["pass_fds"]
        assert words[-1] == str(number)
        with socket.socket(fileno=os.dup(number)) as listener:
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            seen.append(listener.getsockname()[1])
        with pytest.raises(OSError):
            _bind(seen[0])
        raise OSError("not started")

    monkeypatch.setattr(emulator_module.subprocess, "Popen", spawn)
    with pytest.raises(OSError, match="not started"):
        Emulator(tmp_path).start()
    _bind(seen[0])  # it was let go


def test_no_process_can_take_the_port_of_a_dead_emulator(tmp_path: Path) -> None:
    emulator = Emulator(tmp_path, keys=KEYS)
    emulator.start()
    try:
        assert emulator.ended() is None
        assert emulator._process is not None
        emulator._process.kill()
        emulator._process.wait()
        end = emulator.ended()
        assert end is not None and "SIGKILL" in end and str(emulator.pid) in end
        with pytest.raises(OSError):
            _bind(urlsplit(emulator.url).port or 0)
    finally:
        emulator.stop()


def test_an_emulator_that_does_not_start_reports_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(emulator_module, "_BOOT", "raise SystemExit('no such thing')")
    with pytest.raises(JobError, match=r"ended with exit code 1: no such thing before it answered"):
        Emulator(tmp_path).start()


def test_it_ends_with_its_maker(tmp_path: Path) -> None:
    text = (
        "import os, sys\nfrom serverless_mpi.launch.emulator import Emulator\n"
        "emulator = Emulator(sys.argv[1]); emulator.start()\n"
        "print(emulator.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    words = [sys.executable, "-c", text, str(tmp_path)]
    maker = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=GIVE_UP_S)
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(int(maker.stdout))
        try:
            assert select.select([process], [], [], GIVE_UP_S)[0]
        finally:
            os.close(process)


def test_an_emulator_that_dies_ends_the_job_with_one_line(tmp_path: Path) -> None:
    prog = tmp_path / "prog.py"
    prog.write_text(
        "import glob, os\nfrom serverless_mpi import MPI\nc = MPI.COMM_WORLD\nc.barrier()\n"
        "def words(pid): return open(f'/proc/{pid}/cmdline').read().split(chr(0))\n"
        "children = open(f'/proc/{os.getppid()}/task/{os.getppid()}/children').read().split()\n"
        "if c.rank == 0:\n"
        "    [os.kill(int(p), 9) for p in children if any('server.py' in w for w in words(p))]\n"
        "c.recv(source=c.rank)\n"
    )
    done = smpirun("-n", 2, "--channel", "queue", prog)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "the emulator (process" in line and "SIGKILL" in line
