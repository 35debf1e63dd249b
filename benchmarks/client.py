"""client: CPU and rate of an SQS SendMessageBatch of a 1 KB frame, against a stub server.

The same call through boto3, urllib3, http.client, awscrt and pycurl, the latter four with SigV4 and
a kept signing key; those that are not installed are left out. CPU is that of this process, the
server is another one.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import importlib.util
import json
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from benchmarks.interleave import in_turns, ratio
from benchmarks.stub_server import server
from benchmarks.table import Row, render
from serverless_mpi.aws.credentials import DUMMY, Credentials
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.sigv4 import Signer
from serverless_mpi.aws.sqs import BODY, FRAME, Sqs
from serverless_mpi.metering import Meter

PAYLOAD = bytes(range(256)) * 4
QUEUE = "http://127.0.0.1/000000000000/queue"
ANSWER = json.dumps(
    {"Successful": [{"Id": "0", "MessageId": "0" * 36, "MD5OfMessageBody": "0" * 32}]}
).encode()
REGION = "us-east-1"
CALLS = 400  # of one measurement
THREADS = 8
ROUNDS = 7

Call = Callable[[], Any]
Make = Callable[[str], Callable[[], Call]]  # URL -> what makes a thread's own call


def _entry() -> dict[str, Any]:
    return {
        "Id": "0",
        "MessageBody": BODY,
        "MessageAttributes": {
            FRAME: {"DataType": "Binary", "BinaryValue": base64.b64encode(PAYLOAD).decode()}
        },
    }


def _request(signer: Signer, host: str) -> tuple[dict[str, str], bytes]:
    """Headers and body as one has to make them for every call."""
    body = json.dumps({"QueueUrl": QUEUE, "Entries": [_entry()]}).encode()
    headers = {
        "content-type": "application/x-amz-json-1.0",
        "x-amz-target": "AmazonSQS.SendMessageBatch",
    }
    digest = hashlib.sha256(body).hexdigest()
    return signer.headers(DUMMY, "POST", host, "/", {}, headers, digest), body


def own(url: str) -> Callable[[], Call]:
    """This package's."""
    client = Client("sqs", REGION, url, Credentials(url), Meter())
    sqs = Sqs(client)
    return lambda: lambda: sqs.send(QUEUE, [PAYLOAD])


def boto(url: str) -> Callable[[], Call]:
    """boto3."""
    from serverless_mpi.aws import control

    client = control.client("sqs", url, REGION)
    entry = {
        **_entry(),
        "MessageAttributes": {FRAME: {"DataType": "Binary", "BinaryValue": PAYLOAD}},
    }
    return lambda: lambda: client.send_message_batch(QueueUrl=QUEUE, Entries=[entry])


def plain_http(url: str) -> Callable[[], Call]:
    """http.client, a connection for each thread."""
    parts = urlsplit(url)
    signer = Signer("sqs", REGION)

    def thread() -> Call:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port)

        def call() -> Any:
            headers, body = _request(signer, parts.netloc)
            connection.request("POST", "/", body, headers)
            return json.loads(connection.getresponse().read())

        return call

    return thread


def with_urllib3(url: str) -> Callable[[], Call]:
    """urllib3, its pool shared by the threads."""
    import urllib3

    parts = urlsplit(url)
    signer = Signer("sqs", REGION)
    pool = urllib3.HTTPConnectionPool(parts.hostname or "", parts.port, maxsize=THREADS)

    def call() -> Any:
        headers, body = _request(signer, parts.netloc)
        return json.loads(pool.urlopen("POST", "/", body, headers).data)

    return lambda: call


def with_pycurl(url: str) -> Callable[[], Call]:
    """pycurl, a handle for each thread."""
    import pycurl

    signer = Signer("sqs", REGION)
    host = urlsplit(url).netloc

    def thread() -> Call:
        handle = pycurl.Curl()
        handle.setopt(pycurl.URL, url + "/")
        handle.setopt(pycurl.POST, 1)

        def call() -> Any:
            headers, body = _request(signer, host)
            answer: list[bytes] = []
            handle.setopt(
                pycurl.HTTPHEADER,
                [f"{name}: {value}" for name, value in headers.items()] + ["Expect:"],
            )
            handle.setopt(pycurl.POSTFIELDSIZE, len(body))
            handle.setopt(pycurl.COPYPOSTFIELDS, body)
            handle.setopt(pycurl.WRITEFUNCTION, answer.append)
            handle.perform()
            return json.loads(b"".join(answer))

        return call

    return thread


def with_awscrt(url: str) -> Callable[[], Call]:
    """awscrt's HTTP connection and signer, a connection for each thread."""
    from io import BytesIO

    from awscrt import auth, io
    from awscrt import http as crt

    parts = urlsplit(url)
    loops = io.EventLoopGroup(1)
    bootstrap = io.ClientBootstrap(loops, io.DefaultHostResolver(loops))
    provider = auth.AwsCredentialsProvider.new_static(DUMMY.access, DUMMY.secret)

    def thread() -> Call:
        connection = crt.HttpClientConnection.new(parts.hostname, parts.port, bootstrap).result()

        def call() -> Any:
            body = json.dumps({"QueueUrl": QUEUE, "Entries": [_entry()]}).encode()
            headers = crt.HttpHeaders(
                [
                    ("host", parts.netloc),
                    ("content-length", str(len(body))),
                    ("content-type", "application/x-amz-json-1.0"),
                    ("x-amz-target", "AmazonSQS.SendMessageBatch"),
                ]
            )
            request = crt.HttpRequest("POST", "/", headers, BytesIO(body))
            config = auth.AwsSigningConfig(
                algorithm=auth.AwsSigningAlgorithm.V4,
                credentials_provider=provider,
                region=REGION,
                service="sqs",
                signed_body_value=hashlib.sha256(body).hexdigest(),
            )
            auth.aws_sign_request(request, config).result()
            answer: list[bytes] = []
            stream = connection.request(
                request, on_body=lambda http_stream, chunk, **_: answer.append(bytes(chunk))
            )
            stream.activate()
            stream.completion_future.result()
            return json.loads(b"".join(answer))

        return call

    return thread


CLIENTS: dict[str, tuple[str, Make]] = {  # name -> (module it needs, maker)
    "serverless_mpi": ("serverless_mpi", own),
    "boto3": ("boto3", boto),
    "urllib3 + own signer": ("urllib3", with_urllib3),
    "http.client + own signer": ("http", plain_http),
    "pycurl + own signer": ("pycurl", with_pycurl),
    "awscrt http + auth": ("awscrt", with_awscrt),
}


def _cpu(call: Call) -> float:
    """CPU seconds of this process for one call."""
    began = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - began) / CALLS


def _rate(calls: list[Call]) -> float:
    """Calls per second of all threads together."""
    ready = threading.Barrier(len(calls) + 1)

    def work(call: Call) -> None:
        ready.wait()
        for _ in range(CALLS):
            call()

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return len(calls) * CALLS / (time.perf_counter() - began)


def run() -> list[Row]:
    """CPU per call of each client, and calls per second on 8 threads."""
    rows = []
    with server(ANSWER, "application/x-amz-json-1.0") as url:
        makers = {
            name: make(url)
            for name, (needs, make) in CLIENTS.items()
            if importlib.util.find_spec(needs)
        }
        calls = {name: [make() for _ in range(THREADS)] for name, make in makers.items()}
        for threads in calls.values():
            for call in threads:
                call()  # connections are open and keys derived
        cpu = in_turns(
            {name: (lambda c=threads[0]: _cpu(c)) for name, threads in calls.items()}, ROUNDS
        )  # type: ignore[misc]
        rate = in_turns({name: (lambda c=threads: _rate(c)) for name, threads in calls.items()}, 3)  # type: ignore[misc]
    for name, values in cpu.items():
        middle, spread = ratio(values, cpu["boto3"])
        used = statistics.median(values) * 1e6
        target, met = ("<= 120 us", used <= 120) if name == "serverless_mpi" else ("", None)
        rows.append(
            Row(f"CPU of a 1 KB call, {name} / boto3", used, "us", middle, spread, target, met)
        )
    for name, values in rate.items():
        middle, spread = ratio(values, rate["boto3"])
        target, met = (">= 5x boto3", middle >= 5) if name == "serverless_mpi" else ("", None)
        what = f"calls on {THREADS} threads, {name} / boto3"
        rows.append(Row(what, statistics.median(values), "1/s", middle, spread, target, met))
    return rows


if __name__ == "__main__":
    print(render(run()))
