"""What a rank notes for `smpirun --profile`: sums per call site, and the times of messages.

Without `--profile` nothing imports this module.  With it, every communicating method is wrapped
(`Profiler.wrapped`), the hooks of the endpoint report messages, and the meter of the rank is a
`SiteMeter`.

Sums are exact, whatever the length of the job.  Times of messages are kept for the newest
`MOST_EVENTS` of each kind only: the launcher needs both ends of a message to decide who was late.

- A call belongs to the line of the user's program that leads to it: frames of this package, of the
  standard library and of installed packages are skipped, if there is a frame of the program below.
- A call inside a call (a collective that a constructor uses) belongs to the outer one.
- A request of a background thread belongs to the call that the program is in, or was in last, since
  frames of several calls share a request.

A call that waits is cut at the messages it takes: from the moment before (its beginning, or the
message before) to a message, it waited for that message.  `analysis.py` compares with the time at
which the sender sent.

If you change what `write` leaves, also change `analysis.py` and `VERSION`.
"""

from __future__ import annotations

import functools
import json
import os
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from sys import _getframe
from types import CodeType, FrameType
from typing import Any

from serverless_mpi.core.envelope import Envelope
from serverless_mpi.core.wire import Kind
from serverless_mpi.metering import Meter, billed_units
from serverless_mpi.signals import shield

VERSION = 1
MOST_EVENTS = 200_000  # of each kind, the newest; about 40 MB of memory
SHORT_NS = 10_000  # a wait for a step of a collective that is not kept
LONG_NS = 50_000  # a send that takes longer may have waited for its receiver

_PACKAGE = str(Path(__file__).resolve().parent.parent) + os.sep
_LIBRARIES = tuple(
    folder + os.sep
    for folder in {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}
    | {sysconfig.get_path("platlib"), sysconfig.get_path("platstdlib")}
    if folder
)
_clock = time.perf_counter_ns
_ident = threading.get_ident


class Site:
    """Sums of one method at one line.

    Attributes
    ----------
    number
        Its place in `Profiler.sites`.
    call, file, line, function
        The method, as "Send", and the line that called it.
    count, total_ns, longest_ns
        Calls, and their time.
    sent, sent_bytes, taken, taken_bytes
        Messages that the calls sent (one per destination), and point-to-point messages received.
    requests
        "service.operation" -> attempts, billed units, bytes.
    since
        Time of the call that runs: its beginning, or when it took a message last.
    last_send
        Of the call that runs: the point-to-point message that it sent last, and when; else None.
    """

    __slots__ = (
        "number",
        "call",
        "file",
        "line",
        "function",
        "count",
        "total_ns",
        "longest_ns",
        "sent",
        "sent_bytes",
        "taken",
        "taken_bytes",
        "requests",
        "since",
        "last_send",
    )

    def __init__(self, number: int, call: str, file: str, line: int, function: str) -> None:
        self.number = number
        self.call, self.file, self.line, self.function = call, file, line, function
        self.count = self.total_ns = self.longest_ns = 0
        self.sent = self.sent_bytes = self.taken = self.taken_bytes = 0
        self.requests: dict[str, list[int]] = {}
        self.since = 0
        self.last_send: tuple[int, int, int, int] | None = None

    def row(self) -> list[Any]:
        """Return the sums as JSON values, in the order that `analysis.py` reads."""
        place = [self.call, self.file, self.line, self.function]
        times = [self.count, self.total_ns, self.longest_ns]
        return [*place, *times, self.sent, self.sent_bytes, self.taken, self.taken_bytes] + [
            self.requests
        ]


class SiteMeter(Meter):
    """A meter that also counts each request for a call site."""

    def __init__(self, profiler: Profiler) -> None:
        super().__init__()
        self._profiler = profiler
        self._guard = threading.Lock()

    def count(
        self,
        service: str,
        operation: str,
        requests: int = 1,
        nbytes: int = 0,
        messages: int = 0,
        billed: int | None = None,
    ) -> None:
        """Count as `Meter.count` does, and for the call that the program is in.

        Parameters
        ----------
        service, operation, requests, nbytes, messages, billed
            As in `Meter.count`.
        """
        if billed is None:
            billed = billed_units(service, requests, nbytes)
        super().count(service, operation, requests, nbytes, messages, billed)
        site = self._profiler.current()
        with self._guard:
            row = site.requests.setdefault(f"{service}.{operation}", [0, 0, 0])
            row[0] += requests
            row[1] += billed
            row[2] += nbytes


class Profiler:
    """The sums and times of this process.

    Attributes
    ----------
    sites
        All call sites; the first one is for what no call is to be charged with, such as the
        beginning of the rank.
    meter
        To be used by the rank.
    """

    span = request = None  # no observer of single spans, see observers.py

    def __init__(self) -> None:
        self.sites = [Site(0, "(start and end)", "", 0, "")]
        self.meter = SiteMeter(self)
        self._active: dict[int, Site] = {}  # by thread
        self._latest = self.sites[0]
        # (destination, bits of the length) -> messages, bytes
        self._sent: dict[tuple[int, int], list[int]] = {}
        self._sends: deque[tuple[Any, ...]] = deque(maxlen=MOST_EVENTS)
        self._takes: deque[tuple[Any, ...]] = deque(maxlen=MOST_EVENTS)
        self._long: deque[tuple[Any, ...]] = deque(maxlen=MOST_EVENTS)
        self._counts = [0, 0]  # all sends and takes, kept or not
        self._offset = time.time_ns() - _clock()
        self._began = _clock()

    def current(self) -> Site:
        """Return the site to which work of the calling thread belongs."""
        return self._active.get(_ident(), self._latest)

    # -- hooks of the endpoint; they run under the lock of the rank

    def sent(
        self, kind: int, context: int, tag: int, seq: int, dests: tuple[int, ...], nbytes: int
    ) -> None:
        """Note that a message is sent; parameters are those of `Endpoint.on_send`.

        Parameters
        ----------
        kind, context, tag, seq, dests, nbytes
            As in `Endpoint`.
        """
        now = _clock()
        site = self._active.get(_ident(), self._latest)
        bits = nbytes.bit_length()
        for dest in dests:
            row = self._sent.get((dest, bits))
            if row is None:
                row = self._sent[dest, bits] = [0, 0]
            row[0] += 1
            row[1] += nbytes
            site.sent += 1
            site.sent_bytes += nbytes
        self._counts[0] += 1
        self._sends.append((kind, context, tag, seq, dests, now))
        if kind == Kind.POINT:
            site.last_send = (context, dests[0], seq, now)

    def matched(self, envelope: Envelope, seq: int) -> None:
        """Note that a receive has matched a message.

        Parameters
        ----------
        envelope, seq
            As in `Endpoint.on_match`.
        """
        now = _clock()
        site = self._active.get(_ident())
        context, source, _, nbytes = envelope
        if site is None:
            self._takes.append((context, source, seq, -1, 0, now, now))
            return
        site.taken += 1
        site.taken_bytes += nbytes
        self._counts[1] += 1
        self._takes.append((context, source, seq, -1, site.number, site.since, now))
        site.since = now
        site.last_send = None

    def step(self, name: tuple[int, int, int, int]) -> None:
        """Note that a step of a collective has been received.

        Parameters
        ----------
        name
            Context, source, number of the collective, and slot.
        """
        now = _clock()
        site = self._active.get(_ident())
        if site is not None:
            context, source, seq, slot = name
            if now - site.since >= SHORT_NS:
                self._counts[1] += 1
                self._takes.append((context, source, seq, slot, site.number, site.since, now))
            site.since = now
            site.last_send = None

    # -- calls of the program

    def wrapped(self, name: str, method: Callable[..., object]) -> Callable[..., object]:
        """Return `method`, counted.

        Parameters
        ----------
        name
            As it is shown.
        method
            A function.
        """
        active = self._active
        # (id of a code object, offset in it) -> site; the code objects are kept alive by `codes`
        known: dict[tuple[int, int], Site | None] = {}
        codes: list[CodeType] = []

        @functools.wraps(method)
        def profiled(*arguments: object, **keywords: object) -> object:
            thread = _ident()
            if thread in active:
                return method(*arguments, **keywords)
            frame = _getframe(1)
            key = (id(frame.f_code), frame.f_lasti)
            site = known.get(key)
            if site is None:
                site, own = self._site(name, frame)
                if own:
                    known[key] = site
                    codes.append(frame.f_code)
            active[thread] = self._latest = site
            shield.enter()
            site.since = begin = _clock()
            site.last_send = None
            try:
                return method(*arguments, **keywords)
            finally:
                end = _clock()
                took = end - begin
                site.count += 1
                site.total_ns += took
                if took > LONG_NS:
                    if took > site.longest_ns:
                        site.longest_ns = took
                    if site.last_send is not None:
                        self._long.append((*site.last_send, site.number, end))
                elif took > site.longest_ns:
                    site.longest_ns = took
                del active[thread]
                shield.leave()

        return profiled

    def _site(self, name: str, frame: FrameType) -> tuple[Site, bool]:
        """Return the site of a call, and whether its caller is the line of the program itself."""
        caller: FrameType | None = frame
        first: FrameType | None = None
        while caller is not None:
            file = caller.f_code.co_filename
            if not file.startswith(_PACKAGE):
                first = first or caller
                if not (file.startswith(_LIBRARIES) or file.startswith("<frozen")):
                    break
            caller = caller.f_back
        shown = caller or first or frame
        code = shown.f_code
        function = getattr(code, "co_qualname", code.co_name)  # Python 3.10 has the short one
        found = (name, code.co_filename, shown.f_lineno or 0, function)
        for site in self.sites:
            if (site.call, site.file, site.line, site.function) == found:
                return site, shown is frame
        site = Site(len(self.sites), *found)
        self.sites.append(site)
        return site, shown is frame

    # -- the end

    def write(self, folder: Path, rank: int) -> None:
        """Write everything to `profile-RANK.json`: a line of sums, then lines of messages.

        Parameters
        ----------
        folder
            Folder of the job's statistics.
        rank
            World rank.
        """
        facts = {
            "version": VERSION,
            "rank": rank,
            "offset": self._offset,
            "ns": _clock() - self._began,
            "events": self._counts,
            "sites": [site.row() for site in list(self.sites)],
            "sent": [[dest, bits, *row] for (dest, bits), row in self._sent.items()],
        }
        path = folder / f"profile-{rank}.json"
        with open(path.with_suffix(".tmp"), "w") as out:
            out.write(json.dumps(facts) + "\n")
            for kind, events in (("t", self._takes), ("l", self._long), ("s", self._sends)):
                rows = list(events)
                for start in range(0, len(rows), 1000):
                    out.write(json.dumps([kind, rows[start : start + 1000]]) + "\n")
        path.with_suffix(".tmp").rename(path)


PROFILER = Profiler()
