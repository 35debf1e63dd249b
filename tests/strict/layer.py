"""The strict layer: an HTTP server in front of an emulator that keeps AWS's rules.

    client -> Front (HTTP) -> Layer (parse, check, act) -> emulator

`Front` is started by a test, which gives its URL to channels, to `smpirun --endpoint` and
to `smpi --endpoint`.  Each request is parsed (`call.py`), passes the checks of the table,
and goes through the acting rules, the last of which forwards it.

Who calls is known by the process: a function's process has its name in the environment,
as on AWS, so a connection from such a process is a call by the function's role.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tests.strict import rules_common, rules_express, rules_functions, rules_messages, rules_objects
from tests.strict.call import Answer, Call, Malformed, Request, parse
from tests.strict.rules import RULES, Proceed, Rule
from tests.strict.world import FakeClock, RealClock, Refusal, Settings, World, refused

# which register rules
_TABLES = (rules_common, rules_messages, rules_objects, rules_express, rules_functions)
TOTALS = World(Settings(), FakeClock(), 0)  # counts of all layers of this process
_HOP = frozenset(("connection", "transfer-encoding", "content-length", "keep-alive", "expect"))


class Layer:
    """Checks and acts on requests; the transport is `Front`."""

    def __init__(self, world: World) -> None:
        self.world = world

    def exchange(self, request: Request) -> Answer:
        """Return the answer to a request."""
        if (request.method, request.target) == ("GET", "/") and not request.headers.get(
            "authorization"
        ):
            return self.world.forward(request)  # of `--endpoint`: does anything answer there?
        try:
            call = parse(request)
        except Malformed as error:
            self._refused("request-shape", f"{request.method} {request.target}: {error}")
            text = f'{{"__type":"MalformedRequest","message":"{error}"}}'
            return Answer(400, text.encode(), {"content-type": "application/json"})
        rules = [rule for rule in RULES.values() if rule.concerns(call)]
        for rule in rules:
            try:
                if rule.check is not None and rule.check(call, self.world) is not False:
                    self.world.count(rule.name)
            except Refusal as refusal:
                self._refused(rule.name, f"{call.name}: {refusal}")
                return refused(call, refusal)
        given = call.params

        def forward(last: Call) -> Answer:
            if last.params is not given:
                last = replace(last, request=replace(last.request, body=_rendered(last)))
            return self.world.forward(last.request)

        proceed: Proceed = forward
        for rule in reversed([rule for rule in rules if rule.act is not None]):
            proceed = self._bound(rule, proceed)
        return proceed(call)

    def _bound(self, rule: Rule, proceed: Proceed) -> Proceed:
        assert rule.act is not None
        act = rule.act
        return lambda call: act(call, self.world, proceed)

    def _refused(self, rule: str, what: str) -> None:
        with self.world.lock:
            self.world.broken[rule] += 1
            self.world.refusals.append(f"{rule}: {what}")


def _rendered(call: Call) -> bytes:
    """Return the body of a call of SQS, whose parameters a rule has changed."""
    assert call.service == "sqs", call.name

    def plain(value: Any) -> str:
        return base64.b64encode(value).decode()

    return json.dumps(call.params, default=plain).encode()


class Front:
    """A context manager: the layer as an HTTP server on 127.0.0.1.

    Parameters
    ----------
    endpoint
        URL of the emulator.
    settings
        Adversity and quotas.
    clock
        None for the machine's.
    seed
        Of everything that chance decides.
    on_purpose
        Whether the test breaks rules; `python -m tests.strict` counts that apart.
    """

    def __init__(
        self,
        endpoint: str,
        settings: Settings | None = None,
        clock: FakeClock | RealClock | None = None,
        seed: int = 1,
        on_purpose: bool = False,
    ) -> None:
        self._on_purpose = on_purpose
        self._clock = clock or RealClock()
        self.world = World(settings or Settings(), self._clock, seed)
        self.world.forward = self._forward
        self.layer = Layer(self.world)
        parts = urlsplit(endpoint)
        self._there = (parts.hostname or "", parts.port or 80)
        self._upstream = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def __enter__(self) -> Front:
        layer = self.layer
        world = self.world

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def setup(self) -> None:
                super().setup()
                self.function: str | None = None

            def handle_expect_100(self) -> bool:
                super().handle_expect_100()
                self.wfile.flush()
                return True

            def handle_one_request(self) -> None:
                with contextlib.suppress(OSError):
                    super().handle_one_request()
                    return
                self.close_connection = True

            def _serve(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                if self.function is None:  # only a stack has functions
                    peer = self.client_address[1]
                    self.function = function_of(peer) if world.stacks else ""
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, body, self.function)
                answer = layer.exchange(request)
                self.send_response_only(answer.status)
                for name, value in answer.headers.items():
                    if name not in _HOP:
                        self.send_header(name, value)
                stated = answer.headers.get("content-length", "0")
                head = self.command == "HEAD"
                self.send_header("content-length", stated if head else str(len(answer.body)))
                self.end_headers()
                if not head:
                    self.wfile.write(answer.body)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                self.errors.append(sys.exc_info()[1])

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.errors = self.errors = []  # type: ignore[attr-defined, var-annotated]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(self._clock, RealClock):
            self._clock.stop()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in self._connections:
            connection.close()
        with TOTALS.lock:
            if self._on_purpose:
                TOTALS.broken.update(self.world.broken)
            else:
                TOTALS.exercised.update(self.world.exercised)
        assert kind is not None or not self.errors, self.errors

    def _forward(self, request: Request) -> Answer:
        """Ask the emulator."""
        connection = getattr(self._upstream, "connection", None)
        if connection is None:
            connection = http.client.HTTPConnection(*self._there, timeout=60)
            self._upstream.connection = connection
            self._connections.append(connection)
        headers = {name: value for name, value in request.headers.items() if name not in _HOP}
        headers.setdefault("host", "%s:%d" % self._there)
        try:
            connection.request(request.method, request.target, request.body, headers)
            answer = connection.getresponse()
            body = answer.read()
        except BaseException:
            connection.close()
            raise
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, body, found)


def _target(descriptor: Path) -> str:
    """What a descriptor is; "" if its process has closed it meanwhile."""
    try:
        return os.readlink(descriptor)
    except OSError:
        return ""


def function_of(port: int) -> str:
    """Return the Lambda function whose process has a connection from this port; "" for others."""
    local = f"0100007F:{port:04X}"
    inode = ""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == local:
            inode = fields[9]
    if not inode:
        return ""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            if any(_target(one) == f"socket:[{inode}]" for one in (folder / "fd").iterdir()):
                for pair in (folder / "environ").read_bytes().split(b"\0"):
                    if pair.startswith(b"AWS_LAMBDA_FUNCTION_NAME="):
                        return pair.partition(b"=")[2].decode()
                return ""
    return ""
