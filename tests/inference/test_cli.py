"""smpi-infer as a command: the same answer everywhere, consistent reports, errors with a remedy."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from serverless_mpi.aws import control
from serverless_mpi.inference import networks, page, plan, records, report
from serverless_mpi.inference.cli import main
from serverless_mpi.inference.cost import BilledModel
from serverless_mpi.sparse import serial_forward
from tests.harness import DATA, GIVE_UP_S, ROOT, mpirun
from tests.inference import writing

NET = ("--net", "random", "--neurons", "96", "--layers", "7", "--seed", "4", "--bias", "-0.15")
IMAGES = (np.random.default_rng(4).random((130, 96)) > 0.9).astype(np.uint8)


def infer(*words: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*launcher, sys.executable, "-m", "serverless_mpi.inference", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, images=IMAGES)
    return path


@pytest.fixture(scope="module")
def truth(images: Path) -> list[str]:
    """What one worker in this process prints, its categories checked against the kernel here."""
    done = infer(
        "run", *NET, "--images", images, "--check", "--output", images.with_suffix(".json")
    )
    assert done.returncode == 0 and "serial kernel: the same to the last bit" in done.stdout, (
        done.stderr
    )
    whole = serial_forward(
        networks.randomnet(96, 7, 4), np.ascontiguousarray(IMAGES.T, np.float32), -0.15
    )
    answer = json.loads(images.with_suffix(".json").read_text())
    living = np.flatnonzero((whole != 0).any(axis=0))
    assert 0 < len(living) < 130 and answer["categories"] == (living + 1).tolist()
    assert answer["scores"] == whole[:, living].max(axis=0).tolist()
    assert answer["neurons"] == whole[:, living].argmax(axis=0).tolist()
    return done.stdout.splitlines()[1:3]


@pytest.mark.parametrize(
    "words",
    [
        ("-n", 2, "--channel", "queue"),
        ("-n", 3, "--channel", "object", "--method", "random"),
        ("-n", 5, "--channel", "hybrid", "--branching", 2),
        ("-n", 8, "--channel", "direct", "--method", "random", "--batches", 3),
        ("-n", 6, "--channel", "direct", "--replicas", 3, "--batches", 2),
        ("-n", 3, "--channel", "direct", "--replicas", 3),
    ],
    ids=lambda words: "-".join(map(str, words)).replace("--", ""),
)
def test_every_way_gives_the_same_answer(
    truth: list[str], images: Path, words: tuple[object, ...]
) -> None:
    done = infer("run", *words, *NET, "--images", images, "--check")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:4] == [*truth, "serial kernel: the same to the last bit"]


def test_a_real_mpi_gives_the_same_answer(truth: list[str], images: Path) -> None:
    if mpirun() is None:
        pytest.skip("no mpiexec of the mpich wheel")
    done = infer("run", *NET, "--images", images, launcher=(str(mpirun()), "-n", "4"))
    assert done.returncode == 0 and done.stdout.splitlines()[1:3] == truth, done.stderr


def test_the_official_categories(tmp_path: Path) -> None:
    if not (DATA / "graphchallenge_images_1024_first10k.npz").exists():
        pytest.skip(f"{DATA} has no images of the Graph Challenge")
    words = ("--images", DATA / "graphchallenge_images_1024_first10k.npz", "--samples", 1500)
    right = DATA / "graphchallenge_categories_1024_120_first10k.txt"
    done = infer(
        "run",
        "-n",
        2,
        "--channel",
        "direct",
        *words,
        "--categories",
        right,
        "--output",
        tmp_path / "found.txt",
    )
    assert done.returncode == 0 and "the same (56)" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "found.txt").read_text().split() == [
        one for one in right.read_text().split() if int(one) <= 1500
    ]
    (tmp_path / "wrong.txt").write_text("1\n2\n")
    done = infer("run", *words, "--categories", tmp_path / "wrong.txt")
    assert done.returncode == 1 and "DIFFERENT" in done.stdout


def test_store_then_run_from_a_folder_and_from_a_bucket(
    truth: list[str], images: Path, tmp_path: Path, ministack_endpoint: str
) -> None:
    cut = tmp_path / "cut.smpi"
    made = infer("partition", *NET, "-n", 3, "--method", "random", "-o", cut, "--json")
    assert json.loads(made.stdout)["parts"] == 3
    there = ("--endpoint", ministack_endpoint)
    for place, more in ((tmp_path / "store", ()), ("s3://cli-models/a", there)):
        words = (
            "store",
            place,
            *NET,
            "--partition",
            cut,
            "--images",
            images,
            "--input",
            "some",
            *more,
        )
        if more:
            missing = infer(*words)
            assert (
                missing.returncode == 1
                and "no bucket 'cli-models'" in missing.stderr
                and "--make-bucket" in missing.stderr
            )
            words = (*words, "--make-bucket")
        done = infer(*words)
        assert (
            done.returncode == 0 and "in 3 parts" in done.stdout and "130 images" in done.stdout
        ), done.stderr
        done = infer(
            "run",
            "--store",
            place,
            "--input",
            "some",
            "--channel",
            "queue" if more else "direct",
            *more,
        )
        assert done.returncode == 0 and done.stdout.splitlines()[1:3] == truth, done.stderr
    control.client("s3", ministack_endpoint, "us-east-1").delete_object(
        Bucket="cli-models", Key="a/part-00001.smpi"
    )
    done = infer(
        "run", "--store", "s3://cli-models/a", "--input", "some", "--channel", "queue", *there
    )
    assert done.returncode == 2 and "s3://cli-models/a has no part-00001.smpi" in done.stderr


def test_a_network_of_files(truth: list[str], images: Path, tmp_path: Path) -> None:
    writing.write_network(tmp_path / "net", networks.randomnet(96, 7, 4))
    words = ("--net", tmp_path / "net", "--neurons", 96, "--layers", 7, "--bias", -0.15)
    done = infer("run", *words, "--images", images, "-n", 2, "--channel", "direct", "--check")
    assert done.returncode == 0 and done.stdout.splitlines()[1:3] == truth, done.stderr
    done = infer(
        "run", "--net", tmp_path / "none", "--neurons", 96, "--layers", 7, "--images", images
    )
    assert (
        done.returncode == 2
        and str(tmp_path / "none") in done.stderr
        and "Traceback" not in done.stderr
    )


def test_reports_add_up(images: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"report{suffix}" for suffix in report.SUFFIXES]
    done = infer(
        "run",
        "-n",
        3,
        "--channel",
        "queue",
        *NET,
        "--images",
        images,
        *(word for path in paths for word in ("--report", path)),
    )
    assert done.returncode == 0, done.stderr
    record = report.read(tmp_path / "report.json")
    assert asdict(record.job) | {"memory_mb": 0} == {
        "ranks": 3,
        "replicas": 1,
        "parts": 3,
        "method": "block",
        "channel": "queue",
        "batches": 1,
        "samples": 130,
        "memory_mb": 0,
    }
    counted = sum(row["requests"] for worker in record.workers for row in worker.requests.values())
    layers = report.by_layer(record, "requests").sum()
    assert 0 < layers <= counted  # those of the answer come after the last layer
    assert report.by_layer(record, "messages").sum() in (
        3 * 7,
        3 * 2 * 7,
    )  # one for all peers, or one each
    bill = record.bill
    assert (
        bill.total_usd
        == pytest.approx(sum(getattr(bill, f"{name}_usd") for name in records.SERVICES))
        and bill.sqs_usd > 0
    )
    assert bill.communication_usd == pytest.approx(bill.sqs_usd + bill.sns_usd)
    text = (tmp_path / "report.txt").read_text()
    assert text == infer("report", tmp_path / "report.json").stdout and "sqs.ReceiveMessage" in text
    html = (tmp_path / "report.html").read_text()
    assert html == page.html(record)
    infer("report", tmp_path / "report.json", "-o", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == html
    assert (
        html.count("<svg") == 4 and "http" not in html and "<script" not in html
    )  # whole in itself
    assert html.count("<title>worker ") == 3 * 7


def test_a_planned_run(truth: list[str], images: Path) -> None:
    done = infer("run", *NET, "--images", images, "--plan", "auto")
    assert done.returncode == 0 and done.stdout.splitlines()[1:3] == truth
    assert "plan: one worker" in done.stderr


def test_the_plan_recommends_one_worker(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(
        found[name]["parts"] == found[name]["replicas"] == 1
        for name in ("cheapest", "fastest", "knee")
    )
    assert main(["plan", "--samples", "10000"]) == 0
    assert "10,000 images" in capsys.readouterr().out
    assert main(["plan", "--measure", *NET[:6], "--all"]) == 2  # digits are no images of 96 pixels
    assert main(["plan", "--measure", "--samples", "512", "--layers", "3", "--rate", "1e9"]) == 0
    message = capsys.readouterr().out
    assert "knee: one worker" in message and "1 G active edges/s" in message


@pytest.mark.parametrize(
    "words, message",
    [
        (("run", "-n", "0"), "0 is below 1"),
        (("run", "-n", "5", "--replicas", "2"), "5 workers do not make 2 replicas of equal size"),
        (("run", "-n", "2000"), "1024 neurons cannot be divided among 2000"),
        (
            ("run", "--net", "random", "--neurons", "65536", "--layers", "480", "--memory", "400"),
            "20 parts would fit",
        ),
        (("run", "--neurons", "1000"), "RadiX-Net has 1024"),
        (("run", "--store", "nowhere/at/all"), "no model in nowhere/at/all"),
        (("run", "--store", "s3://some-bucket/x"), "name where that bucket is: --endpoint"),
        (("run", "--input", "x"), "give --store too"),
        (("run", "--check", "--store", "x"), "omit --store"),
        (("run", "--report", "x.pdf"), "ends with .json, .html, .txt"),
        (("run", "--images", "no/such.tsv"), "no/such.tsv"),
        (("plan", "--input", "x"), "give --store too"),
        (("run", "-n", "2", "--channel", "smoke"), "smoke"),
        (("run", "--check", "--accumulate"), "omit one of them"),
        (("run", "--platform", "moon"), "no platform 'moon'; known: lambda, local"),
        (("partition", "--method", "magic"), "no partition method 'magic'; known methods: block"),
        (("partition", "-n", "2000"), "cannot be divided among 2000"),
        (("store", "/dev/null/x"), "cannot be written"),
        (("report", "nowhere.json"), "nowhere.json is not a report"),
        (("plan", "--channel", "direct"), "no channel 'direct' on lambda"),
        (("plan", "--rate", "-1"), "-1 is not above 0"),
        (("fly",), "invalid choice: 'fly'"),
        ((), "COMMAND"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_contradictory_options_are_reported(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert main(words) in (1, 2)
    said = capsys.readouterr()
    assert said.err.startswith("smpi-infer: ") and message in said.err and said.out == "", said.err
    assert said.err.count("\n") == 1


def test_a_lambda_run_refuses_files_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-n", "2", "--platform", "lambda", "--report", "x.html"]) == 2
    assert (
        "--report x.html: workers on lambda cannot access this machine's files"
        in capsys.readouterr().err
    )


def test_the_forecast_of_requests_is_what_a_run_makes(images: Path, tmp_path: Path) -> None:
    made = infer(
        "run",
        "-n",
        4,
        "--channel",
        "object",
        *NET,
        "--images",
        images,
        "--report",
        tmp_path / "r.json",
    )
    assert made.returncode == 0, made.stderr
    requests = [worker.requests for worker in report.read(tmp_path / "r.json").workers]
    foreseen = plan.predict(
        plan.Work.random(96, 7, 130),
        plan.place("local"),
        plan.Deployment(1, 4, "object", 1000),
        BilledModel(),
    )
    assert foreseen is not None
    puts = foreseen.use.requests["s3.PUT"]["requests"]
    assert (
        puts == 4 * 7 and puts <= sum(one["s3.PUT"]["requests"] for one in requests) <= puts + 2 * 4
    )  # and the answer's
    gets = foreseen.use.requests["s3.GET"]["requests"]
    assert (
        0.5 * gets < sum(one["s3.GET"]["requests"] for one in requests) < 2 * gets
    )  # how often one looks is chance


def test_a_bar_by_layers_and_batches_on_a_terminal_only(images: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    words = [
        sys.executable,
        "-m",
        "serverless_mpi.inference",
        "run",
        "-n",
        "2",
        "--channel",
        "direct",
        *NET,
        "--images",
        str(images),
        "--batches",
        "2",
    ]
    done = subprocess.run(
        words, stderr=theirs, stdout=subprocess.PIPE, text=True, timeout=GIVE_UP_S, cwd=ROOT
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    # the batches are threads: either may be the first to show
    assert (
        done.returncode == 0
        and re.search(rb"layer 1/7, batch [12]/2", shown)
        and b"\r\x1b[K" in shown
    )
    assert "layer" not in done.stdout.split("\n", 1)[1]


def test_images_of_a_bucket(truth: list[str], images: Path, ministack_endpoint: str) -> None:
    s3 = control.client("s3", ministack_endpoint, "us-east-1")
    s3.create_bucket(Bucket="cli-images")
    s3.put_object(Bucket="cli-images", Key="a/images.npz", Body=images.read_bytes())
    words = ("run", *NET, "--endpoint", ministack_endpoint, "--images")
    done = infer(*words, "s3://cli-images/a/images.npz", "--output", "s3://cli-images/a/found.txt")
    assert done.returncode == 0 and done.stdout.splitlines()[1:3] == truth, done.stderr
    found = s3.get_object(Bucket="cli-images", Key="a/found.txt")["Body"].read().split()
    assert [int(one) for one in found] == json.loads(images.with_suffix(".json").read_text())[
        "categories"
    ]
    done = infer(*words, "s3://cli-images/a/none.npz")
    assert done.returncode == 1 and "s3://cli-images/a has no none.npz" in done.stderr
