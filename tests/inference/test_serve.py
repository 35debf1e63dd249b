"""A service answers queries, reports invalid ones, refuses excess load, and ends cleanly."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serverless_mpi.errors import UsageError
from serverless_mpi.inference import engine, networks, partition, serve, sources, store
from serverless_mpi.inference.backends import Folder
from serverless_mpi.inference.options import ServeOptions
from serverless_mpi.sparse import serial_forward
from tests.harness import GIVE_UP_S, ROOT, run

BIAS = -0.15
NETWORK = networks.randomnet(96, 7, seed=4)
IMAGES = (np.random.default_rng(4).random((96, 130)) > 0.9).astype(np.float32)
WHOLE = serial_forward(NETWORK, IMAGES, BIAS)
LIVING = (np.flatnonzero((WHOLE != 0).any(axis=0)) + 1).tolist()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    index = store.write_model(
        Folder(folder), NETWORK, partition.make(NETWORK, 3, "random", 1), bias=BIAS, name="random"
    )
    store.write_inputs(Folder(folder), index, "some", IMAGES)
    np.savez(folder / "images.npz", images=IMAGES.T)
    np.savez(folder / "grey.npz", images=IMAGES.T * np.float32(0.5))
    np.savez(folder / "narrow.npz", images=np.zeros((3, 95), np.float32))
    (folder / "text.tsv").write_text("no images at all\n")
    return folder


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


def options(place: Path, path: str, **more: Any) -> ServeOptions:
    given: dict[str, Any] = {
        "store": str(place),
        "socket": path,
        "lanes": 2,
        "queue": 4,
        "memory": None,
        "platform": "local",
        "endpoint": None,
        "region": "us-east-1",
    }
    return ServeOptions(**{**given, **more})


@pytest.mark.parametrize(
    "line, message",
    [
        (b"hello", "a query is a line of JSON"),
        (b"\xff\xfe", "a query is a line of JSON"),
        (b"[1]", "a JSON object with some of images, input, samples, status"),
        (b'{"image": "x"}', "a JSON object with some of"),
        (b"{}", "either images"),
        (b'{"images": 3}', "either images"),
        (b'{"images": "x", "input": "y"}', "either images"),
        (b'{"images": "x", "samples": 0}', "samples is 0"),
        (b'{"images": "x", "samples": true}', "samples is True"),
    ],
)
def test_an_invalid_query_gets_an_error(line: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        serve.parse(line)


def test_lanes_answer_at_the_same_time_and_end_together(place: Path, path: str) -> None:
    def body(comm: Any) -> Any:
        given = options(place, path)
        service = serve.Service(comm, given, sources.model(given, 3, comm.rank))
        replies = []
        if comm.rank == 0:
            questions = [
                serve.Query(str(place / "images.npz"), None, None),
                serve.Query(None, "some", 40),
                serve.Query(None, "none", None),
            ]
            with ThreadPoolExecutor(3) as pool:
                replies = list(pool.map(service.ask, questions))
            replies.append(service.ask(serve.Query(str(place / "grey.npz"), None, None)))
            service.stop()
        service.join()
        return replies

    images, some, none, grey = run(3, body)[0]
    assert images["categories"] == LIVING and images["images"] == 130
    assert images["scores"] == WHOLE[:, np.array(LIVING) - 1].max(axis=0).tolist()
    assert some["categories"] == [one for one in LIVING if one <= 40]
    assert "has no input-none-00000.smpi" in none["error"]
    right = serial_forward(NETWORK, IMAGES * np.float32(0.5), BIAS)
    assert grey["categories"] == (np.flatnonzero((right != 0).any(axis=0)) + 1).tolist()


def test_a_full_queue_refuses_and_waiting_queries_get_an_error_at_the_end(
    place: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go, real = threading.Semaphore(0), threading.Event(), engine.infer

    def slow(*arguments: Any, **more: Any) -> Any:
        entered.release()
        assert go.wait(GIVE_UP_S)
        return real(*arguments, **more)

    monkeypatch.setattr(engine, "infer", slow)

    def body(comm: Any) -> None:
        given = options(
            place,
            path,
            store=None,
            lanes=1,
            queue=2,
            net="random",
            neurons=96,
            layers=7,
            seed=4,
            bias=BIAS,
            method="block",
            partition=None,
        )
        service = serve.Service(comm, given, sources.model(given, 1, 0))
        with ThreadPoolExecutor(4) as pool:

            def ask() -> Any:
                return pool.submit(service.ask, serve.Query(str(place / "images.npz"), None, None))

            first = ask()
            assert entered.acquire(timeout=GIVE_UP_S)  # it is being computed
            second = ask()
            while service.waiting.qsize() < 1:
                threading.Event().wait(0.001)
            third = ask()
            while service.waiting.qsize() < 2:
                threading.Event().wait(0.001)
            assert "2 queries are waiting already" in ask().result()["error"]
            service.stop()
            for one in (second, third, ask()):
                assert one.result()["error"] == "the service is stopping"
            go.set()
            assert first.result()["categories"] == LIVING
        service.join()
        assert service.counts == {"answered": 1, "refused": 2, "failed": 2}

    run(1, body)


@pytest.fixture(
    params=[("-n", "3", "--channel", "queue"), ("-n", "3", "--channel", "direct")],
    ids=["queue", "direct"],
)
def service(
    request: pytest.FixtureRequest, place: Path, path: str
) -> Iterator[subprocess.Popen[str]]:
    words = [
        sys.executable,
        "-m",
        "serverless_mpi.inference",
        "serve",
        "--store",
        str(place),
        "--socket",
        path,
        *request.param,
    ]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        ready = running.stdout.readline()
        assert "on 3 workers: ready at" in ready, running.stderr.read()
        yield running
        running.kill()


def query(path: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "serverless_mpi.inference",
            "query",
            "--socket",
            path,
            *map(str, words),
        ],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        cwd=ROOT,
    )


def test_a_service_from_its_start_to_its_end(
    service: subprocess.Popen[str], place: Path, path: str
) -> None:
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    done = query(
        path,
        "--json",
        place / "images.npz",
        place / "text.tsv",
        place / "narrow.npz",
        place / "gone.tsv",
        "--input",
        "some",
    )
    assert done.returncode == 1
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["categories"] for one in answers] == [LIVING, LIVING] and answers[0][
        "checksum"
    ] == answers[1]["checksum"]
    for name, message in (
        ("text.tsv", "line 1"),
        ("narrow.npz", "(samples, 96)"),
        ("gone.tsv", "No such file"),
    ):
        assert any(name in line and message in line for line in done.stderr.splitlines()), (
            done.stderr
        )
    with socket.socket(
        socket.AF_UNIX
    ) as raw:  # one connection, several lines; a bad one does not end it
        raw.settimeout(GIVE_UP_S)
        raw.connect(path)
        raw.sendall(
            b"rubbish\n"
            + json.dumps({"input": "some", "samples": 9}).encode()
            + b'\n{"status": true}\n'
        )
        bad, good, status = (
            json.loads(line) for _, line in zip(range(3), raw.makefile("rb"), strict=False)
        )
        assert (
            "line of JSON" in bad["error"]
            and good["images"] == 9
            and status["workers"] == 3
            and status["answered"] == 3
        )
        assert "another service is listening there" in listen_twice(path)
        service.send_signal(signal.SIGTERM)
        out, err = service.communicate(timeout=GIVE_UP_S)  # although that connection is open
    assert service.returncode == 143 and "smpi-infer: stopping" in err and "Traceback" not in err, (
        err
    )
    assert not Path(path).exists()
    done = query(path, "--status")
    assert done.returncode == 2 and "no service listens at" in done.stderr


def listen_twice(path: str) -> str:
    with pytest.raises(UsageError) as caught:
        serve.listen(path)
    return str(caught.value)


def test_a_socket_that_a_killed_service_left_is_taken_over(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    serve.listen(path).server_close()
    with pytest.raises(UsageError, match="name a new file in a folder of yours"):
        serve.listen("/no/such/folder/s")


def test_a_service_that_cannot_start_reports_why(place: Path, path: str) -> None:
    words = ("serve", "--socket", path, "--store", str(place))
    for more, message in (
        (("-n", "2"), "needs 3 workers, not 2"),
        (("--platform", "lambda"), "serve runs on this machine only"),
        (("--memory", "10"), "no number of parts fits"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "serverless_mpi.inference", *words, *more],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 2 and message in done.stderr, done.stderr
