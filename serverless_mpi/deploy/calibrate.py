"""`smpi calibrate`: measure the figures of AWS on a deployed stack, and store them with it.

A job of a few ranks times requests (`launch/measure.py`); `derive` makes figures of the times.  The
job is a process of its own, whose standard output brings the times: lines of a rank's output carry
the job's tag, so nobody else who may write to the stack can forge them.

A figure that a job could not measure (no function started cold, say) stays the package's.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from serverless_mpi.aws import figures as files
from serverless_mpi.aws import limits
from serverless_mpi.aws.limits import AWS, Figure, Figures
from serverless_mpi.errors import ChannelError, JobError, UsageError
from serverless_mpi.launch import measure
from serverless_mpi.metering import Prices
from serverless_mpi.stack.stack import Stack

TIME_S = 240.0  # the job is stopped after this; so much of it is in the stated price
PING_S = 3.0  # of a function that is only started
TENTHS = 10  # a range is from the first to the last tenth of the times
Times = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Calibration:
    """What is to be measured, and for what price at most.

    Attributes
    ----------
    stack, ranks, memory_mb
        Where, by how many ranks, with how much memory each.
    orders
        What the ranks measure.
    most_usd
        Dollars, if the job ran to its time limit.
    """

    stack: Stack
    ranks: int
    memory_mb: int
    orders: measure.Orders
    most_usd: float

    @classmethod
    def of(
        cls, stack: Stack, ranks: int, memory_mb: int | None, rounds: int, prices: Prices
    ) -> Calibration:
        """Return the calibration of a stack.

        Parameters
        ----------
        stack
            Stack on which the figures are to be measured.
        ranks
            Number of ranks that measure, at least 1.
        memory_mb
            Memory of each in MB; None for the stack's size that is nearest to that of a vCPU.
        rounds
            Requests of each kind, at least 1.
        prices
            Price table, for the most that the calibration may cost.

        Raises
        ------
        UsageError
            The stack has no such memory size, or too few queues; or a number is below 1.
        """
        if not 1 <= ranks <= stack.ranks:
            raise UsageError(f"-n {ranks}: stack {stack.name} has 1 to {stack.ranks} queues")
        if rounds < 1:
            raise UsageError(f"--rounds {rounds}: at least 1")
        usual = min(stack.functions, key=lambda size: abs(size - limits.LAMBDA_VCPU_MB.value))
        memory, _ = stack.function(usual if memory_mb is None else memory_mb)
        orders = measure.Orders(rounds, stack.functions)
        needed = measure.requests(orders, ranks)
        usd = sum(count * prices.of(name) for name, count in needed.items())
        usd += ranks * prices.lambda_usd(TIME_S, memory / 1024, stack.arch)
        pings = needed["lambda"] * prices.lambda_usd(PING_S, 1.0, stack.arch)
        usd += pings * max(stack.functions) / 1024
        return cls(stack, ranks, memory, orders, usd)

    @property
    def price(self) -> str:
        """What is done and what it costs at most, in words."""
        needed = measure.requests(self.orders, self.ranks)
        return (
            f"calibration of stack {self.stack.name}: {self.ranks} ranks of {self.memory_mb} MB for"
            f" less than {TIME_S:.0f} s, and {sum(needed.values()):,} requests:"
            f" at most {self.most_usd:.4f} USD"
        )

    def run(self) -> tuple[Figures, Times]:
        """Run the job; return the figures, and the times of which they are made.

        Raises
        ------
        ChannelError
            The job failed; what it printed has the reason.
        """
        stack = self.stack
        where = ["--region", stack.region] + (
            ["--endpoint", stack.endpoint] if stack.endpoint else []
        )
        command = [sys.executable, "-m", "serverless_mpi.launch", "--platform", "lambda", *where]
        command += ["--stack", stack.name, "-n", str(self.ranks), "--memory", str(self.memory_mb)]
        command += ["--timeout", str(TIME_S), "--stats", "none"]
        command += ["-m", "serverless_mpi.launch.measure", self.orders.to_json()]
        lines = output_of(command).splitlines()
        try:
            times = [measure.Times.from_json(line) for line in lines]
        except JobError as error:
            raise ChannelError(f"the calibration's job: {error}") from error
        if sorted(each.rank for each in times) != list(range(self.ranks)):
            raise ChannelError(f"only {len(times)} of {self.ranks} ranks printed times")
        together: dict[str, list[float]] = defaultdict(list)
        for each in times:
            for name, seconds in each.seconds.items():
                together[name] += seconds
        # an emulator's functions have a whole core each, whatever their memory is
        share = min(1.0, self.memory_mb / limits.LAMBDA_VCPU_MB.value)
        figures = derive(together, 1.0 if stack.endpoint else share)
        now = files.timestamp(time.time())
        return replace(figures, stack=stack.name, region=stack.region, measured=now), together


def output_of(command: Sequence[str]) -> str:
    """Run a job to its end and return its standard output.

    Ctrl-C is passed on and waited for: the job then stops its ranks and gives its queues back.  It
    has a session of its own, so that a terminal does not interrupt it a second time.

    Parameters
    ----------
    command
        Program and arguments of the job.

    Raises
    ------
    ChannelError
        The job failed.
    """
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as job:
        try:
            output, _ = job.communicate()
        except KeyboardInterrupt:
            job.send_signal(signal.SIGINT)
            job.wait()
            raise
    if job.returncode:
        raise ChannelError(f"the calibration's job ended with {job.returncode}")
    return output


def derive(times: Times, vcpus: float) -> Figures:
    """Return figures by the times of all ranks.

    Parameters
    ----------
    times
        As in `measure.Times.seconds`.
    vcpus
        Of a rank, at most 1.

    Returns
    -------
    Figures
        The median of each as its value, its first and last tenth as its range; the package's
        where there are no times.
    """
    small, objects = measure.SMALL, f"s3.get:{measure.SMALL}"
    starts = _starts(times)
    samples: dict[str, Sequence[float]] = {
        "sqs_send_s": times.get(f"sqs.send:{small}", ()),
        "sqs_receive_s": times.get(f"sqs.receive:{small}", ()),
        "sqs_deliver_s": times.get(f"sqs.deliver:{small}", ()),
        "sqs_Bps": _rates(times, f"sqs.send:{small}", "sqs.send", measure.LARGE_MESSAGE),
        "sns_publish_s": times.get(f"sns.publish:{small}", ()),
        "sns_deliver_s": times.get(f"sns.deliver:{small}", ()),
        "s3_put_s": times.get(f"s3.put:{small}", ()),
        "s3_get_s": [*times.get(objects, ()), *times.get(f"s3.range:{small}", ())],
        "s3_list_s": times.get("s3.list:0", ()),
        "s3_Bps": _rates(times, objects, "s3.get", measure.LARGE),
        "network_Bps": _rates(times, objects, "s3.together", measure.AT_ONCE * measure.LARGE),
        "invoke_s": times.get("lambda.invoke:0", ()),
        "kernel_per_s": [rate / vcpus for rate in times.get("kernel", ())],
    }
    if sizes := _sizes(times):
        samples["cold_start_s"] = times.get(f"start.cold:{sizes[0]}", ())
        samples["warm_start_s"] = times.get(f"start.warm:{sizes[0]}", ())
    measured = {
        name: _figure(getattr(AWS, name), numbers) for name, numbers in samples.items() if numbers
    }
    return replace(AWS.changed(measured), starts=starts)


def _figure(known: Figure, numbers: Sequence[float]) -> Figure:
    ordered = sorted(numbers)
    edge = len(ordered) // TENTHS
    return replace(
        known,
        value=statistics.median(ordered),
        low=ordered[edge],
        high=ordered[-1 - edge],
        source="measured",
        date="",
    )


def _rates(times: Times, latency: str, operation: str, nbytes: int) -> list[float]:
    """Bytes per second of a large request, the time of a small one deducted."""
    if not times.get(latency):
        return []
    small_s = statistics.median(times[latency])
    # a request that took no longer than a small one tells nothing of the rate
    return [
        nbytes / (seconds - small_s)
        for seconds in times.get(f"{operation}:{nbytes}", ())
        if seconds > small_s
    ]


def _sizes(times: Times) -> list[int]:
    """Sizes of memory of which both starts were measured, ascending."""
    cold = {name.rpartition(":")[2] for name in times if name.startswith("start.cold:")}
    warm = {name.rpartition(":")[2] for name in times if name.startswith("start.warm:")}
    return sorted(map(int, cold & warm))


def _starts(times: Times) -> dict[int, tuple[float, float]]:
    return {
        size: (
            statistics.median(times[f"start.cold:{size}"]),
            statistics.median(times[f"start.warm:{size}"]),
        )
        for size in _sizes(times)
    }


def table(figures: Figures, times: Times) -> Iterator[str]:
    """Yield lines that show figures next to the package's, and the times of requests by size.

    Parameters
    ----------
    figures
        Figures, as `Calibration.run` returned them.
    times
        Seconds by operation and size, of which the figures were made.
    """
    yield f"{'figure':<16}{'package':>10}{'range':>22}{'measured':>12}{'range':>22}  what"
    for name, figure in figures.items():
        known = getattr(AWS, name)
        ours = "-" if figure == known else _shown(figure.value)
        span = "" if figure == known else f"{_shown(figure.low)} to {_shown(figure.high)}"
        yield (
            f"{name:<16}{_shown(known.value):>10}"
            f"{f'{_shown(known.low)} to {_shown(known.high)}':>22}{ours:>12}{span:>22}"
            f"  {known.meaning} ({known.unit})"
        )
    for memory, (cold, warm) in sorted(figures.starts.items()):
        yield f"start with {memory} MB: {_shown(cold)} s cold, {_shown(warm)} s warm"
    for name in sorted(name for name in times if name.startswith(("s3.", "sqs.", "sns."))):
        operation, _, nbytes = name.partition(":")
        yield f"{operation} of {int(nbytes):,} bytes: {_shown(statistics.median(times[name]))} s"


def _shown(value: float) -> str:
    return f"{value:.3g}"
