"""The command itself: mpi4py's suite on 3 ranks in CI, a part of it over queues and objects, and that it judges rightly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conformance import __main__ as command
from tests.conformance import exceptions, jobs, recorded
from tests.conformance.cases import Cases
from tests.conformance.jobs import Module, Outcome
from tests.harness import mpirun


@pytest.mark.skipif(
    mpirun() is None, reason="needs the real MPI to compare with: pip install mpich"
)
def test_mpi4pys_suite_passes_on_three_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--np", "3", "--channel", "direct", "--modules", "short", "--cached-mpich", "-v"]
    code = command.main(words)
    assert code == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    "module, cases",
    [
        ("io", "*World.test*Ordered*"),
        ("io", "*World.testReadWrite*All"),
        ("rma", "*World.test*ProcNull*"),
        ("rma", "*World.test*Complete*"),
        ("rma_nb", "*World.test*ProcNull*"),
        ("dynproc", "*"),
        ("spawn", "*SpawnSingleWorld.testErrcodes"),
    ],
)
def test_a_part_of_the_long_modules_passes(
    module: str, cases: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/dev/shm")  # every case syncs its file hundreds of times
    words = ["--np", "3", "--channel", "direct", "--modules", module, "--no-mpich"]
    assert command.main([*words, "--cases", cases]) == 0, capsys.readouterr().out


@pytest.mark.skipif(
    mpirun() is None, reason="needs the real MPI to compare with: pip install mpich"
)
def test_a_part_of_it_passes_over_queues_and_objects(capsys: pytest.CaptureFixture[str]) -> None:
    modules = "cco_obj,cco_obj_inter,cco_ngh_obj,comm,comm_inter,comm_topo,p2p_obj,p2p_obj_matched,request,status,ulfm"
    code = command.main(
        ["--np", "3", "--channel", "hybrid", "--modules", modules, "--cached-mpich", "-v"]
    )
    assert code == 0, capsys.readouterr().out


def test_short_leaves_out_whole_modules_and_single_cases() -> None:
    cases = Cases("test_[ac]*", ("test_a.*", "test_c.*Dup.*"))
    named = ("test_a.A.one", "test_b.B.one", "test_c.C.one", "test_c.CDup.one")
    assert [case for case in named if cases.cover(case)] == ["test_c.C.one"]
    short = command._modules("short")
    assert "test_io" not in short and "test_cco_buf" in short


def test_what_is_recorded_is_of_one_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recorded.json"
    outcomes = {"a": Outcome("pass"), "b": Outcome("skip"), "c": Outcome("fail", "why")}
    broken = Module({"(from case 0 on)": Outcome("fail")})
    assert recorded.read(3, ["test_m"], path) == {}
    recorded.write(3, {"test_m": Module(outcomes), "test_n": broken}, path)
    recorded.write(2, {"test_m": Module({"a": Outcome("fail")})}, path)
    expected = {"a": Outcome("pass"), "b": Outcome("skip"), "c": Outcome("fail")}
    assert recorded.read(3, ["test_m", "test_n"], path) == {"test_m": Module(expected)}
    monkeypatch.setattr(recorded, "version", lambda name: "0.1")
    assert recorded.read(3, ["test_m"], path) == {}


Record = tuple[str, int, str, str]  # module, number, case, outcome


def _report(folder: Path, *ranks: list[Record]) -> None:
    for rank, records in enumerate(ranks):
        lines = [
            json.dumps(
                {
                    "module": module, "number": number, "case": case, "outcome": outcome,
                    "detail": "", "seconds": 0.5,
                }
            )
            for module, number, case, outcome in records
        ]  # fmt: skip
        (folder / f"rank-{rank}.jsonl").write_text("\n".join(lines) + "\n")


def _read(
    folder: Path, modules: str, first: int = 0, story: str = ""
) -> tuple[dict[str, dict[str, str]], list[str], int]:
    """The kinds of outcomes of each module, and what to go on with."""
    found = {module: Module() for module in modules.split()}
    left, first = jobs._read(folder, 2, found, modules.split(), first, story)
    kinds = {
        name: {case: outcome.kind for case, outcome in module.outcomes.items()}
        for name, module in found.items()
    }
    return kinds, left, first


def test_a_case_passes_only_if_it_passes_on_every_rank(tmp_path: Path) -> None:
    end = ("n", 1, "", "end")
    _report(
        tmp_path,
        [
            ("m", -1, "", "module"),
            ("m", 0, "a", "begun"),
            ("m", 0, "a", "pass"),
            ("m", 1, "b", "pass"),
            ("m", 2, "c", "pass"),
            ("m", 3, "d", "pass"),
            ("n", 0, "a", "fail"),
            end,
        ],
        [
            ("m", -1, "", "module"),
            ("m", 0, "a", "begun"),
            ("m", 0, "a", "pass"),
            ("m", 1, "b", "fail"),
            ("m", 2, "c", "skip"),
            ("n", 0, "a", "pass"),
            end,
        ],
    )
    found = {"m": Module(), "n": Module()}
    assert jobs._read(tmp_path, 2, found, ["m", "n"], 0, "") == ([], 0)
    assert {case: outcome.kind for case, outcome in found["m"].outcomes.items()} == {
        "a": "pass",
        "b": "fail",
        "c": "skip",
        "d": "fail",
    }
    assert found["m"].seconds == 2.0
    assert {case: outcome.kind for case, outcome in found["n"].outcomes.items()} == {"a": "fail"}


def test_after_a_hang_the_rest_goes_on(tmp_path: Path) -> None:
    _report(
        tmp_path,
        [
            ("m", 0, "z", "pass"),
            ("n", 0, "a", "begun"),
            ("n", 0, "a", "pass"),
            ("n", 1, "b", "begun"),
        ],
        [
            ("m", 0, "z", "pass"),
            ("n", 0, "a", "begun"),
            ("n", 0, "a", "pass"),
            ("n", 1, "b", "begun"),
            ("n", 1, "b", "pass"),
            ("n", 2, "c", "begun"),
        ],
    )
    kinds, left, first = _read(tmp_path, "m n o", story="exit code 1")
    assert (left, first) == (["n", "o"], 2)
    assert kinds == {"m": {"z": "pass"}, "n": {"a": "pass", "b": "fail"}, "o": {}}


def test_after_a_module_that_breaks_between_its_cases_the_next_goes_on(tmp_path: Path) -> None:
    _report(
        tmp_path,
        [("m", 0, "a", "pass"), ("n", -1, "", "module")],
        [
            ("m", 0, "a", "pass"),
            ("n", -1, "", "module"),
            ("n", 0, "b", "pass"),
            ("o", 0, "", "end"),
        ],
    )
    kinds, left, first = _read(tmp_path, "m n o")
    assert (left, first) == (["o"], 0)
    assert kinds == {"m": {"a": "pass"}, "n": {"(from case 0 on)": "fail"}, "o": {}}


def test_a_module_that_does_not_load_is_a_failure(tmp_path: Path) -> None:
    kinds, left, first = _read(tmp_path, "m n", story="ImportError")
    assert kinds == {"m": {"(from case 0 on)": "fail"}, "n": {}}
    assert (left, first) == (["n"], 0)


def test_what_is_owed_is_what_the_real_mpi_passes() -> None:
    real = {"a": Outcome("pass"), "b": Outcome("pass"), "c": Outcome("fail"), "d": Outcome("skip")}
    here = {"a": Outcome("pass"), "b": Outcome("skip"), "c": Outcome("fail")}
    assert command._owed(here, real) == ["b"]
    assert command._owed({"a": Outcome("pass"), "c": Outcome("fail")}, None) == ["c"]


def test_where_the_real_mpi_does_not_run_there_is_no_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = command.Table("direct", verbose=False)
    table.add("test_info", 3, Module({"a": Outcome("pass")}), Module({"a": Outcome("pass")}))
    assert table.end(0.0) == 0
    broken = Module({"(from case 0 on)": Outcome("fail", "libmpi.so: no such file")})
    table.add("test_info", 3, Module({"a": Outcome("pass")}), broken)
    assert table.end(0.0) == 1


def test_the_page_names_cases_and_a_line_that_covers_passing_ones_is_stale(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n- `test_a.T.*`: no window\n- `test_b.T.x` (np 1, 2): one rank\n- `MPI.Win`: no case\n- `test_c.T.x`:\n"
    )
    everywhere, small = exceptions.read(page)
    assert everywhere.covers("test_a.T.x", 5) and not everywhere.covers("test_ab.T.x", 5)
    assert small.covers("test_b.T.x", 2) and not small.covers("test_b.T.x", 3)
    assert [line.pattern for line in exceptions.read()], "docs/conformance.md names none"
