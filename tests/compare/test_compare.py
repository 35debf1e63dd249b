"""Comparisons: the same program timed alike everywhere, forecast from its trace, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serverless_mpi import errors
from serverless_mpi.compare import measure, page, report
from serverless_mpi.compare.measure import Comparison, Request, Result
from serverless_mpi.deploy import cli
from serverless_mpi.metering import Prices
from serverless_mpi.simulation import AWS, LATENCIES, replay
from tests.harness import mpirun, smpirun

PROGRAM = """\
from mpi4py import MPI
import numpy as np
comm = MPI.COMM_WORLD
total = np.zeros(1000)
for turn in range(5):
    comm.Allreduce(np.ones(1000), total)
    comm.sendrecv(turn, (comm.rank + 1) % comm.size, source=(comm.rank - 1) % comm.size)
comm.bcast("text", 0)
print("rank", comm.rank, total[0])
"""


def test_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, file = tmp_path / "prog.py", tmp_path / "results.json"
    program.write_text(PROGRAM)
    words = ["--repeat", "1", "--with", "mpi,direct,lambda", "--html", str(tmp_path / "c.html")]
    assert cli.main(["compare", "-n", "2,1", *words, "--json", str(file), str(program)]) == 0
    text = capsys.readouterr().out
    assert "not for speed: Lambda takes" in text.splitlines()[-1]
    found = json.loads(file.read_text())
    results = {(one["system"], one["ranks"]): one for one in found["results"]}
    assert len(results) == 6
    for ranks in (1, 2):
        assert results["direct", ranks]["usd"] == results["direct", ranks]["requests"] == 0
        forecast = results["lambda", ranks]
        assert forecast["usd"] > 2e-7 * ranks and forecast["wall_s"] > forecast["median_s"]
        assert (forecast["requests"] > 10) == (ranks == 2)
    for (system, _), one in results.items():
        if system == "mpi" and mpirun() is None:
            assert one["error"] == "there is no mpiexec"
            continue
        assert one["error"] == "" and one["cpu_s"] > 0
        assert len(one["seconds"]) == 1 and min(one["seconds"]) > 0
        if system == "direct":
            assert one["peak_bytes"] > 1e7
            assert one["output"] in ((measure.SAME, measure.ORDER) if mpirun() else ("",))
    assert (tmp_path / "c.html").read_text().count("<svg") == 2


def test_a_replay_makes_the_requests_of_the_job(tmp_path: Path) -> None:
    program, trace = tmp_path / "prog.py", tmp_path / "trace.json"
    program.write_text(PROGRAM)
    done = smpirun("-n", 3, "--channel", "hybrid", "--stats", "json", "--trace", trace, program)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])["operations"]
    ranks = replay.read(trace)
    played = replay.replay(ranks, "hybrid", LATENCIES["emulator"], Prices.load())
    for name, row in played.requests.items():
        if name != "sqs.ReceiveMessage":  # whose number depends on time
            assert row["requests"] == pytest.approx(made[name]["requests"], rel=0.2, abs=2), name
            assert row["messages"] == made[name]["messages"], name
    on_aws = replay.replay(ranks, "hybrid", AWS, Prices.load())
    assert on_aws.seconds > 10 * AWS.sqs_deliver_s  # at least a message for each of ten calls


def events(*ranks: list[tuple[Any, ...]]) -> dict[str, Any]:
    """A trace: per rank ("call", begin, end), ("s", time, number, bytes), ("f", time, number)."""
    made: list[dict[str, Any]] = []
    for rank, done in enumerate(ranks):
        for kind, at, *more in done:
            event = {"pid": rank, "tid": 0, "ts": at * 1e6}
            if kind == "call":
                made.append({**event, "ph": "X", "cat": "call", "dur": (more[0] - at) * 1e6})
            else:
                bytes_of = {"args": {"bytes": more[1]}} if kind == "s" else {}
                made.append({**event, "ph": kind, "id": more[0], **bytes_of})
    return {"traceEvents": made, "otherData": {"ranks": len(ranks)}}


def played(folder: Path, *ranks: list[tuple[Any, ...]], work_s: float | None = None) -> Any:
    path = folder / "trace.json"
    path.write_text(json.dumps(events(*ranks)))
    traces = replay.read(path)
    for trace in traces if work_s is not None else ():
        trace.scale(work_s or 0.0)
    return replay.replay(traces, "queue", AWS, Prices.load())


def test_a_message_and_work(tmp_path: Path) -> None:
    """Rank 0 sends after 2 s of work between two calls; rank 1 waits from its beginning."""
    sender = [("call", 0.0, 0.1), ("call", 2.1, 2.2), ("s", 2.15, 0, 8)]
    reader = [("call", 0.0, 2.5), ("call", 0.2, 0.3), ("f", 2.4, 0)]  # the second is inside
    result = played(tmp_path, sender, reader)
    assert result.work_s == pytest.approx(2.0)
    assert result.seconds == pytest.approx(2.0 + AWS.sqs_deliver_s, rel=0.01)
    assert result.requests["sqs.SendMessageBatch"]["requests"] == 1
    less = played(tmp_path, sender, reader, work_s=0.5)
    assert less.seconds == pytest.approx(0.5 + AWS.sqs_deliver_s, rel=0.01)
    more = played(tmp_path, sender, reader, work_s=3.0)
    assert more.seconds == pytest.approx(3.0 + AWS.sqs_deliver_s, rel=0.01)


def test_a_trace_without_a_send(tmp_path: Path) -> None:
    with pytest.raises(errors.JobError, match="lacks messages"):
        played(tmp_path, [("call", 0.0, 1.0)], [("call", 0.0, 1.0), ("f", 0.5, 7)])


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("a 1\nb 2\n", measure.SAME),
        ("b 2\na 1\n", measure.ORDER),
        ("b 2.5e-3\na -1,000\n", measure.NUMBERS),
        ("a 1\n", measure.DIFFERS),
        ("a one\nb 2\n", measure.DIFFERS),
    ],
)
def test_outputs(text: str, how: str) -> None:
    assert measure.same_output(text, "a 1\nb 2\n") == how


def comparison(
    here_s: float, there_s: float, cpu_s: float = 1.0, start_s: float = 0.5
) -> Comparison:
    return Comparison(
        "<prog>.py",
        2,
        1769,
        [
            Result("direct", 1, [here_s], cpu_s=here_s),
            Result("direct", 2, error="exit code 1: <b>"),
            Result("lambda", 8, [there_s], there_s + start_s, cpu_s, 0, 5, 1e-6, 1e-4, "", ""),
        ],
    )


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (comparison(10.0, 1.5), "direct here takes 10 s with 1 rank, 5 times as long"),
        (
            Comparison(
                "p", 2, 1769, [Result("mpi", 1, [9.0], cpu_s=3.0), Result("lambda", 1, [1.0], 1.5)]
            ),
            "had a processor for 33% of that time only",
        ),
        (comparison(0.1, 1.0), "less than the start of a function"),
        (comparison(2.0, 5.0), "most of the time is spent on messages"),
        (comparison(2.0, 5.0, cpu_s=36.0), "with more ranks than 8"),
        (Comparison("p", 2, 1769, [Result("mpi", 1, [1.0])]), "no verdict"),
    ],
)
def test_the_verdict(made: Comparison, expected: str) -> None:
    assert expected in report.verdict(made)


def test_reports_show_errors_and_escape() -> None:
    made = comparison(1.0, 5.0)
    assert any(line.endswith("exit code 1: <b>") for line in report.lines(made))
    assert sum("|" in line for line in report.markdown(made)) == 5
    html = page.html(made)
    assert "<b>exit" not in html and "&lt;prog&gt;.py" in html and html.count("<circle") == 3
    assert made.to_json()["results"][2]["usd"] == pytest.approx(1.01e-4)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-n", "0", "p.py"], "-n 0: numbers of ranks"),
        (["-n", "1,x", "p.py"], "-n 1,x: numbers of ranks"),
        (["--with", "mpi,slow", "p.py"], "--with slow: not one of mpi, direct"),
        (["--repeat", "0", "p.py"], "--repeat 0: not a whole number"),
        (["--html", "/no/folder/x.html", __file__], "--html /no/folder/x.html: there is no folder"),
        (["none.py"], "there is no program none.py"),
        (["ls"], "times Python programs only"),
        ([], "lacks a program"),
    ],
)
def test_bad_words(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *words]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "timeout_s", "expected"),
    [
        ("import time; time.sleep(60)", 1.0, "longer than 1 s"),
        ("raise SystemExit('because')", 60.0, "exit code 1: smpirun: rank 0"),
        ("import os; os._exit(0)", 60.0, "no rank ended as a Python program does"),
    ],
)
def test_programs_that_fail(text: str, timeout_s: float, expected: str, tmp_path: Path) -> None:
    program = tmp_path / "prog.py"
    program.write_text(text)
    request = Request((str(program),), (1,), ("direct",), 1, timeout_s)
    with pytest.raises(errors.JobError, match="no system could run prog.py") as raised:
        measure.compare(request, Prices.load(), None, lambda line: None)
    assert expected in str(raised.value)
