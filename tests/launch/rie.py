"""AWS's Runtime Interface Emulator, one instance per rank, behind a server that implements Invoke.

The binary comes out of the aws-sam-cli wheel, the runtime client is awslambdaric, both from PyPI and neither installed.
The interpreter is a bare virtual environment: what the function imports is in its package, or is not there.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serverless_mpi.deploy import package

HOST = "127.0.0.1"
FUNCTION = "/2015-03-31/functions/function/invocations"
ARCH = {"x86_64": "x86_64", "aarch64": "arm64"}


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


class Room:
    """Where a function runs: the package, unpacked as Lambda does it, a bare interpreter, and the emulator's binary."""

    def __init__(self, folder: Path) -> None:
        self.binary = (
            folder / "samcli" / "local" / "rapid" / f"aws-lambda-rie-{ARCH[platform.machine()]}"
        )
        wheels = folder / "wheels"
        for words in (["--no-deps", "aws-sam-cli"], ["awslambdaric"]):
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "-q",
                    "--disable-pip-version-check",
                    "--only-binary=:all:",
                    "-d",
                    str(wheels),
                    *words,
                ],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                pytest.skip(f"the package index gives no {words[-1]}: {done.stderr[-200:]}")
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                if wheel.name.startswith("aws_sam_cli"):
                    archive.extract(str(self.binary.relative_to(folder)), folder)
                else:
                    archive.extractall(folder / "runtime")
        self.binary.chmod(0o755)
        made = package.build(package.Target.of_this_interpreter())
        for name, data in (("task", made.function), ("opt", made.layer)):
            (folder / f"{name}.zip").write_bytes(data)
            with zipfile.ZipFile(folder / f"{name}.zip") as archive:
                archive.extractall(folder / name)
        venv.create(folder / "bare", with_pip=False)
        self.python = folder / "bare" / "bin" / "python"
        self.path = os.pathsep.join(
            str(folder / name) for name in ("runtime", "task", "opt/python")
        )
        self.folder = folder


class Instance:
    """One environment of a function: one invocation at a time."""

    def __init__(self, room: Room, timeout_s: int, memory_mb: int = 1024) -> None:
        self.port = free_port()
        self.busy = threading.Lock()
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": room.path,
            "HOME": str(room.folder),
            "TMPDIR": str(room.folder),
            "LAMBDA_TASK_ROOT": str(room.folder / "task"),
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(timeout_s),
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(memory_mb),
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.log = room.folder / f"rie-{self.port}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [
                    str(room.binary),
                    "--runtime-interface-emulator-address",
                    f"{HOST}:{self.port}",
                    "--runtime-api-address",
                    f"{HOST}:{free_port()}",
                    str(room.python),
                    "-m",
                    "awslambdaric",
                    "serverless_mpi.launch.function.handler",
                ],
                env=env,
                cwd=room.folder / "task",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                http.client.HTTPConnection(HOST, self.port, timeout=1).connect()
                return
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)

    def invoke(self, event: bytes) -> bytes:
        """The answer of a synchronous invocation, whatever it is."""
        with self.busy:
            connection = http.client.HTTPConnection(HOST, self.port, timeout=120)
            connection.request("POST", FUNCTION, event)
            try:
                return connection.getresponse().read()
            except (OSError, http.client.HTTPException):  # the runtime died
                return b""
            finally:
                connection.close()

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()


class Front:
    """Takes Event invocations and gives each to an instance of its own; everything else goes on to the emulator of AWS."""

    def __init__(self, instances: list[Instance], behind: str) -> None:
        self.answers: list[bytes] = []
        free = list(instances)
        answers, lock, threads = self.answers, threading.Lock(), []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.path.endswith("/invocations"):
                    with lock:
                        instance = free.pop() if free else instances[json.loads(body)["rank"]]

                    def run() -> None:
                        answers.append(instance.invoke(body))

                    threads.append(threading.Thread(target=run, daemon=True))
                    threads[-1].start()
                    status, headers, data = 202, {}, b""
                else:
                    request = urllib.request.Request(
                        behind + self.path, body or None, dict(self.headers), method=self.command
                    )
                    try:
                        with urllib.request.urlopen(request, timeout=60) as answer:
                            status, headers, data = (
                                answer.status,
                                dict(answer.headers),
                                answer.read(),
                            )
                    except urllib.error.HTTPError as error:
                        status, headers, data = error.code, dict(error.headers), error.read()
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in (
                        "content-length",
                        "transfer-encoding",
                        "connection",
                        "date",
                        "server",
                    ):
                        self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # whoever asked has ended
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self.url = f"http://{HOST}:{self._server.server_address[1]}"
        self._threads = threads
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def join(self) -> None:
        """Wait for every invocation's answer."""
        for thread in self._threads:
            thread.join(120)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def functions(room: Room, count: int, behind: str, timeout_s: int) -> Iterator[Front]:
    """`count` instances behind a front."""
    instances = [Instance(room, timeout_s) for _ in range(count)]
    front = Front(instances, behind)
    try:
        yield front
    finally:
        front.stop()
        for instance in instances:
            instance.stop()
