"""The parts of platform lambda that need no platform: words, orders, bundles, failure records, leases, the package."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless_mpi.deploy import cli, deploying, package, requirements
from serverless_mpi.errors import ChannelError, JobError, UsageError
from serverless_mpi.job import JobSpec
from serverless_mpi.launch import console, handler
from serverless_mpi.launch.base import Program
from serverless_mpi.launch.bundle import pack
from serverless_mpi.launch.handler import _why
from serverless_mpi.launch.invocation import Invocation, Task
from serverless_mpi.stack import pool
from serverless_mpi.stack.layout import Layout
from serverless_mpi.stack.stack import Stack, empty
from tests.harness import ROOT

KEY = bytes(range(32))
JOB = "00112233445566aa"
ZIP = "programs/" + "0f" * 32 + ".zip"


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), max_size=60),
    st.randoms(use_true_random=False),
)
def test_messages_are_read_in_order_and_once_whatever_the_queue_does(
    more: list[tuple[int, int]], random: Any
) -> None:
    said = [
        console.ConsoleMessage(rank, seq, console.OUT, bytes([rank, seq]))
        for rank in range(4)
        for seq in range(21)
    ]
    arriving = said + [said[rank * 21 + seq] for rank, seq in more]  # some twice
    random.shuffle(arriving)
    reader = console.InOrderReader()
    read = [message for arrived in arriving for message in reader.push(arrived)]
    for rank in range(4):
        assert [message.seq for message in read if message.rank == rank] == list(range(21))


def test_a_message_of_another_job_or_key_is_dropped() -> None:
    message = console.encode(
        console.ConsoleMessage(1, 2, console.ERR, b"\xff\n\0", {"a": 1}), JOB, KEY
    )
    assert console.decode(message, JOB, KEY) == console.ConsoleMessage(
        1, 2, console.ERR, b"\xff\n\0", {"a": 1}
    )
    assert console.decode(message, "00112233445566bb", KEY) is None
    assert console.decode(message, JOB, bytes(32)) is None
    assert console.decode(b"", JOB, KEY) is None
    assert console.decode(message[:-1], JOB, KEY) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("rank", {}), ("rank", "1"), ("seq", None), ("kind", ["out"]), ("facts", [])],
)
def test_what_has_the_jobs_tag_and_is_damaged_is_dropped(name: str, value: object) -> None:
    fields: dict[str, Any] = {"rank": 1, "seq": 0, "kind": console.OUT, "facts": {}, name: value}
    assert (
        console.decode(console.encode(console.ConsoleMessage(**fields), JOB, KEY), JOB, KEY) is None
    )


def test_an_order_survives_its_event_and_a_broken_one_does_not_tell_the_key() -> None:
    spec = JobSpec(JOB, 0, 3, "queue", KEY, settings={"bucket": "b"})
    spec = replace(spec, plugins=("chain_bcast",), algorithms={"bcast": "chain"})
    tasks = (Task("script", ("a.py", "x"), 1, ZIP), Task("module", ("m",), 2, None, {"V": "1"}))
    order = Invocation(spec, tasks, "f:live", 2, "http://q", 4.0, False, ZIP)
    assert Invocation.from_event(json.loads(order.to_event())) == order
    assert [order.task(rank).kind for rank in range(3)] == ["script", "module", "module"]
    broken = json.loads(order.to_event())
    del broken["job"]["size"]
    with pytest.raises(JobError) as caught:
        Invocation.from_event(broken)
    assert KEY.hex() not in str(caught.value) and KEY.hex() not in repr(order)


@pytest.mark.parametrize(
    "record, code, told",
    [
        (
            {
                "responsePayload": {
                    "errorMessage": "2026-01-01T00:00:00Z 1-2 Task timed out after 900.00 seconds"
                }
            },
            124,
            "time-out",
        ),
        (
            {
                "responsePayload": {
                    "errorType": "Sandbox.Timedout",
                    "errorMessage": "Error: Task timed out",
                }
            },
            124,
            "time-out",
        ),
        (
            {
                "responsePayload": {
                    "errorType": "Runtime.OutOfMemory",
                    "errorMessage": "signal: killed",
                }
            },
            137,
            "--memory",
        ),
        (
            {
                "responsePayload": {
                    "errorType": "Runtime.ExitError",
                    "errorMessage": "RequestId: 1 Error: Runtime exited",
                }
            },
            1,
            "ExitError",
        ),
        ({"requestContext": {"condition": "EventAgeExceeded"}}, 1, "quota"),
        ({}, 1, "failed on the platform"),
    ],
)
def test_the_platforms_records_become_words(record: dict[str, Any], code: int, told: str) -> None:
    got, reason = _why(record)
    assert got == code and told in reason


def test_a_bundle_is_the_programs_folder_without_what_nobody_imports(tmp_path: Path) -> None:
    for name in (
        "prog.py",
        "data.txt",
        "sub/mod.py",
        ".git/x",
        "__pycache__/a.pyc",
        "env/pyvenv.cfg",
        "env/lib.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    bundle = pack(Program((str(tmp_path / "prog.py"), "a")), False)
    assert (bundle.kind, bundle.argv, sorted(bundle.files)) == (
        "script",
        ("prog.py", "a"),
        ["data.txt", "prog.py", "sub/mod.py"],
    )
    key, data = bundle.key, bundle.zipped
    os.utime(tmp_path / "data.txt", (0, 0))
    again = pack(Program((str(tmp_path / "prog.py"),)), False)
    assert (again.key, again.zipped) == (key, data)  # by content
    assert key == f"programs/{hashlib.sha256(data).hexdigest()}.zip"
    (tmp_path / "data.txt").write_text("2")
    assert pack(Program((str(tmp_path / "prog.py"),)), False).key != key
    assert pack(Program(("python", "sub/mod.py"), folder=str(tmp_path)), False).argv == (
        "sub/mod.py",
    )
    assert pack(Program(("python3", "-m", "sub.mod"), folder=str(tmp_path)), False).kind == "module"
    with pytest.raises(UsageError, match="outside --wdir"):
        pack(Program((str(tmp_path / "prog.py"),), folder=str(tmp_path / "sub")), False)
    with pytest.raises(UsageError, match="options of the interpreter"):
        pack(Program(("python", "-c", "1")), False)


def test_what_is_deployed_is_not_sent_again() -> None:
    bundle = pack(Program(("serverless_mpi.launch.hello",), module=True, folder=str(ROOT)), False)
    assert (bundle.kind, bundle.files) == ("module", {})
    script = Path(sys.executable).with_name("smpi-infer")
    bundle = pack(Program((str(script), "run")), False)
    assert (bundle.kind, bundle.argv, bundle.files) == (
        "entry",
        ("serverless_mpi.inference.cli:main", "run"),
        {},
    )


class _Bucket:
    """S3 with one object and its conditional writes; `meddle` is called before each PUT."""

    class exceptions:
        class NoSuchKey(Exception):
            pass

    def __init__(self) -> None:
        self.body, self.version, self.meddle = b"", 0, lambda: None

    def get_object(self, **_: Any) -> dict[str, Any]:
        if not self.version:
            raise self.exceptions.NoSuchKey
        return {"Body": io.BytesIO(self.body), "ETag": str(self.version)}

    def put_object(
        self, Body: bytes, IfMatch: str | None = None, IfNoneMatch: str | None = None, **_: Any
    ) -> None:
        self.meddle()
        if (IfMatch is not None and IfMatch != str(self.version)) or (IfNoneMatch and self.version):
            error = RuntimeError("changed")
            error.response = {"Error": {"Code": "PreconditionFailed"}}  # type: ignore[attr-defined]
            raise error
        self.body, self.version = Body, self.version + 1


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Stack:
    bucket = _Bucket()
    monkeypatch.setattr(Stack, "client", lambda self, service: bucket)
    return Stack(
        "s",
        "http://x",
        "r",
        "b",
        "0",
        "3.13",
        "x86_64",
        {},
        4,
        2,
        "s-q-0000",
        "s-c-0000",
        "s-t-0000",
    )


def test_leases_are_disjoint_and_end(stack: Stack) -> None:
    now = 1000.0
    one = pool.take(stack, "a", 2, 60.0, lambda: now)
    two = pool.take(stack, "b", 2, 60.0, lambda: now)
    assert not set(one.slots) & set(two.slots) and one.console != two.console
    with pytest.raises(UsageError, match="a, b.*within 180 s"):
        pool.take(stack, "c", 1, 60.0, lambda: now)
    with pytest.raises(UsageError, match="smpi deploy --ranks 5"):
        pool.take(stack, "c", 5, 60.0, lambda: now)
    pool.give_back(stack, "a", clock=lambda: now)
    assert set(pool.take(stack, "c", 2, 60.0, lambda: now).slots) == set(one.slots)
    assert set(pool.held(stack, lambda: now)) == {"b", "c"}
    assert not pool.held(stack, lambda: now + 181)  # by itself: no function of them runs any more


def test_a_queue_on_which_a_rank_may_still_run_is_kept(stack: Stack) -> None:
    now = 1000.0
    lease = pool.take(stack, "a", 3, 600.0, lambda: now)
    pool.give_back(stack, "a", [lease.slots[1]], 75.0, lambda: now)
    free = pool.take(stack, "b", 3, 60.0, lambda: now).slots
    assert lease.slots[1] not in free
    assert "a" not in pool.held(stack, lambda: now + 76)


def test_two_launchers_at_the_same_moment_get_different_queues(stack: Stack) -> None:
    bucket: Any = stack.client("s3")

    def meddle() -> None:
        bucket.meddle = lambda: None
        pool.take(stack, "other", 2, 60.0)

    bucket.meddle = meddle
    mine = pool.take(stack, "mine", 2, 60.0)
    held = pool.held(stack)
    assert sorted([*held["other"]["slots"], *mine.slots]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": 1}',
        b'{"a": {"slots": "0", "console": 0, "until": 9e9}}',
        b'{"a": {"slots": [-1], "console": 0, "until": 9e9}}',
        b'{"a": {"slots": [0], "console": 0, "until": NaN}}',
        b'{"a": {"slots": [0], "console": 0, "until": Infinity}}',
        b'{"\\u001b[2J": {"slots": [], "console": 0, "until": 9e9}}',
    ],
)
def test_damaged_leases_are_told_and_how_to_end_that(stack: Stack, text: bytes) -> None:
    bucket: Any = stack.client("s3")
    bucket.body, bucket.version = text, 1
    for call in (lambda: pool.held(stack), lambda: pool.take(stack, "b", 1, 60.0)):
        with pytest.raises(ChannelError, match="aws s3 rm s3://b/pool.json"):
            call()
    assert bucket.body == text


def test_byte_code_does_not_depend_on_where_it_was_made(tmp_path: Path) -> None:
    """Else each deploy would be new code: uploads, new versions, new snapshots."""
    found = []
    for name in ("one", "another"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "mod.py").write_text(
            "X = {'a', 'b', 'c'}\ndef f(x): return x in {'p', 'q', 'r'}\n"
        )
        notes: list[str] = []
        package.compile_modules(folder, package.Target.of_this_interpreter(), notes, "/var/task")
        (compiled,) = folder.rglob("*.pyc")
        found.append(compiled.read_bytes())
        assert not notes and b"/var/task/mod.py" in found[-1]
    assert found[0] == found[1]


def test_a_zip_of_requirements_is_known_by_what_this_machine_made_of_it(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "needed.txt").write_text("some\n")
    wanted = requirements.Requirements.read(str(tmp_path / "needed.txt"), stack)
    assert wanted.known() is None
    known = wanted.remember(b"a zip")
    assert known == (f"programs/{hashlib.sha256(b'a zip').hexdigest()}.zip", wanted.known()[1])  # type: ignore[index]
    wanted.memory.chmod(0o666)  # others might have written it
    assert wanted.known() is None
    wanted.memory.chmod(0o600)
    for text in ('{"key": "code/x.zip", "etag": "e"}', "[]", "{"):
        wanted.memory.write_text(text)
        assert wanted.known() is None
    monkeypatch.setattr(requirements, "install", lambda *words: None)
    monkeypatch.setattr(requirements.bucket, "MAX_FILES", -1)
    with pytest.raises(UsageError, match="a function allows"):
        wanted.fetch()


class _Objects:
    """S3 with a listing and deletes; a key with "locked" in it stays."""

    class exceptions:
        class NoSuchBucket(Exception):
            pass

    def __init__(self, *keys: str) -> None:
        self.keys = list(keys)

    def get_paginator(self, name: str) -> _Objects:
        return self

    def paginate(self, Bucket: str, Prefix: str) -> list[dict[str, Any]]:
        return [{"Contents": [{"Key": key} for key in self.keys if key.startswith(Prefix)]}]

    def delete_objects(self, Bucket: str, Delete: dict[str, Any]) -> dict[str, Any]:
        asked = [one["Key"] for one in Delete["Objects"]]
        self.keys = [key for key in self.keys if key not in asked or "locked" in key]
        return {
            "Errors": [{"Key": key, "Code": "AccessDenied"} for key in self.keys if key in asked]
        }


def test_emptying_keeps_what_it_is_told_to_and_says_what_it_could_not_remove() -> None:
    s3 = _Objects("code/old.zip", "code/new.zip", "pool.json")
    assert empty(s3, "b", "code/", keep={"code/new.zip": b""}) == 1
    assert s3.keys == ["code/new.zip", "pool.json"]
    with pytest.raises(ChannelError, match="code/locked of bucket b: AccessDenied"):
        empty(_Objects("code/locked"), "b")


def test_emitted_zips_are_named_by_content(tmp_path: Path) -> None:
    """CloudFormation sees that code has changed by its name alone."""
    code = {"code/function-0a.zip": b"1", "code/layer-0b.zip": b"2"}
    text = deploying.emit(tmp_path, {}, code, Layout())
    assert {path.name for path in tmp_path.iterdir()} == {
        "template.json",
        "function-0a.zip",
        "layer-0b.zip",
    }
    assert "FunctionKey=function-0a.zip LayerKey=layer-0b.zip" in text


def test_text_of_the_bucket_does_not_command_the_terminal() -> None:
    assert cli.printable("\x1b]0;mine\x07 a\tb \u009b2J \u202e\n") == (
        "\\x1b]0;mine\\x07 a\\tb \\x9b2J \\u202e\\n"
    )


def test_the_function_imports_no_boto3() -> None:
    code = "import sys, serverless_mpi.launch.function; print(sorted(n for n in sys.modules if n.startswith(('boto', 'serverless_mpi.deploy'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stdout + done.stderr


class LateChild:
    """A program whose last words are read after its end was seen."""

    peak_bytes = 0

    def __init__(self, *_: Any) -> None:
        self.code: int | None = None
        self.pid = os.getpid()
        self._ready = os.eventfd(0)

    def fileno(self) -> int:
        return self._ready

    def terminate(self) -> None:
        pass

    def turn(self, wait_s: float, take: Any) -> None:
        self.code = 1

    def stop(self, take: Any) -> None:
        take("err", b"Traceback ...\nModuleNotFoundError: No module named 'nowhere'\n")

    def close(self) -> None:
        os.close(self._ready)


def test_last_words_that_come_after_the_end_are_heeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Context:
        memory_limit_in_mb = 512

        def get_remaining_time_in_millis(self) -> int:
            return 900_000

    monkeypatch.setattr(handler, "Child", LateChild)
    spec = JobSpec(
        JOB, 0, 1, "object", KEY, endpoint="http://127.0.0.1:9", settings={"bucket": "b"}
    )
    rank = handler.Function(
        Invocation(spec, (Task("script", ("a.py",), 1, None),), "f", 2, "url"), Context(), False
    )
    (tmp_path / "stats").mkdir()
    _, code, reason = rank._run_programs(tmp_path)
    assert (
        code == 1
        and reason.startswith("ended with exit code 1 (ModuleNotFoundError")
        and "--requirements" in reason
    )
