"""The launcher's own side of a job: what it destroys, honors, counts and says."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serverless_mpi import launch
from serverless_mpi.deploy import cli as deploy_cli
from serverless_mpi.errors import JobError, UsageError
from serverless_mpi.job import JobSpec
from serverless_mpi.launch import cli, jobs, local
from serverless_mpi.launch.base import COMMON_FIELDS, OPTIONS, Launcher, Plan
from serverless_mpi.launch.output import LineWriter, printable, printable_lines, say
from serverless_mpi.metering import Prices
from tests.harness import GIVE_UP_S, ROOT, smpirun

# -- what is destroyed

TOY = """
import os, shutil, sys, tempfile
from serverless_mpi import channels
from serverless_mpi.errors import ChannelError
from serverless_mpi.channels.memory import MemoryChannel
from serverless_mpi.launch.base import Plan, Program
from serverless_mpi.launch.local import LocalLauncher

class Toy(MemoryChannel):
    contained = {contained}
    services = frozenset({services})

    @classmethod
    def provision(cls, spec):
        folder = tempfile.mkdtemp(dir=sys.argv[1])
        if {fails}:
            os.rmdir(folder)
            raise ChannelError("no room")
        return {{"folder": folder}}

    @classmethod
    def destroy(cls, spec):
        print("destroy", sorted(spec.settings), flush=True)
        if "folder" in spec.settings:
            shutil.rmtree(spec.settings["folder"])

channels.CHANNELS["toy"] = "__main__:Toy"
sys.exit(LocalLauncher().run(Plan((Program({argv}, 1),), "toy")))
"""


def toy(
    folder: Path,
    argv: tuple[str, ...] = ("true",),
    contained: bool = False,
    services: tuple[str, ...] = (),
    fails: bool = False,
) -> subprocess.CompletedProcess[str]:
    """A job over a channel that makes a folder."""
    text = TOY.format(argv=argv, contained=contained, services=services, fails=fails)
    (folder / "things").mkdir()
    (folder / "tmp").mkdir()
    return subprocess.run(
        [sys.executable, "-c", text, str(folder / "things")],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
    )


@pytest.mark.parametrize("argv, code", [(("true",), 0), (("false",), 1)])
def test_a_channel_is_destroyed_without_an_endpoint(
    tmp_path: Path, argv: tuple[str, ...], code: int
) -> None:
    done = toy(tmp_path, argv)
    assert done.returncode == code and done.stdout == "destroy ['folder']\n", done.stderr
    assert not list((tmp_path / "things").iterdir()) and not list((tmp_path / "tmp").iterdir())


def test_a_provision_that_fails_is_destroyed(tmp_path: Path) -> None:
    done = toy(tmp_path, fails=True)
    assert done.returncode == 1 and done.stdout == "destroy []\n"


def test_the_guard_destroys_after_the_launcher_died(tmp_path: Path) -> None:
    # the guard has no standard output, so what it did shows in the folders; it holds their lock to its end
    words = f"ls {tmp_path}/things > {tmp_path}/seen; kill -9 $PPID"
    toy(tmp_path, ("sh", "-c", words))
    assert (tmp_path / "seen").read_text()
    deadline = time.monotonic() + GIVE_UP_S
    while list((tmp_path / "tmp").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not list((tmp_path / "tmp").iterdir()) and not list((tmp_path / "things").iterdir())


def test_what_an_own_emulator_holds_is_not_destroyed_one_by_one(tmp_path: Path) -> None:
    done = toy(tmp_path, contained=True, services=("s3",))
    assert done.returncode == 0 and done.stdout == "", done.stderr


# -- what a launcher honors

NAMES = {one.name for one in fields(Plan)}


@pytest.mark.parametrize("platform", launch.LAUNCHERS)
def test_what_a_launcher_declares_it_reads(platform: str) -> None:
    launcher = launch.load(platform)
    assert launcher.honors <= NAMES - COMMON_FIELDS
    module = sys.modules[launcher.__module__]
    read = set(re.findall(r"plan\.(\w+)", Path(str(module.__file__)).read_text()))
    assert launcher.honors <= read
    assert read & NAMES <= launcher.honors | COMMON_FIELDS  # and does not read what it refuses


class Bare(Launcher):
    """A launcher that honors nothing."""

    def run(self, plan: Plan) -> int:
        return 0

    def cleanup(self, endpoint: str | None, region: str) -> list[str]:
        return []


@pytest.mark.parametrize(
    "words, option",
    [
        (["--stats", "json"], "--stats"),
        (["--explain"], "--explain"),
        (["--trace", "t.json"], "--trace"),
        (["--timeout", "5"], "--timeout"),
        (["--deadlock", "0"], "--deadlock"),
        (["--no-alias"], "--no-alias"),
        (["-l"], "--tag-output"),
        (["--region", "eu-west-1"], "--region"),
        (["--endpoint", "http://h:1"], "--endpoint"),
        (["--port", "1"], "--port"),
        (["--host", "h"], "--host"),
        (["--prices", "p"], "--prices"),
        (["--branching", "2"], "--branching"),
        (["--stack", "s"], "--stack"),
        (["--memory", "1024"], "--memory"),
        (["--budget", "1"], "--budget"),
        (["--requirements", "r"], "--requirements"),
    ],
)
def test_an_option_without_effect_is_refused(
    monkeypatch: pytest.MonkeyPatch, words: list[str], option: str
) -> None:
    monkeypatch.setattr(launch, "load", lambda platform: Bare)
    cli.plan(["prog.py"], {})
    with pytest.raises(UsageError, match=f"^{option} has no effect with --platform bare"):
        cli.plan(["--platform", "bare", *words, "prog.py"], {})
    assert NAMES >= set(OPTIONS)


@pytest.mark.parametrize(
    "words, told",
    [
        (["--stack", "s"], "--stack has no effect with --platform local"),
        (["--platform", "lambda", "--port", "1"], "--port has no effect with --platform lambda"),
        (["--platform", "lambda", "--host", "h"], "--host has no effect with --platform lambda"),
        (
            ["--channel", "queue", "--host", "127.0.0.1"],
            "--host has no effect on channel queue; it works with direct and routed",
        ),
        (["--channel", "direct", "--port", "1"], "this job starts none"),
        (["--endpoint", "http://127.0.0.1:9", "--port", "1"], "this job starts none"),
    ],
)
def test_what_would_be_ignored_is_refused_in_one_line(
    words: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "examples/hello.py"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert told in line


# -- statistics and output


def test_missing_and_damaged_statistics_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def record(rank: int) -> dict[str, Any]:
        return {"rank": rank, "meter": {}, "seconds": 1.0, "dropped": 0, "duplicates": 0}

    prices = Prices.load()
    assert local._records(tmp_path, 3, prices) == [] and capsys.readouterr().err == ""
    for rank in (0, 2):
        (tmp_path / f"rank-{rank}.json").write_text(json.dumps(record(rank)))
    assert local._records(tmp_path, 3, prices) == [record(0), record(2)]
    assert capsys.readouterr().err == (
        "smpirun: rank 1 left no statistics; the figures cover the other ranks\n"
    )
    seconds = json.dumps({**record(1), "seconds": "x"})
    rows = '{"rank": 1, "meter": {"x": {}}}'
    for damage in ("", "{", "[]", "7", '{"rank": 1}', rows, seconds, "[" * 100_000):
        (tmp_path / "rank-1.json").write_text(damage)
        assert len(local._records(tmp_path, 3, prices)) == 2
        assert capsys.readouterr().err == (
            "smpirun: the statistics of rank 1 are damaged and not counted\n"
        )
    local._records(tmp_path, 40, prices)
    assert "ranks 3, 4, 5, 6, 7, 8, 9, 10 and 29 more left" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [("echo", "text"), ("--stats", "json", "examples/hello.py")])
def test_a_full_disk_behind_the_output_is_one_line(words: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "serverless_mpi.launch", "--channel", "direct", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=GIVE_UP_S,
            cwd=ROOT,
        )
    assert done.returncode == 1
    assert done.stderr == ("smpirun: standard output cannot be written: No space left on device\n")


def test_a_full_disk_under_the_jobs_folder_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def begin() -> None:
        raise OSError(28, "No space left on device", "/tmp/smpi-0/x")

    monkeypatch.setattr(local.JobFolder, "begin", begin)
    assert cli.main(["--channel", "direct", "true"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "cannot run the job" in line and "No space left on device" in line


def test_other_faults_of_the_output_than_a_gone_reader_are_named() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(JobError, match="Bad file descriptor"):
        LineWriter(reader, tagged=False).feed(0, b"x\n")  # the end that is read cannot be written
    os.close(reader)


# -- what reaches the terminal

ESCAPES = "\x1b]0;title\x07\x1b[2J\r\n\t\x9b31m\u202e\u2028\udc80end"


def test_printable_leaves_text_and_escapes_the_rest() -> None:
    for text in ("", "plain: text, ünïcode 中文 😀", "a b"):
        assert printable(text) == text
    clean = printable(ESCAPES)
    assert clean.isprintable() and clean.startswith("\\x1b]0;title\\x07") and clean.endswith("end")
    assert printable_lines("a\x1b\nb\r\n") == "a\\x1b\nb\\r\n"
    clean.encode()


def test_nothing_of_smpirun_itself_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    say(ESCAPES, ESCAPES)
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == 3 and all(line.isprintable() for line in lines)


def test_a_communicators_name_is_no_terminal_sequence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prog = tmp_path / "prog.py"
    prog.write_text(
        "from serverless_mpi import MPI\nc = MPI.COMM_WORLD.Dup()\n"
        "c.Set_name('\\x1b[2J\\x9b0m')\nc.recv(source=1 - c.rank)\n"
    )
    done = smpirun("-n", 2, "--channel", "direct", "--deadlock", 0.5, prog)
    assert done.returncode == 125 and "\\x1b[2J\\x9b0m" in done.stderr
    assert all(line.isprintable() for line in done.stderr.splitlines())


def test_a_jobs_program_and_reason_are_no_terminal_sequences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = {
        "began": 0,
        "size": 1,
        "channel": ESCAPES,
        "memory_mb": 1,
        "program": ["prog.py", ESCAPES],
    }
    job = SimpleNamespace(job_id="0" * 16, start=start, state=ESCAPES, end={}, ranks={})
    history = SimpleNamespace(jobs=lambda: [job], stop=lambda job_id: True, forget=lambda job_id: 1)
    monkeypatch.setattr(deploy_cli, "_history", lambda options: history)
    deploy_cli._jobs(argparse.Namespace(stack="smpi"))
    shown = capsys.readouterr().out.rstrip("\n").split("\n")
    assert len(shown) == 1 + len(ESCAPES.splitlines())  # a deadlock has several lines
    assert all(line.isprintable() for line in shown)


def test_an_error_is_no_terminal_sequence(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-n", ESCAPES, "prog.py"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.isprintable()


ABSENT = json.dumps(JobSpec.new(1, "absent").public())  # of a channel that is not installed


@pytest.mark.parametrize(
    "record",
    ["{", "[]", '{"job_id": "0011223344556677"}', ABSENT, None],
    ids=["cut", "a list", "fields missing", "absent channel", "valid"],
)
def test_cleanup_keeps_a_job_whose_record_it_cannot_read(
    record: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spec = JobSpec.new(1, "direct")
    for job_id in ("00" * 8, "11" * 8):
        folder = jobs.state_folder() / job_id
        folder.mkdir(parents=True)
        (folder / "lock").touch()
        text = json.dumps(spec.public()) if job_id == "11" * 8 or record is None else record
        (folder / "spec.json").write_text(text)
    first, second = sorted(jobs.clear_dead_jobs(), key=lambda line: line.split()[2])
    assert second == f"removed job {'11' * 8}"
    assert first.startswith("removed" if record is None else f"kept job {'00' * 8}; to give it up")
