"""Ranks that are forks are the processes that they would be without: facts compared, and refusals."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serverless_mpi import forks
from serverless_mpi.env import ENV_FORKS
from serverless_mpi.errors import JobError
from serverless_mpi.launch.fork_server import ForkServer, usable
from serverless_mpi.launch.local import FORKED_AT_ONCE, SITE
from tests.harness import smpirun

DIRECT = ("--channel", "direct", "--stats", "none")

# Everything of a process that a program can see; "forked" distinguishes the two.
FACTS = """
import sys
loaded = "numpy" in sys.modules
import json, os, random, resource, signal, socket, stat, threading
open_files = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
handlers = {n: str(signal.getsignal(n)) for n in range(1, 32)}
from mpi4py import MPI
import numpy as np
np.linalg.inv(np.eye(40)) @ np.ones(40)
rank = MPI.COMM_WORLD.rank
parent = open(f"/proc/{os.getppid()}/cmdline").read()
facts = dict(
    main=__name__, file=__file__, argv=sys.argv, original=sys.orig_argv, flags=list(sys.flags),
    path=sys.path, folder=os.getcwd(), numpy_loaded=loaded, handlers=handlers,
    mask=[int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    environ={k: v for k, v in os.environ.items() if k not in ("SMPI_LINEAGE", "SMPI_FORKS")},
    files=[(fd, stat.S_IFMT(os.fstat(fd).st_mode)) for fd in open_files if fd < 3],
    others=len([fd for fd in open_files if fd > 2]), leads=os.getsid(0) == os.getpid() == os.getpgrp(),
    parent_launches="serverless_mpi.launch" in parent, standard_input=sys.stdin.read(),
    lines=(sys.stdout.line_buffering, sys.stderr.line_buffering, sys.stdout.encoding),
    threads=threading.active_count(), numpy=(np.__spec__.name, np.__spec__.origin, np.__file__),
    command=open("/proc/self/cmdline").read(), size=MPI.COMM_WORLD.size, rank=rank,
    limits=resource.getrlimit(resource.RLIMIT_NOFILE),
)
drawn = MPI.COMM_WORLD.gather((random.random(), np.random.random(), os.urandom(4)))
facts["distinct"] = [len(set(column)) for column in zip(*drawn)] if rank == 0 else None
print(json.dumps([rank, facts, os.environ.get("SMPI_FORKS")]))
sys.exit(0)
"""


def _facts(tmp_path: Path, forked: bool) -> dict[int, Any]:
    program = tmp_path / "facts.py"
    program.write_text(FACTS)
    words = [*DIRECT, "--wdir", tmp_path, "-x", f"{ENV_FORKS}={int(forked)}", "facts.py", "a b"]
    done = smpirun("-n", 3, *words, stdin="words")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return {rank: facts for rank, facts, _ in map(json.loads, done.stdout.splitlines())}


def test_a_forked_rank_sees_what_another_one_sees(tmp_path: Path) -> None:
    forked, started = _facts(tmp_path, True), _facts(tmp_path, False)
    assert sorted(forked) == [0, 1, 2]
    for rank in forked:
        assert forked[rank] == started[rank]
        assert forked[rank]["parent_launches"] and forked[rank]["leads"]
    assert forked[0]["distinct"] == [3, 3, 3]


def _loaded(tmp_path: Path, *words: object) -> list[str]:
    """Whether each rank has this package loaded at its start, as a forked one does."""
    program = tmp_path / "loaded.py"
    program.write_text("import sys\nprint('serverless_mpi.api.comm' in sys.modules)\n")
    done = smpirun("-n", 2, *DIRECT, "--wdir", tmp_path, *words, "loaded.py")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_ranks_are_forks_unless_something_watches_their_start(tmp_path: Path) -> None:
    assert _loaded(tmp_path) == ["True"] * 2
    assert _loaded(tmp_path, "-x", f"{ENV_FORKS}=0") == ["False"] * 2
    # a module of the program, which a loaded one would hide
    (tmp_path / "socket.py").write_text("from _socket import *\n")
    assert _loaded(tmp_path) == ["False"] * 2


def test_a_program_may_be_a_folder_with_modules_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "selectors.py").write_text("mine = True\n")
    (tmp_path / "__main__.py").write_text("import selectors\nprint(selectors.mine)\n")
    done = smpirun("-n", 2, *DIRECT, tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, ["True"] * 2), done.stderr


@pytest.mark.parametrize(
    ("argv", "ranks", "environ", "expected"),
    [
        ((sys.executable, "a.py"), 2, {}, True),
        ((sys.executable, "-m", "a"), 2, {"PYTHONPATH": "/x", "PYTHONUNBUFFERED": "1"}, True),
        ((sys.executable, "a.py"), 1, {}, False),
        (("/bin/sh", "a.sh"), 2, {}, False),
        ((sys.executable, "-I", "a.py"), 2, {}, False),
        ((sys.executable, "-X", "importtime", "a.py"), 2, {}, False),
        ((sys.executable,), 2, {}, False),
        ((sys.executable, "a.py"), 2, {"PYTHONPROFILEIMPORTTIME": "1"}, False),
        ((sys.executable, "a.py"), 2, {"PYTHONPROFILEIMPORTTIME": ""}, True),
        ((sys.executable, "a.py"), 2, {"COVERAGE_PROCESS_START": "x"}, False),
        ((sys.executable, "a.py"), 2, {ENV_FORKS: "0"}, False),
    ],
)
def test_where_ranks_are_forks(
    argv: tuple[str, ...], ranks: int, environ: dict[str, str], expected: bool
) -> None:
    assert usable(argv, ranks, environ) is expected


@pytest.mark.parametrize(
    ("environ", "threads"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": "many"}, None),
    ],
)
def test_threads_that_openblas_would_use(environ: dict[str, str], threads: int | None) -> None:
    assert forks._threads(environ) == threads


def test_a_program_chooses_the_threads_of_numpy_before_it_imports_it(tmp_path: Path) -> None:
    program = tmp_path / "threads.py"
    program.write_text(
        "import ctypes, os\nos.environ['OMP_NUM_THREADS'] = '1'\n"
        "from mpi4py import MPI\nimport numpy\n"
        "paths = {line.split()[-1] for line in open('/proc/self/maps') if 'openblas' in line}\n"
        "names = [a + 'openblas_get_num_threads' + b for a in ('', 'scipy_') for b in ('', '64_')]\n"
        "for path in paths:\n    library = ctypes.CDLL(path)\n"
        "    print([getattr(library, n)() for n in names if hasattr(library, n)])\n"
    )
    done = smpirun("-n", 2, *DIRECT, program)
    assert done.returncode == 0, done.stderr
    assert all(eval(line) == [1] for line in done.stdout.splitlines())


def _server(folder: Path, site: str) -> ForkServer:
    (folder / "program.py").write_text("raise SystemExit(3)\n")
    environ = {**os.environ, "PYTHONPATH": site, "SMPI_ALIAS": "1"}
    return ForkServer([sys.executable, "program.py"], str(folder), environ, [], reads=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    started = _server(tmp_path, str(SITE))
    yield started
    started.stop()
    started.output.close()


def test_forks_are_children_of_the_launcher(server: ForkServer) -> None:
    assert server.ready()
    null = os.open(os.devnull, os.O_RDWR)
    forked = server.fork([({}, {0: null, 1: null, 2: null})] * 3)
    os.close(null)
    assert len({rank.pid for rank in forked}) == 3
    server.stop()  # its ranks go on
    for rank in forked:
        assert os.waitstatus_to_exitcode(os.waitpid(rank.pid, 0)[1]) == 3


def test_a_server_that_has_ended_is_an_error_with_a_remedy(server: ForkServer) -> None:
    assert server.ready()
    server._process.kill()
    server._process.wait()
    with pytest.raises(JobError, match="SMPI_FORKS=0"):
        server.fork([({}, {0: 0, 1: 1, 2: 2})])


def test_a_server_that_ends_before_it_is_ready_is_not_used(tmp_path: Path) -> None:
    started = _server(tmp_path, "")  # the interpreter finds no sitecustomize that serves
    assert not started.ready()
    started.stop()
    started.output.close()


def test_more_ranks_than_are_forked_at_once(tmp_path: Path) -> None:
    program = tmp_path / "rank.py"
    program.write_text("import os\nprint(os.environ['SMPI_RANK'])\n")
    done = smpirun("-n", FORKED_AT_ONCE + 2, *DIRECT, program)
    assert done.returncode == 0, done.stderr
    assert sorted(map(int, done.stdout.split())) == list(range(FORKED_AT_ONCE + 2))
