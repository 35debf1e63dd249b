"""Media with injected failures: frames repeated, late and out of order; requests refused, cut,
unanswered.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from serverless_mpi import channels
from serverless_mpi.api.intracomm import Intracomm
from serverless_mpi.aws.control import VISIBILITY_S
from serverless_mpi.channels.base import Delivery, OutgoingFrame
from serverless_mpi.channels.memory import MemoryChannel
from serverless_mpi.channels.queue import ACK_AFTER_S
from serverless_mpi.job import JobSpec
from serverless_mpi.runtime import Runtime
from tests.faults.programs import PROGRAMS, run
from tests.faults.proxy import HARMS, Proxy

SIZE = 3


class Chaos(MemoryChannel):
    """Delivers every frame once to three times, in any order, some of them only when nothing else is left."""

    def __init__(self, spec: JobSpec, meter: Any) -> None:
        super().__init__(spec, meter)
        self._chance = random.Random(f"{spec.settings['seed']}/{spec.rank}")
        self._held: list[Delivery] = []
        self.repeated = 0

    def get(self, max_wait_s: float, wanted: Callable[[], Any]) -> list[Delivery]:
        come = super().get(0.0 if self._held else max_wait_s, wanted)
        for delivery in come:
            times = self._chance.choice((1, 1, 2, 3))
            self.repeated += times - 1
            self._held += [
                Delivery(memoryview(bytearray(delivery.data)), None) for _ in range(times)
            ]
        self._chance.shuffle(self._held)
        if come:  # some wait for what comes later; what is left alone goes out
            keep = self._chance.randrange(len(self._held) + 1)
        else:
            keep = 0
        out, self._held = self._held[keep:], self._held[:keep]
        return out

    def put(self, frames: Sequence[OutgoingFrame]) -> None:
        super().put(self._chance.sample(list(frames), len(frames)))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("seed", range(6))
def test_frames_twice_late_and_in_any_order(
    seed: int, program: Callable[[Intracomm], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(channels.CHANNELS, "chaos", "tests.faults.test_media:Chaos")
    spec = JobSpec.new(SIZE, "chaos", settings={"seed": str(seed)})
    runtimes = [Runtime(spec.with_rank(rank)) for rank in range(SIZE)]
    for runtime in runtimes:
        runtime._endpoint._max_body = 5000 + 1000 * seed  # so that messages travel in many frames
    run(runtimes, program)
    for runtime in runtimes:
        assert runtime._channel.repeated > 0 and runtime._endpoint.held_bytes == 0  # type: ignore[attr-defined]
        assert runtime._endpoint.dropped == 0
        runtime.finalize()
    MemoryChannel.destroy(spec)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("name", ["queue", "object", "hybrid"])
def test_a_service_that_fails_one_request_in_ten(
    name: str,
    program: Callable[[Intracomm], None],
    ministack_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # what an answer that was lost has taken comes again at once, and not after a minute
    monkeypatch.setattr("serverless_mpi.aws.control.VISIBILITY_S", 1)
    kind = channels.load(name)
    spec = JobSpec.new(SIZE, name, endpoint=ministack_endpoint)
    spec = replace(spec, settings=kind.provision(spec))
    try:
        with Proxy(ministack_endpoint, seed=7, share=0.1) as proxy:
            through = replace(spec, endpoint=proxy.url)
            runtimes = [Runtime(through.with_rank(rank)) for rank in range(SIZE)]
            run(runtimes, program)
            ends = [threading.Thread(target=runtime.finalize) for runtime in runtimes]
            for end in ends:
                end.start()
            for end in ends:
                end.join()
            assert sum(proxy.harmed[harm] for harm in HARMS) > 0
            metered = sum(
                row["requests"] for runtime in runtimes for row in runtime.meter.snapshot().values()
            )
            assert metered == sum(
                proxy.seen.values()
            )  # every attempt is on the bill, and nothing else
    finally:
        kind.destroy(spec)


@pytest.mark.parametrize("name", ["queue", "object"])
def test_sixty_four_ranks(name: str, ministack_endpoint: str) -> None:
    kind = channels.load(name)
    spec = JobSpec.new(64, name, endpoint=ministack_endpoint)
    spec = replace(spec, settings=kind.provision(spec))
    runtimes = [Runtime(spec.with_rank(rank)) for rank in range(spec.size)]

    def program(comm: Intracomm) -> None:
        assert comm.allreduce(comm.rank) == 64 * 63 // 2
        names = comm.gather(f"hello from {comm.rank}", 0)
        assert names is None or names[63] == "hello from 63"

    try:
        run(runtimes, program)
        for runtime in runtimes:
            runtime.finalize()
    finally:
        kind.destroy(spec)


def test_what_was_received_is_acknowledged_before_it_comes_again() -> None:
    assert VISIBILITY_S >= 2 * ACK_AFTER_S
