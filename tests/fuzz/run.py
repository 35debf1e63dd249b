"""Run targets on mutated inputs in a separate process, and collect the outcomes.

Each input is a function of the seed, the target's name and the input's number, so any of them can be replayed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import mmap
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.mutate import mutate

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("tests.fuzz.targets", "tests.fuzz.targets_store")
INFERENCE = (
    "tests.fuzz.targets_inference"  # whose targets catch the errors that are documented themselves
)
INPUT_S = 5.0  # what one input may take
MEMORY_EVERY = 50  # inputs, of one of which the memory is measured
ADDRESS_SPACE = 2 << 30  # bytes that a target may map beyond what it has at its beginning
KINDS_KEPT = 20  # kinds of failures of which each is reported
_PLACE = struct.Struct("<QQ")  # which target, which input
CRASHES = 5  # after which a target is given up


@dataclass(frozen=True)
class Target:
    """A parser of foreign bytes.

    corpus
        Good inputs, which are mutated.
    parse
        Takes an input; returns any value, or raises one of `errors`, which its documentation names.
    retag
        Makes an input authentic again, for half of the inputs.
    words
        A dictionary.
    bytes_constant, bytes_per_byte
        The memory that parsing may take: so many bytes, and so many for each byte of the input.
    """

    name: str
    corpus: Callable[[], Sequence[bytes]]
    parse: Callable[[bytes], object]
    errors: tuple[type[BaseException], ...] = ()
    retag: Callable[[bytes], bytes] | None = None
    words: tuple[bytes, ...] = ()
    bytes_constant: int = 1 << 20
    bytes_per_byte: float = 2.0


@dataclass
class Report:
    """What came of one target.  worst: the largest memory beyond what is allowed for the input's length, in bytes."""

    name: str
    inputs: int = 0
    seconds: float = 0.0
    accepted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    worst_bytes: int = 0
    failed: int = 0
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)

    def fail(self, number: int, what: str, where: str, data: bytes) -> None:
        """Count a failure; the first of each kind and place is kept."""
        self.failed += 1
        kind = f"{what} at {where}" if where else what
        if kind not in self.failures and len(self.failures) >= KINDS_KEPT:
            kind = "others"
        count, first = self.failures.get(kind, (0, f"input {number}: {data[:80]!r}"))
        self.failures[kind] = (count + 1, first)


class TooLong(BaseException):
    """An input took longer than it may."""


def load() -> dict[str, Target]:
    """All targets by their names."""
    targets: dict[str, Target] = {}
    for name in MODULES:
        if importlib.util.find_spec(name) is not None:
            for target in importlib.import_module(name).TARGETS:
                targets[target.name] = target
    with contextlib.suppress(ImportError):
        inference = importlib.import_module(INFERENCE)
        for name, (parse, corpus) in inference.TARGETS.items():

            def seeds(corpus: Sequence[bytes] = corpus) -> Sequence[bytes]:
                return corpus

            targets[name] = Target(name, seeds, parse, bytes_constant=2 * inference.LIMIT)
    return targets


def make_input(target: Target, corpus: Sequence[bytes], seed: int, number: int) -> bytes:
    """Input `number` of a target."""
    chance = random.Random(f"{seed}/{target.name}/{number}")
    data = mutate(chance, corpus, target.words)
    if target.retag is not None and chance.random() < 0.5:
        data = target.retag(data)
    return data


def fuzz(
    target: Target,
    inputs: int,
    seconds: float,
    seed: int,
    first: int = 0,
    now: Callable[[int], None] = lambda number: None,
) -> Report:
    """Run a target on inputs first, first + 1, ... in this process."""
    report = Report(target.name)
    corpus = target.corpus()
    for (
        data
    ) in corpus:  # anything but a value or a documented refusal would be a fault of the target
        with contextlib.suppress(*target.errors):
            target.parse(data)
    refused: Counter[str] = Counter()
    began = time.monotonic()

    def late(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, late)
    try:
        for number in range(first, first + inputs):
            if number % 64 == 0 and time.monotonic() - began > seconds:
                break
            now(number)
            data = make_input(target, corpus, seed, number)
            measured = number % MEMORY_EVERY == 0
            if measured:
                tracemalloc.start()
            signal.setitimer(signal.ITIMER_REAL, INPUT_S)
            try:
                target.parse(data)
                report.accepted += 1
            except target.errors as error:
                refused[type(error).__name__] += 1
                if "\n" in str(error).strip():
                    report.fail(number, "an error of several lines", _where(error), data)
            except TooLong:
                report.fail(number, f"not done in {INPUT_S:g} s", "", data)
            except Exception as error:  # MemoryError among them
                report.fail(number, type(error).__name__, _where(error), data)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                if measured:
                    peak = tracemalloc.get_traced_memory()[1]
                    tracemalloc.stop()
                    report.worst_bytes = max(report.worst_bytes, peak)
                    allowed = target.bytes_constant + target.bytes_per_byte * len(data)
                    if peak > allowed:
                        report.fail(number, "too much memory", "", data)
            report.inputs += 1
    finally:
        signal.signal(signal.SIGALRM, before)
    report.seconds = time.monotonic() - began
    report.refused = dict(refused)
    return report


def _where(error: BaseException) -> str:
    trace, place = error.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "serverless_mpi" in name:
            place = f"{name.rpartition('serverless_mpi/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def in_child(name: str, inputs: int, seconds: float, seed: int) -> Report:
    """`fuzz` in a process of its own, with a limit of memory; a crash is a failure, and the rest is run all the same."""
    total = Report(name)
    refused: Counter[str] = Counter()
    first, left_s, crashes = 0, seconds, 0
    while first < inputs and left_s > 0:
        parts, crash = _run_child([name], inputs - first, left_s, seed, first)
        if crash is not None:
            _, number, words = crash
            part = Report(name, number - first + 1, seconds=left_s / 10)
            target = load()[name]
            part.fail(number, words, "", make_input(target, target.corpus(), seed, number))
            crashes += 1
        else:
            (part,) = parts
        total.inputs += part.inputs
        total.seconds += part.seconds
        total.accepted += part.accepted
        total.failed += part.failed
        for kind, (count, example) in part.failures.items():
            before, example = total.failures.get(kind, (0, example))
            total.failures[kind] = (before + count, example)
        total.worst_bytes = max(total.worst_bytes, part.worst_bytes)
        refused.update(part.refused)
        if crash is None or crashes >= CRASHES:
            break
        first, left_s = number + 1, left_s - part.seconds
    total.refused = dict(refused)
    return total


def all_in_child(names: Sequence[str], inputs: int, seconds: float, seed: int) -> list[Report]:
    """`fuzz` for several targets in one process; at a crash the others are left out."""
    parts, crash = _run_child(names, inputs, seconds, seed, 0)
    if crash is not None:
        name, number, words = crash
        report = Report(name)
        report.fail(number, words, "", b"")
        return [report]
    return parts


def _run_child(
    names: Sequence[str], inputs: int, seconds: float, seed: int, first: int
) -> tuple[list[Report], tuple[str, int, str] | None]:
    """(a report for each target, None), or in place of None which target, which input, and how the process ended."""
    with tempfile.NamedTemporaryFile() as place:
        place.write(bytes(_PLACE.size))
        place.flush()
        words = [list(names), inputs, seconds, seed, first, place.name]
        command = [sys.executable, "-m", "tests.fuzz.run", json.dumps(words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        place.seek(0)
        which, number = _PLACE.unpack(place.read(_PLACE.size))
    if done.returncode:
        story = done.stderr.strip().rpartition("\n")[2][:200]
        return [], (names[which], number, f"the process ended with {done.returncode}: {story}")
    return [Report(**part) for part in json.loads(done.stdout)], None


def _child(words: list[Any]) -> None:
    names, inputs, seconds, seed, first, path = words
    targets = load()
    out = os.fdopen(os.dup(1), "w")  # what a target prints is not the report
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = size + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    reports = []
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), _PLACE.size) as memory:
        for which, name in enumerate(names):

            def now(number: int, which: int = which) -> None:
                _PLACE.pack_into(memory, 0, which, number)

            reports.append(vars(fuzz(targets[name], inputs, seconds, seed, first, now)))
    json.dump(reports, out)
    out.close()


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
