"""SQS: send, receive and delete in batches, over the AWS JSON 1.0 protocol.

A frame travels in the binary attribute FRAME: its billed size is the frame's own, not that of its base64 form.
Source: Amazon SQS API Reference.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serverless_mpi.aws.http import Client
from serverless_mpi.errors import ChannelError
from serverless_mpi.metering import BILLED_CHUNK_BYTES

FRAME = "f"  # names of message attributes are billed, so they are short
BODY = "."  # a message needs a body of at least one character
ENVELOPE_BYTES = len(FRAME) + len("Binary") + len(BODY)  # what is billed beside the frame
MAX_ENTRIES = 10  # of a batch
MAX_BATCH_BYTES = 1 << 20  # of a message and of a batch: 1 MiB (quota since August 2025)
MAX_LONG_POLL_S = 20
PROMPT = "x-prompt-long-poll"  # a header by which an emulator says that its long polls answer at once, as AWS's do
_ROUNDS = 5  # how often the failed entries of a batch are sent again


@dataclass(frozen=True, slots=True)
class Received:
    """A message: its frame (None: it has none) and the handle that deletes it."""

    frame: memoryview | None
    handle: str


class Sqs:
    """The calls of the data path.

    prompt: whether a long poll answers as soon as a message comes; of an emulator it is known after a receive.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.prompt = False

    def _call(
        self, action: str, queue: str, request: bytes, nbytes: int = 0, messages: int = 0
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
        )
        if answer.status != 200:
            raise self._client.refused(f"{action} on {queue}", answer)
        if PROMPT in answer.headers:
            self.prompt = True
        fields: dict[str, Any] = json.loads(answer.body.tobytes()) if answer.body.nbytes else {}
        return fields

    def send(self, queue: str, frames: Sequence[bytes]) -> None:
        """Send frames (at most 10, 1 MiB in all) in one request; b'' is a message without a frame."""
        entries = {str(place): frame for place, frame in enumerate(frames)}
        for _ in range(_ROUNDS):
            # put together by hand: looking for what is to be escaped would take longer than all the rest, and base64 has nothing
            messages = b",".join([_message(name, frame) for name, frame in entries.items()])
            request = b'{"QueueUrl":%b,"Entries":[%b]}' % (json.dumps(queue).encode(), messages)
            nbytes = sum(len(frame) + ENVELOPE_BYTES for frame in entries.values())
            answer = self._call("SendMessageBatch", queue, request, nbytes, len(entries))
            failed = answer.get("Failed") or []
            blamed = [entry for entry in failed if entry.get("SenderFault")]
            if blamed:
                raise ChannelError(f"SQS refused a message for {queue}: {blamed[0]}")
            entries = {entry["Id"]: entries[entry["Id"]] for entry in failed}
            if not entries:
                return
        raise ChannelError(
            f"SQS did not take {len(entries)} messages for {queue} in {_ROUNDS} rounds",
            retryable=True,
        )

    def receive(self, queue: str, wait_s: int) -> list[Received]:
        """Up to 10 messages, after at most `wait_s` seconds (0..20)."""
        request = {
            "QueueUrl": queue,
            "MaxNumberOfMessages": MAX_ENTRIES,
            "WaitTimeSeconds": wait_s,
            "MessageAttributeNames": [FRAME],
        }
        answer = self._call("ReceiveMessage", queue, json.dumps(request).encode())
        received = []
        for message in answer.get("Messages") or []:
            attribute = (message.get("MessageAttributes") or {}).get(FRAME)
            frame = (
                None
                if attribute is None
                else memoryview(bytearray(base64.b64decode(attribute["BinaryValue"])))
            )
            received.append(Received(frame, message["ReceiptHandle"]))
        nbytes = sum(one.frame.nbytes + ENVELOPE_BYTES for one in received if one.frame is not None)
        # the size is known only now: the chunks of 64 KB beyond the first are added to the request's one
        extra = max(1, -(-nbytes // BILLED_CHUNK_BYTES)) - 1
        self._client.meter.count(
            "sqs", "ReceiveMessage", requests=0, nbytes=nbytes, messages=len(received), billed=extra
        )
        return received

    def delete(self, queue: str, handles: Sequence[str]) -> None:
        """Delete up to 10 received messages.  One that is not deleted comes again and is dropped as a duplicate."""
        entries = [
            {"Id": str(place), "ReceiptHandle": handle} for place, handle in enumerate(handles)
        ]
        self._call(
            "DeleteMessageBatch",
            queue,
            json.dumps({"QueueUrl": queue, "Entries": entries}).encode(),
        )


def _message(name: str, frame: bytes) -> bytes:
    """An entry of a batch, as JSON."""
    if not frame:
        return b'{"Id":"%b","MessageBody":"%b"}' % (name.encode(), BODY.encode())
    return (
        b'{"Id":"%b","MessageBody":"%b","MessageAttributes":{"%b":{"DataType":"Binary","BinaryValue":"%b"}}}'
        % (name.encode(), BODY.encode(), FRAME.encode(), base64.b64encode(frame))
    )
