"""Benchmarks by OSU's and mpi4py.bench's names: each prints a row per size, under both MPIs."""

from __future__ import annotations

import sys

import pytest

from serverless_mpi import bench
from tests.harness import mpirun, run, smpirun, under_mpirun

WORDS = {
    **dict.fromkeys([*bench.PAIRS, "pingpong"], ["-m", "4:16", "-i", "2", "-x", "1"]),
    **dict.fromkeys(bench.COLLECTIVES, ["-m", "4:16", "-i", "2", "-x", "1", "-f"]),
    "helloworld": [],
    "ringtest": ["-n", "8", "-l", "3", "-s", "1"],
}


@pytest.mark.parametrize("name", bench.NAMES)
def test_a_row_for_each_size(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = bench.parser().parse_args([name, *WORDS[name]])

    def body(comm: object) -> None:
        if name in bench.OWN:
            bench.OWN[name](comm, options)  # type: ignore[arg-type]
        elif name in bench.PAIRS:
            bench.pair(comm, name, options)  # type: ignore[arg-type]
        else:
            bench.collective(comm, name, options)  # type: ignore[arg-type]

    run(3, body)
    lines = [line for line in capsys.readouterr().out.splitlines() if line and line[0] != "#"]
    if name == "helloworld":
        assert [line.partition(" on ")[0] for line in lines] == [
            f"Hello, World! I am process {rank} of 3" for rank in range(3)
        ]
    elif name == "ringtest":
        assert len(lines) == 1 and lines[0].endswith("seconds (3 processes, 8 bytes)")
    else:
        sizes = [0] if name == "osu_barrier" else [4, 8, 16]
        assert [int(line.split()[0]) for line in lines] == sizes
        assert all(float(line.split()[1]) > 0 for line in lines)


def test_the_same_table_under_smpirun_and_mpirun() -> None:
    words = ["-m", "serverless_mpi.bench", "osu_bcast", "-m", "1:4", "-i", "2"]
    outputs = [smpirun("-n", 2, "--channel", "direct", *words)]
    if mpirun() is not None:
        outputs.append(under_mpirun(2, *words))
    for done in outputs:
        heading, kind, columns, *rows = done.stdout.strip().splitlines()
        assert heading.startswith("# OSU MPI Broadcast Test") and "Avg Latency(us)" in columns
        assert [row.split()[0] for row in rows] == ["1", "2", "4"], done.stderr


@pytest.mark.parametrize(
    "words, text",
    [
        (["osu_latency", "-m", "8:4"], "'8:4' is not MIN:MAX in bytes"),
        (["osu_latency", "-m", "a"], "'a' is not MIN:MAX in bytes"),
        (["osu_bcast", "-i", "0"], "'0' is not a whole number of at least 1"),
        (["osu_teleport"], "invalid choice: 'osu_teleport'"),
    ],
)
def test_bad_options(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(words)
    assert text in capsys.readouterr().err


def test_two_ranks_are_needed() -> None:
    done = smpirun("--channel", "direct", sys.executable, "-m", "serverless_mpi.bench", "osu_bw")
    assert done.returncode == 1 and "osu_bw needs two ranks: smpirun -n 2" in done.stderr
