"""The embedded AWS emulator: a ministack process on 127.0.0.1 for the duration of a job.

Only this file and `server.py` depend on which emulator it is. It keeps everything in memory, binds
no other interface, gets no credential of the user and no Docker daemon, and ends with the process
that started it. It runs only the services that it is asked for, and with `keys` it serves only
requests that are signed with them (`server.py`).

The socket is bound here and stays open until `stop`. So no other process can take the port, neither
before the emulator serves on it nor after the emulator has died, and a request never reaches
another server. Pitfall: after such a death requests wait for an answer that does not come, so the
owner of an `Emulator` must check `ended`.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from serverless_mpi.aws.credentials import emulator_keys
from serverless_mpi.aws.sigv4 import Keys
from serverless_mpi.errors import JobError, UsageError

HOST = "127.0.0.1"
START_S = 30.0  # it takes 0.3 s on an idle machine
SERVICES = ("s3", "sqs", "sns")  # those that channels use
STOP_S = 3.0  # then it is killed: its state is in memory, so nothing is lost
ANSWER_S = 1.0  # time limit of one request while it starts
ENDPOINT_S = 5.0  # time within which an endpoint that the user names must answer
INSTALL = 'pip install "serverless-mpi[local]"'

# Variables that the emulator inherits; others could change its behaviour.
KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
)

# The child runs server.py by its path, so it does not depend on where this package is installed.
_BOOT = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
_SERVER = Path(__file__).with_name("server.py")


def _listen(port: int) -> socket.socket:
    """Return a listening socket on a port of 127.0.0.1, 0 for a free one.

    Raises
    ------
    UsageError
        The port is in use, or this user may not bind it.
    """
    try:
        return socket.create_server((HOST, port), backlog=2048)
    except OSError as error:
        what = (
            "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        )
        raise UsageError(
            f"port {port} of {HOST} {what}; use another port, or omit --port for a free one"
        ) from error


def _answers(host: str, port: int, path: str, timeout_s: float, tls: bool = False) -> bool:
    kind = http.client.HTTPSConnection if tls else http.client.HTTPConnection
    connection = kind(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        connection.getresponse().read(1)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def check_endpoint(url: str) -> None:
    """Check that a server answers at a URL within ENDPOINT_S.

    Parameters
    ----------
    url
        What the user gave with --endpoint.

    Raises
    ------
    UsageError
        The text is not a URL of HTTP or HTTPS, or no server answers.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"endpoint {url!r} is not a URL such as http://127.0.0.1:4566")
    if not _answers(parts.hostname, port, "/", ENDPOINT_S, parts.scheme == "https"):
        raise UsageError(
            f"endpoint {url} does not answer (tried for at most {ENDPOINT_S:.0f} s);"
            " start it, or omit --endpoint: smpirun then starts an emulator"
        )


def of_job(
    folder: Path, port: int | None, region: str, services: Iterable[str], key: bytes
) -> Emulator:
    """Return the emulator of a job, which serves the processes that know the job's key.

    Parameters
    ----------
    folder, port, region, services
        As for `Emulator`.
    key
        The job's key.
    """
    return Emulator(folder, port, region, services, emulator_keys(key))


class Emulator:
    """An emulator process; a context manager that starts and stops it.

    Parameters
    ----------
    folder
        Folder for its log and temporary files; the caller makes and removes it.
    port
        Port of 127.0.0.1; None for a free one.
    region
        Its AWS region.
    services
        Names of the services that it runs, as its own settings name them.
    keys
        Access key with which requests must be signed. None serves every client of the machine.
    """

    def __init__(
        self,
        folder: str | Path,
        port: int | None = None,
        region: str = "us-east-1",
        services: Iterable[str] = SERVICES,
        keys: Keys | None = None,
    ) -> None:
        self._folder = Path(folder)
        self._port = port
        self._region = region
        self._services = sorted(services)
        self._keys = keys
        self._listener: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        """Id of its process; valid between `start` and `stop`."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> str:
        """Start it and wait until it answers.

        Returns
        -------
        str
            Its URL.

        Raises
        ------
        UsageError
            It is not installed, or the requested port is in use.
        JobError
            It ended before it answered, or did not answer within START_S.
        """
        if not all(map(importlib.util.find_spec, ("ministack", "uvicorn", "httptools"))):
            raise UsageError(f"the AWS emulator is not installed: {INSTALL}")
        self._listener = _listen(self._port or 0)
        try:
            port = self._listener.getsockname()[1]
            self._process = self._spawn(self._listener)
            deadline = time.monotonic() + START_S
            while not _answers(HOST, port, "/", ANSWER_S) or self.ended() is not None:
                if (end := self.ended()) is not None:
                    raise JobError(f"{end} before it answered")
                if time.monotonic() > deadline:
                    raise JobError(
                        f"the emulator did not answer within {START_S:.0f} s:"
                        f" {self._last_log_line()}"
                    )
        except BaseException:
            self.stop()
            raise
        self.url = f"http://{HOST}:{port}"
        return self.url

    def _spawn(self, listener: socket.socket) -> subprocess.Popen[bytes]:
        """Start the process, which reads its settings from standard input and ends with that."""
        with open(self._folder / "emulator.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(_SERVER), str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environment(listener.getsockname()[1]),
                pass_fds=(listener.fileno(),),
                start_new_session=True,
            )
        settings = {
            "region": self._region,
            "services": self._services,
            "access": self._keys and self._keys.access,
            "secret": self._keys and self._keys.secret,
        }
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `start` reports that
            process.stdin.write(json.dumps(settings).encode() + b"\n")
            process.stdin.flush()
        return process

    def ended(self) -> str | None:
        """Return how its process ended, with the last line of its log; None while it runs."""
        code = None if self._process is None else self._process.poll()
        if self._process is None or code is None:
            return None
        how = f"ended with exit code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = f"was killed by {signal.Signals(-code).name}"
        return f"the emulator (process {self._process.pid}) {how}: {self._last_log_line()}"

    def _environment(self, port: int) -> dict[str, str]:
        environ = {name: os.environ[name] for name in KEPT if name in os.environ}
        environ.update(
            GATEWAY_PORT=str(port),
            MINISTACK_REGION=self._region,
            SERVICES=",".join(self._services),
            IOT_MTLS_ENABLED="0",
            SFTP_ENABLED="0",
            LOG_LEVEL="WARNING",
            TMPDIR=str(self._folder),
            # ministack removes containers that look like its own, so it must not find a daemon.
            DOCKER_HOST=f"unix://{self._folder}/no-docker",
        )
        return environ

    def _last_log_line(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self._folder / "emulator.log").read_text(errors="replace").split("\n")
            for line in reversed(lines):
                if line.strip():
                    return line.strip()
        return "its log is empty"

    def stop(self) -> None:
        """Stop it and close the socket; further calls have no effect."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def __enter__(self) -> Emulator:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
