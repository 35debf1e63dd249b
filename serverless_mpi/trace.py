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
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

MOST_EVENTS = 1_000_000  # of a rank, the newest; about 200 MB of memory
_OWN = "serverless_mpi."
_LOCAL = ("Get_", "Set_", "Is_", "Attach_", "Detach_", "py2f", "f2py", "tocint", "fromint")  # calls that do not communicate
_REQUESTS = (("aws.s3", "S3", "s3"), ("aws.sqs", "Sqs", "sqs"), ("aws.sns", "Sns", "sns"))

_clock = time.perf_counter_ns
_ident = threading.get_ident


class Recorder:
    """The events of this process: (kind, name, thread, begin, end), times in ns; kind "X", "s" or "f"."""

    def __init__(self) -> None:
        self.events: deque[tuple[str, Any, int, int, int]] = deque(maxlen=MOST_EVENTS)
        self.main = _ident()
        self.offset = time.time_ns() - _clock()
        self._inside: set[int] = set()  # threads that are in a call of the program

    def span(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, noted."""
        append = self.events.append

        @functools.wraps(call)
        def traced(*arguments: Any, **more: Any) -> Any:
            begin = _clock()
            try:
                return call(*arguments, **more)
            finally:
                append(("X", name, _ident(), begin, _clock()))

        return traced

    def outermost(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, noted where it was not made by another such call."""
        append, inside = self.events.append, self._inside

        @functools.wraps(call)
        def traced(*arguments: Any, **more: Any) -> Any:
            thread = _ident()
            if thread in inside:
                return call(*arguments, **more)
            inside.add(thread)
            begin = _clock()
            try:
                return call(*arguments, **more)
            finally:
                append(("X", name, thread, begin, _clock()))
                inside.discard(thread)

        return traced

    def write(self, folder: Path, rank: int) -> None:
        """Leave the events in `folder`."""
        record = {
            "rank": rank, "host": socket.gethostname(), "offset": self.offset, "main": self.main,
            "threads": {thread.ident: thread.name for thread in threading.enumerate()}, "events": list(self.events),
        }  # fmt: skip
        path = folder / f"trace-{rank}.json"
        path.with_suffix(".tmp").write_text(json.dumps(record))
        path.with_suffix(".tmp").rename(path)


RECORDER = Recorder()


def calls(classes: Iterable[type]) -> None:
    """Note every call that a program makes of the methods of `classes` and theirs."""
    done = set()
    for base in (base for one in classes for base in one.__mro__ if base.__module__.startswith(_OWN)):
        if base in done:
            continue
        done.add(base)
        for name, member in list(vars(base).items()):
            if name.startswith(("_", *_LOCAL)):
                continue
            if isinstance(member, (classmethod, staticmethod)):
                setattr(base, name, type(member)(RECORDER.outermost(name, member.__func__)))
            elif callable(member) and not isinstance(member, type):
                setattr(base, name, RECORDER.outermost(name, member))


def attach(runtime: Any) -> Recorder:
    """Note what a rank's channel does, the requests below it, which collectives begin, and where messages leave and arrive."""
    channel, start, append = runtime._channel, runtime.icollective, RECORDER.events.append

    def starting(context: int, seq: int, steps: Any, ranks: Any) -> Any:
        begin = _clock()
        try:
            return start(context, seq, steps, ranks)
        finally:
            append(("X", getattr(steps, "__name__", "collective"), _ident(), begin, _clock()))

    runtime.icollective = starting
    # a put that does not go out in the background is most of the call that makes it: it would say little and cost as much
    for method in ("put", "get") if channel.limits.background else ("get",):
        setattr(channel, method, RECORDER.span(f"channel.{method}", getattr(channel, method)))
    for module, name, service in _REQUESTS:
        kind = getattr(sys.modules.get(_OWN + module), name, None)
        for method, call in list(vars(kind).items()) if kind is not None else ():
            if callable(call) and not method.startswith("_"):
                setattr(kind, method, RECORDER.span(f"{service}.{method}", call))
    _arrows(runtime._endpoint, append)
    return RECORDER


def _arrows(endpoint: Any, append: Callable[[Any], None]) -> None:
    """A message's name is the same at both ends: (kind, context, source, dest, seq, slot).

    An arrow ends where a receive takes the message, or where a collective has it whole.
    """
    rank, awaited = endpoint.rank, {}
    send, publish, deal = endpoint.send, endpoint.publish, endpoint.deal
    match, expect, complete = endpoint._match, endpoint.expect, endpoint._complete

    def leave(name: Any) -> None:
        append(("s", name, _ident(), _clock(), 0))

    def arrive(name: Any) -> None:
        append(("f", name, _ident(), _clock(), 0))

    def sending(context: int, dest: int, *more: Any, **named: Any) -> Any:
        leave((0, context, rank, dest, endpoint._sent.get((context, dest), 0), 0))
        return send(context, dest, *more, **named)

    def publishing(context: int, seq: int, slot: int, dests: Any, data: Any) -> Any:
        for dest in dests:
            leave((2, context, rank, dest, seq, slot))
        return publish(context, seq, slot, dests, data)

    def dealing(context: int, seq: int, slot: int, blobs: Any) -> Any:
        for dest, _ in blobs:
            leave((2, context, rank, dest, seq, slot))
        return deal(context, seq, slot, blobs)

    def matching(message: Any, receive: Any) -> None:
        context, source = receive.pattern[0], message.envelope.source
        append(("f", (0, context, source, rank, message.seq, 0), _ident(), _clock(), 0))
        match(message, receive)

    def expecting(context: int, source: int, seq: int, slot: int, dealt: bool = False) -> Any:
        receive = expect(context, source, seq, slot, dealt)
        name = (2, context, source, rank, seq, slot)
        if receive.done:
            arrive(name)
        else:
            awaited[id(receive)] = name
        return receive

    def completing(receive: Any, body: Any) -> None:
        name = awaited.pop(id(receive), None)
        if name is not None:
            arrive(name)
        complete(receive, body)

    endpoint.send, endpoint.publish, endpoint.deal = sending, publishing, dealing
    endpoint._match, endpoint.expect, endpoint._complete = matching, expecting, completing


def merge(folder: Path, out: TextIO) -> int:
    """Write what the ranks left in `folder` as one trace; returns the number of ranks.

    Times are microseconds since the first event.  On one machine the ranks' clocks are one; else they differ by as
    much as the machines' clocks do, and an arrow may seem to arrive when it left.
    """
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("trace-*.json"))]
    if len({record["host"] for record in records}) == 1:
        for record in records:
            record["offset"] = records[0]["offset"]
    left: dict[tuple[int, ...], int] = {}  # a message's name -> when it left
    paired: dict[tuple[int, ...], int] = {}  # -> number of its arrow
    for kind in ("s", "f"):
        for record in records:
            for event in record["events"]:
                if event[0] == kind:
                    name = tuple(event[1])
                    if kind == "s":
                        left[name] = event[3] + record["offset"]
                    elif name in left:
                        paired.setdefault(name, len(paired))
    begin = min((event[3] + record["offset"] for record in records for event in record["events"]), default=0)
    out.write('{"displayTimeUnit": "ms", "traceEvents": [')
    comma = ""

    def write(event: dict[str, Any]) -> None:
        nonlocal comma
        out.write(f"{comma}\n{json.dumps(event)}")
        comma = ","

    for record in records:
        rank = record["rank"]
        threads = {record["main"]: 0}
        write({"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": f"rank {rank}"}})
        write({"ph": "M", "name": "process_sort_index", "pid": rank, "tid": 0, "args": {"sort_index": rank}})
        arrived = set()
        for kind, name, thread, start, end in record["events"]:
            tid = threads.setdefault(thread, len(threads))
            at = start + record["offset"]
            made: dict[str, Any] = {"ph": kind, "pid": rank, "tid": tid, "ts": (at - begin) / 1000}
            if kind == "X":
                write({**made, "name": name, "cat": name.partition(".")[0] if "." in name else "call", "dur": (end - start) / 1000})
                continue
            name = tuple(name)
            if name not in paired or (kind, name) in arrived:
                continue
            arrived.add((kind, name))
            made.update(name="message", cat="message", id=paired[name])
            if kind == "f":
                made.update(bp="e", ts=(max(at, left[name]) - begin) / 1000)
            write(made)
        for thread, tid in threads.items():
            label = "program" if tid == 0 else record["threads"].get(str(thread), f"thread {tid}")
            write({"ph": "M", "name": "thread_name", "pid": rank, "tid": tid, "args": {"name": label}})
    out.write(f'\n], "otherData": {json.dumps({"ranks": len(records)})}}}\n')
    return len(records)
