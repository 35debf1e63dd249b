"""Profiles: sums by line of the program, who was late, and what a request costs whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serverless_mpi import errors
from serverless_mpi.launch import cli, profiling
from serverless_mpi.metering import Prices
from serverless_mpi.profile import analysis, page, save, text
from serverless_mpi.profile.analysis import Profile
from tests.harness import smpirun

PROGRAM = """\
from mpi4py import MPI
import numpy as np
import time
comm = MPI.COMM_WORLD
def exchange():
    comm.sendrecv(comm.rank, 1 - comm.rank, source=1 - comm.rank)
for turn in range(3):
    exchange()
    comm.Allreduce(np.ones(500), np.zeros(500))
if comm.rank == 0:
    time.sleep(0.3)
    comm.send("late", 1)
    comm.ssend("to one who is late", 1)
else:
    comm.recv(source=0)
    time.sleep(0.3)
    comm.recv(source=0)
"""


@pytest.mark.parametrize("channel", ["direct", "hybrid", "object"])
def test_a_job(channel: str, tmp_path: Path) -> None:
    program, file = tmp_path / "program.py", tmp_path / "profile.json"
    program.write_text(PROGRAM)
    done = smpirun(*("-n", 2, "--channel", channel, "--stats", "json", "--profile", file, program))
    assert done.returncode == 0, done.stderr
    stats, profile = json.loads(done.stdout.splitlines()[-1]), json.loads(file.read_text())
    sites = {(site["call"], site["line"]): site for site in profile["sites"]}
    assert sites["sendrecv", 6]["count"] == 6 and sites["sendrecv", 6]["function"] == "exchange"
    assert sites["Allreduce", 9]["ranks"] == 2 and sites["Allreduce", 9]["sent_bytes"] >= 6 * 4000
    late = sites["recv", 15]
    assert 0.2 < late["late_sender_s"] <= late["seconds"] and late["late_receiver_s"] == 0
    late = sites["ssend", 13]
    assert 0.2 < late["late_receiver_s"] <= late["seconds"]
    assert "recv program.py:15" in done.stderr
    for rank in profile["ranks"]:
        assert 0 < rank["mpi_s"] < rank["seconds"]
    # requests, and so dollars, are those of the bill, each charged to one line
    priced = [site for site in profile["sites"] if site["requests"]]
    free = {"direct.put"}
    assert sum(site["requests"] for site in priced) == sum(
        row["requests"] for name, row in stats["operations"].items() if name not in free
    )
    assert profile["requests_usd"] == pytest.approx(stats["usd"])
    assert sum(row[1] for row in profile["sizes"]) == sum(row[2] for row in profile["matrix"])
    assert {(row[0], row[1]) for row in profile["matrix"]} == {(0, 1), (1, 0)}


def leave(folder: Path, rank: int, offset: int = 0, **more: Any) -> None:
    """Write what a rank leaves, with two sites: (start and end), and line 7 of a program."""
    site = [more.pop("call", "recv"), "/x/prog.py", 7, "<module>", 1, 5_000_000, 5_000_000]
    facts = {
        "version": 1,
        "rank": rank,
        "offset": offset,
        "ns": 10_000_000,
        "events": [len(more.get("s", ())), len(more.get("t", ()))],
        "sites": [
            ["(start and end)", "", 0, "", 0, 0, 0, 0, 0, 0, 0, {"sqs.SendMessage": [2, 3, 100]}],
            [*site, 1, 40, 0, 0, {}],
        ],
        "sent": [[rank ^ 1, 6, 1, 40]],
    }
    lines = [facts, *([kind, rows] for kind, rows in more.items())]
    (folder / f"profile-{rank}.json").write_text("\n".join(map(json.dumps, lines)))


def merged(folder: Path, size: int = 2, *, holds_up: bool = False) -> Profile:
    profile = Profile("prog.py", size, "queue", "local", holds_up=holds_up)
    return analysis.merge(folder, profile, Prices.load())


@pytest.mark.parametrize(
    ("offset", "late_s"),
    [
        (0, 0.002),
        (500_000, 0.002),  # one clock
        (10_000_000, 0.004),  # another machine's: the message seems to be sent after it was taken
        (-10_000_000, 0.0),
    ],
)
def test_late_sender(offset: int, late_s: float, tmp_path: Path) -> None:
    """Rank 1 waits from 1 to 5 ms for message 4, which rank 0 sends at 3 ms."""
    leave(tmp_path, 0, offset, s=[[0, 99, 3, 4, [1], 3_000_000]])
    leave(tmp_path, 1, t=[[99, 0, 4, -1, 1, 1_000_000, 5_000_000]])
    profile = merged(tmp_path)
    (site,) = [site for site in profile.sites if site.line == 7]
    assert site.late_sender_s == pytest.approx(late_s) and site.late_receiver_s == 0
    assert [rank.late_sender_s for rank in profile.ranks] == pytest.approx([0, late_s])
    assert site.rest_s == pytest.approx(0.01 - late_s)
    (start,) = [site for site in profile.sites if not site.line]
    assert start.requests == 4 and start.usd == pytest.approx(6 * 4e-7)


@pytest.mark.parametrize(
    ("call", "holds_up", "late_s"),
    [("Ssend", False, 0.002), ("Send", True, 0.002), ("Send", False, 0.0)],
)
def test_late_receiver(call: str, holds_up: bool, late_s: float, tmp_path: Path) -> None:
    """Rank 0 sends message 4 at 1 ms and returns at 4 ms; rank 1 matches it at 3 ms."""
    leave(
        tmp_path,
        0,
        call=call,
        l=[[99, 1, 4, 1_000_000, 1, 4_000_000]],
        s=[[0, 99, 3, 4, [1], 1_000_000]],
    )
    leave(tmp_path, 1, t=[[99, 0, 4, -1, 1, 3_000_000, 3_000_000]])
    sites = merged(tmp_path, holds_up=holds_up).sites
    assert max(site.late_receiver_s for site in sites) == pytest.approx(late_s)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    leave(tmp_path, 1)
    (tmp_path / "profile-2.json").write_text('{"rank": 2')
    profile = merged(tmp_path, 3)
    assert profile.missing == [0, 2] and [rank.rank for rank in profile.ranks] == [1]
    assert "without a profile: rank 0, 2" in "\n".join(text.lines(profile))
    with open(tmp_path / "profile-1.json", "a") as file:
        file.write('\n["t", [[1, 2')
    told: list[str] = []
    save.save(
        tmp_path, "", Profile("p", 2, "queue", "local"), Prices.load(), told.append, told.append
    )
    assert told == ["--profile: a rank's file is damaged; there is no profile"]
    told.clear()
    save.save(
        *(tmp_path / "none", "", Profile("p", 2, "queue", "local"), Prices.load()),
        *(told.append, told.append),
    )
    assert told == ["profile: no rank left one; a rank writes it when it finalizes MPI"]


def test_a_page_escapes_what_it_shows(tmp_path: Path) -> None:
    leave(tmp_path, 0, call='<img src="http://x">')
    profile = merged(tmp_path)
    profile.program = "<script>alert(1)</script>"
    made = page.html(profile)
    assert "<script" not in made and "<img" not in made and made.count("<svg") == 4


def test_many_ranks_and_sites_fit_the_text(tmp_path: Path) -> None:
    for rank in range(40):
        leave(tmp_path, rank)
    profile = merged(tmp_path, 40)
    lines = list(text.lines(profile))
    assert len(lines) < 80 and any("8 ranks between these" in line for line in lines)
    assert any("of 40 pairs" in line for line in lines)
    assert "to rank" in page.html(profile)


@pytest.mark.parametrize(
    ("words", "file", "program"),
    [
        (["--profile", "prog.py", "--profile"], "", ("prog.py", "--profile")),
        (["--profile", "x.html", "prog.py"], "x.html", ("prog.py",)),
        (["--profile=x.json", "-n", "2", "prog.py"], "x.json", ("prog.py",)),
        (["-n", "2", "--profile", "-m", "module"], "", ("module",)),
        (["prog.py", "--profile", "x.html"], None, ("prog.py", "--profile", "x.html")),
    ],
)
def test_the_file_may_be_omitted(words: list[str], file: str | None, program: Any) -> None:
    plan, _ = cli.plan(words, {})
    assert (plan.profile, plan.programs[0].argv) == (file, program)


@pytest.mark.parametrize("file", ["run.pdf", "/no/such/folder/run.html"])
def test_a_file_that_cannot_be(file: str) -> None:
    plan, _ = cli.plan([f"--profile={file}", "prog.py"], {})
    with pytest.raises(errors.UsageError, match=f"--profile={file}: "):
        profiling.check(plan)
