"""Proof that every queue of a pool receives its own messages and no others.

CloudFormation reports a subscription as created before its filter policy is applied everywhere,
which takes up to 15 minutes
(https://docs.aws.amazon.com/sns/latest/dg/sns-subscription-filter-policies.html); a queue's policy
takes up to 60 seconds
(https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SetQueueAttributes.html).
Until then SNS drops messages that the queue refuses, without a report, and delivers those that a
filter should have kept back. A job would wait for a lost message until its time limit, and all its
ranks would be billed.

So a deploy publishes one message to each slot, as a rank does, and one to nobody (a decoy). A slot
is proven when its queue received its own message and nothing else; other slots are tried again in
the next round. Only probes have no frame, so a rank drops a late one like any message that is not
of its job. The slots are leased meanwhile, so no job's messages are taken.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from serverless_mpi.aws import sns, sqs
from serverless_mpi.deploy.deployment import Pace
from serverless_mpi.errors import ChannelError
from serverless_mpi.stack import layout as names
from serverless_mpi.stack import pool
from serverless_mpi.stack.stack import Stack, explained

PROBE_S = 960.0  # 15 minutes, and a minute for what SNS itself takes
PAUSES_S = (2.0, 30.0)  # between two rounds: first and longest
OWN_S = 5  # a long poll for a queue's own message
OTHERS_S = 1  # and, when that has come, for one that should not
DECOY = "none"  # addressed to no slot: a queue that receives it has no filter yet
AT_ONCE = 16
LEASE = "deploy"  # instead of a job's id


def prove(stack: Stack, say: Callable[[str], None], pace: Pace | None = None) -> int:
    """Send probes until every slot of the stack's pool is proven.

    Parameters
    ----------
    stack
        Stack whose pool is probed; its free slots are leased meanwhile.
    say
        Receives a line after each round that leaves slots unproven.
    pace
        Time; None for this machine's clock.

    Returns
    -------
    int
        Number of slots that were proven: those that no job holds.

    Raises
    ------
    ChannelError
        Slots are still unproven after PROBE_S.

    Notes
    -----
    A round has one message and two or three requests per slot.
    """
    pace = pace or Pace.of(stack.endpoint)
    slots = pool.hold_free(stack, LEASE, PROBE_S)
    try:
        with explained("probe the queues", stack.endpoint, stack.region):
            _Probe(stack, pace).run(slots, say)
    finally:
        pool.give_back(stack, LEASE)
    return len(slots)


class _Probe:
    """The rounds."""

    def __init__(self, stack: Stack, pace: Pace) -> None:
        self._stack = stack
        self._pace = pace
        self._sns = stack.client("sns")
        self._sqs = stack.client("sqs")
        # an emulator delivers before it answers a publish
        self._waits = (OWN_S, OTHERS_S) if stack.endpoint is None else (1, 0)

    def run(self, slots: Sequence[int], say: Callable[[str], None]) -> None:
        left, pause = list(slots), PAUSES_S[0]
        deadline = self._pace.now() + PROBE_S
        while left:
            left = self._round(left)
            if not left:
                return
            if self._pace.now() >= deadline:
                raise ChannelError(
                    f"{len(left)} of {len(slots)} queues of stack {self._stack.name} do not receive"
                    f" their own messages alone after {PROBE_S / 60:.0f} minutes (slots"
                    f" {_listed(left)}): `smpi deploy` probes them again;"
                    " --channel object needs none"
                )
            say(
                f"{len(slots) - len(left)} of {len(slots)} queues receive their own messages alone;"
                " SNS applies filter policies within 15 minutes"
            )
            self._pace.sleep(pause)
            pause = min(2 * pause, PAUSES_S[1])

    def _round(self, slots: list[int]) -> list[int]:
        """Publish a probe to each slot; return the slots that are not proven."""
        number = secrets.token_hex(8)
        self._publish(slots, number)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            proven = threads.map(lambda slot: self._proven(slot, number), slots)
            return [slot for slot, good in zip(slots, proven, strict=True) if not good]

    def _publish(self, slots: list[int], number: str) -> None:
        for topic, group in _by_topic(slots, self._stack.topics()):
            for batch in _batches([*map(str, group), DECOY]):
                entries = [
                    {
                        "Id": str(place),
                        "Message": f"{number} {slot}",
                        "MessageAttributes": {
                            sns.TO: {"DataType": "String.Array", "StringValue": f'["{slot}"]'}
                        },
                    }
                    for place, slot in enumerate(batch)
                ]
                # an entry that fails is like a message that is lost: the next round is its retry
                self._sns.publish_batch(TopicArn=topic, PublishBatchRequestEntries=entries)

    def _proven(self, slot: int, number: str) -> bool:
        """Whether the slot's queue received its own probe of this round, and no other message."""
        own_s, others_s = self._waits
        queue, own = self._stack.queue(slot), f"{number} {slot}"
        bodies: set[str] = set()
        while own not in bodies:
            fresh = self._receive(queue, own_s)
            if not fresh:
                return False
            bodies |= fresh
        while fresh := self._receive(queue, others_s):
            bodies |= fresh
        # what an earlier round, or an earlier job, left here came through the filter, too
        return not any(_foreign(body, slot) for body in bodies)

    def _receive(self, queue: str, wait_s: int) -> set[str]:
        """Receive and delete messages; return their bodies."""
        answer = self._sqs.receive_message(
            QueueUrl=queue, MaxNumberOfMessages=sqs.MAX_ENTRIES, WaitTimeSeconds=wait_s
        )
        messages = answer.get("Messages", [])
        if messages:
            entries = [
                {"Id": str(place), "ReceiptHandle": message["ReceiptHandle"]}
                for place, message in enumerate(messages)
            ]
            self._sqs.delete_message_batch(QueueUrl=queue, Entries=entries)
        return {str(message["Body"]) for message in messages}


def _foreign(body: str, slot: int) -> bool:
    """Whether a message is a probe to another slot, or to none."""
    number, space, reader = body.partition(" ")
    return bool(space) and len(number) == 16 and reader != str(slot)


def _by_topic(slots: Iterable[int], topics: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Yield each topic that serves some of the slots, with those."""
    for number, topic in enumerate(topics):
        group = [slot for slot in slots if slot // names.FILTERS_PER_TOPIC == number]
        if group:
            yield topic, group


def _batches(items: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(items), sns.MAX_ENTRIES):
        yield items[start : start + sns.MAX_ENTRIES]


def _listed(slots: list[int], most: int = 8) -> str:
    text = ", ".join(map(str, slots[:most]))
    return text + (f" and {len(slots) - most} more" if len(slots) > most else "")
