"""Tracing: what each rank did when, as a file that Perfetto and chrome://tracing show.

Each rank is a process with its threads: calls of the program, puts and gets of the channel, requests to AWS, and an
arrow for each message from the call that sent it to the call that received it.  Where tracing is off none of this
is even imported; where it is on, the functions concerned are wrapped when the rank begins.  A rank leaves its events
beside its counters; the launcher makes one file of them.
Source: "Trace Event Format" (Google, 2016); complete events (X), flow events (s, f) and metadata (M) are used.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from serverless_mpi.core.wire import Kind
from serverless_mpi.signals import shield

MOST_EVENTS = 1_000_000  # of a rank, the newest; about 200 MB of memory
_OWN = "serverless_mpi."
_LOCAL = (
    "Get_",
    "Set_",
    "Is_",
    "Attach_",
    "Detach_",
    "py2f",
    "f2py",
    "tocint",
    "fromint",
)  # calls that do not communicate
_REQUESTS = (("aws.s3", "S3", "s3"), ("aws.sqs", "Sqs", "sqs"), ("aws.sns", "Sns", "sns"))

SAME_CLOCK_NS = 1_000_000
SPAN, SENT, TAKEN, WHOLE = range(4)

_clock = time.perf_counter_ns
_ident = threading.get_ident


class Recorder:
    """The events of this process, newest last; each begins with what it is, and times are in ns.

    SPAN, name, thread, begin, end; SENT, kind, context, tag or slot, seq, destinations, thread, when;
    TAKEN, envelope, seq, thread, when; WHOLE, name of a step, thread, when.
    What is in them is there already: a name is made of it, and an arrow, when the job is over.
    """

    def __init__(self) -> None:
        self.events: deque[tuple[Any, ...]] = deque(maxlen=MOST_EVENTS)
        self.main = _ident()
        self.offset = time.time_ns() - _clock()

    def span(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, noted."""
        append = self.events.append

        @functools.wraps(call)
        def traced(*arguments: Any, **more: Any) -> Any:
            begin = _clock()
            shield.enter()  # so that what the call returns is not lost here
            try:
                return call(*arguments, **more)
            finally:
                append((SPAN, name, _ident(), begin, _clock()))
                shield.leave()

        return traced

    def write(self, folder: Path, rank: int) -> None:
        """Leave the events in `folder`: a line of JSON that says whose they are, and one for each thousand."""
        facts = {
            "rank": rank,
            "offset": self.offset,
            "main": self.main,
            "threads": {thread.ident: thread.name for thread in threading.enumerate()},
        }
        path, events = folder / f"trace-{rank}.json", list(self.events)
        with open(path.with_suffix(".tmp"), "w") as out:
            for piece in (
                facts,
                *(events[start : start + 1000] for start in range(0, len(events), 1000)),
            ):
                out.write(json.dumps(piece) + "\n")
        path.with_suffix(".tmp").rename(path)


RECORDER = Recorder()


def calls(classes: Iterable[type]) -> None:
    """Note every call that a program makes of the methods of `classes` and theirs."""
    done = set()
    for base in (
        base for one in classes for base in one.__mro__ if base.__module__.startswith(_OWN)
    ):
        if base in done:
            continue
        done.add(base)
        for name, member in list(vars(base).items()):
            if name.startswith(("_", *_LOCAL)):
                continue
            if isinstance(member, (classmethod, staticmethod)):
                setattr(base, name, type(member)(RECORDER.span(name, member.__func__)))
            elif callable(member) and not isinstance(member, type):
                setattr(base, name, RECORDER.span(name, member))


def attach(runtime: Any) -> Recorder:
    """Note what a rank's channel does, the requests below it, which collectives begin, and where messages leave and arrive."""
    channel, start, append = runtime._channel, runtime.icollective, RECORDER.events.append

    def starting(context: int, seq: int, steps: Any, ranks: Any) -> Any:
        begin = _clock()
        try:
            return start(context, seq, steps, ranks)
        finally:
            append((SPAN, getattr(steps, "__name__", "collective"), _ident(), begin, _clock()))

    runtime.icollective = starting
    # a put that does not go out in the background is most of the call that makes it: it would say little and cost as much
    if channel.limits.async_put:
        channel.put = RECORDER.span("channel.put", channel.put)
    channel.get = RECORDER.span("channel.get", channel.get)
    for module, name, service in _REQUESTS:
        kind = getattr(sys.modules.get(_OWN + module), name, None)
        for method, call in list(vars(kind).items()) if kind is not None else ():
            if callable(call) and not method.startswith("_"):
                setattr(kind, method, RECORDER.span(f"{service}.{method}", call))
    _arrows(runtime._endpoint, append)
    return RECORDER


def _arrows(endpoint: Any, append: Callable[[Any], None]) -> None:
    """Note where a message is cut into frames, where a receive takes it, and where a step of a collective is whole."""
    cut, match, over = endpoint._cut, endpoint._match, endpoint._step_is_over

    def cutting(
        kind: int,
        flags: int,
        context: int,
        dest: int,
        tag: int,
        seq: int,
        data: Any,
        dests: tuple[int, ...],
    ) -> Any:
        append((SENT, kind, context, tag, seq, dests, _ident(), _clock()))
        return cut(kind, flags, context, dest, tag, seq, data, dests)

    def matching(message: Any, receive: Any) -> None:
        append((TAKEN, message.envelope, message.seq, _ident(), _clock()))
        match(message, receive)

    def whole(name: tuple[int, int, int, int]) -> None:
        append((WHOLE, name, _ident(), _clock()))
        over(name)

    endpoint._cut, endpoint._match, endpoint._step_is_over = cutting, matching, whole


def _ends(rank: int, event: Sequence[Any]) -> Iterator[tuple[bool, tuple[int, ...]]]:
    """(whether a message leaves, its name) for each message that an event tells of.

    The name is the same at both ends: kind, context, source, dest, seq, slot (0 where the seq says it all).
    """
    if event[0] == SENT:
        _, kind, context, tag, seq, dests, _, _ = event
        for dest in dests:
            yield True, (kind, context, rank, dest, seq, tag if kind == Kind.STEP else 0)
    elif event[0] == TAKEN:
        (context, source, _, _), seq = event[1:3]
        yield False, (Kind.POINT, context, source, rank, seq, 0)
    elif event[0] == WHOLE:
        context, source, seq, slot = event[1]
        yield False, (Kind.STEP, context, source, rank, seq, slot)


def _read(path: Path) -> dict[str, Any]:
    """What `Recorder.write` wrote, with its "events"."""
    with open(path) as lines:
        record: dict[str, Any] = json.loads(next(lines))
        record["events"] = [event for line in lines for event in json.loads(line)]
    return record


def merge(folder: Path, out: TextIO) -> int:
    """Write what the ranks left in `folder` as one trace; returns the number of ranks.

    Times are microseconds since the first event.  A rank's clock is set by its machine's time of day, once; ranks that so
    agree within a millisecond are taken to have one clock, as those of one machine do.  Else an arrow may seem to arrive
    before it left, by as much as the machines' times of day differ; it is shown as if it had arrived then.
    """
    records = [_read(path) for path in sorted(folder.glob("trace-*.json"))]
    offsets = [record["offset"] for record in records]
    if offsets and max(offsets) - min(offsets) < SAME_CLOCK_NS:
        for record in records:
            record["offset"] = offsets[0]
    left: dict[tuple[int, ...], int] = {}  # a message's name -> when it left
    came: dict[tuple[int, ...], None] = {}
    for record in records:
        for event in record["events"]:
            for leaves, name in _ends(record["rank"], event):
                if leaves:
                    left[name] = event[-1] + record["offset"]
                else:
                    came[name] = None
    numbers = {
        name: number for number, name in enumerate(name for name in came if name in left)
    }  # of the arrows
    begin = min(
        (
            event[3 if event[0] == SPAN else -1] + record["offset"]
            for record in records
            for event in record["events"]
        ),
        default=0,
    )
    out.write('{"displayTimeUnit": "ms", "traceEvents": [')
    comma = ""

    def write(event: dict[str, Any]) -> None:
        nonlocal comma
        out.write(f"{comma}\n{json.dumps(event)}")
        comma = ","

    for record in records:
        rank = record["rank"]
        threads = {record["main"]: 0}
        write(
            {
                "ph": "M",
                "name": "process_name",
                "pid": rank,
                "tid": 0,
                "args": {"name": f"rank {rank}"},
            }
        )
        write(
            {
                "ph": "M",
                "name": "process_sort_index",
                "pid": rank,
                "tid": 0,
                "args": {"sort_index": rank},
            }
        )
        done = set()
        for event in record["events"]:
            if event[0] == SPAN:
                _, call, thread, start, end = event
                made = {
                    "ph": "X",
                    "name": call,
                    "cat": call.partition(".")[0] if "." in call else "call",
                    "dur": (end - start) / 1000,
                }
                write(
                    {
                        **made,
                        "pid": rank,
                        "tid": threads.setdefault(thread, len(threads)),
                        "ts": (start + record["offset"] - begin) / 1000,
                    }
                )
            for leaves, name in _ends(rank, event):
                if name in numbers and (leaves, name) not in done:
                    done.add((leaves, name))
                    at = left[name] if leaves else max(left[name], event[-1] + record["offset"])
                    made = {"ph": "s"} if leaves else {"ph": "f", "bp": "e"}
                    made |= {"name": "message", "cat": "message", "id": numbers[name]}
                    write(
                        {
                            **made,
                            "pid": rank,
                            "tid": threads.setdefault(event[-2], len(threads)),
                            "ts": (at - begin) / 1000,
                        }
                    )
        for thread, tid in threads.items():
            label = "program" if tid == 0 else record["threads"].get(str(thread), f"thread {tid}")
            write(
                {"ph": "M", "name": "thread_name", "pid": rank, "tid": tid, "args": {"name": label}}
            )
    out.write(f'\n], "otherData": {json.dumps({"ranks": len(records)})}}}\n')
    return len(records)


def save(folder: Path, file: str, say: Callable[[str], None]) -> None:
    """`merge` to a file, and say where it is or why there is none."""
    try:
        with open(file, "w") as out:
            ranks = merge(folder, out)
    except OSError as error:
        say(f"--trace {file}: {error.strerror}; there is no trace")
    except (ValueError, KeyError, TypeError, IndexError):  # a rank's file is cut off
        say(f"--trace {file}: what a rank left is damaged; there is no trace")
    else:
        say(f"a trace of {ranks} ranks is in {file}; https://ui.perfetto.dev shows it")
