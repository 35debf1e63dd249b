"""smpi calibrate: what it measures is right, is stored with the stack, and is what jobs choose by."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from serverless_mpi.aws import figures as files
from serverless_mpi.aws.credentials import Credentials
from serverless_mpi.aws.http import Client
from serverless_mpi.aws.limits import AWS, Figure, Figures
from serverless_mpi.channels.hybrid import HybridChannel
from serverless_mpi.collectives.choose import Facts, select
from serverless_mpi.deploy import calibrate
from serverless_mpi.deploy.cli import main as smpi_main
from serverless_mpi.errors import ChannelError, JobError
from serverless_mpi.inference import plan
from serverless_mpi.inference.cli import main as infer_main
from serverless_mpi.inference.cost import BilledModel
from serverless_mpi.job import JobSpec
from serverless_mpi.launch import measure
from serverless_mpi.launch.cli import main as smpirun_main
from serverless_mpi.metering import Meter, Prices
from serverless_mpi.simulation import forecast, latency_of
from serverless_mpi.stack import bucket, stored_figures
from tests.faults.proxy import Proxy
from tests.launch.lambda_stack import Deployed

DELAY_S = 0.04
ATTEMPTS = 3  # a busy machine adds to a time, so the best of them counts
PRICES = Prices.load()
MODEL = BilledModel()
REQUESTS = (
    "sqs_send_s",
    "sqs_receive_s",
    "sqs_deliver_s",
    "sns_publish_s",
    "sns_deliver_s",
    "s3_put_s",
    "s3_get_s",
    "s3_list_s",
)
TIMES = {
    "sqs.send:1024": [0.04, 0.05, 0.06],
    "sqs.deliver:1024": [0.04] * 10 + [9.0],
    "sqs.send:163840": [0.04, 0.05 + 0.016384],
    "s3.get:1024": [0.1],
    "s3.range:1024": [0.1],
    "s3.together:67108864": [0.1 + 1.0],
    "start.cold:512": [1.5],
    "start.warm:512": [0.1],
    "start.cold:1024": [1.0],
    "start.warm:1024": [0.2],
    "start.cold:2048": [1.0],
    "kernel": [1e9],
}


@dataclass
class Delay:
    """Delays each request by DELAY_S before the emulator sees it; notes how long each takes."""

    seconds: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def exchange(self, kind: str, request: bytes, forward: Callable[[bytes], bytes]) -> bytes:
        begin = time.perf_counter()
        time.sleep(DELAY_S)
        answer = forward(request)
        if kind != "sqs.ReceiveMessage":  # which may wait
            with self.lock:
                self.seconds.append(time.perf_counter() - begin)
        return answer


def slow_figures(endpoint: str) -> tuple[Figures, float]:
    """Figures that a rank measures through the delay, and what a request takes as seen there."""
    spec = JobSpec.new(2, "hybrid", endpoint=endpoint)
    settings = {**HybridChannel.provision(spec), "slots": "[0, 1]"}
    delay = Delay()
    try:
        with Proxy(endpoint, 0, harm=delay) as proxy:
            behind = replace(spec, endpoint=proxy.url, settings=settings)
            orders, meter = measure.Orders(5), Meter()
            times = measure.measure(behind, orders, meter)
    finally:
        HybridChannel.destroy(replace(spec, settings=settings))
    assert measure.Times.from_json(times.to_json()) == times
    stated = measure.requests(orders, 1)
    for name, row in meter.snapshot().items():  # the price covers what is billed
        assert name == "s3.DELETE" or row["billed"] <= stated[name], name
    return calibrate.derive(times.seconds, 1.0), statistics.median(delay.seconds)


@pytest.mark.slow
def test_a_delay_of_40_ms_is_measured_and_changes_what_is_chosen(ministack_endpoint: str) -> None:
    right: dict[str, Figure] = {}
    for _ in range(ATTEMPTS):
        figures, seen_s = slow_figures(ministack_endpoint)
        measured = {name: getattr(figures, name) for name in REQUESTS}
        right |= {
            name: figure
            for name, figure in measured.items()
            if DELAY_S <= figure.value <= 1.1 * seen_s
        }
        if len(right) == len(REQUESTS):
            break
    assert right.keys() == set(REQUESTS), (measured, seen_s)
    assert figures.network_Bps != AWS.network_Bps and figures.kernel_per_s.value > 0
    figures = AWS.changed(right)  # bandwidths of a busy machine are not what is tested
    exact = AWS.values_at(**dict.fromkeys(REQUESTS, DELAY_S))
    assert HybridChannel.emulator_figures is None
    others = [HybridChannel.cost(aws=aws, prices=PRICES) for aws in (True, False)]
    for known, size, nbytes in ((figures, 60, 8), (exact, 60, 8), (exact, 8, 1 << 16)):
        costs = [HybridChannel.cost_by(known, PRICES), *others]
        chosen = [select("allreduce", Facts(size, nbytes, cost)).name for cost in costs]
        assert chosen[0] == "allreduce_doubling" and chosen[0] not in chosen[1:], chosen
    calls = [
        forecast("allreduce", 8, 60, "hybrid", latency_of(known, "us-east-1"), PRICES)
        for known in (figures, AWS)
    ]
    assert calls[0].algorithm == "allreduce_doubling" != calls[1].algorithm
    way = plan.Deployment(1, 8, "queue", 1769)
    found = [
        plan.predict(plan.Work.radix(1024, 120, 1000), plan.place("lambda", known), way, MODEL)
        for known in (exact, AWS)
    ]
    assert found[0] is not None and found[1] is not None
    assert found[0].exchange_s != found[1].exchange_s


@pytest.mark.slow
def test_invocations_and_starts_are_measured_behind_the_delay(deployed: Deployed) -> None:
    stack, right = deployed.stack, set[str]()
    for _ in range(ATTEMPTS):
        delay, watch = Delay(), measure.Stopwatch()
        with Proxy(deployed.endpoint, 0, harm=delay) as proxy:
            client = Client("lambda", "us-east-1", proxy.url, Credentials(proxy.url), Meter())
            measure.measure_starts(client, watch, stack.functions)
            client.close()
        figures = calibrate.derive(watch.seconds, 1.0)
        events = delay.seconds[-measure.INVOCATIONS :]  # the last ones are asynchronous
        pings = delay.seconds[: -measure.INVOCATIONS - 1]
        seen = {"invoke_s": statistics.median(events), "warm_start_s": statistics.median(pings)}
        right |= {
            name
            for name, seconds in seen.items()
            if DELAY_S <= getattr(figures, name).value <= 1.1 * seconds
        }
        if len(right) == len(seen):
            break
    assert right == {"invoke_s", "warm_start_s"}, (figures, seen)


def test_figures_are_medians_with_a_range_and_the_packages_where_nothing_was_measured() -> None:
    figures = calibrate.derive(TIMES, 0.5)
    assert (figures.sqs_send_s.value, figures.sqs_send_s.low) == (0.05, 0.04)
    assert figures.sqs_deliver_s.high == 0.04  # the last tenth is not in the range
    assert figures.sqs_Bps.value == pytest.approx(1e7)  # without what took no longer than small
    assert figures.network_Bps.value == pytest.approx(1 << 26)
    assert figures.kernel_per_s.value == 2e9  # of a whole vCPU
    assert figures.starts == {512: (1.5, 0.1), 1024: (1.0, 0.2)}
    assert figures.cold_start_s.value == 1.5 and figures.s3_put_s == AWS.s3_put_s
    lines = "\n".join(calibrate.table(figures, TIMES))
    assert all(name in lines for name, _ in AWS.items())
    assert "sqs.send of 163,840 bytes" in lines and "start with 512 MB: 1.5 s cold" in lines
    platform = plan.place("lambda", figures)
    assert platform.start_of(512) == 1.5 and platform.start_of(3000) == 1.0


@pytest.mark.parametrize(
    "text", ["", "x", "[]", '{"rank": 0}', '{"rank":0,"seconds":{"a":[0]}}', "[" * 100_000]
)
def test_what_a_rank_did_not_measure_is_refused(text: str) -> None:
    with pytest.raises(JobError):
        measure.Times.from_json(text)
    with pytest.raises(JobError):
        measure.Orders.from_json(text)
    orders = measure.Orders(3, {512: "f"})
    assert measure.Orders.from_json(orders.to_json()) == orders


def test_a_stack_without_the_kernel_is_calibrated_too(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = measure.Stopwatch()
    monkeypatch.setattr(measure, "KERNEL_S", 0.0)
    measure.measure_kernel(watch)
    assert len(watch.seconds.pop("kernel")) == 1
    monkeypatch.setattr(measure, "sparse", None)
    measure.measure_kernel(watch)
    assert not watch.seconds and calibrate.derive({}, 1.0) == AWS


def test_ctrl_c_is_passed_on_to_the_job_which_ends_in_order(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    text = (
        "import os, signal, sys\n"
        "try:\n"
        "    os.kill(os.getppid(), signal.SIGINT)\n"
        "    signal.pause()\n"
        "except KeyboardInterrupt:\n"
        f"    open({str(ended)!r}, 'w').close()\n"
        "    sys.exit(130)\n"
    )
    with pytest.raises(KeyboardInterrupt):
        calibrate.output_of([sys.executable, "-c", text])
    assert ended.exists()
    assert calibrate.output_of([sys.executable, "-c", "print('a')"]) == "a\n"
    with pytest.raises(ChannelError, match="ended with 3"):
        calibrate.output_of([sys.executable, "-c", "raise SystemExit(3)"])


def test_calibrate_states_its_price_stores_figures_and_jobs_use_them(
    deployed: Deployed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--endpoint", deployed.endpoint, "--stack", deployed.name]
    output = tmp_path / "figures.json"
    words = ["calibrate", *where, "-n", "2", "--rounds", "2", "--output", str(output)]
    assert smpi_main(words) == 2
    said = capsys.readouterr().err
    assert "at most 0.0" in said and "USD" in said and "not started; --yes" in said
    assert smpi_main([*words, "-n", "5", "--yes"]) == 2  # more ranks than queues
    assert smpi_main([*words, "--rounds", "0", "--yes"]) == 2
    assert smpi_main([*words, "--output", str(tmp_path / "none" / "f"), "--yes"]) == 2
    assert stored_figures.read(deployed.stack) is None and not output.exists()
    assert smpi_main([*words, "--yes"]) == 0
    shown = capsys.readouterr().out
    assert "sns_deliver_s" in shown and "start with 1769 MB" in shown
    stack = deployed.stack
    figures = files.load(str(output))
    assert figures == stored_figures.read(stack) and figures.stack == deployed.name
    assert set(figures.starts) == {1769} and figures.kernel_per_s != AWS.kernel_per_s
    assert not deployed.job_keys()
    # figures by which another algorithm is chosen than by the emulator's or the package's
    slow = AWS.exactly(**dict.fromkeys(REQUESTS, DELAY_S))
    slow = replace(slow, stack=stack.name, region="us-east-1", measured=figures.measured)
    stored_figures.write(stack, slow)
    program = tmp_path / "prog.py"
    program.write_text(
        "import numpy as np\nfrom mpi4py import MPI\n"
        "MPI.COMM_WORLD.Allreduce(np.ones(1), np.ones(1))\n"
    )
    chosen = select("allreduce", Facts(4, 8, HybridChannel.cost_by(slow, PRICES))).name
    assert chosen == "allreduce_doubling"
    done = deployed.run("-n", 4, "--explain", "--channel", "hybrid", program)
    assert done.returncode == 0 and chosen in done.stderr, done.stderr
    assert f"by figures measured on stack {stack.name}" in done.stderr
    given = [*where, "--figures", "stack"]
    capsys.readouterr()
    assert smpirun_main(["--simulate", *given, "-n", "4", "--channel", "queue", "barrier"]) == 0
    assert infer_main(["plan", *given, "--samples", "100", "--max-workers", "4"]) == 0
    assert capsys.readouterr().out.count(f"figures measured on stack {stack.name}") == 2
    late = replace(slow, measured=files.timestamp(stack.changed - 60))
    stored_figures.write(stack, late)
    assert smpirun_main(["--simulate", *given, "-n", "4", "barrier"]) == 2
    assert "smpi calibrate --stack other" in capsys.readouterr().err
    # what other tests of the stack do not expect
    stack.client("s3").delete_object(Bucket=stack.bucket, Key=bucket.FIGURES)
    assert smpi_main(["clean", *where]) == 0
