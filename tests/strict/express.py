"""S3 Express in front of an emulator or of the layer: sessions, virtual-hosted names, and rules.

A request whose Host begins with the name of a directory bucket is checked by the documented rules
and passed on to a plain bucket of the emulator (`plain`).  Any other request is passed on as it is.
Signatures are recomputed with botocore.

Sources: CreateSession, ListObjectsV2, PutObject, DeleteObjects and CompleteMultipartUpload, Amazon
S3 API Reference, "Directory buckets" in each; "Differences for directory buckets", Amazon S3 User
Guide.
"""

from __future__ import annotations

import base64
import http.client
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import md5, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit
from zlib import crc32

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.strict.world import World, authorization

ZONE = "use1-az4"
PAGE = 3  # keys of one page, so that every listing has several
PART_BYTES = 5 << 20
SESSION_S = 300.0
_BUCKET = re.compile(r"([a-z0-9-]+--[a-z0-9-]+--x-s3)\..+")
_SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/\d{8}/([^/]+)/([^/]+)/aws4_request,"
    r" SignedHeaders=([^,]+), Signature=([0-9a-f]{64})"
)


def directory_bucket(base: str) -> str:
    """The name of a directory bucket."""
    return f"{base}--{ZONE}--x-s3"


def plain(bucket: str) -> str:
    """The emulator's bucket behind a directory bucket."""
    return bucket.removesuffix("--x-s3") + "-x"


class Call(NamedTuple):
    """One request to a directory bucket."""

    method: str
    target: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))


class Refused(Exception):
    """An answer that is an error: status, code, and the rule that was broken ("" for none)."""


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Express:
    """A context manager: the front and its sessions.

    allowed: whether CreateSession is granted; users: (access key, secret); clock: seconds of the
    epoch; world: what counts the rules of rules_express.py.
    """

    emulator: str
    users: set[tuple[str, str]] = field(default_factory=lambda: {("smpi", "smpi")})
    clock: Callable[[], float] = time.time
    allowed: bool = True
    world: World | None = None
    calls: list[tuple[str, str]] = field(default_factory=list)  # method, target
    sessions: dict[str, tuple[str, str, str, float]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Express:
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = 1 << 16  # head and body in one segment

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # the client is gone
                    self.close_connection = True

            def answer(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers.get("content-length", "0")))
                made = front.serve(Call(self.command, self.path, headers, body))
                self.send_response(made.status)
                skip = ("date", "server", "content-length", "transfer-encoding", "connection")
                for name, value in made.headers.items():
                    if name.lower() not in skip:
                        self.send_header(name, value)
                length = made.headers.get("content-length") if self.command == "HEAD" else None
                self.send_header("content-length", length or str(len(made.body)))
                self.end_headers()
                self.wfile.write(made.body)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def expire(self) -> None:
        """End every session now, before it said it would end."""
        with self.lock:
            self.sessions = {token: (*rest[:3], 0.0) for token, rest in self.sessions.items()}

    def serve(self, call: Call) -> Response:
        named = _BUCKET.fullmatch(call.headers.get("host", ""))
        if named is None:
            return self._pass_on(call, call.target)
        self.calls.append((call.method, call.target))
        try:
            return self._serve(call, named.group(1))
        except Refused as error:
            status, code, rule = error.args
            if self.world is not None and rule:
                with self.world.lock:
                    self.world.broken[rule] += 1
                    self.world.refusals.append(f"{rule}: {call.method} {call.target}: {code}")
            body = f"<Error><Code>{code}</Code><Message>by {__name__}</Message></Error>".encode()
            return Response(status, {}, body)

    def _held(self, *rules: str) -> None:
        """Count rules that a request kept, or that acted."""
        if self.world is not None:
            for rule in rules:
                self.world.count(rule)

    def _serve(self, call: Call, bucket: str) -> Response:
        if "session" in call.query:
            return self._create_session(call, bucket)
        token = call.headers.get("x-amz-s3session-token", "")
        if "x-amz-security-token" in call.headers or not token:
            raise Refused(403, "AccessDenied", "express-session")
        with self.lock:
            access, secret, of_bucket, ends = self.sessions.get(token, ("", "", "", 0.0))
        if of_bucket != bucket:
            code = "InvalidToken" if not of_bucket else "AccessDenied"
            raise Refused(403, code, "express-session")
        if self.clock() >= ends:
            raise Refused(400, "ExpiredToken", "express-session-life")
        self._verify(call, (access, secret))
        self._held("express-session", "express-session-life")
        if "content-md5" in call.headers and call.method == "PUT":
            # "not supported for directory buckets"
            raise Refused(400, "InvalidRequest", "express-checksum")
        if call.path == "/" and call.method == "GET":
            return self._list(call, bucket)
        headers = dict(call.headers)
        if "delete" in call.query:
            stated = call.headers.get("x-amz-checksum-crc32")
            if stated is None and "content-md5" not in call.headers:
                raise Refused(400, "InvalidRequest", "express-checksum")
            if stated is not None and base64.b64decode(stated) != crc32(call.body).to_bytes(
                4, "big"
            ):
                raise Refused(400, "BadDigest", "express-checksum")
            self._held("express-checksum")
            headers["content-md5"] = base64.b64encode(md5(call.body).digest()).decode()
            headers.pop("x-amz-checksum-crc32", None)
        if b"<CompleteMultipartUpload>" in call.body:
            numbers = [int(text) for text in re.findall(rb"<PartNumber>(\d+)<", call.body)]
            if numbers != list(range(1, len(numbers) + 1)):
                raise Refused(400, "InvalidPartOrder", "express-parts")
            self._held("express-parts")
        path = f"/{plain(bucket)}{'' if call.path == '/' else call.path}"
        query = urlsplit(call.target).query
        target = f"{path}?{query}" if query else path
        return self._pass_on(call._replace(headers=headers), target)

    def _create_session(self, call: Call, bucket: str) -> Response:
        if self._pass_on(call._replace(method="HEAD", body=b""), f"/{plain(bucket)}").status == 404:
            raise Refused(404, "NoSuchBucket", "")
        if not self.allowed:
            raise Refused(403, "AccessDenied", "")
        self._verify(call, *self.users)
        with self.lock:
            number = len(self.sessions)
            token, access, secret = f"token/{number}+=", f"ASIA{number:08d}", f"secret/{number}"
            ends = self.clock() + SESSION_S
            self.sessions[token] = (access, secret, bucket, ends)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends))
        body = (
            f"<CreateSessionResult><Credentials><SessionToken>{token}</SessionToken>"
            f"<SecretAccessKey>{secret}</SecretAccessKey><AccessKeyId>{access}</AccessKeyId>"
            f"<Expiration>{stamp}</Expiration></Credentials></CreateSessionResult>"
        )
        return Response(200, {}, body.encode())

    def _verify(self, call: Call, *keys: tuple[str, str]) -> None:
        """Recompute the signature with botocore, with each of (access key, secret)."""
        signed = _SIGNED.fullmatch(call.headers.get("authorization", ""))
        if signed is None or signed.group(3) != "s3express":
            raise Refused(403, "AccessDenied", "express-signature")
        stated = call.headers["x-amz-content-sha256"]
        if stated != "UNSIGNED-PAYLOAD" and stated != sha256(call.body).hexdigest():
            raise Refused(400, "XAmzContentSHA256Mismatch", "express-signature")
        names = signed.group(4).split(";")
        required = {"host", "x-amz-date", "x-amz-content-sha256"}
        required |= {name for name in call.headers if name == "x-amz-s3session-token"}
        if not required <= set(names):
            raise Refused(403, "SignatureDoesNotMatch", "express-signature")
        request = AWSRequest(
            call.method,
            f"http://{call.headers['host']}{call.target}",
            {name: call.headers[name] for name in names},
        )
        request.context["timestamp"] = call.headers["x-amz-date"]
        for access, secret in keys:
            auth = S3SigV4Auth(Credentials(access, secret), "s3express", signed.group(2))
            text = auth.string_to_sign(request, auth.canonical_request(request))
            if access == signed.group(1) and auth.signature(text, request) == signed.group(5):
                self._held("express-signature")
                return
        raise Refused(403, "SignatureDoesNotMatch", "express-signature")

    def _list(self, call: Call, bucket: str) -> Response:
        """A page of a listing: in no order, and it continues with a token that is no key."""
        query = call.query
        prefix = query.get("prefix", "")
        if query.get("list-type") != "2" or "start-after" in query:
            raise Refused(501, "NotImplemented", "express-list")
        if prefix and not prefix.endswith("/"):
            raise Refused(400, "InvalidRequest", "express-list")
        self._held("express-list")
        keys: list[str] = []
        while True:
            after = f"&start-after={quote(keys[-1], safe='')}" if keys else ""
            where = f"/{plain(bucket)}?list-type=2&prefix={quote(prefix, safe='')}{after}"
            page = self._pass_on(call._replace(headers=authorization("s3")), where)
            if page.status != 200:
                return page
            found = [text.decode() for text in re.findall(rb"<Key>([^<]*)</Key>", page.body)]
            keys += found
            if len(found) < 1000:
                break
        random.Random(prefix).shuffle(keys)
        if keys != sorted(keys):
            self._held("express-list-order")
        begin = 0
        if "continuation-token" in query:
            begin = int(base64.b64decode(query["continuation-token"]))
        shown, more = keys[begin : begin + PAGE], begin + PAGE < len(keys)
        token = base64.b64encode(str(begin + PAGE).encode()).decode()
        body = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in shown)
        if more:
            body += f"<NextContinuationToken>{token}</NextContinuationToken>"
        whole = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{body}"
        return Response(200, {}, f"{whole}</ListBucketResult>".encode())

    def _pass_on(self, call: Call, target: str) -> Response:
        """Ask the emulator."""
        address = urlsplit(self.emulator)
        headers = {
            name: value.replace("/s3express/", "/s3/")
            for name, value in call.headers.items()
            if name not in ("host", "x-amz-s3session-token", "connection")
        }
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        try:
            connection.request(call.method, target, call.body, headers)
            answer = connection.getresponse()
            return Response(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()
