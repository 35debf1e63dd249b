"""smpi: each command, on a stack at the emulator."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from serverless_mpi.deploy.history import History
from serverless_mpi.stack import pool
from tests.harness import GIVE_UP_S, ROOT
from tests.launch.lambda_stack import Deployed, smpi


def _on(deployed: Deployed, *words: object) -> subprocess.CompletedProcess[str]:
    return smpi(words[0], "--endpoint", deployed.endpoint, "--stack", deployed.name, *words[1:])


def test_doctor_hello_jobs_logs_and_cost(deployed: Deployed) -> None:
    done = _on(deployed, "doctor")
    assert done.returncode == 0 and "WRONG" not in done.stdout, done.stdout + done.stderr
    for word in (
        "credentials of",
        "clock:",
        "concurrent executions",
        "stack other",
        "with the C kernel",
        "sns",
    ):
        assert word in done.stdout

    done = _on(deployed, "hello", "-n", 3)
    assert done.returncode == 0 and "GB-s" in done.stderr, done.stderr
    greetings = sorted(done.stdout.splitlines())
    assert [line.partition(" greets")[0] for line in greetings] == [
        f"rank {rank} of 3" for rank in range(3)
    ]

    done = _on(deployed, "jobs")
    assert done.returncode == 0 and "-n 3 hybrid" in done.stdout and "ended with 0" in done.stdout
    job_id = done.stdout.split()[0]
    done = _on(deployed, "logs", job_id)
    assert sorted(line.partition(": ")[2] for line in done.stdout.splitlines()) == greetings
    done = _on(deployed, "logs", job_id, "--rank", 1, "--follow")
    assert (
        done.stdout.startswith("rank 1 out: rank 1 of 3 greets")
        and len(done.stdout.splitlines()) == 1
    )
    done = _on(deployed, "cost", job_id, "--json")
    found = json.loads(done.stdout)
    assert found["ranks"] == found["heard"] == 3 and found["usd"] > 0
    text = _on(deployed, "cost", job_id).stdout
    assert "3 ranks of 1769 MB" in text and "an estimate" in text
    assert "aws ce get-cost-and-usage" in text and "aws ce" in found["cost_explorer"]
    s3 = deployed.stack.client("s3")
    for key, body in (  # what another job of the stack could write
        (f"jobs/{job_id}/rank/x", b"{}"),
        (f"jobs/{job_id}/rank/0", b"\xff"),
        (f"jobs/{job_id}/rank/1", b"[]"),
        (f"jobs/{job_id}/rank/99", b"{}"),
        ("jobs/\x1b[2J/job.json", b"{}"),
        (f"jobs/{'0' * 16}/rank/0/job.json", b"{}"),
    ):
        s3.put_object(Bucket=deployed.stack.bucket, Key=key, Body=body)
    done = _on(deployed, "jobs")
    assert done.returncode == 0 and done.stdout.count("-n 3 hybrid") == 1, done.stderr
    assert "\x1b" not in done.stdout
    done = _on(deployed, "clean")
    assert done.returncode == 0 and f"job {job_id}" in done.stderr and "removed" in done.stderr
    assert "no job in the last day" in _on(deployed, "jobs").stderr
    assert _on(deployed, "cost", job_id).returncode == 2


def test_a_job_whose_launcher_was_killed_is_stopped_by_clean(
    deployed: Deployed, tmp_path: Path
) -> None:
    prog = tmp_path / "prog.py"
    prog.write_text(
        "from mpi4py import MPI\nc = MPI.COMM_WORLD\nprint('up', flush=True)\nc.recv(source=c.rank)\n"
    )
    words = [
        "--platform",
        "lambda",
        "--endpoint",
        deployed.endpoint,
        "--stack",
        deployed.name,
        "-n",
        "2",
        str(prog),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "serverless_mpi.launch", *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as job:
        assert job.stdout is not None
        assert [job.stdout.readline() for _ in range(2)] == ["up\n"] * 2
        job.kill()
        job.wait(GIVE_UP_S)
    assert pool.held(deployed.stack)
    done = _on(deployed, "clean")
    assert done.returncode == 1 and "it runs" in done.stderr
    done = _on(deployed, "destroy")
    assert done.returncode == 1 and "smpi clean --all" in done.stderr
    began = time.monotonic()
    done = _on(deployed, "clean", "--all")
    assert done.returncode == 0 and "stopped" in done.stderr, done.stderr
    assert time.monotonic() - began < 300  # and not after the 900 s of a function
    assert (
        not pool.held(deployed.stack)
        and not History(deployed.stack).jobs()
        and not deployed.job_keys()
    )


def test_what_is_not_there_is_told(deployed: Deployed) -> None:
    done = smpi("doctor", "--endpoint", deployed.endpoint, "--stack", "none")
    assert done.returncode == 1 and "smpi deploy --stack none" in done.stdout
    done = smpi("destroy", "--endpoint", deployed.endpoint, "--stack", "none")
    assert done.returncode == 0 and "there is no stack none" in done.stderr
    assert "smpi jobs" in _on(deployed, "logs", "0" * 16).stderr
    assert smpi("deploy", "--endpoint", deployed.endpoint, "--memory", "x").returncode == 2
    assert smpi("nothing").returncode == 2
