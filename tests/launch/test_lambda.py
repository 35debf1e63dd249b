"""smpirun --platform lambda, on what `smpi deploy` made at the emulator: output, codes, ends, and
nothing left behind.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serverless_mpi.aws import control
from serverless_mpi.calls import Cluster, messages
from serverless_mpi.launch import console
from serverless_mpi.launch.emulator import Emulator
from serverless_mpi.stack import pool
from serverless_mpi.testing import check_launcher
from serverless_mpi.testing.launchers import PROMISES
from tests.harness import GIVE_UP_S, ROOT, interrupt
from tests.launch.lambda_stack import RANKS, SERVICES, SIZES, Deployed, smpi

PARTS = ("lambda", "requests", "snapstart", "storage", "transfer")
HELLO = "from mpi4py import MPI\nc = MPI.COMM_WORLD\n"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """`smpi deploy` at the start, `smpi destroy` at the end, which leaves nothing."""
    emulator = Emulator(tmp_path_factory.mktemp("ministack"), services=SERVICES)
    try:
        made = Deployed(emulator.start())
        done = smpi(
            "deploy",
            "--endpoint",
            made.endpoint,
            "--ranks",
            RANKS,
            "--memory",
            ",".join(map(str, SIZES)),
        )
        assert done.returncode == 0 and "ready" in done.stderr, done.stderr
        yield made
        stack = made.stack
        done = smpi("destroy", "--endpoint", made.endpoint)
        assert done.returncode == 0 and "nothing of it is left" in done.stderr, done.stderr
        for service, call, field in (
            ("sqs", "list_queues", "QueueUrls"),
            ("sns", "list_topics", "Topics"),
            ("sns", "list_subscriptions", "Subscriptions"),
            ("s3", "list_buckets", "Buckets"),
            ("lambda", "list_functions", "Functions"),
            ("lambda", "list_layers", "Layers"),
            ("iam", "list_roles", "Roles"),
            ("logs", "describe_log_groups", "logGroups"),
        ):
            left = [
                one
                for one in getattr(stack.client(service), call)().get(field) or ()
                if "smpi" in str(one)
            ]
            assert not left, f"{service}: {left}"
    finally:
        emulator.stop()


@pytest.fixture
def script(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(text: str, name: str = "prog.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_hello_on_8_ranks_with_its_bill(deployed: Deployed) -> None:
    done = deployed.run("-n", RANKS, "--stats", "json", "examples/hello.py")
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert sorted(lines) == sorted(f"hello from rank {rank} of {RANKS}" for rank in range(RANKS))
    bill = json.loads(last)
    assert (
        bill["ranks"] == bill["heard"] == RANKS
        and bill["memory_mb"] == min(SIZES)
        and 1 <= bill["cold"] <= RANKS
    )
    assert bill["operations"]["lambda.Invoke"]["requests"] == RANKS
    assert (
        bill["usd"] == pytest.approx(sum(bill[f"{part}_usd"] for part in PARTS)) and bill["usd"] > 0
    )
    assert not pool.held(deployed.stack) and not deployed.job_keys()


def test_smpiruns_cleanup_leaves_a_stack_alone(deployed: Deployed) -> None:
    assert control.leftovers(deployed.endpoint, "us-east-1") == []


def test_the_report_describes_and_draws_the_ranks_work(
    deployed: Deployed, script, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    program = script(
        HELLO
        + "c.sendrecv(c.rank, (c.rank + 1) % c.size, source=(c.rank - 1) % c.size)\nc.allreduce(1)\n"
    )
    file = tmp_path / "trace.json"
    profile = tmp_path / "profile.json"
    done = deployed.run("-n", 3, "--explain", "--trace", file, f"--profile={profile}", program)
    assert done.returncode == 0 and "a trace of 3 ranks" in done.stderr, done.stderr
    (row,) = [line.split() for line in done.stderr.splitlines() if "allreduce:" in line]
    assert row[0] == "1" and row[2:4] == ["3", "allreduce_fan"] and float(row[-1]) > 0
    events = json.loads(file.read_text())["traceEvents"]
    assert {(event["pid"], event["name"]) for event in events if event["ph"] == "X"} >= {
        (rank, name)
        for rank in range(3)
        for name in ("sendrecv", "allreduce", "channel.get", "sqs.receive")
    }
    ends = {(event["ph"], event["pid"]) for event in events if event["name"] == "message"}
    assert ends == {(end, rank) for end in "sf" for rank in range(3)}
    found = deployed.stack.client("s3").list_objects_v2(
        Bucket=deployed.stack.bucket, Prefix="jobs/"
    )["Contents"]
    assert not [one["Key"] for one in found if "/trace/" in one["Key"]]
    (site,) = [
        site for site in json.loads(profile.read_text())["sites"] if site["call"] == "sendrecv"
    ]
    assert (site["file"].endswith("prog.py"), site["count"], site["ranks"]) == (True, 3, 3)
    assert site["usd"] > 0 and "for the ranks' time" in done.stderr
    failing = script(HELLO + "import os\nos._exit(3 if c.rank else 0)\n", "failing.py")
    done = deployed.run("-n", 2, "--trace", file, failing)  # whose ranks leave none
    assert done.returncode == 3 and "a trace of 0 ranks" in done.stderr, done.stderr


@pytest.mark.parametrize("channel", ["queue", "object", "hybrid"])
def test_collectives(deployed: Deployed, channel: str) -> None:
    size = RANKS if channel == "hybrid" else 4
    done = deployed.run(
        "-n", size, "--channel", channel, "--branching", 3, "examples/sample_sort.py"
    )
    assert done.returncode == 0, done.stderr
    local = subprocess.run(
        [
            sys.executable,
            "-m",
            "serverless_mpi.launch",
            "-n",
            str(size),
            "--channel",
            "direct",
            "examples/sample_sort.py",
        ],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        cwd=ROOT,
    )
    assert done.stdout == local.stdout and local.returncode == 0
    assert not pool.held(deployed.stack) and not deployed.job_keys()


def test_ranks_write_one_file_in_the_jobs_bucket(deployed: Deployed) -> None:
    words = ["--file", "s3:///matrix.npy", "--rows", "50"]
    done = deployed.run("-n", 3, "examples/distributed_npy.py", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "50 x 64 doubles are one .npy file, equal to the matrix\n"


def test_the_sparse_dnn_is_right_to_the_last_bit(deployed: Deployed, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "sparse_dnn.py", tmp_path)
    rng = np.random.default_rng(7)
    np.savez(tmp_path / "images.npz", images=(rng.random((40, 1024)) < 0.2).astype(np.float32))
    done = deployed.run(
        "-n",
        RANKS,
        tmp_path / "sparse_dnn.py",
        "--net",
        "random",
        "--layers",
        6,
        "--images",
        "images.npz",
    )
    assert done.returncode == 0, done.stderr
    assert "serial kernel: the same to the last bit" in done.stdout


@pytest.mark.parametrize("channel", ["queue", "object", "hybrid", "serial"])
def test_smpi_infer_answers_as_here(deployed: Deployed, tmp_path: Path, channel: str) -> None:
    def infer(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "serverless_mpi.inference", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=GIVE_UP_S, cwd=ROOT)

    there, ranks = ("--endpoint", deployed.endpoint), 1 if channel == "serial" else 3
    images = (np.random.default_rng(4).random((130, 96)) > 0.9).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    network = (
        "--net",
        "random",
        "--neurons",
        96,
        "--layers",
        7,
        "--bias",
        -0.15,
        "--images",
        tmp_path / "images.npz",
    )
    place = f"s3://{deployed.stack.bucket}/data/{channel}"
    stored = infer("store", place, *network, "-n", ranks, "--input", "some", *there)
    assert stored.returncode == 0, stored.stderr
    done = infer(
        "run",
        "--platform",
        "lambda",
        "--channel",
        "hybrid" if channel == "serial" else channel,
        "--store",
        place,
        "--input",
        "some",
        *there,
        "--report",
        f"{place}/report.json",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == infer("run", *network).stdout
    record = json.loads(
        deployed.stack.client("s3")
        .get_object(Bucket=deployed.stack.bucket, Key=f"data/{channel}/report.json")["Body"]
        .read()
    )
    assert record["job"]["ranks"] == ranks and record["job"]["memory_mb"] == min(SIZES)
    assert not pool.held(deployed.stack) and not deployed.job_keys()


def test_programs_modules_scripts_and_executables(
    deployed: Deployed, script, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    script(HELLO + "import sys, data\nprint('module', c.rank, data.X, sys.argv[1:])\n", "mod.py")
    script("X = open('data.txt').read()\n", "data.py")
    (tmp_path / "data.txt").write_text("5")
    other = script(
        HELLO + "import os\nprint('script', c.rank, c.size, os.environ['GIVEN'])\n", "other.py"
    )
    shell = script(
        '#!/bin/sh\necho "shell $SMPI_RANK"\npython3 -c "import serverless_mpi" || python -c "import serverless_mpi"\n',
        "run.sh",
    )
    shell.chmod(0o755)
    done = deployed.run(
        "-n",
        1,
        "--wdir",
        tmp_path,
        "-m",
        "mod",
        "secret-word",
        ":",
        "-n",
        1,
        "-x",
        "GIVEN=g",
        other,
        ":",
        "-n",
        1,
        shell,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "module 0 5 ['secret-word']",
        "script 1 3 g",
        "shell 2",
    ]
    s3 = deployed.stack.client("s3")
    expected_text = [  # what every job of the stack may read
        s3.get_object(Bucket=deployed.stack.bucket, Key=one["Key"])["Body"].read()
        for one in s3.list_objects_v2(Bucket=deployed.stack.bucket)["Contents"]
        if one["Key"].startswith(("jobs/", "stops/"))
    ]
    assert any(b'["mod", "other.py", "run.sh"]' in text for text in expected_text)
    assert not any(b"secret-word" in text or b"GIVEN" in text for text in expected_text)


def test_a_deadlock_is_reported_rank_by_rank(deployed: Deployed, script) -> None:  # type: ignore[no-untyped-def]
    prog = script(
        HELLO + "if c.rank == 0: c.recv(source=1, tag=7)\nelif c.rank == 1: c.barrier()\n"
    )
    done = deployed.run("-n", 3, "--deadlock", 2, prog)
    assert done.returncode == 125, done.stderr
    assert "deadlock: every rank has waited for 2 s, and nothing is in flight" in done.stderr
    lines = [line.strip() for line in done.stderr.splitlines() if line.startswith("  rank ")]
    assert [line[:15] for line in lines] == [
        "rank 0 waits in",
        "rank 1 waits in",
        "rank 2 has ende",
    ]
    assert "recv(source=1, tag=7) on MPI_COMM_WORLD at" in lines[0] and "prog.py:3" in lines[0]
    assert "a message from rank 1 with tag 7" in lines[0] and "barrier() on" in lines[1]
    assert not pool.held(deployed.stack)


def test_a_program_that_was_replaced_in_the_bucket_does_not_run(deployed: Deployed, script) -> None:  # type: ignore[no-untyped-def]
    from serverless_mpi.launch.base import Program
    from serverless_mpi.launch.bundle import pack

    prog = script(HELLO + "print('mine')\n")
    theirs = script("print('theirs')\n", "theirs/prog.py")
    words = ("-n", 1, prog)
    assert deployed.run(*words).stdout == "mine\n"
    key = pack(Program((str(prog),)), False).key
    deployed.stack.client("s3").put_object(
        Bucket=deployed.stack.bucket, Key=key, Body=pack(Program((str(theirs),)), False).zipped
    )
    done = deployed.run(*words)
    assert (done.returncode, done.stdout) == (0, "mine\n"), done.stderr


@pytest.mark.parametrize(
    "ending, code, expected_text",
    [
        ("sys.exit(7)", 7, "rank 1 ended with exit code 7"),
        ("raise ValueError('mine')", 1, "rank 1 ended with exit code 1"),
        ("c.Abort(5)", 5, "exit code 5"),
        ("os.kill(os.getpid(), 9)", 137, "rank 1"),
        (
            "os.kill(os.getppid(), 9)",
            1,
            "rank 1 failed on the platform",
        ),  # the function itself, not the program
        ("x = [bytearray(b'x' * (64 << 20)) for _ in range(64)]", 137, "rank 1 out of memory"),
        ("import nowhere", 1, "--requirements"),
    ],
)
def test_the_first_failing_rank_ends_the_job(
    deployed: Deployed, script, ending: str, code: int, expected_text: str
) -> None:  # type: ignore[no-untyped-def]
    prog = script(HELLO + f"import os, sys\nif c.rank == 1: {ending}\nc.recv(source=1)\n")
    began = time.monotonic()
    done = deployed.run("-n", 3, prog)
    assert done.returncode == code and expected_text in done.stderr, done.stderr
    assert "the other ranks are stopped" in done.stderr
    assert time.monotonic() - began < 600  # and not after the 900 s of a function
    if "mine" in ending:
        assert (
            "prog.py" in done.stderr and "sandbox.py" not in done.stderr
        )  # the traceback is the program's own
    assert not pool.held(deployed.stack)


def test_a_time_out_of_the_job(deployed: Deployed, script) -> None:  # type: ignore[no-untyped-def]
    prog = script(HELLO + "print('up', c.rank)\nc.recv(source=c.rank)\n")
    done = deployed.run("-n", 2, "--timeout", 3, prog)
    assert done.returncode == 124 and "longer than --timeout 3 s" in done.stderr
    for rank in range(2):
        assert f"the Python stacks of rank {rank}, most recent call first" in done.stderr
    assert done.stderr.count('prog.py", line') >= 2
    assert sorted(done.stdout.splitlines()) == ["up 0", "up 1"]


def test_a_time_out_of_the_platform(deployed: Deployed, script) -> None:  # type: ignore[no-untyped-def]
    """A function that the platform ends: the platform's own record tells the launcher, within the record's time."""
    client = deployed.stack.client("lambda")
    function = deployed.stack.functions[SIZES[1]]
    client.update_function_configuration(FunctionName=function, Timeout=10)
    try:
        prog = script(
            HELLO
            + "import os, signal\nif c.rank == 1: os.kill(os.getppid(), signal.SIGSTOP)\nc.recv(source=1)\n"
        )
        done = deployed.run("-n", 2, "--memory", SIZES[1], prog)
        assert done.returncode == 124 and "time-out" in done.stderr, done.stderr
        prog = script(HELLO + "c.recv(source=c.rank)\n")  # and one that the rank sees coming
        done = deployed.run("-n", 2, "--memory", SIZES[1], prog)
        assert done.returncode == 124 and "reached its limit after 10 s" in done.stderr, done.stderr
    finally:
        client.update_function_configuration(FunctionName=function, Timeout=900)


def test_ctrl_c_stops_every_rank(deployed: Deployed, script) -> None:  # type: ignore[no-untyped-def]
    prog = script(HELLO + "import os\nprint(os.getpid(), flush=True)\nc.recv(source=c.rank)\n")
    interrupt(2, "--platform", "lambda", "--endpoint", deployed.endpoint, "-n", "2", prog)
    assert not pool.held(deployed.stack)


def test_duplicated_and_retried_events_run_a_rank_once_and_the_key_stays_in_them(
    deployed: Deployed, tmp_path: Path
) -> None:
    stack = deployed.stack
    lease = pool.take(stack, secrets.token_hex(8), 3, 60.0)
    order = deployed.order(
        tmp_path,
        HELLO + "print('sum', c.allreduce(c.rank))\nif c.rank == 2: raise SystemExit(3)\n",
        3,
        lease,
    )
    client = stack.client("lambda")

    def ends(words: list[console.ConsoleMessage]) -> bool:
        return {word.rank for word in words if word.kind == console.END} == {0, 1, 2}

    try:
        for rank in (
            0,
            0,
            1,
            2,
            0,
        ):  # the launcher's, delivered three times, and those that rank 0 sends, once more
            client.invoke(
                FunctionName=order.function,
                InvocationType="Event",
                Payload=order.for_rank(rank).to_event(),
            )
        words = deployed.hear(order, ends)
        late = client.invoke(
            FunctionName=order.function, Payload=order.for_rank(1).to_event()
        )  # a retry, after the end
        assert json.loads(late["Payload"].read()) == {"rank": 1, "claimed": False}
        for kind in (console.UP, console.END):
            assert sorted(word.rank for word in words if word.kind == kind) == [0, 1, 2]
        assert b"".join(word.data for word in words if word.kind == console.OUT) == b"sum 3\n" * 3
        assert {word.rank: word.facts["code"] for word in words if word.kind == console.END} == {
            0: 0,
            1: 0,
            2: 3,
        }
    finally:
        pool.give_back(stack, lease.job_id)

    seen = []
    s3, logs, sqs = stack.client("s3"), stack.client("logs"), stack.client("sqs")
    for one in s3.list_objects_v2(Bucket=stack.bucket)["Contents"]:
        if not one["Key"].startswith("code/"):
            seen.append(s3.get_object(Bucket=stack.bucket, Key=one["Key"])["Body"].read())
    for group in logs.describe_log_groups()["logGroups"]:
        for event in logs.filter_log_events(logGroupName=group["logGroupName"])["events"]:
            seen.append(event["message"].encode())
    for url in sqs.list_queues()["QueueUrls"]:
        for message in sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages", []):
            seen.append(json.dumps(message, default=repr).encode())
    assert any(
        b"sum 3" in text for text in seen
    )  # the log is there, so the search can find something
    assert not any(order.spec.key.hex().encode() in text or order.spec.key in text for text in seen)


def test_leftovers_of_an_earlier_job_are_dropped_and_counted(deployed: Deployed, script) -> None:  # type: ignore[no-untyped-def]
    from serverless_mpi.aws.sqs import BODY, FRAME

    sqs = deployed.stack.client("sqs")
    attribute = {FRAME: {"DataType": "Binary", "BinaryValue": b"sM" + bytes(range(120))}}
    for slot in range(2):
        sqs.send_message(
            QueueUrl=deployed.stack.queue(slot), MessageBody=BODY, MessageAttributes=attribute
        )
    done = deployed.run(
        "-n",
        2,
        "--channel",
        "queue",
        "--stats",
        "json",
        script(HELLO + "print(c.allreduce(1))\nc.Barrier()\n"),
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert lines == ["2", "2"] and json.loads(last)["dropped"] == 2


@pytest.mark.parametrize(
    "words, expected_text",
    [
        (["--stack", "other", "examples/hello.py"], "smpi deploy --stack other"),
        (["--region", "eu-west-1", "examples/hello.py"], "--region"),
        (["--memory", "768", "examples/hello.py"], "smpi deploy --memory 512,768,1024"),
        (["--channel", "direct", "examples/hello.py"], "does not work on platform lambda"),
        (["--timeout", "901", "examples/hello.py"], "at most 900 s"),
        (["-n", "17", "examples/hello.py"], "--channel object, which needs none"),
        (["-n", "100000", "--channel", "object", "examples/hello.py"], "concurrent executions"),
        (["--branching", "0", "examples/hello.py"], "--branching: '0'"),
        (["-n", "16", "--budget", "0.01", "examples/hello.py"], "--timeout 74 stays within it"),
        (["missing.py"], "no program missing.py"),
        (["-m", "no_such_module"], "neither in"),
        (["--requirements", "missing.txt", "examples/hello.py"], "missing.txt"),
        (["-x", "LONG=" + "x" * 120_000, "examples/hello.py"], ""),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(
    deployed: Deployed, words: list[str], expected_text: str
) -> None:
    if not expected_text:  # a payload that is too large: nine variables, since one word of a command line has at most 128 KiB
        words = [word for number in range(9) for word in ("-x", f"V{number}={'x' * 120_000}")] + [
            "examples/hello.py"
        ]
        expected_text = "an asynchronous invocation takes 1,048,576"
    done = deployed.run(*words)
    assert (
        done.returncode == 2 and expected_text in done.stderr and len(done.stderr.splitlines()) == 1
    ), done.stderr
    assert not pool.held(deployed.stack)


def test_no_credentials_is_told(deployed: Deployed) -> None:
    env = {**os.environ, "HOME": "/nonexistent"}
    words = [
        sys.executable,
        "-m",
        "serverless_mpi.launch",
        "--platform",
        "lambda",
        "--region",
        "us-east-1",
        "examples/hello.py",
    ]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=GIVE_UP_S, cwd=ROOT, env=env
    )
    assert (
        done.returncode == 2
        and "no AWS credentials" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )


def test_a_requirement_is_fetched_once(deployed: Deployed, script, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    package = tmp_path / "wheels" / "smpi_sample"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("WORD = 'sample'\n")
    info = tmp_path / "wheels" / "smpi_sample-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smpi-sample\nVersion: 1.0\n")
    (info / "WHEEL").write_text(
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    (info / "RECORD").write_text("")
    wheel = shutil.make_archive(
        str(tmp_path / "smpi_sample-1.0-py3-none-any"), "zip", tmp_path / "wheels"
    )
    Path(wheel).rename(tmp_path / "smpi_sample-1.0-py3-none-any.whl")
    (tmp_path / "needed.txt").write_text(f"{tmp_path}/smpi_sample-1.0-py3-none-any.whl\n")
    (tmp_path / "src").mkdir()
    prog = script(HELLO + "import smpi_sample\nprint(smpi_sample.WORD)\n", "src/prog.py")
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for fetched in (True, False):
        done = deployed.run("-n", 2, "--requirements", tmp_path / "needed.txt", prog, env=env)
        assert done.returncode == 0 and done.stdout == "sample\nsample\n", done.stderr
        assert ("fetching wheels" in done.stderr) is fetched


def test_a_function_of_the_working_folder_is_called(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without cloudpickle, which the ranks would install from PyPI."""
    monkeypatch.setattr(messages, "_dumps", lambda: pickle.dumps)
    (tmp_path / "on_ranks.py").write_text(
        "from serverless_mpi import MPI\n"
        "def total(value):\n"
        "    comm = MPI.COMM_WORLD\n"
        "    print('rank', comm.rank)\n"
        "    return comm.rank, comm.allreduce(value)\n"
        "def fail(word):\n"
        "    raise LookupError(word)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("on_ranks")
    lines: list[tuple[int, str]] = []
    cluster = Cluster(
        3,
        platform="lambda",
        options=("--endpoint", deployed.endpoint, "--stack", deployed.name),
        on_output=lambda rank, line: lines.append((rank, line)),
    )
    assert cluster.run(module.total, 5).values == ((0, 15), (1, 15), (2, 15))
    assert sorted(lines) == [(rank, f"rank {rank}") for rank in range(3)]
    assert cluster.stats is not None and cluster.stats["usd"] > 0
    with pytest.raises(LookupError, match="not here") as caught:
        cluster.run(module.fail, "not here")
    assert "in fail" in str(caught.value.__cause__)


# the tests above hold platform lambda to these promises, and to more of each
ABOVE = ("--deadlock", "--timeout", "Ctrl-C", "the exit code", "--stats", "--explain", "--trace")


@pytest.mark.parametrize("promise", [name for name in PROMISES if not name.startswith(ABOVE)])
def test_lambda_keeps(deployed: Deployed, promise: str, tmp_path: Path) -> None:
    check_launcher(
        "lambda",
        tmp_path,
        options=("--channel", "queue", "--endpoint", deployed.endpoint),
        promises=[promise],
        stdin=False,
        patience_s=30.0,
    )
