"""SQS: send, receive and delete in batches, over the AWS JSON 1.0 protocol.

A frame travels in the binary attribute FRAME: its billed size is the frame's own, not that of its base64 form.
Anybody who may send to a queue can put any message there, so `frames_of` raises for none: what has no proper frame is
a frame of 0 bytes, which the core counts as dropped and the channel deletes like any other.
Source: Amazon SQS API Reference.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from serverless_mpi.aws.connection import file_of, raised_by
from serverless_mpi.aws.http import Busy, Client
from serverless_mpi.aws.retry import BUDGET_S, Patience
from serverless_mpi.errors import ChannelError
from serverless_mpi.metering import BILLED_CHUNK_BYTES

FRAME = "f"  # names of message attributes are billed, so they are short
BODY = "."  # a message needs a body of at least one character
ENVELOPE_BYTES = len(FRAME) + len("Binary") + len(BODY)  # what is billed beside the frame
MAX_ENTRIES = 10  # of a batch
MAX_BATCH_BYTES = 1 << 20  # of a message and of a batch: 1 MiB (quota since August 2025)
MAX_LONG_POLL_S = 20
PROMPT = "x-prompt-long-poll"  # a header by which an emulator says that its long polls answer at once, as AWS's do
POLL_BUDGET_S = 0.0  # a poll that fails has found nothing yet: who polls asks again
DELETE_BUDGET_S = 2.0  # a delete that fails is tried again later, with others


@dataclass(frozen=True, slots=True)
class Received:
    """A message: its frame (None: it only wakes; 0 bytes: it has none) and the handle that deletes it."""

    frame: memoryview | None
    handle: str


class Sqs:
    """The calls of the data path.

    prompt: whether a long poll answers as soon as a message comes; of an emulator it is known after a receive.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._quoted: dict[str, bytes] = {}  # URL of a queue -> as JSON; one per rank at most
        self.prompt = False

    def _call(
        self,
        action: str,
        queue: str,
        request: bytes,
        nbytes: int = 0,
        messages: int = 0,
        budget_s: float = BUDGET_S,
    ) -> dict[str, Any]:
        answer = self._client.request(
            action,
            "POST",
            "/",
            headers={
                "content-type": "application/x-amz-json-1.0",
                "x-amz-target": f"AmazonSQS.{action}",
            },
            body=request,
            nbytes=nbytes,
            messages=messages,
            budget_s=budget_s,
        )
        if answer.status != 200:
            raise self._client.refused(f"{action} on {queue}", answer)
        if PROMPT in answer.headers:
            self.prompt = True
        if not answer.body.nbytes:
            return {}
        try:
            fields = json.loads(str(answer.body, "utf-8"))  # json would guess at other encodings
        except (ValueError, RecursionError) as error:
            if not raised_by(error, _JSON_FILES):  # a signal handler's
                raise
            fields = None
        if not isinstance(fields, dict):
            raise self._client.garbled(f"{action} on {queue}", answer.body)
        return fields

    def _failed(
        self, action: str, queue: str, answer: dict[str, Any], names: Collection[str]
    ) -> list[dict[str, Any]]:
        """The entries of a batch that were not done, each with an Id of `names`."""
        failed = answer.get("Failed") or []
        if isinstance(failed, list) and all(
            isinstance(entry, dict) and isinstance(name := entry.get("Id"), str) and name in names
            for entry in failed
        ):
            return failed
        raise self._client.garbled(f"{action} on {queue}", repr(failed).encode())

    def send(self, queue: str, frames: Sequence[bytes], budget_s: float = BUDGET_S) -> None:
        """Send frames (at most 10, 1 MiB in all) in one request; b'' is a message without a frame.

        Raises
        ------
        Busy
            The service was busy for `budget_s` seconds.
        """
        quoted = self._quoted.get(queue)
        if quoted is None:
            quoted = self._quoted[queue] = json.dumps(queue).encode()
        # Loops and formatting by hand: most batches have one frame, for which comprehensions cost more
        # than what they do; and base64 has nothing that JSON must escape.
        entries: dict[str, bytes] = {}
        for number, frame in enumerate(frames):
            entries[str(number)] = frame
        patience: Patience | None = None
        while True:
            messages: list[bytes] = []
            nbytes = 0
            for name, frame in entries.items():
                messages.append(_message(name, frame))
                nbytes += len(frame) + ENVELOPE_BYTES
            request = b'{"QueueUrl":%b,"Entries":[%b]}' % (quoted, b",".join(messages))
            answer = self._call("SendMessageBatch", queue, request, nbytes, len(entries), budget_s)
            failed = self._failed("SendMessageBatch", queue, answer, entries)
            blamed = [entry for entry in failed if entry.get("SenderFault")]
            if blamed:
                raise ChannelError(f"SQS refused a message for {queue}: {blamed[0]}")
            entries = {entry["Id"]: entries[entry["Id"]] for entry in failed}
            if not entries:
                return
            if patience is None:
                patience = self._client.patience(budget_s)
            pause = patience.pause()
            if pause is None:
                raise Busy(
                    f"SQS did not take {len(entries)} messages for {queue} in {patience.troubles} "
                    f"rounds within {patience.budget_s:g} s; the last: {failed[0]}"
                )
            self._client.sleep(pause)

    def receive(self, queue: str, wait_s: int) -> list[Received]:
        """Up to 10 messages, after at most `wait_s` seconds (0..20).

        Raises
        ------
        Busy
            The service is busy; it was asked once.
        """
        request = {
            "QueueUrl": queue,
            "MaxNumberOfMessages": MAX_ENTRIES,
            "WaitTimeSeconds": wait_s,
            "MessageAttributeNames": [FRAME],
        }
        answer = self._call(
            "ReceiveMessage", queue, json.dumps(request).encode(), budget_s=POLL_BUDGET_S
        )
        messages = answer.get("Messages") or []
        if not isinstance(messages, list):
            raise self._client.garbled(f"ReceiveMessage on {queue}", repr(messages).encode())
        received = frames_of(messages)
        nbytes = sum(one.frame.nbytes + ENVELOPE_BYTES for one in received if one.frame is not None)
        # the size is known only now: the chunks of 64 KB beyond the first are added to the request's one
        extra = max(1, -(-nbytes // BILLED_CHUNK_BYTES)) - 1
        self._client.meter.count(
            "sqs", "ReceiveMessage", requests=0, nbytes=nbytes, messages=len(received), billed=extra
        )
        return received

    def delete(self, queue: str, handles: Sequence[str]) -> list[str]:
        """Delete up to 10 received messages; returns the handles of those that were not deleted.

        A message that is not deleted comes again, and is dropped as a duplicate.
        """
        named = {str(place): handle for place, handle in enumerate(handles)}
        entries = [{"Id": name, "ReceiptHandle": handle} for name, handle in named.items()]
        request = json.dumps({"QueueUrl": queue, "Entries": entries}).encode()
        answer = self._call("DeleteMessageBatch", queue, request, budget_s=DELETE_BUDGET_S)
        failed = self._failed("DeleteMessageBatch", queue, answer, named)
        return [named[entry["Id"]] for entry in failed]


def frames_of(messages: Sequence[Any]) -> list[Received]:
    """The frames of an answer's messages, as JSON gave them; a message without a handle cannot be received or deleted."""
    received = []
    for message in messages:
        handle = message.get("ReceiptHandle") if isinstance(message, dict) else None
        if not isinstance(handle, str):
            continue
        attributes = message.get("MessageAttributes")
        if not attributes and message.get("Body") == BODY:
            received.append(Received(None, handle))
            continue
        attribute = attributes.get(FRAME) if isinstance(attributes, dict) else None
        value = attribute.get("BinaryValue") if isinstance(attribute, dict) else None
        received.append(Received(memoryview(_decoded(value)), handle))
    return received


def _decoded(value: Any) -> bytearray:
    """The bytes of a binary attribute; none if `value` is not the base64 form of any."""
    if not isinstance(value, str):
        return bytearray()
    try:
        return bytearray(binascii.a2b_base64(value))
    except ValueError as error:
        if not raised_by(error, _JSON_FILES):  # a signal handler's
            raise
        return bytearray()


def _message(name: str, frame: bytes) -> bytes:
    """An entry of a batch, as JSON."""
    if not frame:
        return b'{"Id":"%b","MessageBody":"%b"}' % (name.encode(), BODY.encode())
    return (
        b'{"Id":"%b","MessageBody":"%b","MessageAttributes":{"%b":{"DataType":"Binary","BinaryValue":"%b"}}}'
        % (name.encode(), BODY.encode(), FRAME.encode(), binascii.b2a_base64(frame, newline=False))
    )


# whose exceptions say that a text is not JSON or base64
_JSON_FILES = tuple(
    file_of(function) for function in (_message, json.loads, json.JSONDecoder.decode)
)
