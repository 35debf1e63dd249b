"""The embedded AWS emulator: a ministack process on 127.0.0.1 for the time of a job.

Nothing outside this file and `server.py` knows which emulator it is. It keeps everything in
memory, binds no other interface, sees no credential of the user and no Docker
daemon, and dies with the process that started it.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from serverless_mpi.errors import JobError, UsageError

HOST = "127.0.0.1"
HEALTH = "/_ministack/health"
START_S = 30.0  # it takes 0.3 s on an idle machine
STOP_S = 3.0  # then it is killed: its state is in memory, so nothing is lost
POLL_S = 0.02
ATTEMPTS = 5  # a free port may be taken between being found and being bound
ENDPOINT_S = 5.0  # how long an endpoint that the user names may take to answer
INSTALL = 'pip install "serverless-mpi[local]"'

# What the emulator inherits; everything else of the user's environment could change what it does.
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

# The child's program, found by its path: what is installed where does not matter to it.
_BOOT = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
_SERVER = Path(__file__).with_name("server.py")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _in_use(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


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
    """See that something speaks HTTP at `url`, for at most ENDPOINT_S.

    Raises
    ------
    UsageError
        The text is no such URL, or nothing answers.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"endpoint {url!r} is no URL; it looks like http://127.0.0.1:4566")
    if not _answers(parts.hostname, port, "/", ENDPOINT_S, parts.scheme == "https"):
        raise UsageError(
            f"endpoint {url} does not answer (tried for at most {ENDPOINT_S:.0f} s);"
            " start it, or leave --endpoint away to have an emulator started"
        )


class Emulator:
    """A running emulator; a context manager that stops it.

    Parameters
    ----------
    folder
        For its log and temporary files; must exist, and be removed by the caller.
    port
        None for a free one.
    region
        Its AWS region.
    """

    def __init__(
        self, folder: str | Path, port: int | None = None, region: str = "us-east-1"
    ) -> None:
        self._folder = Path(folder)
        self._port = port
        self._region = region
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self.url = ""

    def start(self) -> str:
        """Start it and wait until it answers; returns its URL.

        Raises
        ------
        UsageError
            It is not installed, or the port that was asked for is in use.
        JobError
            It ended at once, or did not answer within START_S.
        """
        if not all(map(importlib.util.find_spec, ("ministack", "uvicorn", "httptools"))):
            raise UsageError(f"emulator not installed: {INSTALL}")
        if self._port is not None and _in_use(self._port):
            raise UsageError(
                f"port {self._port} of {HOST} is in use; name another, or leave it away to have a free one found"
            )
        for _ in range(ATTEMPTS):
            port = self._port or free_port()
            if self._begin(port):
                self.url = f"http://{HOST}:{port}"
                return self.url
            if self._port is not None:
                break
        raise JobError(f"the emulator ended before it answered: {self._last_words()}")

    def _begin(self, port: int) -> bool:
        ours, theirs = os.pipe()[::-1]
        try:
            with open(self._folder / "emulator.log", "wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _BOOT, str(_SERVER), HOST, str(port), str(theirs)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self._folder,
                    env=self._environment(port),
                    pass_fds=(theirs,),
                    start_new_session=True,
                )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._lifeline = ours
        try:
            deadline = time.monotonic() + START_S
            while self._process.poll() is None:
                if _answers(HOST, port, HEALTH, 1.0) and self._process.poll() is None:
                    return True
                if time.monotonic() > deadline:
                    raise JobError(
                        f"the emulator did not answer within {START_S:.0f} s: {self._last_words()}"
                    )
                time.sleep(POLL_S)
        except BaseException:
            self.stop()
            raise
        self.stop()
        return False

    def _environment(self, port: int) -> dict[str, str]:
        environ = {name: os.environ[name] for name in KEPT if name in os.environ}
        environ.update(
            GATEWAY_PORT=str(port),
            MINISTACK_REGION=self._region,
            IOT_MTLS_ENABLED="0",
            SFTP_ENABLED="0",
            LOG_LEVEL="WARNING",
            TMPDIR=str(self._folder),
            # It removes containers that it takes for its own; it shall find no daemon.
            DOCKER_HOST=f"unix://{self._folder}/no-docker",
        )
        return environ

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self._folder / "emulator.log").read_text(errors="replace").split("\n")
            for line in reversed(lines):
                if line.strip():
                    return line.strip()
        return "it said nothing"

    def stop(self) -> None:
        """Stop it; may be called again."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

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
