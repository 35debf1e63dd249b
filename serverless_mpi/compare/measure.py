"""Runs a program under each system, and forecasts it for Lambda.

A *system* is a way to run the ranks: `mpi` (mpiexec, if there is one), a channel of `smpirun` on
this machine (services of AWS are emulated), or `lambda`, which is not run: the trace of the job on
`hybrid` is replayed on the model of AWS (simulation/replay.py).

What ranks worked is part of the forecast.  Ranks that share the processors of this machine wait for
each other, and those on Lambda do not, so a rank's work is at most the CPU time that it used here.
A function's processor is taken for as fast as one of this machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from serverless_mpi import channels
from serverless_mpi.aws.limits import LAMBDA_VCPU_MB, Figures
from serverless_mpi.errors import JobError, ServerlessMPIError, UsageError
from serverless_mpi.metering import Prices
from serverless_mpi.simulation import AWS, latency_of, replay

MPI, LAMBDA = "mpi", "lambda"
FORECAST = "hybrid"  # the channel of which a job's trace is replayed
PACKED = "routed"  # run with two nodes
SYSTEMS = (MPI, "direct", "hybrid", "queue", "object", PACKED, LAMBDA)
SAME, ORDER, NUMBERS, DIFFERS = "same", "same lines", "but for numbers", "differs"
_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Request:
    """What is to be compared.

    Attributes
    ----------
    argv
        A Python program and its arguments; `-m` and a module's name in front are possible.
    ranks
        Numbers of ranks.
    systems
        Names of SYSTEMS.
    repeat
        Runs of each; at least 1.
    timeout_s
        A run is ended after this many seconds.
    memory_mb
        Of each function in the forecast.
    """

    argv: tuple[str, ...]
    ranks: tuple[int, ...]
    systems: tuple[str, ...] = SYSTEMS
    repeat: int = 3
    timeout_s: float = 300.0
    memory_mb: int = LAMBDA_VCPU_MB.value


@dataclass
class Result:
    """One system with one number of ranks.

    Attributes
    ----------
    system, ranks
        What ran.
    seconds
        Time of the program in its slowest rank, of each run: from its first statement, with NumPy
        and MPI imported, to the end of MPI. Of a forecast the only one.
    wall_s
        Median time of the whole command; of a forecast the start of the functions is in it.
    cpu_s
        CPU time of all ranks together, median.
    peak_bytes
        Largest memory of a rank.
    requests, requests_usd, time_usd
        Requests to AWS, their price, and the price of the functions' time (forecast only).
    output
        How the output differs from that of the first system with as many ranks: one of SAME, ORDER,
        NUMBERS, DIFFERS; "" for the first one and a forecast.
    error
        Why there is no result; "" if there is one.
    """

    system: str
    ranks: int
    seconds: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    requests: int = 0
    requests_usd: float = 0.0
    time_usd: float = 0.0
    output: str = ""
    error: str = ""

    @property
    def median_s(self) -> float:
        """Median of `seconds`."""
        return statistics.median(self.seconds) if self.seconds else 0.0

    @property
    def usd(self) -> float:
        """All dollars."""
        return self.requests_usd + self.time_usd


@dataclass
class Comparison:
    """All results of a program.

    Attributes
    ----------
    program
        The command.
    processors
        Of this machine, that may be used.
    memory_mb
        Of a function in the forecast.
    results
        By system and ranks.
    """

    program: str
    processors: int
    memory_mb: int
    results: list[Result] = field(default_factory=list)

    def of(self, system: str, ranks: int) -> Result | None:
        """Return a result, if there is one without an error.

        Parameters
        ----------
        system, ranks
            Of the result.
        """
        return next(
            (
                result
                for result in self.results
                if (result.system, result.ranks) == (system, ranks) and not result.error
            ),
            None,
        )

    def speedup(self, result: Result) -> float:
        """Return how much faster a result is than its system with the fewest ranks.

        Parameters
        ----------
        result
            One of `results`.
        """
        own = [one for one in self.results if one.system == result.system and one.median_s]
        fewest = min(own, key=lambda one: one.ranks)
        return fewest.median_s / result.median_s if result.median_s else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "version": 1,
            **asdict(self),
            "results": [
                {**asdict(one), "median_s": one.median_s, "usd": one.usd} for one in self.results
            ],
        }


def same_output(text: str, reference: str) -> str:
    """Return how an output differs from another one.

    Parameters
    ----------
    text, reference
        Standard outputs of two jobs; lines of ranks come in any order.
    """
    if text == reference:
        return SAME
    if sorted(text.splitlines()) == sorted(reference.splitlines()):
        return ORDER
    plain = [sorted(_NUMBER.sub("#", one).splitlines()) for one in (text, reference)]
    return NUMBERS if plain[0] == plain[1] else DIFFERS


def check(request: Request) -> None:
    """Raise UsageError for a request that cannot be run.

    Parameters
    ----------
    request
        What is to be compared.
    """
    unknown = [name for name in request.systems if name not in SYSTEMS]
    if unknown:
        raise UsageError(f"--with {unknown[0]}: not one of {', '.join(SYSTEMS)}")
    if not request.argv or request.argv == ("-m",):
        raise UsageError("the command line lacks a program, as in: smpi compare -n 1,2 prog.py")
    first = request.argv[0]
    if first == "-m":
        return
    if not first.endswith((".py", ".pyw")):
        raise UsageError(
            f"{first}: smpi compare times Python programs only, whose names end in .py"
        )
    if not Path(first).is_file():
        raise UsageError(f"there is no program {first} in {Path.cwd()}")


def compare(
    request: Request, prices: Prices, figures: Figures | None, progress: Callable[[str], None]
) -> Comparison:
    """Run everything.

    Parameters
    ----------
    request
        What is to be compared; `check` has accepted it.
    prices
        Prices of the services.
    figures
        Figures of AWS for the forecast; None for the package's.
    progress
        Called with a line before each run.

    Raises
    ------
    UsageError
        No system can run the program.
    """
    program = " ".join([Path(request.argv[0]).name, *request.argv[1:]])
    result = Comparison(program, len(os.sched_getaffinity(0)), request.memory_mb)
    for ranks in request.ranks:
        reference: str | None = None
        for system in request.systems:
            progress(f"{system}, {ranks} ranks")
            if system == LAMBDA:
                result.results.append(_forecast(request, ranks, prices, figures))
                continue
            done, output = _run(request, system, ranks)
            if not done.error:
                if reference is None:
                    reference = output
                else:
                    done.output = same_output(output, reference)
            result.results.append(done)
    if not any(one.seconds for one in result.results):
        raise JobError(f"no system could run {program}: {result.results[0].error}")
    return result


def _command(request: Request, system: str, ranks: int, folder: str) -> list[str] | str:
    """Return the command of a run, or why there is none."""
    own = ["-m", "serverless_mpi.compare.rank", folder, *request.argv]
    if system == MPI:
        beside = Path(sys.executable).with_name("mpiexec")
        mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
        if mpiexec is None:
            return "there is no mpiexec"
        return [mpiexec, "-n", str(ranks), sys.executable, *own]
    words = [sys.executable, "-m", "serverless_mpi.launch", "-n", str(ranks), "--channel", system]
    if system == PACKED:
        if ranks < 2:
            return "one rank has no other node"
        words += ["-ppn", str(-(-ranks // 2)), "--host", "127.0.0.1"]
    elif system not in channels.CHANNELS:
        return "not installed"
    return [*words, "--stats", "json", *own]


def _run(request: Request, system: str, ranks: int) -> tuple[Result, str]:
    """Run a system several times; return the result and the first output."""
    result, outputs = Result(system, ranks), []
    walls, cpus = [], []
    for _ in range(request.repeat):
        with tempfile.TemporaryDirectory(prefix="smpi-compare-") as folder:
            words = _command(request, system, ranks, folder)
            if isinstance(words, str):
                result.error = words
                return result, ""
            began = time.perf_counter()
            output, error = _output(words, request.timeout_s)
            walls.append(time.perf_counter() - began)
            left = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
        if error or not left:
            result.error = error or "no rank ended as a Python program does"
            return result, ""
        if system != MPI:
            output, _, last = output.rstrip("\n").rpartition("\n")
            stats = json.loads(last)
            output += "\n" * bool(output)
            result.requests = sum(
                row["requests"]
                for name, row in stats["operations"].items()
                if name.partition(".")[0] not in channels.CHANNELS
            )
            result.requests_usd = stats["usd"]
        outputs.append(output)
        result.seconds.append(max(one["seconds"] for one in left))
        cpus.append(sum(one["cpu_s"] for one in left))
        result.peak_bytes = max(result.peak_bytes, *(one["peak_bytes"] for one in left))
    result.wall_s, result.cpu_s = statistics.median(walls), statistics.median(cpus)
    return result, outputs[0]


def _output(words: Sequence[str], timeout_s: float) -> tuple[str, str]:
    """Return the standard output of a command, and why it failed, or ""."""
    # a real MPI mixes the lines of ranks that write without a buffer
    environ = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environ,
        start_new_session=True,
    ) as job:
        try:
            output, said = job.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            job.send_signal(signal.SIGTERM)  # smpirun and mpiexec end their ranks
            try:
                job.communicate(timeout=10.0)
            except subprocess.TimeoutExpired:
                os.killpg(job.pid, signal.SIGKILL)
                job.communicate()
            return "", f"longer than {timeout_s:g} s"
    if job.returncode:
        lines = said.strip().splitlines() or [""]
        return "", f"exit code {job.returncode}: {lines[-1][:200]}"
    return output, ""


def _forecast(request: Request, ranks: int, prices: Prices, figures: Figures | None) -> Result:
    """Forecast the program on Lambda from its trace here."""
    result = Result(LAMBDA, ranks)
    latency = AWS if figures is None else latency_of(figures, prices.region)
    with tempfile.TemporaryDirectory(prefix="smpi-compare-") as folder:
        trace = Path(folder, "trace")
        words = _command(request, FORECAST, ranks, folder)
        assert not isinstance(words, str)
        at = words.index("--stats")
        _, error = _output([*words[:at], "--trace", str(trace), *words[at:]], request.timeout_s)
        left = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
        if error or not left:
            result.error = error or "no rank ended as a Python program does"
            return result
        try:
            steps = replay.read(trace)
        except (OSError, ValueError, LookupError):
            result.error = "the job left no trace"
            return result
    if len(steps) != ranks:
        result.error = f"{ranks - len(steps)} ranks left no trace"
        return result
    for one in left:
        own = steps[one["rank"]]
        own.scale(max(0.0, min(one["cpu_s"], one["seconds"] - own.mpi_s)))
    try:
        played = replay.replay(steps, FORECAST, latency, prices)
    except ServerlessMPIError as error:
        result.error = str(error)
        return result
    start_s = latency.start_s * (1 + (ranks - 1) // max(1, latency.starts_per_10_s))
    result.seconds = [played.seconds]
    result.wall_s = start_s + played.seconds
    result.cpu_s = sum(one["cpu_s"] for one in left)
    result.requests = sum(row["requests"] for row in played.requests.values())
    result.requests_usd = played.usd
    result.time_usd = sum(
        prices.lambda_usd(latency.start_s + seconds, request.memory_mb / 1024)
        for seconds in played.rank_seconds
    )
    return result
