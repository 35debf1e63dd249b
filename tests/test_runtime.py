"""The runtime: threads that wait for each other, background senders, failures; on channels in
memory.
"""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serverless_mpi.channels.base import Limits, OutgoingFrame
from serverless_mpi.channels.memory import MemoryChannel
from serverless_mpi.collectives.steps import Recv, Send
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG
from serverless_mpi.errors import ChannelError, JobError, UsageError
from serverless_mpi.job import JobSpec, current_spec, is_rank, take_spec
from serverless_mpi.runtime import ENV_MAX_HELD, Runtime, send_queue

TIMEOUT_S = 60.0  # only reached by a failure


def runtimes(size: int, background: bool = False, **more: Any) -> list[Runtime]:
    spec = JobSpec.new(size, "memory", **more)
    made = [Runtime(spec.with_rank(rank)) for rank in range(size)]
    for runtime in made:
        runtime._send_queue.async_put = background
    return made


@pytest.fixture(params=[False, True], ids=["caller puts", "sender thread"])
def pair(request: pytest.FixtureRequest) -> Iterator[list[Runtime]]:
    both = runtimes(2, request.param)
    yield both
    for runtime in both:
        runtime.finalize()


def view(data: bytes | bytearray) -> list[memoryview]:
    return [memoryview(data)]


def in_thread(call: Callable[[], Any]) -> Callable[[], Any]:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        pool.shutdown(wait=False)
    return lambda: future.result(TIMEOUT_S)


def test_send_and_receive(pair: list[Runtime]) -> None:
    a, b = pair
    sends = [a.isend(9, 1, tag, view(b"%d" % tag)) for tag in range(5)]
    receives = [b.irecv(9, 0, tag) for tag in reversed(range(5))]
    assert b.wait(receives, timeout=TIMEOUT_S) and a.wait(sends, timeout=TIMEOUT_S)
    assert [bytes(r.data or b"") for r in receives] == [b"4", b"3", b"2", b"1", b"0"]


def test_a_small_payload_may_be_changed_at_once() -> None:
    a, b = runtimes(2, background=True)
    data = bytearray(b"before")
    send = a.isend(9, 1, 0, view(data))
    data[:] = b"after!"
    assert send.done
    receive = b.irecv(9, 0, 0)
    assert b.wait([receive], timeout=TIMEOUT_S) and receive.data == b"before"


def test_a_synchronous_send_waits_for_its_match(pair: list[Runtime]) -> None:
    a, b = pair
    send = a.isend(9, 1, 0, view(b"x"), sync=True)
    assert b.probe(9, ANY_SOURCE, ANY_TAG).nbytes == 1
    a.progress()
    assert not send.done
    receive = b.irecv(9, 0, 0)
    assert receive.done and a.wait([send], timeout=TIMEOUT_S)


def test_two_threads_of_a_rank_wait_at_once(pair: list[Runtime]) -> None:
    a, b = pair

    def receive(tag: int) -> bytes:
        operation = b.irecv(9, 0, tag)
        assert b.wait([operation], timeout=TIMEOUT_S)
        return bytes(operation.data or b"")

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(receive, tag) for tag in range(4)]
        for tag in reversed(range(4)):
            a.isend(9, 1, tag, view(b"%d" % tag))
        assert [future.result(TIMEOUT_S) for future in futures] == [b"0", b"1", b"2", b"3"]


def test_a_message_to_oneself_wakes_the_thread_that_pumps(pair: list[Runtime]) -> None:
    a, _ = pair
    receive = a.irecv(9, 0, 0)
    waiting = threading.Event()
    original = a._channel.get

    def get(*arguments: Any) -> Any:
        waiting.set()
        return original(*arguments)

    a._channel.get = get  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(a.wait, [receive], True, TIMEOUT_S)
        assert waiting.wait(TIMEOUT_S)
        a.isend(9, 0, 0, view(b"x"))
        assert future.result(TIMEOUT_S)
    assert receive.data == b"x"


def test_poke_makes_a_waiter_look_again(pair: list[Runtime]) -> None:
    a, _ = pair
    flag: list[bool] = []
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(a.wait_until, lambda: bool(flag), TIMEOUT_S)
        flag.append(True)
        a.poke()
        assert future.result(TIMEOUT_S)


def test_wait_gives_up_after_its_time() -> None:
    a, _ = runtimes(2)
    assert a.wait([a.irecv(9, 1, 0)], timeout=0.0) is False


def test_matched_probe(pair: list[Runtime]) -> None:
    a, b = pair
    a.isend(9, 1, 3, view(b"mine"))
    message = b.mprobe(9, ANY_SOURCE, 3)
    assert b.improbe(9, ANY_SOURCE, 3) is None
    into = bytearray(4)
    operation = b.irecv_matched(message, memoryview(into))
    assert operation.done and operation.landed and into == b"mine"


def test_cancel_only_what_nothing_has_matched(pair: list[Runtime]) -> None:
    a, b = pair
    first, second = b.irecv(9, 0, 0), b.irecv(9, 0, 0)
    a.isend(9, 1, 0, view(b"x"))
    assert b.wait([first], timeout=TIMEOUT_S)
    assert not b.cancel(first) and b.cancel(second) and second.cancelled and second.done


def test_a_collective_runs_while_others_wait(pair: list[Runtime]) -> None:
    def swap(me: int) -> Any:
        got = yield [Send((1 - me,), view(b"from %d" % me)), Recv(1 - me)]
        again = yield Recv(1 - me, slot=1) if me else Send((1,), view(b"again"), slot=1)
        return bytes(got[1]), again if again is None else bytes(again)

    first = pair[0].icollective(9, 0, swap(0), (0, 1))
    second = pair[1].icollective(9, 0, swap(1), (0, 1))
    assert pair[0].wait([first], timeout=TIMEOUT_S) and pair[1].wait([second], timeout=TIMEOUT_S)
    assert first.result == (b"from 1", None) and second.result == (b"from 0", b"again")


def test_an_error_in_a_collective_is_the_operations(pair: list[Runtime]) -> None:
    def broken() -> Any:
        yield Send((1,), view(b"x"))
        raise ZeroDivisionError("the user's operation")

    operation = pair[0].icollective(9, 0, broken(), (0, 1))
    assert operation.done and isinstance(operation.error, ZeroDivisionError)


class Broken(MemoryChannel):
    def put(self, frames: Sequence[OutgoingFrame]) -> None:
        raise ChannelError("the medium is gone")


def test_a_lost_medium_fails_every_later_call() -> None:
    a, _ = runtimes(2, background=True)
    a._channel.put = Broken(a.spec, a.meter).put  # type: ignore[method-assign]
    receive = a.irecv(9, 1, 0)
    a.isend(9, 1, 0, view(b"small, so the call itself succeeds"))
    for _ in range(2):
        with pytest.raises(ChannelError, match="gone"):
            a.wait([receive], timeout=TIMEOUT_S)
    with pytest.raises(ChannelError, match="gone"):
        a.finalize()
    a.finalize()  # it is over


def test_a_large_payload_is_not_copied_and_fails_by_itself() -> None:
    a, _ = runtimes(2, background=True)
    a._channel.put = Broken(a.spec, a.meter).put  # type: ignore[method-assign]
    send = a.isend(9, 1, 0, view(bytes(1 << 20)))
    with pytest.raises(ChannelError):
        a.wait([a.irecv(9, 1, 0)], timeout=TIMEOUT_S)
    assert send.done and isinstance(send.error, ChannelError)


def test_a_burst_goes_out_in_full_batches() -> None:
    a, _ = runtimes(2, background=True)
    sizes: list[int] = []
    gate, entered = threading.Event(), threading.Event()
    original = a._channel.put

    def put(frames: Sequence[OutgoingFrame]) -> None:
        sizes.append(len(frames))
        entered.set()
        assert gate.wait(TIMEOUT_S)
        original(frames)

    a._channel.put = put  # type: ignore[method-assign]
    a.isend(9, 1, 0, view(b"lone"))
    assert entered.wait(TIMEOUT_S)
    for tag in range(20):
        a.isend(9, 1, tag, view(b"burst"))
    gate.set()
    a.finalize()
    assert sizes == [1, 20]


def test_finalize_puts_what_is_queued_and_leaves_the_counters(tmp_path: Path) -> None:
    a, b = runtimes(2, background=True, stats_dir=str(tmp_path))
    a.isend(9, 1, 0, view(b"last words"))
    a.finalize()
    a.finalize()
    receive = b.irecv(9, 0, 0)
    assert b.wait([receive], timeout=TIMEOUT_S) and receive.data == b"last words"
    assert json.loads((tmp_path / "rank-0.json").read_text())["rank"] == 0
    with pytest.raises(JobError, match="finalized"):
        a.isend(9, 1, 0, view(b"x"))


def test_payloads_are_freed_without_the_collector(pair: list[Runtime]) -> None:
    class Marked(bytearray):
        pass

    a, b = pair
    gc.collect()
    gc.disable()
    try:
        data = Marked(b"x" * 100)
        into = Marked(100)
        send, receive = a.isend(9, 1, 0, [memoryview(data)]), b.irecv(9, 0, 0, memoryview(into))
        assert a.wait([send], timeout=TIMEOUT_S) and b.wait([receive], timeout=TIMEOUT_S)
        gone = weakref.ref(into)
        del data, into, send, receive
        assert gone() is None
    finally:
        gc.enable()


def test_max_held_bytes_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_MAX_HELD, "many")
    with pytest.raises(UsageError, match=ENV_MAX_HELD):
        runtimes(1)


def test_limits_decide_who_puts() -> None:
    assert MemoryChannel.limits == Limits(MemoryChannel.limits.max_frame_bytes, async_put=False)


@pytest.mark.parametrize(
    "change", [{"rank": 2}, {"size": 0}, {"key": b"short"}, {"job_id": "xyz"}, {"job_id": "ab"}]
)
def test_a_job_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    fields = {
        "job_id": "00" * 8,
        "rank": 0,
        "size": 2,
        "channel": "memory",
        "key": bytes(32),
        **change,
    }
    with pytest.raises(JobError):
        JobSpec(**fields)


def test_a_job_survives_the_environment_and_hides_its_key() -> None:
    spec = JobSpec.new(
        4, "queue", endpoint="http://127.0.0.1:1", settings={"bucket": "b"}
    ).with_rank(3)
    assert JobSpec.from_env(spec.to_env()) == spec
    assert spec.key.hex() not in repr(spec) and spec.key.hex() not in spec.to_env()["SMPI_JOB"]
    assert JobSpec.from_env({}) is None
    with pytest.raises(JobError, match="smpirun"):
        JobSpec.from_env({"SMPI_JOB": "{"})


def puts_of(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, threading.Thread]]:
    """(frames, thread) of each put of a channel, as they come."""
    seen: list[tuple[int, threading.Thread]] = []
    put = runtime._channel.put

    def recorded(frames: Sequence[OutgoingFrame]) -> None:
        seen.append((len(frames), threading.current_thread()))
        put(frames)

    monkeypatch.setattr(runtime._channel, "put", recorded)
    return seen


@pytest.mark.parametrize("alone", [False, True])
def test_sends_are_gathered_until_the_caller_blocks(
    alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serverless_mpi.runtime.send_queue.GATHER_QUIET_S", 1000.0)
    monkeypatch.setattr("serverless_mpi.runtime.send_queue.GATHER_LONGEST_S", 1000.0)
    a, b = runtimes(2, background=True)
    a._send_queue.serial = alone
    seen = puts_of(a, monkeypatch)
    sends = [a.isend(9, 1, 0, view(b"%d" % number)) for number in range(20)]
    assert seen == [] and all(send.done for send in sends)  # small ones are copied
    answer = a.irecv(9, 1, 5)
    waiter = threading.Thread(target=lambda: a.wait([answer], timeout=TIMEOUT_S))
    waiter.start()
    for number in range(20):
        receive = b.irecv(9, 0, 0)
        assert b.wait([receive], timeout=TIMEOUT_S) and receive.data == b"%d" % number
    b._send_queue.serial = True  # so that finalizing puts it
    b.isend(9, 0, 5, view(b"done"))
    b.finalize()
    waiter.join(TIMEOUT_S)
    assert answer.done
    assert [count for count, _ in seen] == [20]
    assert (seen[0][1] is a._send_queue._sender) == (not alone)
    a.finalize()


def test_a_lone_send_needs_no_other_call() -> None:
    a, b = runtimes(2, background=True)
    for _ in range(3):
        a.isend(9, 1, 0, view(b"alone"))
        receive = b.irecv(9, 0, 0)
        assert b.wait([receive], timeout=TIMEOUT_S)
    for runtime in (a, b):
        runtime.finalize()


def test_much_goes_out_before_the_caller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serverless_mpi.runtime.send_queue.GATHER_QUIET_S", 1000.0)
    monkeypatch.setattr("serverless_mpi.runtime.send_queue.GATHER_LONGEST_S", 1000.0)
    monkeypatch.setattr("serverless_mpi.runtime.send_queue.GATHER_FRAMES", 8)
    a, b = runtimes(2, background=True)
    for _ in range(8):
        a.isend(9, 1, 0, view(b"x"))
    receives = [b.irecv(9, 0, 0) for _ in range(8)]
    assert b.wait(receives, timeout=TIMEOUT_S)
    for runtime in (a, b):
        runtime.finalize()


def test_a_wait_with_a_time_limit_is_not_a_deadlock() -> None:
    class Never:
        interval_s = 0.0

        def tell(self, *_: Any) -> None:
            raise AssertionError("a wait with a time limit was reported")

        def over(self) -> None: ...

    a, _ = runtimes(2)
    a._wait_reporter = Never()  # type: ignore[assignment]
    assert a.wait([a.irecv(9, 1, 0)], timeout=0.01) is False


def test_a_spec_is_taken_out_of_the_environment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serverless_mpi.job._taken", None)
    spec = JobSpec.new(4, "queue").with_rank(3)
    environ = spec.to_env()
    assert take_spec({}) is None
    assert take_spec(environ) == spec and current_spec(environ) == spec and is_rank({})
    assert "SMPI_KEY" not in environ and "SMPI_JOB" not in environ


def test_when_gathered_frames_are_due() -> None:
    """After a quiet moment, after the longest one, and pauses that double until frames are queued."""
    policy = send_queue.GatherPolicy()
    policy.first_at = policy.last_at = 10.0
    assert policy.due_at() == 10.0 + send_queue.GATHER_QUIET_S
    policy.last_at = 11.0
    assert policy.due_at() == 10.0 + send_queue.GATHER_LONGEST_S
    look, seldom = send_queue.LOOK_EVERY_S, send_queue.LOOK_SELDOM_S
    assert policy.pause(11.0, queued=True) == look
    pauses = [policy.pause(11.0, queued=False) for _ in range(5)]
    assert pauses == [2 * look, 4 * look, 8 * look, seldom, seldom]
    assert policy.pause(11.0 + send_queue.DOZE_AFTER_S, queued=False) is None
    assert policy.pause(11.0, queued=False) == 2 * look
