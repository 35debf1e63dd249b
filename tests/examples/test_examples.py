"""Each example under smpirun and under mpirun, with the same output."""

from __future__ import annotations

import functools

import pytest

from tests.harness import DATA, mpirun, smpirun, under_mpirun

SMALL = {
    "hello.py": [],
    "pi.py": ["--intervals", "10000"],
    "ring.py": [],
    "distributed_npy.py": ["--rows", "50"],
    "heat2d.py": ["--size", "24", "--steps", "10"],
    "heat2d_long.py": ["--size", "24", "--steps", "10"],
    "sample_sort.py": ["--count", "20000"],
    "master_worker.py": ["--limit", "5000"],
    "sparse_dnn.py": ["--layers", "12", "--samples", "200"],
}
needs_mpi = pytest.mark.skipif(
    mpirun() is None, reason="the real MPI is not installed: pip install 'serverless-mpi[mpi]'"
)


@needs_mpi
@pytest.mark.parametrize("name", SMALL)
def test_the_same_output_under_smpirun_and_mpirun(name: str) -> None:
    ours = smpirun("-n", 3, "--channel", "direct", f"examples/{name}", *SMALL[name])
    real = under_mpirun(3, f"examples/{name}", *SMALL[name])
    assert (ours.returncode, real.returncode) == (0, 0), ours.stderr + real.stderr
    assert ours.stdout == real.stdout != ""


@functools.cache
def _on_direct(name: str) -> str:
    return smpirun("-n", 4, "--channel", "direct", f"examples/{name}", *SMALL[name]).stdout


@pytest.mark.parametrize("channel", ["queue", "object", "hybrid"])
@pytest.mark.parametrize("name", ["sample_sort.py", "master_worker.py", "sparse_dnn.py"])
def test_the_same_output_over_every_channel(name: str, channel: str) -> None:
    other = smpirun("-n", 4, "--channel", channel, f"examples/{name}", *SMALL[name])
    assert other.returncode == 0, other.stderr
    assert other.stdout == _on_direct(name) != ""


def test_a_plate_goes_on_after_a_rank_was_killed() -> None:
    size = ["--size", "24", "--steps", "400"]
    plain = smpirun("-n", 2, "--channel", "direct", "examples/heat2d.py", *size)
    words = ["--restarts", 1, "examples/heat2d_long.py", *size, "--every", "5 steps"]
    done = smpirun("-n", 2, "--channel", "direct", *words, "--die", 390)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines(keepends=True)
    assert first.startswith("goes on at step ") and second == plain.stdout


def test_a_distributed_array_is_one_file_in_the_jobs_bucket() -> None:
    words = ["--file", "s3:///matrix.npy", "--rows", "50"]
    done = smpirun("-n", 3, "--channel", "hybrid", "examples/distributed_npy.py", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "50 x 64 doubles are one .npy file, equal to the matrix\n"


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_a_random_network_gives_the_serial_bits_on_any_number_of_ranks(ranks: int) -> None:
    done = smpirun(
        "-n",
        ranks,
        "--channel",
        "direct",
        "examples/sparse_dnn.py",
        "--net",
        "random",
        "--neurons",
        64,
        "--layers",
        6,
        "--samples",
        90,
        "--seed",
        3,
    )
    assert done.returncode == 0, done.stderr
    assert "the same to the last bit" in done.stdout


@pytest.mark.skipif(not DATA.exists(), reason=f"no real data at {DATA}")
def test_the_official_categories() -> None:
    done = smpirun(
        "-n",
        2,
        "--channel",
        "direct",
        "examples/sparse_dnn.py",
        "--images",
        DATA / "graphchallenge_images_1024_first10k.npz",
        "--categories",
        DATA / "graphchallenge_categories_1024_120_first10k.txt",
    )
    assert done.returncode == 0, done.stderr
    assert "official categories: the same (337)" in done.stdout


@pytest.mark.parametrize(
    "words, message",
    [
        (["--neurons", "1000"], "RadiX-Net has 1024"),
        (["--layers", "0"], "at least 1 layer"),
        (["--images", "missing.npz"], "missing.npz"),
        (["--images", "README.md"], "README.md, line 1"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str) -> None:
    done = smpirun("-n", 2, "--channel", "direct", "examples/sparse_dnn.py", *words)
    said = [line for line in done.stderr.splitlines() if line.startswith("sparse_dnn:")]
    assert (
        done.returncode == 2
        and len(said) == 1
        and message in said[0]
        and "Traceback" not in done.stderr
    )
