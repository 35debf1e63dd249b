"""SQS: send, receive and delete in batches, over the AWS JSON 1.0 protocol.

The rule: a frame is the binary attribute FRAME of a message, so the bill counts the
frame's own bytes and not those of its base64 form.  A message without attributes
only ends a long poll (`channels/queue.py`, wake).

Invariant: anyone who may send to a queue can put any message there, so `frames_of`
raises for none.  A message without a proper frame becomes a frame of 0 bytes, which
the core counts as dropped and the channel deletes like any other.

Source: Amazon SQS API Reference.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from serverless_mpi.aws import limits
from serverless_mpi.aws.connection import file_of, raised_by
from serverless_mpi.aws.http import Busy, Client
from serverless_mpi.aws.retry import BUDGET_S, Patience
from serverless_mpi.errors import ChannelError
from serverless_mpi.metering import BILLED_CHUNK_BYTES

FRAME = "f"  # names of message attributes are billed, so they are short
BODY = "."  # a message needs a body of at least one character
ENVELOPE_BYTES = len(FRAME) + len("Binary") + len(BODY)  # billed in addition to the frame
MAX_ENTRIES = limits.SQS_BATCH_ENTRIES.value
MAX_BATCH_BYTES = limits.SQS_MESSAGE_BYTES.value
MAX_LONG_POLL_S = limits.SQS_LONG_POLL_S.value
# An attribute of every queue: a received message that was not deleted reappears after this, so a
# lost answer costs as long.
VISIBILITY_S = 30
# A service that answers late is waited for; a connection that died silently is noticed.
ANSWER_S = 5.0  # after the end of a poll
# header of an emulator whose long polls return as soon as a message arrives, as AWS's do
PROMPT = "x-prompt-long-poll"
POLL_BUDGET_S = 0.0  # a poll is not retried: the next poll does the same
DELETE_BUDGET_S = 2.0  # a delete that fails is tried again later, with others

_EMPTY_ENTRY = b'{"Id":"%%b","MessageBody":"%b"}' % BODY.encode()
_ENTRY = (
    b'{"Id":"%%b","MessageBody":"%b","MessageAttributes":'
    b'{"%b":{"DataType":"Binary","BinaryValue":"%%b"}}}' % (BODY.encode(), FRAME.encode())
)


@dataclass(frozen=True, slots=True)
class Received:
    """A received message.

    Attributes
    ----------
    frame
        Writable memory; 0 bytes if the message has no proper frame; None if it only ends a poll.
    handle
        Deletes the message.
    """

    frame: memoryview | None
    handle: str


class Sqs:
    """The calls of the data path.  Thread-safe.

    Attributes
    ----------
    prompt
        Whether a long poll returns as soon as a message arrives; for an emulator this is known
        after the first receive.
    late_s
        Seconds after the end of a poll at which its connection counts as dead; None for the
        client's own limit, since an emulator on a busy machine is slow and not gone.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._quoted: dict[str, bytes] = {}  # URL of a queue -> as JSON; one per rank at most
        self.prompt = False
        self.late_s: float | None = ANSWER_S

    def _call(
        self,
        action: str,
        queue: str,
        request: bytes,
        nbytes: int = 0,
        messages: int = 0,
        budget_s: float = BUDGET_S,
        answer_s: float | None = None,
    ) -> dict[str, Any]:
        """Do a request and return the fields of its answer."""
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
            answer_s=answer_s,
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
        """Return the entries of a batch that failed, each with an Id of `names`."""
        failed = answer.get("Failed") or []
        if isinstance(failed, list) and all(
            isinstance(entry, dict) and isinstance(name := entry.get("Id"), str) and name in names
            for entry in failed
        ):
            return failed
        raise self._client.garbled(f"{action} on {queue}", repr(failed).encode())

    def send(self, queue: str, frames: Sequence[bytes], budget_s: float = BUDGET_S) -> None:
        """Send frames in one request, and those that failed again.

        Parameters
        ----------
        queue
            URL of the queue.
        frames
            At most 10 frames, 1 MiB in all; b'' is a message that only ends a poll.
        budget_s
            Seconds for which a busy service is asked again.

        Raises
        ------
        Busy
            The service was busy for `budget_s` seconds; any of the frames may have been sent.
        ChannelError
            The service refused a message.
        """
        quoted = self._quoted.get(queue)
        if quoted is None:
            quoted = self._quoted[queue] = json.dumps(queue).encode()
        # Loops and formatting by hand: most batches have one frame, where comprehensions cost more
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
        """Receive up to 10 messages.

        Parameters
        ----------
        queue
            URL of the queue.
        wait_s
            Longest wait for a first message in seconds, 0 to 20.

        Returns
        -------
        list of Received
            Empty if no message arrived in time.  Each stays in the queue, hidden for VISIBILITY_S
            seconds, until `delete` removes it.

        Raises
        ------
        Busy
            The service is busy; it was asked once.
        ChannelError
            The service refused the request, cannot be reached, or sent an answer that is not valid.
        """
        request = {
            "QueueUrl": queue,
            "MaxNumberOfMessages": MAX_ENTRIES,
            "WaitTimeSeconds": wait_s,
            "MessageAttributeNames": [FRAME],
        }
        answer = self._call(
            "ReceiveMessage",
            queue,
            json.dumps(request).encode(),
            budget_s=POLL_BUDGET_S,
            answer_s=None if self.late_s is None else wait_s + self.late_s,
        )
        messages = answer.get("Messages") or []
        if not isinstance(messages, list):
            raise self._client.garbled(f"ReceiveMessage on {queue}", repr(messages).encode())
        received = frames_of(messages)
        nbytes = sum(one.frame.nbytes + ENVELOPE_BYTES for one in received if one.frame is not None)
        # the size is known only now: the chunks of 64 KB beyond the request's first are added
        extra = max(1, -(-nbytes // BILLED_CHUNK_BYTES)) - 1
        self._client.meter.count(
            "sqs", "ReceiveMessage", requests=0, nbytes=nbytes, messages=len(received), billed=extra
        )
        return received

    def delete(self, queue: str, handles: Sequence[str]) -> list[str]:
        """Delete received messages in one request.

        Parameters
        ----------
        queue
            URL of the queue.
        handles
            Up to 10 handles of received messages.

        Returns
        -------
        list of str
            Handles of the messages that were not deleted.  Such a message is received again, and
            dropped as a duplicate.

        Raises
        ------
        Busy
            The service was busy for DELETE_BUDGET_S.
        ChannelError
            The service refused the request, or cannot be reached.
        """
        named = {str(number): handle for number, handle in enumerate(handles)}
        entries = [{"Id": name, "ReceiptHandle": handle} for name, handle in named.items()]
        request = json.dumps({"QueueUrl": queue, "Entries": entries}).encode()
        answer = self._call("DeleteMessageBatch", queue, request, budget_s=DELETE_BUDGET_S)
        failed = self._failed("DeleteMessageBatch", queue, answer, named)
        return [named[entry["Id"]] for entry in failed]


def frames_of(messages: Sequence[Any]) -> list[Received]:
    """Return the messages of a parsed answer.

    Parameters
    ----------
    messages
        Items of the field `Messages`, as parsed from JSON; not trusted.

    Returns
    -------
    list of Received
        In the order of the answer; messages without a handle are omitted.
    """
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
    """Return the bytes of a binary attribute; none if `value` is not base64."""
    if not isinstance(value, str):
        return bytearray()
    try:
        return bytearray(binascii.a2b_base64(value))
    except ValueError as error:
        if not raised_by(error, _JSON_FILES):  # by a signal handler
            raise
        return bytearray()


def _message(name: str, frame: bytes) -> bytes:
    """Return an entry of a batch as JSON."""
    if not frame:
        return _EMPTY_ENTRY % name.encode()
    return _ENTRY % (name.encode(), binascii.b2a_base64(frame, newline=False))


# files whose exceptions mean that a text is not JSON or base64
_JSON_FILES = tuple(
    file_of(function) for function in (_message, json.loads, json.JSONDecoder.decode)
)
