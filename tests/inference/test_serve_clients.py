"""The service with slow, silent, countless or non-reading clients and hostile files: it continues.

It ends at a signal.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serverless_mpi.errors import UsageError
from serverless_mpi.inference import serve, sources
from serverless_mpi.inference.options import ServeOptions
from tests.harness import GIVE_UP_S, ROOT, mpirun, run
from tests.inference.test_files import HOSTILE

STATUS = b'{"status": true}\n'
QUERY = b'{"images": "x"}\n'


class Fake:
    """In the place of a service: a query is answered when `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.entered = threading.Semaphore(0)
        self.reply: dict[str, Any] = {"ok": True}

    def status(self) -> dict[str, Any]:
        return {"status": True}

    def ask(self, query: serve.Query) -> dict[str, Any]:
        self.entered.release()
        assert self.go.wait(GIVE_UP_S)
        return self.reply


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture
def server(path: str) -> Iterator[Any]:
    made = serve.listen(path)
    made.service = Fake()  # type: ignore[assignment]
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.service.go.set()  # type: ignore[attr-defined]
    made.stop_listening()
    made.end(time.monotonic() + GIVE_UP_S)
    thread.join()


def connected(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(GIVE_UP_S)
    made.connect(path)
    return made


def asked(connection: socket.socket, line: bytes) -> dict[str, Any]:
    connection.sendall(line)
    return heard(connection)


def heard(connection: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        chunk = connection.recv(1 << 16)
        assert chunk, data
        data += chunk
    reply: dict[str, Any] = json.loads(data)
    return reply


@pytest.mark.parametrize(
    "line, message",
    [
        (b"[" * 60000 + b"\n", "a query is a line of JSON"),
        (b'{"a":' * 10000 + b"\n", "a query is a line of JSON"),
        (b'{"samples": NaN, "images": "x"}\n', "samples is nan"),
        (b'{"images": "x", "samples": -' + b"9" * 4000 + b"}\n", "not a whole number"),
        (b'{"images": "x", "samples": ' + b"9" * 9000 + b"}\n", "a query is a line of JSON"),
        (b"\n", "a query is a line of JSON"),
        (bytes(range(128, 256)) + b"\n", "a query is a line of JSON"),
    ],
)
def test_a_hostile_line_is_answered_and_so_is_the_next(
    server: Any, path: str, line: bytes, message: str
) -> None:
    with connected(path) as one:
        reply = asked(one, line)
        assert message in reply["error"] and len(reply["error"]) < 400
        assert asked(one, STATUS) == {"status": True}


def test_a_line_without_end_is_refused(server: Any, path: str) -> None:
    with connected(path) as one:
        with contextlib.suppress(OSError):
            for _ in range(64):
                one.sendall(b"x" * 4096)
        assert f"at most {serve.MOST_LINE_BYTES} bytes" in heard(one)["error"]
    with connected(path) as another:
        assert asked(another, STATUS) == {"status": True}


def test_the_most_idle_gives_way_to_a_new_one(
    server: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MOST_CONNECTIONS", 3)
    monkeypatch.setattr(serve, "LEAST_IDLE_S", 0.0)
    many = [connected(path) for _ in range(3)]
    for one in many:
        assert asked(one, STATUS) == {"status": True}
    many[0].sendall(b'{"sta')  # half a line does not count as busy
    newcomer = connected(path)
    assert asked(newcomer, STATUS) == {"status": True}
    assert "was closed in favour of others" in heard(many[0])["error"]
    for one in (*many[1:], newcomer):
        assert asked(one, STATUS) == {"status": True}
    for one in (*many, newcomer):
        one.close()


def test_a_new_one_is_refused_with_an_answer_if_all_are_busy(
    server: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(serve, "LEAST_IDLE_S", 0.0)
    busy = [connected(path) for _ in range(2)]
    for one in busy:
        one.sendall(QUERY)
    for _ in busy:
        assert server.service.entered.acquire(timeout=GIVE_UP_S)
    assert "2 clients are being served; ask again" in serve.ask(path, {"status": True})["error"]
    server.service.go.set()
    for one in busy:
        assert heard(one) == {"ok": True}
        one.close()
    with connected(path) as one:
        assert asked(one, STATUS) == {"status": True}


def test_a_silent_client_gets_an_error_and_is_disconnected(
    server: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "IDLE_S", 0.05)
    with connected(path) as one:
        assert "no query arrived within 0.05 s" in heard(one)["error"]
        assert one.recv(1) == b""


def test_no_descriptor_left_is_waited_for_and_not_tried_at_once(
    server: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listening socket stays readable, so that each try would follow the one before without a
    pause.
    """
    tries, pauses, idle = [], [], connected(path)
    assert asked(idle, STATUS) == {"status": True}
    real = server.socket

    class Exhausted:
        def accept(self) -> Any:
            tries.append(len(pauses))
            if len(tries) <= 5:
                raise OSError(errno.EMFILE, "Too many open files")
            return real.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    monkeypatch.setattr(serve, "LEAST_IDLE_S", 0.0)
    monkeypatch.setattr(serve.time, "sleep", pauses.append)
    server.socket = Exhausted()
    with connected(path) as one:
        assert asked(one, STATUS) == {"status": True}
    assert tries == [0, 1, 2, 3, 4, 5] and set(pauses) == {serve.ACCEPT_PAUSE_S}
    assert "was closed in favour of others" in heard(idle)["error"]  # its descriptor is one
    idle.close()


def test_a_client_that_does_not_read_does_not_hold_up_the_end(server: Any, path: str) -> None:
    server.service.reply = {"long": "x" * (4 << 20)}
    server.service.go.set()
    with connected(path) as one:
        one.sendall(QUERY * 3)
        assert server.service.entered.acquire(timeout=GIVE_UP_S)
        server.stop_listening()
        assert not Path(path).exists()
        (thread,) = server._client_threads
        server.end(time.monotonic() + 0.1)
        thread.join(serve.REPLY_S / 2)  # which it would take to give the client up by itself
        assert not thread.is_alive()


# --- the socket's file ----------------------------------------------------------------------------


def test_only_a_refused_connection_proves_that_no_service_listens(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that accepts nothing, as its backlog is full, is there all the same."""
    monkeypatch.setattr(serve, "PROBE_S", 0.05)
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as held:
        busy.bind(path)
        busy.listen(0)
        with contextlib.suppress(OSError):
            for _ in range(3):
                one = held.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(path)
        with pytest.raises(UsageError, match="another service is listening there"):
            serve.listen(path)
        assert Path(path).exists()
    assert serve.listen(path).server_close() is None  # it has ended, and its file is there


def test_a_service_removes_its_own_file_and_no_other(path: str) -> None:
    first = serve.listen(path)
    first.server_close()
    os.rename(path, f"{path}.away")  # not removed, or the second might get its number
    second = serve.listen(path)
    first.remove_file()
    assert Path(path).exists()
    second.server_close()
    second.remove_file()
    assert not Path(path).exists()
    for other in ("file", "link"):
        (Path(path).parent / "file").write_text("mine")
        place = Path(path).parent / other
        if other == "link":
            place.symlink_to("file")
        with pytest.raises(UsageError, match="name a new file"):
            serve.listen(str(place))
        assert place.read_text() == "mine"


def test_two_that_start_at_once_do_not_take_each_others_socket(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that a killed service left is there; one proves that, and the other comes in
    between.
    """
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    real, results, other = serve._is_abandoned, [], []

    def slow(where: str) -> bool:
        found = real(where)
        if not other:
            other.append(threading.Thread(target=start))
            other[0].start()
            other[0].join(0.2)  # it waits for the folder
        return found

    def start() -> None:
        try:
            results.append(serve.listen(path))
        except UsageError as error:
            results.append(error)

    monkeypatch.setattr(serve, "_is_abandoned", slow)
    first = serve.listen(path)
    other[0].join(GIVE_UP_S)
    assert "another service is listening there" in str(results[0])
    with connected(path):
        pass
    first.server_close()


# --- lanes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError(), KeyError("secret"), RecursionError()])
def test_what_no_reader_documents_is_answered_too(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No other rank knows of a query whose file is being read, so nothing has to end."""

    def fail(*arguments: Any) -> Any:
        raise error

    def body(comm: Any) -> list[dict[str, Any]]:
        given = ServeOptions(lanes=1, queue=2, net="random", neurons=96, layers=2, method="block")
        service = serve.Service(comm, given, sources.model(given, 1, 0))
        replies = [service.ask(serve.Query("x", None, None)) for _ in range(2)]
        service.stop()
        service.join()
        return replies

    monkeypatch.setattr(sources, "read_images", fail)
    for reply in run(1, body)[0]:
        assert "could not be read" in reply["error"] and "secret" not in reply["error"]
    assert type(error).__name__ in capsys.readouterr().err


def test_a_job_that_is_aborted_leaves_no_file_either() -> None:
    done: list[str] = []

    class Lane:
        rank = 1

        def bcast(self, order: Any) -> Any:
            raise RuntimeError("a rank vanished")

        def Abort(self, code: int) -> None:
            done.append(f"abort {code}")

    service = object.__new__(serve.Service)
    service._comm = Lane()
    service.at_failure = lambda: done.append("file removed")
    service._run(Lane())
    assert done == ["file removed", "abort 1"]


# --- a whole service ------------------------------------------------------------------------------

STUCK = """
import sys, threading
from serverless_mpi.inference import cli, engine
def infer(*arguments, **more):
    print("computing", flush=True)
    threading.Event().wait()
engine.infer = infer
sys.exit(cli.main(sys.argv[1:]))
"""


def words(path: str, *more: str) -> list[str]:
    model = ["--net", "random", "--neurons", "96", "--layers", "2", "--lanes", "1"]
    return ["serve", "--socket", path, *model, *more]


LAUNCHERS = {
    "alone": [sys.executable],
    "smpirun": [sys.executable, "-m", "serverless_mpi.launch", "-n", "2", "--channel", "direct"],
    "mpirun": [str(mpirun()), "-n", "2", sys.executable],
}


@pytest.mark.parametrize(
    "launcher, number",
    [
        ("alone", signal.SIGINT),
        ("smpirun", signal.SIGTERM),
        pytest.param(
            "mpirun",
            signal.SIGTERM,
            marks=pytest.mark.skipif(
                mpirun() is None, reason="no mpirun: pip install mpi4py mpich"
            ),
        ),
    ],
)
def test_a_signal_ends_a_service_whose_query_does_not_end(
    tmp_path: Path, path: str, launcher: str, number: signal.Signals
) -> None:
    np.savez(tmp_path / "images.npz", images=np.ones((3, 96), np.uint8))
    (tmp_path / "stuck.py").write_text(STUCK)
    with subprocess.Popen(
        [*LAUNCHERS[launcher], str(tmp_path / "stuck.py"), *words(path)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as running:
        assert running.stdout is not None
        assert b"ready at" in running.stdout.readline()
        with connected(path) as one:
            one.sendall(json.dumps({"images": str(tmp_path / "images.npz")}).encode() + b"\n")
            assert running.stdout.readline().startswith(b"computing")  # both ranks may be in it
            running.send_signal(number)
            assert "stopping; the query took too long" in heard(one)["error"]
        code = running.wait(GIVE_UP_S)
    assert code == 128 + number or launcher == "mpirun"
    assert not Path(path).exists()


def _served(path: str, running: subprocess.Popen[str], tmp_path: Path) -> None:
    """Every hostile file is answered on a service of 2 ranks, and a good one after it; then it ends
    on SIGTERM.
    """
    good = tmp_path / "good.npz"
    np.savez(good, images=np.ones((3, 96), np.uint8))
    bad = []
    for number, (suffix, data, _) in enumerate(HOSTILE.values()):
        bad.append(tmp_path / f"bad{number}{suffix}")
        bad[-1].write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    bad += [Path(one) for one in ("/dev/zero", tmp_path / "pipe", tmp_path, path, "/proc/self/mem")]
    with connected(path) as one:
        for place in bad:
            reply = asked(one, json.dumps({"images": str(place)}).encode() + b"\n")
            if "error" not in reply:  # the bomb of the list is one for small limits alone
                assert place.stat().st_size < 1 << 16 and reply["images"] == 1 << 16
        reply = asked(one, json.dumps({"images": str(good)}).encode() + b"\n")
        assert reply["images"] == 3
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=GIVE_UP_S)
    assert not Path(path).exists() and "Traceback" not in said, said


def test_a_service_answers_every_hostile_file(tmp_path: Path, path: str) -> None:
    command = [sys.executable, "-m", "serverless_mpi.inference", *words(path, "-n", "2")]
    with subprocess.Popen(
        [*command, "--channel", "direct"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as running:
        assert running.stdout is not None and "ready at" in running.stdout.readline()
        _served(path, running, tmp_path)
        assert running.returncode == 128 + signal.SIGTERM


@pytest.mark.skipif(mpirun() is None, reason="no mpirun: pip install mpi4py mpich")
def test_a_service_under_a_real_mpi_ends_and_leaves_no_file(tmp_path: Path, path: str) -> None:
    command = [str(mpirun()), "-n", "2", sys.executable, "-m", "serverless_mpi.inference"]
    with subprocess.Popen(
        [*command, *words(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        ready = running.stdout.readline()
        assert "ready at" in ready, running.stderr.read()
        _served(path, running, tmp_path)
