"""Signal handlers that raise at chosen points of a call: its guarantees hold, and the runtime
continues.
"""

from __future__ import annotations

import dis
import inspect
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serverless_mpi import MPI
from serverless_mpi.api.intracomm import Intracomm, world_of
from serverless_mpi.channels.base import Delivery
from serverless_mpi.runtime import Runtime
from serverless_mpi.signals import shield
from tests.test_runtime import TIMEOUT_S, runtimes

SIGNAL = signal.SIGUSR1


class Interrupt(Exception):
    pass


def raising(number: int, frame: Any) -> None:
    raise Interrupt


@pytest.fixture
def pair() -> Iterator[tuple[Intracomm, Intracomm]]:
    both = runtimes(2)
    old = signal.signal(SIGNAL, raising)
    yield world_of(both[0]), world_of(both[1])
    signal.signal(SIGNAL, old)
    for runtime in both:
        runtime.finalize()


def during(runtime: Runtime, call: str, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    """Send the signal once, before or after the next call of the channel."""
    channel = runtime._channel
    original: Callable[..., Any] = getattr(channel, call)

    def signalled(*arguments: Any) -> Any:
        monkeypatch.setattr(channel, call, original)
        if not after:
            signal.raise_signal(SIGNAL)
            return []
        result = original(*arguments)
        signal.raise_signal(SIGNAL)
        return result

    monkeypatch.setattr(channel, call, signalled)


def comes_next(comm: Intracomm) -> None:
    """The exception that was put off comes, by itself or with the next call."""
    with pytest.raises(Interrupt):
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            comm.iprobe(tag=99)


def test_an_interrupted_receive_is_withdrawn(
    pair: tuple[Intracomm, Intracomm], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    during(b._runtime, "get", monkeypatch, after=False)
    with pytest.raises(Interrupt):
        b.recv(source=0)
    a.send("first", 1)
    a.send("second", 1)
    assert [b.recv(source=0), b.recv(source=0)] == ["first", "second"]
    assert shield.depth == 0


def test_a_receive_that_has_taken_a_message_returns_it(
    pair: tuple[Intracomm, Intracomm], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    a.send("first", 1)
    a.send("second", 1)
    during(b._runtime, "get", monkeypatch, after=True)
    assert b.recv(source=0) == "first"
    comes_next(b)
    assert b.recv(source=0) == "second"


def test_a_message_that_is_matched_while_the_handler_runs_is_returned(
    pair: tuple[Intracomm, Intracomm], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair

    def handler(number: int, frame: Any) -> None:
        a.send("meanwhile", 1)
        b._runtime.progress()  # the receive that this handler interrupts is matched now
        raise Interrupt

    signal.signal(SIGNAL, handler)
    during(b._runtime, "get", monkeypatch, after=False)
    assert b.recv(source=0) == "meanwhile"
    comes_next(b)


def test_a_handler_may_communicate_and_the_call_goes_on(
    pair: tuple[Intracomm, Intracomm], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    signal.signal(SIGNAL, lambda number, frame: a.send("from a handler", 1))
    during(b._runtime, "get", monkeypatch, after=False)
    assert b.recv(source=0) == "from a handler"


def test_a_send_is_done_before_the_exception_is_raised(
    pair: tuple[Intracomm, Intracomm], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    during(a._runtime, "put", monkeypatch, after=True)
    a.send("whole", 1)
    comes_next(a)
    assert b.recv(source=0) == "whole"
    assert a._runtime._failure is None


@pytest.mark.parametrize("call", ["Probe", "Mprobe"])
def test_an_interrupted_probe_takes_nothing(
    call: str, pair: tuple[Intracomm, Intracomm], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    during(b._runtime, "get", monkeypatch, after=False)
    with pytest.raises(Interrupt):
        getattr(b, call)(0)
    a.send("kept", 1)
    assert b.mprobe(0).recv() == "kept"


def test_an_interrupted_collective_continues(
    pair: tuple[Intracomm, Intracomm], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    during(b._runtime, "get", monkeypatch, after=False)
    with pytest.raises(Interrupt):
        b.allreduce(1)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: (a.allreduce(1), a.allgather("a")))
        assert b.allgather("b") == ["a", "b"]
        assert other.result(TIMEOUT_S) == (2, ["a", "b"])


def test_an_interrupted_wait_leaves_the_request(
    pair: tuple[Intracomm, Intracomm], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    request = b.irecv(source=0)
    during(b._runtime, "get", monkeypatch, after=False)
    with pytest.raises(Interrupt):
        request.wait()
    a.send("still", 1)
    assert request.wait() == "still"


def test_a_call_that_sleeps_in_its_channel_is_woken(
    pair: tuple[Intracomm, Intracomm], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, b = pair
    get = b._runtime._channel.get

    def sleeping(max_wait_s: float, wanted: Any) -> list[Delivery]:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        return get(1000.0, wanted)

    monkeypatch.setattr(b._runtime._channel, "get", sleeping)
    old = signal.signal(signal.SIGALRM, raising)
    try:
        with pytest.raises(Interrupt):
            b.recv(source=0)
    finally:
        signal.signal(signal.SIGALRM, old)


def test_programs_see_their_own_handlers(pair: tuple[Intracomm, Intracomm]) -> None:
    pair[0].iprobe()
    assert signal.getsignal(SIGNAL) is raising
    assert signal.signal(SIGNAL, signal.SIG_IGN) is raising
    assert signal.signal(SIGNAL, raising) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_was_taken_away_does_not_run(
    pair: tuple[Intracomm, Intracomm], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    a.send("x", 1)
    shield.enter()  # as inside a call
    try:
        signal.raise_signal(SIGNAL)
        assert list(shield.deferred) == [SIGNAL]
        signal.signal(SIGNAL, signal.SIG_IGN)
    finally:
        shield.leave()
    assert not shield.deferred and b.recv() == "x"


# Functions whose calls with * arguments are safe: they run inside the shield of their callers, or what
# they make costs nothing to make again.
_STAR_CALLS = {
    "Intracomm._between",
    "CommConstructors._child",
    "CommConstructors._duplicate",
    "Collective._steps",
    "Handle.__init_subclass__",
    "Datatype.Create_darray",
    "Group.Union",
    "Group.Intersection",
    "Group.Difference",
    "Info.pop",
    "Exporting.__copy__",
}


def test_no_result_is_returned_by_a_call_with_star_arguments_outside_of_the_shield() -> None:
    """CPython 3.11 runs signal handlers right after such a call, where an exception loses its result."""
    found = set()
    kinds = {
        kind for value in vars(MPI).values() if inspect.isclass(value) for kind in value.__mro__
    }
    for kind in kinds:
        if not kind.__module__.startswith("serverless_mpi"):
            continue
        for member in vars(kind).values():
            function = getattr(member, "__func__", getattr(member, "fget", None) or member)
            if inspect.isfunction(function) and not hasattr(function, "__wrapped__"):
                if any(one.opname == "CALL_FUNCTION_EX" for one in dis.get_instructions(function)):
                    found.add(function.__qualname__)
    assert found <= _STAR_CALLS, f"decorate with `uninterrupted`: {sorted(found - _STAR_CALLS)}"
