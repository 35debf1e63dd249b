"""`checkpoint.steps` on ranks that are threads, on folders and on the emulator's buckets, and under mpirun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serverless_mpi import checkpoint
from serverless_mpi.aws import control
from serverless_mpi.checkpoint import SavedStates, places, s3
from serverless_mpi.checkpoint.loop import _program
from serverless_mpi.errors import CheckpointError, UsageError
from tests.harness import mpirun, run, under_mpirun

EVERY = "1 step"


def walk(comm: Any, n: int, to: Path | str, stop: int | None = None, **more: Any) -> Any:
    """A random walk in which every step needs all ranks; (its bits, where it resumed)."""
    generator = np.random.default_rng(comm.rank)
    state = {"u": np.zeros(50), "generator": generator, "trace": []}
    own = state["u"]
    loop = checkpoint.steps(comm, n, state, EVERY, to, **more)
    loop._saver.wait()  # for memory, as a step that takes a while does
    for step in loop:
        if step == stop:
            # what was begun is published, as if the disk had been faster than the steps
            loop._settle()
            if loop._saver.unpublished:
                loop._saver.publish()
                loop._settle()
            break
        own += generator.random(50) + comm.allreduce(float(own[0])) / comm.size
        state["trace"] = [*state["trace"][-3:], step]
    return own.tobytes(), state["trace"], loop.resumed_at


def test_a_walk_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = run(3, lambda comm: walk(comm, 20, tmp_path / "whole", name="x"))
    assert [resumed for *_, resumed in whole] == [None] * 3
    run(3, lambda comm: walk(comm, 20, tmp_path / "cut", stop=9, name="x"))
    again = run(3, lambda comm: walk(comm, 20, tmp_path / "cut", name="x"))
    assert again[0][2] is not None
    assert [one[:2] for one in again] == [one[:2] for one in whole]


def test_old_ones_are_removed(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("")
    run(2, lambda comm: walk(comm, 30, tmp_path, name="x"))
    names = sorted(path.name.split("-")[0] for path in (tmp_path / "x").iterdir())
    assert names == ["mine.txt", "part", "part", "record"]


def test_another_number_of_ranks(tmp_path: Path) -> None:
    run(3, lambda comm: walk(comm, 20, tmp_path, stop=9, name="x"))
    with pytest.raises(CheckpointError, match="rank 0: .* is of 3 ranks, and this job has 2"):
        run(2, lambda comm: walk(comm, 20, tmp_path, name="x"))

    def redistribute(saved: SavedStates, comm: Any) -> Any:
        mine = [saved[rank] for rank in range(comm.rank, len(saved), comm.size)]
        return {**mine[0], "u": sum(one["u"] for one in mine)}

    for _ in range(2):  # also after a first try that saved nothing
        again = run(2, lambda comm: walk(comm, 20, tmp_path, name="x", redistribute=redistribute))
        assert again[0][2] is not None


def test_versions_names_and_fewer_steps(tmp_path: Path) -> None:
    run(2, lambda comm: walk(comm, 20, tmp_path, stop=9, name="x", version="1"))
    with pytest.raises(CheckpointError, match="of version '1', and this is version '2'"):
        run(2, lambda comm: walk(comm, 20, tmp_path, name="x", version="2"))
    with pytest.raises(CheckpointError, match="this loop has 0;"):
        run(2, lambda comm: walk(comm, 0, tmp_path, name="x", version="1"))

    def other(comm: Any) -> None:
        checkpoint.steps(comm, 20, {"v": 1}, EVERY, tmp_path, name="x", version="1")

    with pytest.raises(CheckpointError, match=r"has \['generator', 'trace', 'u'\], and the state"):
        run(2, other)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n": -1}, "n=-1 is not a number of steps"),
        ({"every": "often"}, "every='often' is not a period"),
        ({"state": [1]}, "state is not a dict"),
        ({"to": 5}, "to=5 is not a folder"),
        ({"name": "../x"}, "name='../x' is not a name"),
        ({"redistribute": 1}, "redistribute is not a function"),
    ],
)
def test_wrong_arguments_are_errors_on_all_ranks(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    def body(comm: Any) -> str:
        given = {"n": 5, "state": {}, "every": EVERY, "to": tmp_path}
        if comm.rank == 1:
            given |= change
        with pytest.raises(UsageError, match="rank 1: ") as caught:
            checkpoint.steps(comm, **given)
        return str(caught.value)

    for said in run(3, body):
        assert message in said
    assert not list(tmp_path.iterdir())


def test_step_counts_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="n is 5 on rank 0 and 6 on rank 1"):
        run(2, lambda comm: checkpoint.steps(comm, 5 + comm.rank, {}, EVERY, tmp_path))


def test_what_cannot_be_pickled_is_found_at_once(tmp_path: Path) -> None:
    def body(comm: Any) -> None:
        checkpoint.steps(comm, 5, {"f": lambda: 0} if comm.rank else {"f": 0}, EVERY, tmp_path)

    with pytest.raises(CheckpointError, match=r"rank 1: state\['f'\] cannot be pickled"):
        run(2, body)


def test_what_cannot_be_pickled_later_names_the_rank(tmp_path: Path) -> None:
    def body(comm: Any) -> None:
        state: dict[str, Any] = {"f": 0}
        for step in checkpoint.steps(comm, 100, state, EVERY, tmp_path):
            if comm.rank == 1 and step == 3:
                state["f"] = lambda: 0

    with pytest.raises(CheckpointError, match=r"rank 1 cannot save: state\['f'\]"):
        run(2, body)


def test_a_full_disk_names_the_rank_and_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(2, lambda comm: walk(comm, 20, tmp_path, stop=9, name="x"))
    before = sorted(path.name for path in (tmp_path / "x").iterdir())
    write = os.write

    def full(fd: int, data: Any) -> int:
        if "part-" in os.readlink(f"/proc/self/fd/{fd}") and data.nbytes < 1000:
            return write(fd, data)
        raise OSError(28, "No space left on device") if data.nbytes > 300 else OSError(28, "")

    def body(comm: Any) -> None:
        state = {"u": np.zeros(50), "generator": np.random.default_rng(0), "trace": []}
        for _ in checkpoint.steps(comm, 30, state, EVERY, tmp_path, name="x"):
            monkeypatch.setattr(places.os, "write", full)
            state["u"] = np.zeros(50_000)

    with pytest.raises(
        CheckpointError, match=r"rank [01] cannot save: cannot write to .*free some"
    ):
        run(2, body)
    assert set(before) <= {path.name for path in (tmp_path / "x").iterdir()}


def test_a_later_run_fences_this_one(tmp_path: Path) -> None:
    def body(comm: Any) -> None:
        for step in checkpoint.steps(comm, 1000, {"u": 1}, EVERY, tmp_path, name="x"):
            if step == 3:
                checkpoint.steps(comm, 1000, {"u": 1}, EVERY, tmp_path, name="x")

    with pytest.raises(CheckpointError, match="a later run has taken over its checkpoints"):
        run(2, body)


def test_a_damaged_part_is_named_and_nothing_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(2, lambda comm: walk(comm, 20, tmp_path, stop=9, name="x"))
    (path,) = (tmp_path / "x").glob("part-*-000001")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"rank 1: .*{path.name}: it is damaged.*remove"):
        run(2, lambda comm: walk(comm, 20, tmp_path, name="x"))
    path.unlink()
    with pytest.raises(CheckpointError, match=f"rank 1: .*{path.name} is missing"):
        run(2, lambda comm: walk(comm, 20, tmp_path, name="x"))


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_what_others_can_write_is_not_read(what: str, tmp_path: Path) -> None:
    run(1, lambda comm: walk(comm, 20, tmp_path, stop=9, name="x"))
    folder = tmp_path / "x"
    (path,) = folder.glob("part-*")
    if what == "link":
        folder.rename(tmp_path / "y")
        folder.symlink_to("y")
    else:
        (folder if what == "folder" else path).chmod(0o777)
    match = "Not a directory" if what == "link" else f"other users can write to .*{folder.name}"
    with pytest.raises(CheckpointError, match=match):
        run(1, lambda comm: walk(comm, 20, tmp_path, name="x"))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="rank 0: cannot open .*file/x: "):
        run(2, lambda comm: walk(comm, 20, tmp_path / "file", name="x"))


def test_without_a_place_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["walk.py"])
    # a process that a rank has started has this variable, and is not the rank
    monkeypatch.setenv("SMPI_CHECKPOINTS", str(tmp_path / "of the rank"))

    def body(comm: Any) -> bool:
        there, folder = [], f"{_program().removesuffix('.py')}.checkpoints"
        for _ in range(2):
            for _step in checkpoint.steps(comm, 10, {"u": np.zeros(5)}, EVERY):
                there.append([path.name for path in tmp_path.iterdir()] == [folder])
        return all(there)

    assert all(run(2, body))
    assert not list(tmp_path.iterdir())


# -- buckets


@pytest.fixture
def bucket(ministack_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", ministack_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    name = f"checkpoints-{os.urandom(4).hex()}"
    control.client("s3", ministack_endpoint, "us-east-1").create_bucket(Bucket=name)
    return name


def test_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    to = f"s3://{bucket}/runs"
    run(2, lambda comm: walk(comm, 20, to, stop=9, name="x"))
    whole = run(2, lambda comm: walk(comm, 20, to, name="whole"))
    monkeypatch.setenv("SMPI_CHECKPOINT_KEY", "00" * 32)
    with pytest.raises(CheckpointError, match=f"{to}/x.*written with another key"):
        run(2, lambda comm: walk(comm, 20, to, name="x"))
    monkeypatch.delenv("SMPI_CHECKPOINT_KEY")
    again = run(2, lambda comm: walk(comm, 20, to, name="x"))
    assert again[0][2] is not None
    assert [one[:2] for one in again] == [one[:2] for one in whole]
    names = sorted(name.split("-")[0] for name in s3.Prefix(f"{to}/x").names())
    assert names == ["part", "part", "record"]


def test_a_bucket_that_does_not_exist(bucket: str) -> None:
    with pytest.raises(CheckpointError, match=f"rank 0: cannot list s3://{bucket}no/x/x"):
        run(2, lambda comm: walk(comm, 20, f"s3://{bucket}no/x", name="x"))


def test_the_key_is_made_once_and_kept_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    key = s3.key()
    assert len(key) == 32 and s3.key() == key
    (path,) = (tmp_path / "serverless_mpi").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(CheckpointError, match="others can read"):
        s3.key()
    monkeypatch.setenv("SMPI_CHECKPOINT_KEY", "short")
    with pytest.raises(CheckpointError, match="SMPI_CHECKPOINT_KEY is not 64"):
        s3.key()


# -- the real MPI

PROGRAM = """
import sys
import numpy as np
from serverless_mpi import MPI, checkpoint
comm = MPI.COMM_WORLD
state = {"u": np.zeros(4), "generator": np.random.default_rng(comm.rank)}
for step in checkpoint.steps(comm, 400, state, "1 step", sys.argv[1]):
    state["u"] += state["generator"].random(4) + comm.allreduce(state["u"][0]) / 1e3
    if step == int(sys.argv[2]):
        sys.exit()
bits = comm.gather(state["u"].tobytes().hex())
if comm.rank == 0:
    print(bits)
"""


@pytest.mark.skipif(mpirun() is None, reason="needs mpiexec of the real MPI")
def test_under_mpirun(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    for stop in (390, -1):
        done = under_mpirun(2, str(path), str(tmp_path / "x"), str(stop))
        assert done.returncode == 0, done.stderr
    walks, generators = [np.zeros(4), np.zeros(4)], [np.random.default_rng(i) for i in range(2)]
    for _ in range(400):
        total = walks[0][0] + walks[1][0]
        for one, generator in zip(walks, generators, strict=True):
            one += generator.random(4) + total / 1e3
    assert done.stdout == f"{[one.tobytes().hex() for one in walks]}\n"
