"""Tracing: what each rank did when, as a file that Perfetto and chrome://tracing show.

Each rank is a process with its threads: calls of the program, puts and gets of the channel,
requests to AWS, and an arrow per message from the call that sent it to the call that received it.

Nothing is replaced at run time.  The layers have hooks that are None unless a `Recorder` is
attached: `Endpoint.on_send`, `on_match` and `on_step`, the spans of `Runtime` and its send queue,
and `Meter.on_request`; `Runtime.record` connects them all.  Calls of the program are reported by
`api/observe.py`.  Without tracing this module is not imported by a rank.

A rank writes its events next to its counters when it finalizes, and the launcher merges the files.
If you add a kind of event, also add it to `_ends` (arrows) and `merge` (spans).

Source: "Trace Event Format" (Google, 2016); complete events (X), flow events (s, f) and metadata
(M).
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from serverless_mpi.core.envelope import Envelope
from serverless_mpi.core.wire import Kind

MOST_EVENTS = 1_000_000  # of a rank, the newest; about 200 MB of memory
# spans of requests are named after the methods of aws/, not after the actions of the services
_ACTIONS = {
    "SendMessageBatch": "send",
    "ReceiveMessage": "receive",
    "DeleteMessageBatch": "delete",
    "PublishBatch": "publish",
}
SAME_CLOCK_NS = 1_000_000
SPAN, SENT, TAKEN, WHOLE = range(4)

_clock = time.perf_counter_ns
_ident = threading.get_ident


class Recorder:
    """The events of this process, oldest first; at most `MOST_EVENTS`, the newest ones.

    Each event is a tuple that begins with its kind; times are ns of `time.perf_counter_ns`:

    - SPAN, name, thread, begin, end;
    - SENT, kind, context, tag or slot, seq, destinations, bytes, thread, time;
    - TAKEN, envelope, seq, thread, time;
    - WHOLE, (context, source, seq, slot) of a step, thread, time.

    Recording must be cheap, so an event holds only what its caller has at hand; names and arrows
    are derived after the job.

    Attributes
    ----------
    events
        The events.
    main
        Identifier of the thread that made the recorder, shown as the program.
    offset
        Add it to a time of an event for nanoseconds of the epoch, by this machine's clock.
    """

    def __init__(self) -> None:
        self.events: deque[tuple[Any, ...]] = deque(maxlen=MOST_EVENTS)
        self.main = _ident()
        self.offset = time.time_ns() - _clock()

    def span(self, name: str, begin: int) -> None:
        """Record work that the calling thread has just finished.

        Parameters
        ----------
        name
            Label of the span, as "Comm.send".
        begin
            When the work began, in ns of `time.perf_counter_ns`.
        """
        self.events.append((SPAN, name, _ident(), begin, _clock()))

    def request(self, service: str, action: str, begin: int) -> None:
        """Record a request that the calling thread has just finished.

        Parameters
        ----------
        service
            Name of the service, as "sqs".
        action
            Action of the service, as "SendMessageBatch".
        begin
            When it began, in ns of `time.perf_counter_ns`.
        """
        self.span(f"{service}.{_ACTIONS.get(action, action.lower())}", begin)

    def sent(
        self, kind: int, context: int, tag: int, seq: int, dests: tuple[int, ...], nbytes: int
    ) -> None:
        """Record that the calling thread sends a message.

        Parameters
        ----------
        kind
            A `core.wire.Kind`.
        context
            Context of the communicator.
        tag
            Tag of a point-to-point message, slot of a step.
        seq
            Sequence number of the message, or number of the collective.
        dests
            Ranks that receive it.
        nbytes
            Its length.
        """
        self.events.append((SENT, kind, context, tag, seq, dests, nbytes, _ident(), _clock()))

    def matched(self, envelope: Envelope, seq: int) -> None:
        """Record that a receive has matched a message.

        Parameters
        ----------
        envelope
            Envelope of the message.
        seq
            Its sequence number.
        """
        self.events.append((TAKEN, envelope, seq, _ident(), _clock()))

    def step(self, name: tuple[int, int, int, int]) -> None:
        """Record that a step of a collective has been received completely.

        Parameters
        ----------
        name
            Context, source, number of the collective, and slot.
        """
        self.events.append((WHOLE, name, _ident(), _clock()))

    def write(self, folder: Path, rank: int) -> None:
        """Write the events to a file: one line about the rank, then one line per 1,000 events.

        Parameters
        ----------
        folder
            Folder of the job's statistics; the file is `trace-RANK.json`.
        rank
            World rank.
        """
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


def _ends(rank: int, event: Sequence[Any]) -> Iterator[tuple[bool, tuple[int, ...]]]:
    """Yield (whether the message leaves, its name) for each message end that an event describes.

    A message has one name at both ends: kind, context, source, dest, seq, slot (0 for
    point-to-point).
    """
    if event[0] == SENT:
        _, kind, context, tag, seq, dests, _, _, _ = event
        for dest in dests:
            yield True, (kind, context, rank, dest, seq, tag if kind == Kind.STEP else 0)
    elif event[0] == TAKEN:
        (context, source, _, _), seq = event[1:3]
        yield False, (Kind.POINT, context, source, rank, seq, 0)
    elif event[0] == WHOLE:
        context, source, seq, slot = event[1]
        yield False, (Kind.STEP, context, source, rank, seq, slot)


def _read(path: Path) -> dict[str, Any]:
    """Read what `Recorder.write` wrote; all events are under the key "events"."""
    with open(path) as lines:
        record: dict[str, Any] = json.loads(next(lines))
        record["events"] = [event for line in lines for event in json.loads(line)]
    return record


def merge(folder: Path, out: TextIO) -> int:
    """Write the files of the ranks as one trace.

    Parameters
    ----------
    folder
        With the files that `Recorder.write` wrote.
    out
        Receives JSON: the object form of the Trace Event Format.

    Returns
    -------
    int
        Number of ranks.

    Notes
    -----
    Times are microseconds since the first event. The clock of a rank is set once, by its machine's
    time of day.  Ranks whose clocks agree within a millisecond are assumed to share one, as those
    of one machine do. Otherwise an arrow may seem to arrive before it left, by as much as the times
    of day of the machines differ; it is shown as if it had arrived when it left.
    """
    records = [_read(path) for path in sorted(folder.glob("trace-*.json"))]
    # Before arrows are drawn: these compare times of different ranks.
    _align(records)
    arrows = _Arrows(records)
    starts = (
        event[3 if event[0] == SPAN else -1] + record["offset"]
        for record in records
        for event in record["events"]
    )
    begin = min(starts, default=0)
    out.write('{"displayTimeUnit": "ms", "traceEvents": [')
    comma = ""
    for record in records:
        for event in _track(record, arrows, begin):
            out.write(f"{comma}\n{json.dumps(event)}")
            comma = ","
    out.write(f'\n], "otherData": {json.dumps({"ranks": len(records)})}}}\n')
    return len(records)


def _align(records: list[dict[str, Any]]) -> None:
    """Give all ranks one clock, if their clocks agree as those of one machine do."""
    offsets = [record["offset"] for record in records]
    if offsets and max(offsets) - min(offsets) < SAME_CLOCK_NS:
        for record in records:
            record["offset"] = offsets[0]


class _Arrows:
    """Messages whose sending and receiving were both recorded.

    `left_at` maps the name of a message to the time when it left (ns), `numbers` to the number of
    its arrow.
    """

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.left_at: dict[tuple[int, ...], int] = {}
        arrived: dict[tuple[int, ...], None] = {}
        for record in records:
            for event in record["events"]:
                for leaves, name in _ends(record["rank"], event):
                    if leaves:
                        self.left_at[name] = event[-1] + record["offset"]
                    else:
                        arrived[name] = None
        # A message with one recorded end (the other was among the dropped events) has no arrow.
        both = [name for name in arrived if name in self.left_at]
        self.numbers = {name: number for number, name in enumerate(both)}


def _track(record: dict[str, Any], arrows: _Arrows, begin: int) -> Iterator[dict[str, Any]]:
    """Yield the trace events of one rank: its names, spans, ends of arrows, and its threads."""
    rank, offset = record["rank"], record["offset"]
    threads = {record["main"]: 0}
    named = {"ph": "M", "pid": rank, "tid": 0}
    yield {**named, "name": "process_name", "args": {"name": f"rank {rank}"}}
    yield {**named, "name": "process_sort_index", "args": {"sort_index": rank}}
    drawn: set[tuple[bool, tuple[int, ...]]] = set()  # ends that have been yielded
    for event in record["events"]:
        if event[0] == SPAN:
            _, call, thread, start, end = event
            yield {
                "ph": "X",
                "name": call,
                "cat": call.partition(".")[0] if "." in call else "call",
                "dur": (end - start) / 1000,
                "pid": rank,
                "tid": threads.setdefault(thread, len(threads)),
                "ts": (start + offset - begin) / 1000,
            }
        for leaves, name in _ends(rank, event):
            if name not in arrows.numbers or (leaves, name) in drawn:
                continue
            drawn.add((leaves, name))
            left_at = arrows.left_at[name]
            yield {
                **({"ph": "s", "args": {"bytes": event[6]}} if leaves else {"ph": "f", "bp": "e"}),
                "name": "message",
                "cat": "message",
                "id": arrows.numbers[name],
                "pid": rank,
                "tid": threads.setdefault(event[-2], len(threads)),
                "ts": ((left_at if leaves else max(left_at, event[-1] + offset)) - begin) / 1000,
            }
    for thread, tid in threads.items():
        label = "program" if tid == 0 else record["threads"].get(str(thread), f"thread {tid}")
        yield {**named, "name": "thread_name", "tid": tid, "args": {"name": label}}


def save(folder: Path, file: str, say: Callable[[str], None]) -> None:
    """Merge the files of the ranks into one trace, and report success or the reason of a failure.

    Parameters
    ----------
    folder
        Folder with the files that `Recorder.write` wrote.
    file
        Path of the trace.
    say
        Called with one line for the user.
    """
    try:
        with open(file, "w") as out:
            ranks = merge(folder, out)
    except OSError as error:
        say(f"--trace {file}: {error.strerror}; there is no trace")
    except (ValueError, KeyError, TypeError, IndexError):  # a rank's file is cut off
        say(f"--trace {file}: a rank's file is damaged; there is no trace")
    else:
        say(f"a trace of {ranks} ranks is in {file}; https://ui.perfetto.dev shows it")
