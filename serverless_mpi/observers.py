"""What watches a rank: the tracer (`--trace`), the profiler (`--profile`), or both.

The layers have hooks that are None unless `Runtime.record` attaches an observer; the methods of the
API are wrapped before the program runs.  Without either option this module is not imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from serverless_mpi.api import observe
from serverless_mpi.core.envelope import Envelope
from serverless_mpi.env import ENV_PROFILE, ENV_TRACE
from serverless_mpi.metering import Meter
from serverless_mpi.profile.recorder import PROFILER
from serverless_mpi.trace import RECORDER

Span = Callable[[str, int], None]
Request = Callable[[str, str, int], None]


class Observer(Protocol):
    """Gets what a rank does; its hooks are those of `Endpoint`, and run under the rank's lock.

    Attributes
    ----------
    span
        None, or called when work is over, with its name and beginning.
    request
        None, or called after each attempt of a request; see `Meter.on_request`.
    """

    @property
    def span(self) -> Span | None: ...

    @property
    def request(self) -> Request | None: ...

    def sent(
        self, kind: int, context: int, tag: int, seq: int, dests: tuple[int, ...], nbytes: int
    ) -> None:
        """See `Endpoint.on_send`."""

    def matched(self, envelope: Envelope, seq: int) -> None:
        """See `Endpoint.on_match`."""

    def step(self, name: tuple[int, int, int, int]) -> None:
        """See `Endpoint.on_step`."""

    def write(self, folder: Path, rank: int) -> None:
        """Leave a file for the launcher."""


class _Both:
    """The tracer and the profiler."""

    span: Span | None = RECORDER.span
    request: Request | None = RECORDER.request

    def sent(
        self, kind: int, context: int, tag: int, seq: int, dests: tuple[int, ...], nbytes: int
    ) -> None:
        RECORDER.sent(kind, context, tag, seq, dests, nbytes)
        PROFILER.sent(kind, context, tag, seq, dests, nbytes)

    def matched(self, envelope: Envelope, seq: int) -> None:
        RECORDER.matched(envelope, seq)
        PROFILER.matched(envelope, seq)

    def step(self, name: tuple[int, int, int, int]) -> None:
        RECORDER.step(name)
        PROFILER.step(name)

    def write(self, folder: Path, rank: int) -> None:
        RECORDER.write(folder, rank)
        PROFILER.write(folder, rank)


def asked_for() -> Observer | None:
    """Return the observer that the environment asks for."""
    if ENV_PROFILE not in os.environ:
        return RECORDER if ENV_TRACE in os.environ else None
    return _Both() if ENV_TRACE in os.environ else PROFILER


def meter() -> Meter:
    """Return the meter that the rank is to use."""
    return PROFILER.meter if ENV_PROFILE in os.environ else Meter()


def wrap(classes: Iterable[type]) -> None:
    """Have the calls of methods reported as the environment asks for.

    Parameters
    ----------
    classes
        Classes of the API.
    """
    classes = list(classes)
    if ENV_TRACE in os.environ:
        observe.observe(classes, RECORDER.span)
    if ENV_PROFILE in os.environ:  # last, so that it sees the program as its caller
        observe.wrap(classes, PROFILER.wrapped)
