"""smpirun --platform lambda -ppn: several ranks in each function, which share a queue and a claim."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serverless_mpi.launch import console
from serverless_mpi.launch.emulator import Emulator
from serverless_mpi.stack import pool
from tests.harness import smpirun
from tests.launch.lambda_stack import SERVICES, Deployed, smpi

QUEUES = 3  # fewer than ranks
HELLO = "from mpi4py import MPI\nc = MPI.COMM_WORLD\n"
Script = Callable[..., Path]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A stack whose functions have 6 vCPUs."""
    emulator = Emulator(tmp_path_factory.mktemp("ministack"), services=SERVICES)
    try:
        made = Deployed(emulator.start())
        options = ("--ranks", QUEUES, "--jobs", 1, "--memory", "1769,10240")
        done = smpi("deploy", "--endpoint", made.endpoint, *options)
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        emulator.stop()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    def write(text: str, name: str = "prog.py") -> Path:
        path = tmp_path / name
        path.write_text(HELLO + text)
        return path

    return write


PACKS = """
import os
near = c.Split_type(MPI.COMM_TYPE_SHARED)
c.send((c.rank, MPI.Get_processor_name().rpartition("-")[2]), (c.rank + 3) % c.size)
source, where = c.recv()
total = c.allreduce(c.rank)
data = c.bcast(b"x" * 300_000 if c.rank == 5 else None, root=5)
c.Barrier()
print(c.rank, near.size, near.allgather(c.rank)[0], source, where, total, len(data), os.environ["SMPI_LOCAL_RANKS"])
"""


def test_8_ranks_in_2_functions(deployed: Deployed, script: Script) -> None:
    done = deployed.run(
        "-n", 8, "-ppn", 4, "--memory", 10240, "--stats", "json", "--tag-output", script(PACKS)
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    for rank, line in enumerate(sorted(lines)):
        first, source = rank // 4 * 4, (rank - 3) % 8
        expected = f"[{rank}] {rank} 4 {first} {source} node{source // 4} 28 300000 4"
        assert line == expected
    bill = json.loads(last)
    assert bill["ranks"] == bill["heard"] == 8 and bill["functions"] == 2
    operations = bill["operations"]
    assert operations["lambda.Invoke"]["requests"] == 2
    assert bill["gb_seconds"] < 2 * 10 * bill["seconds"] * 1.01
    assert "link.made" not in operations or operations["link.made"]["usd"] == 0
    assert not pool.held(deployed.stack) and not deployed.job_keys()


def test_the_sorted_sample_is_that_of_this_machine(deployed: Deployed) -> None:
    """7 ranks in 3 functions, the last of which has one; and every channel's answer is one."""
    options = ("-n", 7, "-ppn", 3, "--memory", 10240)
    done = deployed.run(*options, "examples/sample_sort.py")
    assert done.returncode == 0, done.stderr
    assert "the last one has 1 of 3 ranks and costs as much as the others" in done.stderr
    local = smpirun("-n", 7, "--channel", "direct", "examples/sample_sort.py")
    assert done.stdout == local.stdout and local.returncode == 0


@pytest.mark.parametrize(
    "words, told",
    [
        (("-ppn", 4), "-ppn 4: a function of 1769 MB has 1 vCPU, and each rank needs one: use"),
        (("-ppn", 2, "--memory", 10240), "4 functions need 4 queues"),
    ],
)
def test_more_than_a_function_or_the_stack_allows(
    deployed: Deployed, words: tuple[object, ...], told: str
) -> None:
    done = deployed.run("-n", 8, *words, "examples/hello.py")
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1


KILLED = "import os\nif c.rank == 4: os.kill(os.getpid(), 9)\nc.Barrier()"


def test_a_killed_rank_ends_the_job_with_its_name(deployed: Deployed, script: Script) -> None:
    done = deployed.run("-n", 6, "-ppn", 3, "--memory", 10240, script(KILLED))
    assert done.returncode == 137, done.stderr
    assert "rank 4 was killed by signal 9; the other ranks are stopped" in done.stderr
    assert not pool.held(deployed.stack)


def test_a_time_out(deployed: Deployed, script: Script) -> None:
    program = script("import time\nif c.rank: time.sleep(600)\n")
    options = ("-n", 3, "-ppn", 3, "--memory", 10240, "--timeout", 3)
    done = deployed.run(*options, program)
    assert done.returncode == 124 and "ran longer than --timeout 3 s" in done.stderr, done.stderr


def test_duplicated_events_run_a_pack_once_and_every_rank_reports(
    deployed: Deployed, tmp_path: Path
) -> None:
    stack = deployed.stack
    lease = pool.take(stack, secrets.token_hex(8), 2, 60.0)
    order = deployed.order(tmp_path, HELLO + "print('sum', c.allreduce(c.rank))\n", 4, lease)
    settings = {
        **order.spec.settings,
        "nodes": "[0, 0, 1, 1]",
        "near": '["", "", "", ""]',
        "host": "127.0.0.1",
    }
    order = replace(order, pack=2, spec=replace(order.spec, channel="routed", settings=settings))
    client = stack.client("lambda")
    try:
        for rank in (0, 2, 0, 2):
            client.invoke(
                FunctionName=order.function,
                InvocationType="Event",
                Payload=order.for_rank(rank).to_event(),
            )
        words = deployed.hear(
            order, lambda words: sum(word.kind == console.END for word in words) == 4
        )
    finally:
        pool.give_back(stack, lease.job_id)
    ends = {word.rank: word.facts for word in words if word.kind == console.END}
    assert set(ends) == {0, 1, 2, 3} and not any(facts["code"] for facts in ends.values())
    assert sorted(bool(facts["billed_s"]) for facts in ends.values()) == [False] * 2 + [True] * 2
    assert b"".join(word.data for word in words if word.kind == console.OUT) == b"sum 6\n" * 4
    assert sum(word.kind == console.UP for word in words) == 2
