"""Faults, the channels they apply to, and the run of one combination of fault, channel and program.

Every run is a job of smpirun with 3 ranks.  It must end within its stated time, with the right answer or with an error
that the package names in one line, and leave nothing behind: no process, no queue, topic or bucket, no file.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serverless_mpi.aws import control
from serverless_mpi.errors import ChannelError
from serverless_mpi.launch.emulator import Emulator
from tests.faults import harms
from tests.faults.proxy import Proxy
from tests.faults.relay import Relay

ROOT = Path(__file__).resolve().parents[2]
SIZE = 3
CHANNELS = ("direct", "queue", "object", "hybrid")
PROGRAMS = ("ring", "mix", "large", "dnn")
REGION = "us-east-1"
START_S = 30.0  # of a job, on a machine that is busy with other jobs
PAGE_BYTES = 4096
DISK_BYTES = 4 * PAGE_BYTES
FILLER = "fills-the-disk"
SETTLE_S = 5.0  # for processes that were killed to be gone
VISIBILITY_S, QUICK_VISIBILITY_S = 30, 2
DEADLOCK_S, QUICK_DEADLOCK_S = 60, 12
STOP_S, QUICK_STOP_S = 75.0, 4.0
WINDOW_S, QUICK_WINDOW_S = 60.0, 2.0
GIVE_UP_S = (
    90.0  # of a request, after which a client must have reported that a service does not answer
)

LAST_WORDS = "emulator gone at the end"  # when the program has nothing left to do but a small send
STREAM = "a stream neither repeats nor reorders; the faults of relayed streams stand for it"
QUEUES = "the channel does not use that service"
KEPT = "an object stays until it is deleted, so nothing has to come again"
NO_RELAY = "only a stream can be relayed"
NO_SERVICE = "the channel uses no service"
NO_BATCH = "the channel sends no batches to that service"


@dataclass(frozen=True)
class Fault:
    """One fault.

    harm
        Makes what the proxy does, from (seed, window); None for a fault of processes, streams or the emulator.
    not_on
        Channel -> why the fault does not apply to it.
    survives
        The run must end with the right answer; otherwise a named error will do as well.
    takes_s, quick_s
        How long the fault itself lasts, in the full and the quick form.
    """

    name: str
    harm: Callable[[int, float], harms.NoHarm] | None = None
    not_on: dict[str, str] = field(default_factory=dict)
    not_for: dict[str, str] = field(default_factory=dict)
    survives: bool = False
    takes_s: float = 0.0
    quick_s: float = 0.0
    rounds: int = 8


def _window(kind: dict[str, bytes], service: str) -> Callable[[int, float], harms.NoHarm]:
    return lambda seed, window_s: harms.Window(seed, window_s, service, kind)


def _not_on(reason: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, reason)


_STREAM = _not_on(STREAM, "direct")
_SERVICES = {"sqs": ("object",), "sns": ("object",), "s3": ("queue",)}
_RELAYED = _not_on(NO_RELAY, "queue", "object", "hybrid")
# a damaged message may come again whole, after its visibility timeout, on each rank in turn
_AGAIN = {"takes_s": 4.0 * VISIBILITY_S, "quick_s": 4.0 * QUICK_VISIBILITY_S}
_LONG = {"takes_s": WINDOW_S, "quick_s": QUICK_WINDOW_S}

FAULTS = {
    fault.name: fault
    for fault in (
        Fault("duplicated", harms.Duplicated, _STREAM, survives=True),
        Fault("reordered", harms.Reordered, _STREAM, survives=True),
        Fault(
            "delayed",
            harms.Delayed,
            _STREAM,
            survives=True,
            takes_s=4 * (VISIBILITY_S - 5),
            quick_s=4 * (QUICK_VISIBILITY_S - 0.5),
            rounds=5,
        ),
        Fault(
            "dropped, redelivered",
            harms.Dropped,
            {**_STREAM, "object": KEPT},
            survives=True,
            takes_s=4 * VISIBILITY_S,
            quick_s=4 * QUICK_VISIBILITY_S,
            rounds=5,
        ),
        Fault("truncated", harms.Truncated, _STREAM, **_AGAIN),
        Fault("extended", harms.Extended, _STREAM, **_AGAIN),
        Fault("replaced", harms.Replaced, _STREAM, **_AGAIN),
        Fault("foreign", harms.Foreign, _STREAM, survives=True),
        Fault("lost for good", harms.Swapped, _STREAM, **_AGAIN),
        *(
            Fault(
                f"{service} {word}",
                _window(kind, service),
                {**_not_on(NO_SERVICE, "direct"), **_not_on(QUEUES, *_SERVICES[service])},
                **_LONG,
            )
            for word, kind in (("throttled", harms.THROTTLED), ("failing", harms.FAILED))
            for service in ("sqs", "sns", "s3")
        ),
        Fault("partial batches", harms.Partial, _not_on(NO_SERVICE, "direct"), survives=True),
        Fault(
            "reset before",
            lambda seed, window: harms.Reset(seed, window, False),
            _not_on(NO_SERVICE, "direct"),
            survives=True,
        ),
        Fault(
            "reset after",
            lambda seed, window: harms.Reset(seed, window, True),
            _not_on(NO_SERVICE, "direct"),
            survives=True,
            takes_s=4 * VISIBILITY_S,
            quick_s=6 * QUICK_VISIBILITY_S,
            rounds=5,
        ),
        Fault("emulator restarted", None, _not_on(NO_SERVICE, "direct")),
        Fault("emulator gone", None, _not_on(NO_SERVICE, "direct")),
        Fault("own emulator killed", None, _not_on(NO_SERVICE, "direct")),
        Fault(LAST_WORDS, None, _not_on(NO_SERVICE, "direct")),
        Fault("killed"),
        Fault("stopped", survives=True, takes_s=STOP_S, quick_s=QUICK_STOP_S),
        Fault("slow rank", survives=True, takes_s=10.0, quick_s=2.0),
        Fault("forked", survives=True),
        Fault("subprocess", survives=True),
        Fault(
            "interrupted",
            survives=True,
            not_for={
                "dnn": "the engine makes its calls itself; they cannot be repeated one by one"
            },
        ),
        Fault("disk full", survives=True),
        Fault("launcher's disk full"),
        Fault("streams closed", survives=True),
        Fault("launcher's streams closed", survives=True),
        Fault("slow reader", survives=True, takes_s=10.0, quick_s=3.0),
        Fault("late stream", not_on=_RELAYED, survives=True, takes_s=30.0, quick_s=5.0),
        Fault("cut stream", not_on=_RELAYED),
        Fault("corrupt stream", not_on=_RELAYED),
        Fault("wrong length in stream", not_on=_RELAYED),
    )
}
_RELAYS = {
    "late stream": "late",
    "cut stream": "cut",
    "corrupt stream": "corrupt",
    "wrong length in stream": "length",
}


@dataclass(frozen=True)
class Combination:
    """A fault on a channel under a program."""

    fault: str
    channel: str
    program: str

    def __str__(self) -> str:
        return f"{self.fault}:{self.channel}:{self.program}"


def combinations() -> list[Combination]:
    """All that apply."""
    return [
        Combination(fault.name, channel, program)
        for fault in FAULTS.values()
        for channel in CHANNELS
        if channel not in fault.not_on
        for program in PROGRAMS
        if program not in fault.not_for
    ]


def sample(seed: int) -> list[Combination]:
    """One combination of each fault, channel and program in turn; for each commit."""
    chance = random.Random(seed)
    chosen = []
    for number, fault in enumerate(FAULTS.values()):
        channels = [channel for channel in CHANNELS if channel not in fault.not_on]
        programs = [program for program in PROGRAMS if program not in fault.not_for]
        channel = channels[(number + seed) % len(channels)]
        chosen.append(Combination(fault.name, channel, chance.choice(programs)))
    return chosen


@dataclass
class Result:
    """What one run came to.  `ended` is "right", "error" or what went wrong."""

    combination: Combination
    ended: str = ""
    seconds: float = 0.0
    injected: int = 0
    sent: int | None = None
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    hung: int = 0
    left: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.duplicated or self.wrong or self.hung or self.left)

    def blame(self, column: str, note: str, count: int = 1) -> None:
        """Count something that must not be."""
        setattr(self, column, getattr(self, column) + count)
        self.notes.append(note)


def _free_port() -> int:
    """A port that nobody listens on now; a restarted emulator takes it again."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Bench:
    """Where runs take place, one after the other: an emulator that is kept, and the settings of the quick form."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder = folder
        self.quick = quick
        self.visibility_s = QUICK_VISIBILITY_S if quick else VISIBILITY_S
        self.deadlock_s = QUICK_DEADLOCK_S if quick else DEADLOCK_S
        self.stop_s = QUICK_STOP_S if quick else STOP_S
        self._emulator: Emulator | None = None
        self._port = _free_port()

    def endpoint(self) -> str:
        """The URL of a running emulator."""
        if self._emulator is None:
            for _ in range(5):
                place = Path(tempfile.mkdtemp(dir=self.folder))
                self._emulator = Emulator(place, self._port, REGION)
                try:
                    self._emulator.start()
                    break
                except Exception:  # another worker took the port
                    self._emulator = None
                    self._port = _free_port()
            assert self._emulator is not None, "the emulator does not start"
        return self._emulator.url

    def stop_emulator(self) -> None:
        emulator, self._emulator = self._emulator, None
        if emulator is not None:
            os.kill(emulator.pid, signal.SIGKILL)  # what it holds goes with it
            emulator.stop()

    close = stop_emulator


class _Reports:
    """What ranks report, by datagrams."""

    def __init__(self, on_struck: Callable[[], None]) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("")
        self.name = self._socket.getsockname()[1:].decode()
        self.records: list[dict[str, Any]] = []
        self._on_struck = on_struck
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while data := self._socket.recv(1 << 16):
            record = json.loads(data)
            self.records.append(record)
            if record["event"] == "struck":
                self._on_struck()

    def close(self) -> None:
        """Take what has been sent so far, and no more; may be called again."""
        if self._socket.fileno() < 0:
            return
        end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        end.sendto(b"", "\0" + self.name)
        self._thread.join()
        self._socket.close()
        end.close()

    def of(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["event"] == event]


def run(combination: Combination, seed: int, bench: Bench) -> Result:
    """Run one combination and judge it."""
    fault, result = FAULTS[combination.fault], Result(combination)
    takes_s = fault.quick_s if bench.quick else fault.takes_s
    window_s = {"delayed": bench.visibility_s - (0.5 if bench.quick else 5)}.get(
        fault.name, takes_s
    )
    limit_s = START_S + takes_s + max(GIVE_UP_S, 2.0 * bench.deadlock_s)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=bench.folder))
    temporary = folder / "tmp"
    temporary.mkdir()
    emulated = combination.channel != "direct"
    mark = f"{os.getpid()}-{folder.name}"

    def struck() -> None:
        if fault.name == "own emulator killed":
            for pid in _processes(str(temporary).encode()):
                with contextlib.suppress(OSError):  # it may have ended meanwhile
                    if b"server.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)
        elif fault.name.startswith("emulator"):
            bench.stop_emulator()
            if fault.name == "emulator restarted":
                bench.endpoint()

    with contextlib.ExitStack() as stack:
        reports = _Reports(struck)
        stack.callback(reports.close)
        endpoint = bench.endpoint() if emulated else None
        before = set(control.leftovers(endpoint, REGION)) if endpoint else set()
        harm, proxy = None, None
        if fault.harm is not None and endpoint is not None:
            harm = fault.harm(seed, window_s)
            harm.channel = combination.channel
            proxy = stack.enter_context(Proxy(endpoint, seed, harm=harm))
        plan: dict[str, Any] = {
            "program": combination.program, "fault": fault.name, "seed": seed, "size": SIZE,
            "rounds": fault.rounds, "stop_s": bench.stop_s if fault.name == "stopped" else takes_s,
        }  # fmt: skip
        words = ["-n", str(SIZE), "--channel", combination.channel, "--stats", "json"]
        words += ["--deadlock", str(bench.deadlock_s)]
        relay = None
        if fault.name in _RELAYS:
            relay = stack.enter_context(Relay(_RELAYS[fault.name], seed, SIZE, folder))
            plan.update(relay=relay.ports, folder=str(folder))
            words += ["--host", "127.0.0.1"]
        if endpoint is not None and fault.name != "own emulator killed":
            words += ["--endpoint", endpoint if proxy is None else proxy.url]
        words += [str(ROOT / "tests" / "faults" / "rank.py"), json.dumps(plan)]
        environ = {
            name: value for name, value in os.environ.items()
            if not name.startswith(("AWS_", "SMPI_", "PMI_"))
        }  # fmt: skip
        environ |= {
            "TMPDIR": str(temporary), "SMPI_FAULT_REPORT": reports.name, "SMPI_FAULT_RUN": mark,
            "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        if fault.name == "launcher's disk full":
            result.notes += stack.enter_context(_small_disk(temporary))
        began = time.monotonic()
        code, out, err = _smpirun(words, environ, fault.name, bench, limit_s, result)
        result.seconds = time.monotonic() - began
        if isinstance(harm, harms.Window):
            time.sleep(harm.left_s())
        if emulated:  # where it was stopped
            bench.endpoint()
        if "smpirun --cleanup" in err:  # as documented where the service cannot be reached
            words = ["--cleanup", *(("--endpoint", bench.endpoint()) if emulated else ())]
            _smpirun(words, environ, "", bench, 60.0, result)
        reports.close()  # all are here now
        _judge(result, fault, code, out, err, reports)
        result.injected = max(
            len(reports.of("struck")) + fault.name.startswith("launcher")
            + (fault.name == "slow reader"),
            harm.injected if harm is not None else 0,
            relay.injected if relay is not None else 0,
        )  # fmt: skip
        _count_leftovers(result, mark, temporary)
        if emulated:
            try:
                left = set(control.leftovers(bench.endpoint(), REGION)) - before
            except ChannelError as error:
                result.blame("left", str(error))
            else:
                for job in left:
                    count = control.remove(bench.endpoint(), REGION, job)
                    result.blame("left", f"{count} queues, topics or buckets of job {job}", count)
    if not result.good:
        (folder / "stderr").write_text(err)
        (folder / "stdout").write_text(out[:100_000])
        (folder / "reports").write_text("\n".join(map(json.dumps, reports.records)))
        result.notes.append(f"output in {folder}")
    return result


def _smpirun(
    words: list[str],
    environ: dict[str, str],
    fault: str,
    bench: Bench,
    limit_s: float,
    result: Result,
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of smpirun; counts it as hung if it takes too long."""
    command = [sys.executable, str(ROOT / "tests" / "faults" / "launch.py")]
    command += [str(bench.visibility_s), *words]
    if fault == "launcher's streams closed":
        command = ["/bin/sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *command]
    process = subprocess.Popen(
        command, env=environ, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=_no_files if fault == "launcher's disk full" and os.geteuid() else None,
    )  # fmt: skip
    late = threading.Timer(limit_s, process.send_signal, (signal.SIGTERM,))
    very_late = threading.Timer(limit_s + 15, process.kill)
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))  # type: ignore[union-attr]
    try:
        late.start()
        very_late.start()
        reader.start()
        out = _read(process, slow_s=3.0 if fault == "slow reader" else 0.0)
        code = process.wait()
        reader.join()
    finally:
        timely = late.is_alive()
        late.cancel()
        very_late.cancel()
    if not timely:
        result.blame("hung", f"smpirun {words[0]} ran longer than {limit_s:.0f} s")
    return code, out.decode(errors="replace"), errors[0].decode(errors="replace")


def _read(process: subprocess.Popen[bytes], slow_s: float) -> bytes:
    assert process.stdout is not None
    if not slow_s:
        return process.stdout.read()
    time.sleep(slow_s)
    parts = []
    while data := os.read(process.stdout.fileno(), 4096):
        parts.append(data)
        time.sleep(0.0005)
    return b"".join(parts)


def _no_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[list[str]]:
    """A file system with a page left at `folder`, if this is root; else the launcher's files are limited to 0 bytes.

    With no page left, Python would take another folder for temporary files.
    """
    if os.geteuid():
        yield ["not root: RLIMIT_FSIZE in place of a full file system"]
        return
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)],
        capture_output=True,
    )
    if done.returncode:
        yield ["no file system can be mounted: the fault was left out"]
        return
    try:
        with contextlib.suppress(OSError):  # fill it
            (folder / FILLER).write_bytes(bytes(DISK_BYTES - PAGE_BYTES))
        yield []
        with contextlib.suppress(OSError):
            (folder / FILLER).unlink()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def _judge(result: Result, fault: Fault, code: int, out: str, err: str, reports: _Reports) -> None:
    """Right answer, named error, or what must not be."""
    done = reports.of("done")
    for record in done:
        for column in ("lost", "duplicated", "wrong"):
            if record[column]:
                result.blame(
                    column, f"rank {record['rank']}: {record[column]} {column}", record[column]
                )
    for record in reports.of("wrong"):
        result.blame("wrong", record["text"])
    for record in reports.of("foreign error"):
        result.blame("wrong", f"rank {record['rank']}: {record['kind']}: {record['text'][:200]}")
    with contextlib.suppress(ValueError, KeyError, IndexError):
        result.sent = json.loads(out.rstrip().rpartition("\n")[2])["messages"]
    mute = fault.name == "launcher's streams closed"
    if fault.name == "slow reader" and code == 0:
        wanted = {
            f"noise {record['rank']} {step} {line} "
            for record in done for step in range(record["steps"]) for line in range(300)
        }  # fmt: skip
        come = {line.rstrip(".") for line in out.splitlines() if line.startswith("noise ")}
        if wanted - come:
            result.blame("lost", f"{len(wanted - come)} lines of output", len(wanted - come))
    for record in reports.of("error"):
        if "\n" in record["text"]:
            result.blame("wrong", f"rank {record['rank']}: an error of several lines")
    if "Traceback" in err and not reports.of("foreign error"):
        lines = err[err.index("Traceback") :].splitlines()[1:]
        last = next((line for line in lines if line[:1] not in (" ", "")), "without an end")
        result.blame("wrong", f"a traceback: {last[:200]}")
    if code == 0 and fault.name == LAST_WORDS:
        result.blame("lost", "exit code 0, but the last messages could not be sent", SIZE)
    if code == 0:
        result.ended = "right"
        if len(done) < SIZE:
            result.blame(
                "lost", f"exit code 0, but only {len(done)} ranks ended well", SIZE - len(done)
            )
    else:
        stories = [record["text"] for record in reports.of("error")]
        stories += [line for line in err.splitlines() if line.startswith("smpirun: ")]
        result.ended = "error"
        if not stories and not mute:
            result.blame("wrong", f"exit code {code} without an error that names the cause")
        elif fault.survives:
            result.blame(
                "wrong", "ended with an error that it must survive: " + " | ".join(stories)[:400]
            )
        else:
            result.notes.append(stories[0][:300] if stories else "")


def _count_leftovers(result: Result, mark: str, temporary: Path) -> None:
    needles = f"SMPI_FAULT_RUN={mark}".encode(), str(temporary).encode()
    deadline = time.monotonic() + SETTLE_S
    while left := _processes(*needles):
        if time.monotonic() > deadline:
            result.blame("left", f"processes {left}", len(left))
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    files = [str(path.relative_to(temporary)) for path in temporary.rglob("*")]
    files = [name for name in files if (temporary / name).is_file() and name != FILLER]
    if files:
        result.blame("left", f"files {files[:5]}", len(files))


def _processes(*needles: bytes) -> list[int]:
    """Processes with one of `needles` in their environment or command line, but those that only sleep."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            message = (
                Path(entry.path, "environ").read_bytes() + Path(entry.path, "cmdline").read_bytes()
            )
            if any(needle in message for needle in needles):
                if "sleep" not in Path(entry.path, "comm").read_text():
                    found.append(int(entry.name))
    return found
