"""The handler under AWS's own Runtime Interface Emulator, in a bare interpreter, with the package that is deployed."""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serverless_mpi.deploy import package, template
from serverless_mpi.deploy.deployment import Deployment, Target
from serverless_mpi.launch import console
from serverless_mpi.launch.emulator import Emulator
from serverless_mpi.stack import layout
from serverless_mpi.stack.pool import Lease
from tests.launch.lambda_stack import SERVICES, Deployed
from tests.launch.rie import Instance, Room, functions

SUM = """\
from mpi4py import MPI
import numpy as np
import serverless_mpi.sparse
c = MPI.COMM_WORLD
total = np.zeros(1000)
c.Allreduce(np.full(1000, float(c.rank)), total)
print("sum", total[0], c.allgather(c.rank))
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return Room(tmp_path_factory.mktemp("rie"))


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A stack whose functions nobody calls: the queues, topics and bucket are what is needed of it."""
    with Emulator(tmp_path_factory.mktemp("ministack"), services=SERVICES) as emulator:
        made = layout.Layout(ranks=4, jobs=1, python=package.Target.of_this_interpreter().python)
        code = {"code/function.zip": _nothing(), "code/layer.zip": _nothing()}
        Deployment("smpi", emulator.url, "us-east-1", lambda text: None).deploy(
            Target("smpi", template.build(made, only_bucket=True), template.build(made), code)
        )
        yield Deployed(emulator.url)


def _nothing() -> bytes:
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("nothing.py", "")
    return buffer.getvalue()


def _lease() -> Lease:
    return Lease(secrets.token_hex(8), (0, 1, 2, 3), 0)


def _ended(words: list[console.ConsoleMessage]) -> bool:
    return sum(word.kind == console.END for word in words) == 4


def test_four_ranks_start_each_other_and_a_second_event_leaves(
    deployed: Deployed, room: Room, tmp_path: Path
) -> None:
    order = deployed.order(tmp_path, SUM, 4, _lease())
    with functions(room, 4, deployed.endpoint, 60) as front:
        order = replace(order, spec=replace(order.spec, endpoint=front.url))
        words: list[console.ConsoleMessage] = []
        for _ in range(2):  # the second is a duplicate
            urllib.request.urlopen(
                f"{front.url}/2015-03-31/functions/{order.function}/invocations", order.to_event()
            )
            words = words or deployed.hear(order, _ended)
            front.join()
    answers = [json.loads(answer) for answer in front.answers]
    assert sorted(answer["rank"] for answer in answers if answer.get("code") == 0) == [
        0,
        1,
        2,
        3,
    ], answers
    assert [answer for answer in answers if not answer["claimed"]] == [
        {"rank": 0, "claimed": False}
    ]
    assert b"".join(word.data for word in words if word.kind == console.ERR) == b""
    assert (
        b"".join(word.data for word in words if word.kind == console.OUT)
        == b"sum 6.0 [0, 1, 2, 3]\n" * 4
    )
    up = [word.facts for word in words if word.kind == console.UP]
    assert len(up) == 4 and all(facts["cold"] and facts["init_s"] > 0 for facts in up)


def test_a_killed_rank_and_a_time_out(deployed: Deployed, room: Room, tmp_path: Path) -> None:
    """A program that is killed, and one that does not end before the function's time is over: all end, with the reason."""
    for ending, code, reason, limit_s in (
        ("import os\nif c.rank == 3: os.kill(os.getpid(), 9)\n", 137, "signal 9", 600),
        ("", 124, "reached its limit", 12),
    ):
        lease = _lease()
        order = deployed.order(
            tmp_path,
            f"from mpi4py import MPI\nc = MPI.COMM_WORLD\n{ending}c.recv(source=c.rank)\n",
            4,
            lease,
        )
        began = time.monotonic()
        with functions(room, 4, deployed.endpoint, limit_s) as front:
            order = replace(order, spec=replace(order.spec, endpoint=front.url))
            urllib.request.urlopen(
                f"{front.url}/2015-03-31/functions/{order.function}/invocations", order.to_event()
            )
            words = deployed.hear(order, _ended)
            front.join()
        ends = [word.facts for word in words if word.kind == console.END]
        assert code in [facts["code"] for facts in ends] and any(
            reason in facts["reason"] for facts in ends
        ), ends
        assert time.monotonic() - began < 300  # and not after the 600 s of a function


def test_the_platform_ends_a_function_that_does_not_end_itself(
    deployed: Deployed, room: Room, tmp_path: Path
) -> None:
    """Its answer is what the failure record has in it, from which `report` makes the reason."""
    from serverless_mpi.launch.handler import _why

    instance = Instance(room, 60)
    try:
        about = json.loads(instance.invoke(b'{"ping": 1}'))
        assert about["kernel"] and about["numpy"]
        broken = json.loads(instance.invoke(b'{"no": "order"}'))
        assert broken["errorType"] == "JobError" and "smpi doctor" in broken["errorMessage"]
        code, told = _why({"responsePayload": broken})
        assert code == 1 and "failed on the platform" in told
    finally:
        instance.stop()
    for ending, code, word, limit_s in (
        ("SIGSTOP", 124, "time-out", 6),
        ("SIGKILL", 137, "out of memory", 60),
    ):
        text = f"import os, signal, time\nos.kill(os.getppid(), signal.{ending})\ntime.sleep(100)\n"
        order = deployed.order(tmp_path, text, 1, replace(_lease(), slots=(0,)))
        instance = Instance(room, limit_s)
        try:
            answer = instance.invoke(order.to_event())
            said = (
                json.loads(answer) if answer.startswith(b"{") else {"errorMessage": answer.decode()}
            )  # as the record has it
            got, told = _why({"responsePayload": said})
            assert got == code and word in told, answer
        finally:
            instance.stop()
