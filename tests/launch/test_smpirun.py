"""smpirun as people expect of mpiexec: output, codes, ends, and nothing left behind."""

from __future__ import annotations

import http.server
import json
import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from serverless_mpi.aws import control
from serverless_mpi.errors import UsageError
from serverless_mpi.launch.emulator import Emulator
from serverless_mpi.launch.jobs import state_folder
from tests.harness import interrupt, smpirun

DIRECT = ("--channel", "direct")
HELLO = "from serverless_mpi import MPI\nc = MPI.COMM_WORLD\n"


@pytest.fixture
def script(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(text: str, name: str = "prog.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_lines_are_whole_and_tagged(script) -> None:  # type: ignore[no-untyped-def]
    prog = script(
        HELLO
        + "import sys\nfor i in range(50): print('line', i); print('error', i, file=sys.stderr)\n"
    )
    done = smpirun("-n", 3, *DIRECT, "--tag-output", prog)
    assert done.returncode == 0
    for text, word in ((done.stdout, "line"), (done.stderr, "error")):
        expected = sorted(f"[{rank}] {word} {i}" for rank in range(3) for i in range(50))
        assert sorted(text.splitlines()) == expected


@pytest.mark.parametrize("alias", [True, False])
def test_programs_that_import_mpi4py_run_unchanged(script, alias: bool) -> None:  # type: ignore[no-untyped-def]
    prog = script(
        "try:\n    from mpi4py import MPI\n    print(MPI.__name__, MPI.COMM_WORLD.size)\n"
        "except (ImportError, RuntimeError):\n    print('no mpi4py')\n"
    )
    done = smpirun("-n", 2, *DIRECT, *(() if alias else ("--no-alias",)), prog)
    assert ("serverless_mpi.MPI 2" in done.stdout) is alias


def test_module_executable_and_several_programs(script, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    script(HELLO + "import sys\nprint('mod', c.rank, c.size, sys.argv[1:])\n", "mod.py")
    a, b = (
        script(HELLO + "print('a', c.rank, c.size)\n", "a.py"),
        script(HELLO + "print('b', c.rank, c.size)\n", "b.py"),
    )
    assert (
        smpirun("-n", 1, *DIRECT, "--wdir", tmp_path, "-m", "mod", "x").stdout == "mod 0 1 ['x']\n"
    )
    both = smpirun("-n", 1, *DIRECT, a, ":", "-n", 2, sys.executable, b)
    assert sorted(both.stdout.splitlines()) == ["a 0 3", "b 1 3", "b 2 3"]


# whatever the launcher started: the ranks, this one last, and the guard
KILL_ALL = (
    "[os.kill(p, 9) for p in sorted(map(int, open(f'/proc/{os.getppid()}/task/{os.getppid()}/children').read().split()),"
    " key=os.getpid().__eq__)]"
)


@pytest.mark.parametrize(
    "ending, code, message",
    [
        ("sys.exit(7)", 7, "exit code 7"),
        ("raise ValueError('mine')", 1, "exit code 1"),
        ("c.Abort(5)", 5, "Abort(5)"),
        ("os.kill(os.getpid(), 9)", 137, "SIGKILL"),
        (KILL_ALL, 137, "SIGKILL"),
    ],
)
def test_the_first_failing_rank_ends_the_job(script, ending: str, code: int, message: str) -> None:  # type: ignore[no-untyped-def]
    prog = script(HELLO + f"import os, sys\nif c.rank == 1: {ending}\nc.recv(source=1)\n")
    done = smpirun("-n", 3, *DIRECT, prog)
    assert done.returncode == code and message in done.stderr and "jobs.py" not in done.stderr
    assert "rank 1" in done.stderr or ending == KILL_ALL


def test_a_time_out_is_124(script) -> None:  # type: ignore[no-untyped-def]
    prog = script(HELLO + "c.recv(source=c.rank)\n")
    done = smpirun("-n", 2, *DIRECT, "--timeout", 1.5, prog)
    assert done.returncode == 124 and "--timeout 1.5 s" in done.stderr


def test_ctrl_c_stops_everything(script, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    prog = script(HELLO + "import os\nprint(os.getpid(), flush=True)\nc.recv(source=c.rank)\n")
    interrupt(2, "-n", "2", prog)


@pytest.mark.parametrize("channel", ["queue", "object", "hybrid"])
@pytest.mark.parametrize("crash", [False, True])
def test_no_queue_topic_or_bucket_is_left(
    script, ministack_endpoint: str, channel: str, crash: bool, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    prog = script(
        HELLO + ("import os\nif c.rank: os._exit(3)\n" if crash else "") + "print(c.allreduce(1))\n"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # apart from the jobs of others
    done = smpirun("-n", 2, "--channel", channel, "--endpoint", ministack_endpoint, prog, env=env)
    assert done.returncode == (3 if crash else 0), done.stderr
    assert control.leftovers(ministack_endpoint, "us-east-1") == []
    assert not (tmp_path / state_folder().name).exists()


def test_ambient_credentials_are_not_seen(script) -> None:  # type: ignore[no-untyped-def]
    prog = script(
        "import os\nprint(sorted(n for n in os.environ if 'KEY_ID' in n or 'PROFILE' in n or n == 'AWS_REGION'))\n"
    )
    env = {**os.environ, "AWS_ACCESS_KEY_ID": "real", "AWS_PROFILE": "p", "AWS_REGION": "eu-west-1"}
    assert smpirun("-n", 1, *DIRECT, prog, env=env).stdout == "[]\n"
    assert smpirun("-n", 1, *DIRECT, "-x", "AWS_REGION", prog, env=env).stdout == "['AWS_REGION']\n"


def test_stats_as_json(script) -> None:  # type: ignore[no-untyped-def]
    prog = script(HELLO + "c.allreduce(1)\n")
    done = smpirun("-n", 3, "--channel", "queue", "--stats", "json", prog)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["ranks"] == 3 and summary["usd"] > 0 and summary["dropped"] == 0
    # a gather to rank 0 is two messages, the fan-out one publish
    assert summary["operations"]["sqs.SendMessageBatch"]["messages"] == 2
    assert summary["operations"]["sns.Publish"]["requests"] == 1


def _busy_port() -> tuple[socket.socket, int]:
    busy = socket.socket()
    busy.bind(("127.0.0.1", 0))
    busy.listen()
    return busy, int(busy.getsockname()[1])


@pytest.mark.parametrize(
    "words, message",
    [
        (["-n", "0", "examples/hello.py"], "at least 1"),
        (["-n", "x", "examples/hello.py"], "-n"),
        (["-n", "2"], "lacks a program"),
        (["-n", "2", "missing.py"], "no program missing.py"),
        (["-n", "2", "no-such-command"], "no-such-command"),
        (["--channel", "pigeon", "examples/hello.py"], "known: hybrid, queue"),
        (["--platform", "moon", "examples/hello.py"], "known: local"),
        (["--bogus", "examples/hello.py"], "--bogus"),
        (["--endpoint", "http://127.0.0.1:9", "examples/hello.py"], "does not answer"),
        (["--endpoint", "nonsense", "examples/hello.py"], "is not a URL"),
        (["--timeout", "-1", "examples/hello.py"], "--timeout"),
        (["--prices", "README.md", "examples/hello.py"], "price table"),
        (["-x", "SMPI_NOT_SET_ANYWHERE", "examples/hello.py"], "SMPI_NOT_SET_ANYWHERE"),
        (["--wdir", "nowhere", "examples/hello.py"], "nowhere"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(words: list[str], message: str) -> None:
    done = smpirun(*words)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_reported() -> None:
    busy, port = _busy_port()
    with busy:
        done = smpirun("-n", 1, "--port", port, "examples/hello.py")
    assert done.returncode == 2 and f"port {port}" in done.stderr and "in use" in done.stderr


class _NoAws(http.server.BaseHTTPRequestHandler):
    """Answers whatever it is asked with a page that says no."""

    def do_POST(self) -> None:
        self.send_response(501)
        page = b"<html>\n<h1>Error</h1>\n</html>\n"
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        pass


def test_an_endpoint_that_is_not_aws_is_reported_in_one_line(tmp_path: Path) -> None:
    env = {
        **os.environ,
        "TMPDIR": str(tmp_path),
    }  # the job is remembered for --cleanup, and forgotten with the folder
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _NoAws) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = smpirun(
            "-n",
            2,
            "--endpoint",
            f"http://127.0.0.1:{server.server_port}",
            "examples/hello.py",
            env=env,
        )
        server.shutdown()
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and all(line.startswith("smpirun: ") for line in lines)
    assert "501" in lines[-1] and "did not make" in lines[-1]


def test_prices_of_another_region_are_reported() -> None:
    done = smpirun(
        "-n", 1, *DIRECT, "--region", "eu-west-1", "--stats", "text", "examples/hello.py"
    )
    assert done.returncode == 0 and "prices are not those of eu-west-1" in done.stderr


def test_a_missing_emulator_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"serverless-mpi\[local\]"):
        Emulator(tmp_path).start()


def test_cleanup_has_nothing_to_do() -> None:
    assert smpirun("--cleanup").returncode == 0
