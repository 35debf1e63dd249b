"""What a function and a launcher accept from sources that others can write: bucket, event,
environment.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless_mpi.errors import JobError, ServerlessMPIError, UsageError
from serverless_mpi.job import JobSpec
from serverless_mpi.launch import aws_lambda, console, handler, sandbox
from serverless_mpi.launch.base import Plan, Program
from serverless_mpi.launch.bundle import Bundle
from serverless_mpi.launch.invocation import Invocation, Task
from serverless_mpi.launch.sandbox import unpack
from serverless_mpi.stack import bucket
from tests.harness import GIVE_UP_S, ROOT

KEY, OTHER_KEY = bytes(range(32)), bytes(32)
JOB = "00112233445566aa"
MIB = 1 << 20


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


class FakeS3:
    """A bucket, with the calls of the lean client."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def get(self, key: str, start: int = 0, length: int | None = None) -> Any:
        if key not in self.objects:
            return None
        data = self.objects[key]
        end = len(data) if length is None else start + length
        return memoryview(data)[start:end], len(data)

    def put(self, key: str, parts: tuple[memoryview, ...]) -> None:
        self.objects[key] = b"".join(parts)

    def create(self, key: str, body: bytes) -> bool:
        return self.objects.setdefault(key, body) is body


class Context:
    """Of an invocation."""

    memory_limit_in_mb = 512

    def get_remaining_time_in_millis(self) -> int:
        return 900_000


class EndedChild:
    """A program that ends at once; `seen` is what it was started with."""

    peak_bytes = 0
    seen: tuple[Any, ...] = ()

    def __init__(self, *words: Any) -> None:
        type(self).seen = words
        self.code: int | None = 0
        self.pid = os.getpid()
        self._ready = os.eventfd(0)

    def fileno(self) -> int:
        return self._ready

    def terminate(self) -> None:
        pass

    def turn(self, wait_s: float, take: Any) -> None:
        pass

    def stop(self, take: Any) -> None:
        pass

    def close(self) -> None:
        os.close(self._ready)


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[handler.Function, FakeS3]]:
    """Makes a rank whose bucket is in memory, and whose program is not run."""

    def make(**more: Any) -> tuple[handler.Function, FakeS3]:
        EndedChild.seen = ()
        monkeypatch.setattr(handler, "Child", EndedChild)
        task = Task("script", ("prog.py",), 1, more.pop("bundle", None))
        made = handler.Function(
            Invocation(_spec(), (task,), "f", 2, "http://q", **more), Context(), False
        )
        s3 = FakeS3()
        monkeypatch.setattr(made, "_s3", s3)
        return made, s3

    return make


def _spec(**more: Any) -> JobSpec:
    return JobSpec(
        JOB, 0, 1, "object", KEY, endpoint="http://127.0.0.1:9", settings={"bucket": "b"}, **more
    )


# -- programs


@pytest.mark.parametrize("kind", ["bundle", "site"])
def test_what_replaced_a_zip_in_the_bucket_is_not_run(
    kind: str, rank: Callable[..., tuple[handler.Function, FakeS3]], tmp_path: Path
) -> None:
    key = bucket.zip_key(zipped({"prog.py": b"print('mine')"}))
    made, s3 = rank(**{kind: key})
    s3.objects[key] = zipped({"prog.py": b"print('theirs')"})
    with pytest.raises(ServerlessMPIError, match="not what the launcher sent"):
        made._run_programs(tmp_path)
    assert not EndedChild.seen and not list(tmp_path.rglob("*.py"))


def test_a_zip_is_not_read_beyond_what_a_function_takes(
    rank: Callable[..., tuple[handler.Function, FakeS3]],
) -> None:
    data = zipped({"prog.py": b"pass"}) + bytes(MIB)
    made, s3 = rank()
    s3.objects["programs/x.zip"] = data
    with pytest.raises(ServerlessMPIError, match="a function takes"):
        made._fetch("programs/x.zip", MIB // 2)


def test_requirements_are_unpacked_anew_for_every_rank(
    rank: Callable[..., tuple[handler.Function, FakeS3]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder that an earlier program left in the environment, under whatever name, is not imported from."""
    data = zipped({"lib.py": b"WORD = 'mine'"})
    key = bucket.zip_key(data)
    temporary, own = tmp_path / "tmp", tmp_path / "own"
    planted = temporary / f"smpi-{Path(key).stem}"
    planted.mkdir(parents=True)
    (planted / "lib.py").write_text("WORD = 'planted'")
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    made, s3 = rank(site=key)
    s3.objects[key] = data
    assert made._run_programs(own)[1] == 0
    first = Path(EndedChild.seen[3][0])
    assert own in first.parents and (first / "lib.py").read_text() == "WORD = 'mine'"


def test_a_zip_that_grows_without_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = zipped({"zeros": bytes(8 * MIB)})
    assert len(bomb) < 64 << 10
    with pytest.raises(ServerlessMPIError, match="1 files of 8 MB"):
        unpack(bomb, tmp_path, 4 * MIB)
    monkeypatch.setattr(sandbox, "MAX_FILES", 3)
    with pytest.raises(ServerlessMPIError, match="4 files"):
        unpack(zipped({str(n): b"" for n in range(4)}), tmp_path, MIB)
    assert not list(tmp_path.iterdir())


def test_a_zip_that_lies_about_its_size_writes_no_more_than_it_states(tmp_path: Path) -> None:
    honest = zipped({"zeros": bytes(MIB)})
    size = (MIB).to_bytes(4, "little")
    assert honest.count(size) == 2  # in the file's own header and in the directory
    with pytest.raises(ServerlessMPIError, match="damaged"):
        unpack(honest.replace(size, (10).to_bytes(4, "little")), tmp_path, 100)
    assert all(path.stat().st_size <= 100 for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/out", ".."])
def test_a_zip_names_nothing_outside_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(ServerlessMPIError, match="outside its folder"):
        unpack(zipped({name: b"1"}), folder, MIB)
    assert not list(folder.iterdir()) and list(tmp_path.iterdir()) == [folder]


def test_a_link_in_a_zip_becomes_a_plain_file(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc")
        archive.writestr("link2/file", "1")
    unpack(buffer.getvalue(), tmp_path, MIB)
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_text() == "/etc"


@pytest.mark.parametrize("data", [b"", b"PK", zipped({"a": b"x" * 1000})[:-30]])
def test_a_damaged_zip_is_reported(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ServerlessMPIError, match="damaged"):
        unpack(data, tmp_path, MIB)


class FakeBoto:
    """S3 with boto3's calls."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts = 0

    def list_objects_v2(self, Bucket: str, Prefix: str, MaxKeys: int) -> dict[str, Any]:
        now = SimpleNamespace(timestamp=time.time)
        return {
            "Contents": [
                {"Key": key, "ETag": f'"{hashlib.md5(data).hexdigest()}"', "LastModified": now}
                for key, data in self.objects.items()
                if key.startswith(Prefix)
            ]
        }

    def put_object(self, Bucket: str, Key: str, Body: bytes) -> None:
        self.puts += 1
        self.objects[Key] = Body


def _job(s3: Any, size: int = 1, **more: Any) -> aws_lambda.Job:
    stack: Any = SimpleNamespace(
        client=lambda service: s3, bucket="b", endpoint=more.pop("endpoint", "http://e"), region="r"
    )
    plan = Plan((Program(("prog.py",), size),), "object", endpoint=stack.endpoint, **more)
    nothing: Any = None
    return aws_lambda.Job(plan, stack, 512, "f", 900.0, nothing, nothing)


def test_a_program_is_sent_once_and_again_where_another_is_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text("pass")
    bundle = Bundle("script", ("prog.py",), {"prog.py": tmp_path / "prog.py"})
    s3 = FakeBoto()
    job = _job(s3)
    assert [job._upload(bundle), job._upload(bundle)] == [bundle.key] * 2 and s3.puts == 1
    s3.objects[bundle.key] = b"something else"
    job._upload(bundle)
    bucket.check_zip(bundle.key, s3.objects[bundle.key])


# -- the end of a job


@given(st.binary(max_size=200))
def test_an_invalid_stop_message_stops_nothing(data: bytes) -> None:
    assert bucket.stop_reason(data, JOB, KEY) is None


def test_a_stop_message_needs_the_jobs_key(
    rank: Callable[..., tuple[handler.Function, FakeS3]],
) -> None:
    made, s3 = rank()
    place = f"jobs/{JOB}/stop"
    message = bucket.stop_message(JOB, KEY, "rank 1 failed")
    forged = [
        json.dumps({"reason": "go away", "by": "x"}).encode(),
        bucket.stop_message(JOB, OTHER_KEY, "go away"),
        bucket.stop_message("ff" * 8, KEY, "go away"),
        message.replace(b"failed", b"fooled"),
        b"[" * 5000,
        message + bytes(bucket.STOP_BYTES),
    ]
    for text in forged:
        s3.objects[place] = text
        assert made._stopped() is None
        # and it does not keep the job from being stopped
        assert handler.stop_all(s3, _spec(), "rank 0 failed")  # type: ignore[arg-type]
        assert made._stopped() == "rank 0 failed"
    assert not handler.stop_all(s3, _spec(), "a later reason")  # type: ignore[arg-type]
    assert made._stopped() == "rank 0 failed"
    assert len(bucket.stop_message(JOB, KEY, "\x00" * 10**6)) < bucket.STOP_BYTES


def test_the_launchers_stop_replaces_what_others_put_there(
    rank: Callable[..., tuple[handler.Function, FakeS3]],
) -> None:
    s3 = FakeBoto()
    job = _job(s3)
    place = f"jobs/{job.spec.job_id}/stop"
    s3.objects[place] = b"{}"
    job._stop("its launcher left")
    spec = job.spec
    assert bucket.stop_reason(s3.objects[place], spec.job_id, spec.key) == "its launcher left"


def test_ranks_that_cannot_be_stopped_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    job = _job(SimpleNamespace())  # which puts nothing
    job._stop("its launcher left")
    assert "could not be asked to stop, and run to their time limit" in capsys.readouterr().err


# -- orders


def _event() -> dict[str, Any]:
    task = Task("script", ("prog.py", "a"), 1, bucket.zip_key(b""), {"V": "1"})
    event: dict[str, Any] = json.loads(
        Invocation(_spec(), (task,), "f:live", 2, "http://q").to_event()
    )
    return event


def _put(event: dict[str, Any], path: str, value: Any) -> None:
    *way, last = path.split(".")
    there: Any = event
    for step in way:
        there = there[int(step)] if step.isdigit() else there[step]
    there[last] = value


@pytest.mark.parametrize(
    "path, value",
    [
        ("more", 1),
        ("key", KEY.hex() + "00"),
        ("key", KEY.hex()[:-1]),
        ("key", None),
        ("tasks", []),
        ("tasks", {}),
        ("tasks", [None]),
        ("tasks.0.argv", []),
        ("tasks.0.argv", "prog.py"),
        ("tasks.0.argv", ["prog.py", 1]),
        ("tasks.0.argv", ["prog\0"]),
        ("tasks.0.kind", "shell"),
        ("tasks.0.ranks", 2),
        ("tasks.0.ranks", True),
        ("tasks.0.bundle", "programs/../code/x.zip"),
        ("tasks.0.bundle", "programs/" + "0" * 32 + ".zip"),
        ("tasks.0.variables", {"A=B": "1"}),
        ("tasks.0.variables", {"A": 1}),
        ("tasks.0.more", 1),
        ("site", "programs/site-x.zip"),
        ("function", "arn:aws:lambda:f/../g"),
        ("branching", 0),
        ("branching", 1.5),
        ("console", "file:///etc/passwd"),
        ("limit_s", -1),
        ("limit_s", float("nan")),
        ("limit_s", "9"),
        ("alias", 1),
        ("explain", "no"),
        ("pack", 0),
        ("pack", 10**9),
        ("pack", True),
        ("pack", None),
        ("job", []),
        ("job.more", 1),
        ("job.job_id", "../../code"),
        ("rank", 1),
        ("rank", -1),
        ("rank", True),
        ("job.size", 0),
        ("job.channel", "no such"),
        ("job.channel", ["object"]),
        ("job.endpoint", "ftp://x"),
        ("job.settings", {"bucket": 1}),
        ("job.deadlock_s", float("inf")),
        ("job.deadlock_s", True),
        ("job.stats_dir", "/tmp"),
        ("job.plugins", [1]),
        ("job.algorithms", {"bcast": 1}),
    ],
)
def test_an_odd_event_is_one_clear_error(path: str, value: Any) -> None:
    event = _event()
    assert Invocation.from_event(event).task(0).argv == ("prog.py", "a")
    _put(event, path, value)
    with pytest.raises(JobError) as caught:
        Invocation.from_event(event)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 200 and KEY.hex()[:-1] not in text
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda one: (
            st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=5), one, max_size=3)
        ),
        max_leaves=10,
    )
)
def test_any_event_at_all_is_an_error_of_one_kind(event: Any) -> None:
    with pytest.raises(JobError):
        Invocation.from_event(event)
    for name in _event():
        with pytest.raises(JobError):
            Invocation.from_event({**_event(), name: [event]})


@pytest.mark.parametrize("event", [None, [], "ping", 1, {}])
def test_the_function_refuses_an_invalid_event(event: Any) -> None:
    with pytest.raises(JobError, match="not an invocation"):
        handler.handler(event, None)


@pytest.mark.parametrize("record", [{}, {"requestPayload": None}, {"requestPayload": [1]}])
def test_a_failure_record_without_an_order_is_an_error(record: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="not an invocation"):
        handler.report(record, None)


# -- deadlocks


def _waits(at: float, since: float) -> dict[str, Any]:
    return {"at": at, "since": since, "waits": ["recv(source=1)"], "awaited": ["a message"]}


def test_a_rank_reports_that_it_waits_and_that_it_continues(
    rank: Callable[..., tuple[handler.Function, FakeS3]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoken: list[tuple[str, dict[str, Any]]] = []
    made, _ = rank()

    def send(encoded: list[bytes]) -> None:
        messages = [console.decode(one, JOB, KEY) for one in encoded]
        spoken.extend((one.kind, one.facts) for one in messages if one is not None)

    monkeypatch.setattr(made, "_send", send)
    file = tmp_path / "waits-0.json"
    file.write_text(json.dumps(_waits(100.0, 40.0)))
    made._pass_on_waits(tmp_path)
    assert not spoken  # --deadlock 0
    monkeypatch.setattr(
        made, "_invocation", Invocation(_spec(deadlock_s=60.0), (), "f", 2, "http://q")
    )
    for _ in range(3):
        made._pass_on_waits(tmp_path)
    file.unlink()
    for _ in range(3):
        made._pass_on_waits(tmp_path)
    ((_, expected_text), over) = spoken
    assert over == (console.WAITS, {})
    assert expected_text["at"] - expected_text["since"] == pytest.approx(60.0)
    assert expected_text["at"] - 100.0 == pytest.approx(time.time() - time.monotonic(), abs=5)
    file.write_text(json.dumps({**_waits(1.0, 1.0), "waits": ["x" * 10**6] * 100}))
    made._pass_on_waits(tmp_path)
    assert len(json.dumps(spoken[-1])) < 10_000


def test_a_deadlock_is_a_failure_once_it_has_stood_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(aws_lambda.time, "monotonic", lambda: now)
    job = _job(FakeBoto(), 3, deadlock_s=60.0)

    def take(rank: int, kind: str, facts: dict[str, Any]) -> None:
        job._take(console.ConsoleMessage(rank, 0, kind, facts=facts))
        job._look_for_a_deadlock()

    take(0, console.WAITS, _waits(100.0, 40.0))
    take(1, console.WAITS, _waits(110.0, 50.0))
    assert job._deadlocked_since is None  # rank 2 computes
    take(2, console.END, {"code": 0})
    assert job._deadlocked_since is None  # rank 1 heard something 50 s before rank 0 reported last
    take(0, console.WAITS, _waits(110.0, 40.0))
    assert job._deadlocked_since == now and job._failure is None
    now += aws_lambda.SETTLE_S / 2
    take(1, console.WAITS, {})
    assert job._deadlocked_since is None  # it went on
    take(1, console.WAITS, _waits(120.0, 50.0))
    now += aws_lambda.SETTLE_S
    job._look_for_a_deadlock()
    assert job._failure is not None
    code, story = job._failure
    assert code == 125 and story.splitlines() == [
        "deadlock: every rank has waited for 60 s, and nothing is in flight",
        "  rank 0 waits in recv(source=1), for a message",
        "  rank 1 waits in recv(source=1), for a message",
        "  rank 2 has ended",
    ]


def test_the_limit_of_a_deadlock_on_aws_is_longer_than_a_lost_answer() -> None:
    def limit(endpoint: str | None, deadlock_s: float) -> float:
        return _job(FakeBoto(), endpoint=endpoint, deadlock_s=deadlock_s).spec.deadlock_s

    assert limit("http://e", 1.0) == 1.0
    assert limit(None, 1.0) == limit(None, 60.0) == 90.0 and limit(None, 200.0) == 200.0
    assert limit(None, 0.0) == 0.0


# -- warm environments

HIDES = """
import os, sys, time
from pathlib import Path
from serverless_mpi.launch import sandbox

folder = Path(sys.argv[1])
(folder / "prog.py").write_text('''
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    # its pid, and nothing else of its job, is known of it
    code = "import os, time; print(os.getpid(), flush=True); os.close(1); os.close(2); time.sleep(600)"
    os.execve(sys.executable, [sys.executable, "-c", code], {})
os.wait()
sys.stdin.read()
''')
sandbox.seal()
child = sandbox.Child("script", ["prog.py"], folder, [], {}, "some.0")
said = bytearray()
while b"\\n" not in said or child.code is None:
    child.turn(0.1, lambda stream, data: said.extend(data))
child.stop(lambda stream, data: None)
child.close()
sandbox.end_orphans(())
try:
    os.kill(int(said), 0)
    print("lives", flush=True)
except ProcessLookupError:
    print("gone", flush=True)
os._exit(0)
"""


def test_what_a_program_leaves_running_ends_with_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HIDES, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        cwd=ROOT,
    )
    assert done.stdout == "gone\n", done.stdout + done.stderr


SEALED = """
import os, sys
from serverless_mpi.launch import sandbox
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    sandbox._prctl(sandbox.PR_SET_DUMPABLE, 1)  # as a process that began as that user
sandbox.seal()
out, into = os.pipe()
if os.fork() == 0:
    found = []
    for name in ("environ", "mem", "maps"):
        try:
            os.close(os.open(f"/proc/{os.getppid()}/{name}", os.O_RDONLY))
            found.append(name)
        except PermissionError:
            pass
    os.write(into, repr(found).encode())
    os._exit(0)
os.close(into)
os.wait()
print(os.read(out, 100).decode(), sandbox.children())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_a_program_cannot_look_into_the_functions_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SEALED], capture_output=True, text=True, timeout=GIVE_UP_S, cwd=ROOT
    )
    assert done.stdout == "[] set()\n", done.stdout + done.stderr


# -- packs


class Resident(EndedChild):
    """A program that runs and has that much memory."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.code = None
        self.peak_bytes = nbytes

    def resident_bytes(self) -> int:
        return self.peak_bytes


def _pack(pack: int, size: int, first: int = 0) -> handler.Function:
    spec = JobSpec(
        JOB, first, size, "routed", KEY, endpoint="http://127.0.0.1:9", settings={"bucket": "b"}
    )
    task = Task("script", ("prog.py",), size, None)
    return handler.Function(
        Invocation(spec, (task,), "f", 2, "http://q", pack=pack), Context(), False
    )


def test_memory_that_runs_out_is_the_fault_of_the_largest_rank_of_a_pack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    function = _pack(3, 6, 3)
    for rank, megabytes in zip(function._ranks, (200, 210, 190), strict=True):
        rank.child = Resident(megabytes * MIB)  # type: ignore[assignment]
    monkeypatch.setattr(handler, "shared_out_bytes", lambda pids: 300 * MIB)
    now = time.monotonic()
    assert function._beyond_a_limit(now) is None  # most of it is shared by the three
    monkeypatch.setattr(handler, "shared_out_bytes", lambda pids: 500 * MIB)
    ending = function._beyond_a_limit(now)
    assert ending is not None and ending[0] is function._ranks[1] and ending[1] == 137
    assert "210 MB of the function's 512 MB" in ending[2] and "-ppn" in ending[2]


def test_a_killed_function_is_reported_for_each_of_its_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[bytes] = []
    stopped: list[str] = []

    class Sink:
        def __init__(self, client: Any) -> None:
            pass

        def send(self, url: str, messages: list[bytes]) -> None:
            sent.extend(messages)

    monkeypatch.setattr(handler, "Sqs", Sink)
    monkeypatch.setattr(handler, "stop_all", lambda s3, spec, reason: stopped.append(reason))
    event = json.loads(_pack(3, 5, 3)._invocation.to_event())
    record = {"requestPayload": event, "responsePayload": {"errorType": "Runtime.OutOfMemory"}}
    handler.report(record, None)
    messages = [console.decode(one, JOB, KEY) for one in sent]
    assert [(one.rank, one.kind, one.facts["code"]) for one in messages if one] == [
        (3, console.END, 137),
        (4, console.END, 137),
    ]
    assert len(stopped) == 1 and stopped[0].endswith("; ranks 3 to 4 ran in it")


def test_functions_start_each_other_by_their_first_ranks() -> None:
    """1,000 ranks in 167 functions of 6: each runs once, and the job's text fits a variable."""
    url = "https://sqs.ap-southeast-2.amazonaws.com/123456789012/" + "x" * 30 + "-q-0000"
    settings = {
        "queues": json.dumps([url] * 170),
        "slots": json.dumps(list(range(170))),
        "nodes": json.dumps([rank // 6 for rank in range(1000)]),
        "near": json.dumps([""] * 1000),
        "fds": "-1 " * 1000,
    }
    spec = JobSpec.new(1000, "routed", settings=settings)
    assert len(spec.to_env()["SMPI_JOB"]) < 64 << 10  # execve takes 128 KiB
    begun, left = [], [0]
    while left:
        invocation = _pack(6, 1000, left.pop())._invocation
        begun += invocation.ranks
        left += invocation.children
    assert sorted(begun) == list(range(1000))
    event = json.loads(_pack(6, 1000)._invocation.to_event())
    event["rank"] = 3  # in the middle of a function
    with pytest.raises(JobError, match="field pack"):
        Invocation.from_event(event)


@pytest.mark.parametrize(
    "ppn, memory, told",
    [
        (
            2,
            1769,
            "has 1 vCPU, and each rank needs one: use -ppn 1, or choose functions of 1770 MB",
        ),
        (
            4,
            3008,
            "has 2 vCPUs, and each rank needs one: use -ppn 2, or choose functions of 5308 MB",
        ),
        (7, 10240, "the largest function has 10240 MB and 6 vCPUs"),
        (6, 10240, None),
        (2, 1770, None),
        (1, 128, None),
    ],
)
def test_each_rank_of_a_pack_needs_a_vcpu(ppn: int, memory: int, told: str | None) -> None:
    plan = Plan((Program(("prog.py",), 84),), "routed", ppn=ppn)
    if told is None:
        aws_lambda._check_pack(plan, memory)
    else:
        with pytest.raises(UsageError, match=f"^-ppn {ppn}: .*{re.escape(told)}"):
            aws_lambda._check_pack(plan, memory)


def test_an_option_of_links_needs_the_channel_of_links() -> None:
    for more in ({"ppn": 2}, {"echo": "http://127.0.0.1/"}):
        with pytest.raises(UsageError, match="has no effect on channel hybrid: use --channel"):
            aws_lambda._check(Plan((Program(("prog.py",), 4),), "hybrid", **more))  # type: ignore[arg-type]
