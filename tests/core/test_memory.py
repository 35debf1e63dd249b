"""Memory does not grow with the number of messages: counted, not timed."""

from __future__ import annotations

import gc
import sys

from serverless_mpi.core.endpoint import Endpoint
from serverless_mpi.core.envelope import ANY_SOURCE, ANY_TAG
from serverless_mpi.core.wire import HEADER_BYTES

JOB, KEY = bytes(8), bytes(32)
MESSAGES = 100_000
CONTEXTS = 10_000
GROWTH_BLOCKS = 200  # of Python's allocator: dictionaries that were resized; a block kept for each message would be 100,000


def test_a_hundred_thousand_messages_leave_nothing() -> None:
    sender, receiver = (Endpoint(rank, JOB, KEY, HEADER_BYTES + 8, 1 << 20) for rank in (0, 1))
    data = [memoryview(b"payload")]
    long = [memoryview(b"three frames of this")]
    collective = 0

    def some(count: int) -> None:
        nonlocal collective
        for number in range(count // 10):
            for tag in range(
                8
            ):  # unexpected ones, posted ones, wildcards; tags that never come again
                posted = receiver.post(7, 0, number) if tag % 2 else None
                for frame in sender.send(7, 1, number, long if tag == 3 else data):
                    receiver.receive(memoryview(b"".join(frame.parts)), 0.0)
                receive = posted or receiver.post(7, ANY_SOURCE, ANY_TAG)
                assert receive.done
            step = sender.publish(7, collective, 0, (1,), data)[0]
            for _ in range(2):  # comes twice
                receiver.receive(memoryview(b"".join(step.parts)), 0.0)
            assert receiver.expect(7, 0, collective, 0).done
            receiver.retire(7, collective)
            collective += 1

    some(MESSAGES // 20)
    gc.collect()
    before = sys.getallocatedblocks()
    some(MESSAGES)
    gc.collect()
    assert sys.getallocatedblocks() - before < GROWTH_BLOCKS and receiver.held_bytes == 0


def test_contexts_that_are_freed_leave_eight_bytes_each() -> None:
    ends = [Endpoint(rank, JOB, KEY, HEADER_BYTES + 8, 1 << 20) for rank in (0, 1)]
    data = [memoryview(b"payload")]
    context = 10

    def some(count: int) -> None:
        nonlocal context
        for _ in range(count):
            context += 1
            for here, there in (ends, ends[::-1]):
                receive = there.post(context, here.rank, 0)
                for frame in (
                    *here.send(context, there.rank, 0, data),
                    *here.publish(context, 0, 0, (there.rank,), data),
                ):
                    there.receive(memoryview(b"".join(frame.parts)), 0.0)
                assert receive.done and there.expect(context, here.rank, 0, 0).done
                there.retire(context, 0)
            for end in ends:
                end.free(context)

    some(200)
    gc.collect()
    before = sys.getallocatedblocks()
    some(CONTEXTS)
    gc.collect()
    assert sys.getallocatedblocks() - before < GROWTH_BLOCKS
    for end in ends:
        assert not end._contexts and not end._closing and len(end._freed) == CONTEXTS + 200
        assert sys.getsizeof(end._freed._contexts) < 10 * len(end._freed)
