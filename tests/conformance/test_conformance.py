"""The command itself: mpi4py's suite on 3 ranks in CI, a part of it over queues and objects, and that it judges rightly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conformance import __main__ as command
from tests.conformance import exceptions, jobs
from tests.conformance.jobs import Outcome
from tests.harness import mpirun


@pytest.mark.skipif(
    mpirun() is None, reason="needs the real MPI to compare with: pip install mpich"
)
def test_mpi4pys_suite_passes_on_three_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    code = command.main(["--np", "3", "--channel", "direct", "-v"])
    assert code == 0, capsys.readouterr().out


@pytest.mark.skipif(
    mpirun() is None, reason="needs the real MPI to compare with: pip install mpich"
)
def test_a_part_of_it_passes_over_queues_and_objects(capsys: pytest.CaptureFixture[str]) -> None:
    modules = "cco_obj,cco_obj_inter,cco_ngh_obj,comm,comm_inter,comm_topo,p2p_obj,p2p_obj_matched,request,status"
    code = command.main(
        ["--np", "3", "--channel", "hybrid", "--modules", modules, "--cached-mpich", "-v"]
    )
    assert code == 0, capsys.readouterr().out


def _report(folder: Path, *ranks: list[tuple[int, str, str]]) -> None:
    for rank, records in enumerate(ranks):
        lines = [
            json.dumps({"number": number, "case": case, "outcome": outcome, "detail": ""})
            for number, case, outcome in records
        ]
        (folder / f"rank-{rank}.jsonl").write_text("\n".join(lines) + "\n")


def test_a_case_passes_only_if_it_passes_on_every_rank(tmp_path: Path) -> None:
    end = (4, "", "end")
    _report(
        tmp_path,
        [
            (0, "a", "begun"),
            (0, "a", "pass"),
            (1, "b", "pass"),
            (2, "c", "pass"),
            (3, "d", "pass"),
            end,
        ],
        [(0, "a", "begun"), (0, "a", "pass"), (1, "b", "fail"), (2, "c", "skip"), end],
    )
    outcomes: dict[str, Outcome] = {}
    assert jobs._read(tmp_path, 2, outcomes, 0, "") is None
    assert {case: outcome.kind for case, outcome in outcomes.items()} == {
        "a": "pass",
        "b": "fail",
        "c": "skip",
        "d": "fail",
    }


def test_after_a_hang_the_rest_goes_on(tmp_path: Path) -> None:
    _report(
        tmp_path,
        [(0, "a", "begun"), (0, "a", "pass"), (1, "b", "begun")],
        [
            (0, "a", "begun"),
            (0, "a", "pass"),
            (1, "b", "begun"),
            (1, "b", "pass"),
            (2, "c", "begun"),
        ],
    )
    outcomes: dict[str, Outcome] = {}
    assert jobs._read(tmp_path, 2, outcomes, 0, "exit code 1") == 2
    assert {case: outcome.kind for case, outcome in outcomes.items()} == {"a": "pass", "b": "fail"}


def test_a_module_that_does_not_load_is_a_failure(tmp_path: Path) -> None:
    outcomes: dict[str, Outcome] = {}
    assert jobs._read(tmp_path, 2, outcomes, 0, "ImportError") is None
    assert [outcome.kind for outcome in outcomes.values()] == ["fail"]


def test_what_is_owed_is_what_the_real_mpi_passes() -> None:
    real = {"a": Outcome("pass"), "b": Outcome("pass"), "c": Outcome("fail"), "d": Outcome("skip")}
    here = {"a": Outcome("pass"), "b": Outcome("skip"), "c": Outcome("fail")}
    assert command._owed(here, real) == ["b"]
    assert command._owed({"a": Outcome("pass"), "c": Outcome("fail")}, None) == ["c"]


def test_the_page_names_cases_and_a_line_that_covers_passing_ones_is_stale(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n- `test_a.T.*`: no window\n- `test_b.T.x` (np 1, 2): one rank\n- `MPI.Win`: no case\n- `test_c.T.x`:\n"
    )
    everywhere, small = exceptions.read(page)
    assert everywhere.covers("test_a.T.x", 5) and not everywhere.covers("test_ab.T.x", 5)
    assert small.covers("test_b.T.x", 2) and not small.covers("test_b.T.x", 3)
    assert [line.pattern for line in exceptions.read()], "docs/conformance.md names none"
