"""A channel of another distribution: one file and one entry point (toys/folder_channel.py)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.harness import ROOT, smpirun

TOYS = Path(__file__).parent / "toys"
FOLDER = ("--channel", "folder")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Return an environment with the toys and an empty folder for temporary files."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    return {**os.environ, "PYTHONPATH": str(TOYS), "TMPDIR": str(temporary)}


def frames_left(environ: dict[str, str]) -> list[str]:
    return [name for name in os.listdir(environ["TMPDIR"]) if "folder" in name]


def contract(environ: dict[str, str], options: str = "") -> subprocess.CompletedProcess[str]:
    program = f"from serverless_mpi.testing import check_channel; check_channel('folder'{options})"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)


def changed(environ: dict[str, str], tmp_path: Path, right: str, wrong: str) -> dict[str, str]:
    """Return an environment in which the toy has `wrong` instead of `right`."""
    source = (TOYS / "folder_channel.py").read_text()
    assert source.count(right) == 1
    # A directory for each change: Python reuses byte code of a source with the same path, size
    # and second of modification.
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    (folder / "folder_channel.py").write_text(source.replace(right, wrong))
    return {**environ, "PYTHONPATH": f"{folder}{os.pathsep}{TOYS}"}


def test_a_program_runs_on_it(environ: dict[str, str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    options = ("-n", 3, *FOLDER, "--stats", "text", "--explain", "--trace", trace)
    job = smpirun(*options, ROOT / "examples" / "ring.py", env=environ)
    assert job.returncode == 0, job.stderr
    assert job.stdout == "3 arrays went round; each holds 3\n"
    lines = [line.split() for line in job.stderr.splitlines()]
    assert any(words[:1] == ["folder.put"] and int(words[1]) >= 9 for words in lines)
    assert any(words[1:2] == ["barrier:0B"] and words[3] != "not" for words in lines)
    assert '"channel.get"' in trace.read_text()
    assert not frames_left(environ)


def test_a_program_that_fails_leaves_nothing(environ: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from serverless_mpi import MPI\n"
        "if MPI.COMM_WORLD.rank: raise SystemExit(3)\n"
        "MPI.COMM_WORLD.recv()\n"
    )
    job = smpirun("-n", 2, *FOLDER, program, env=environ)
    assert job.returncode == 3
    assert not frames_left(environ)


def test_it_is_simulated_by_the_model_that_it_names(environ: dict[str, str]) -> None:
    job = smpirun("--simulate", *FOLDER, "-n", 50, "bcast:8KB", env=environ)
    assert job.returncode == 0, job.stderr
    row = next(line for line in job.stdout.splitlines() if line.startswith("bcast:8KB"))
    assert row.split()[1] == "50"
    assert any(line.split()[:2] == ["folder.put", "49"] for line in job.stdout.splitlines())


def test_without_a_model_simulation_is_refused(environ: dict[str, str], tmp_path: Path) -> None:
    model = '    model = "serverless_mpi.simulation.media:Parametric"\n'
    job = smpirun(
        "--simulate", *FOLDER, "-n", 50, "bcast:8KB", env=changed(environ, tmp_path, model, "")
    )
    assert (job.returncode, job.stderr) == (
        2,
        "smpirun: channel folder has no simulation model, so its collectives cannot be forecast\n",
    )


def test_a_platform_that_it_does_not_name_is_refused(environ: dict[str, str]) -> None:
    options = ("--platform", "lambda", "--endpoint", "http://127.0.0.1:1", *FOLDER)
    job = smpirun("-n", 2, *options, ROOT / "examples" / "ring.py", env=environ)
    assert job.returncode == 2
    assert "channel folder does not work on platform lambda; these do: hybrid" in job.stderr


def test_the_planner_plans_as_without_it(environ: dict[str, str]) -> None:
    command = [sys.executable, "-m", "serverless_mpi.inference", "plan", "--platform", "lambda"]
    command += ["--neurons", "1024", "--layers", "120", "--samples", "100"]
    plans = [
        subprocess.run(command, env=one, capture_output=True, text=True, timeout=120)
        for one in (environ, {**environ, "PYTHONPATH": ""})
    ]
    assert plans[0].returncode == 0, plans[0].stderr
    assert plans[0].stdout == plans[1].stdout


def test_the_contract_holds_it_without_being_listed(environ: dict[str, str]) -> None:
    command = [
        sys.executable,
        "-m",
        "serverless_mpi.testing",
        "--channels",
        "--only",
        "channel folder",
    ]
    suite = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert suite.returncode == 0, suite.stderr


def test_one_that_loses_a_frame_is_caught(environ: dict[str, str], tmp_path: Path) -> None:
    read, lost = "sorted(self._inbox.iterdir())", "sorted(self._inbox.iterdir())[:3]"
    environ = changed(environ, tmp_path, f"for file in {read}:", f"for file in {lost}:")
    kept = contract(environ)
    assert kept.returncode == 0, kept.stderr  # what is read later is not lost
    environ = changed(environ, tmp_path, "for dest in frame.dests:", "for dest in frame.dests[:1]:")
    # only the check that fails waits so long, so that a busy machine changes nothing
    suite = contract(environ, ", patience_s=3, skip=['every_frame_arrives_unchanged']")
    assert suite.returncode == 1
    assert "FolderChannel, one_put_reaches_any_subset: rank" in suite.stderr
    assert "frames within 3 s" in suite.stderr
    assert not frames_left(environ)


def test_one_that_leaves_its_folder_is_caught(environ: dict[str, str], tmp_path: Path) -> None:
    environ = changed(environ, tmp_path, "shutil.rmtree(cls._folder(spec))", "pass")
    suite = contract(environ)
    assert suite.returncode == 1
    assert "FolderChannel: destroy left" in suite.stderr and frames_left(environ)


def test_without_the_extension_its_name_is_refused() -> None:
    job = smpirun("-n", 2, *FOLDER, "program.py")
    assert job.returncode == 2
    assert job.stderr == (
        "smpirun: unknown channel 'folder'; known: hybrid, queue, object, direct, routed, memory\n"
    )
