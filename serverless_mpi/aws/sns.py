"""SNS: publish a message or a batch, over the Query protocol.

Each message names its readers in the attribute TO, a String.Array; the filter policy of
a rank's subscription matches its own number.

Source: Amazon SNS API Reference; "Subscription filter policies", SNS Developer Guide.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import unescape
from urllib.parse import urlencode

from serverless_mpi.aws import limits
from serverless_mpi.aws.http import Busy, Client
from serverless_mpi.aws.retry import BUDGET_S
from serverless_mpi.aws.sqs import BODY, ENVELOPE_BYTES, FRAME
from serverless_mpi.errors import ChannelError

TO = "t"  # names of message attributes are billed, so they are short
MAX_ENTRIES = limits.SNS_BATCH_ENTRIES.value
MAX_BATCH_BYTES = limits.SNS_MESSAGE_BYTES.value
FILTERS_PER_TOPIC = limits.SNS_FILTERS_PER_TOPIC.value
_FAILED = re.compile(r"<Failed>(.*?)</Failed>", re.DOTALL)
_WHOLE = re.compile(r"</Publish(Batch)?Response>\s*$")
_ENTRY = re.compile(r"<member>(.*?)</member>", re.DOTALL)


def readers(dests: Sequence[int]) -> str:
    """Return the value of the attribute that names the readers of a message.

    Parameters
    ----------
    dests
        Ranks that read it.

    Returns
    -------
    str
        A JSON list of strings: '["3","7"]'.
    """
    return '["' + '","'.join(map(str, dests)) + '"]'


def billed_bytes(frame: bytes, dests: Sequence[int]) -> int:
    """Return the billed bytes of one message.

    Parameters
    ----------
    frame
        The frame that it carries.
    dests
        Ranks that read it.
    """
    return len(frame) + ENVELOPE_BYTES + len(TO) + len("String.Array") + len(readers(dests))


class Sns:
    """The calls of the data path.  Thread-safe."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def publish(
        self,
        topic: str,
        messages: Sequence[tuple[bytes, Sequence[int]]],
        budget_s: float = BUDGET_S,
    ) -> None:
        """Publish messages in one request, and those that failed again.

        Parameters
        ----------
        topic
            ARN of the topic.
        messages
            (frame, ranks that read it): at most 10, 256 KiB in all.
        budget_s
            Seconds for which a busy service is asked again.

        Raises
        ------
        Busy
            The service was busy for `budget_s` seconds; any message may have been published.
        ChannelError
            The service refused a message.
        """
        entries = {str(number): message for number, message in enumerate(messages)}
        patience = self._client.patience(budget_s)
        while True:
            nbytes = sum(billed_bytes(frame, dests) for frame, dests in entries.values())
            action = "Publish" if len(entries) == 1 else "PublishBatch"
            form = _form(action, topic, entries)
            answer = self._client.request(
                action,
                "POST",
                "/",
                headers={"content-type": "application/x-www-form-urlencoded; charset=utf-8"},
                body=urlencode(form).encode(),
                nbytes=nbytes,
                messages=len(entries),
                budget_s=budget_s,
            )
            if answer.status != 200:
                raise self._client.refused(f"publish on {topic}", answer)
            entries = self._failed(topic, bytes(answer.body), entries)
            if not entries:
                return
            pause = patience.pause()
            if pause is None:
                raise Busy(
                    f"SNS did not take {len(entries)} messages for {topic} in {patience.troubles} "
                    f"rounds within {patience.budget_s:g} s"
                )
            self._client.sleep(pause)

    def _failed(
        self, topic: str, body: bytes, entries: dict[str, tuple[bytes, Sequence[int]]]
    ) -> dict[str, tuple[bytes, Sequence[int]]]:
        """Return the entries that an answer reports as not published."""
        text = body.decode(errors="replace")
        if not _WHOLE.search(text):
            raise self._client.garbled(f"publish on {topic}", body)
        failed = _FAILED.search(text)
        again = {}
        for entry in _ENTRY.findall(failed.group(1)) if failed else ():
            fields = {
                name: unescape(value) for name, value in re.findall(r"<(\w+)>([^<]*)</\1>", entry)
            }
            if fields.get("SenderFault") == "true":
                raise ChannelError(f"SNS refused a message on {topic}: {fields}")
            name = fields.get("Id", "")
            if name not in entries:
                raise self._client.garbled(f"publish on {topic}", entry.encode())
            again[name] = entries[name]
        return again


def _form(
    action: str, topic: str, entries: dict[str, tuple[bytes, Sequence[int]]]
) -> dict[str, str]:
    """Return the form of a Publish of one entry, or of a PublishBatch."""
    form = {"Action": action, "Version": "2010-03-31", "TopicArn": topic}
    for number, (name, (frame, dests)) in enumerate(entries.items(), 1):
        entry = ""
        if len(entries) > 1:
            entry = f"PublishBatchRequestEntries.member.{number}."
            form[f"{entry}Id"] = name
        form[f"{entry}Message"] = BODY
        attribute = f"{entry}MessageAttributes.entry"
        form[f"{attribute}.1.Name"] = TO
        form[f"{attribute}.1.Value.DataType"] = "String.Array"
        form[f"{attribute}.1.Value.StringValue"] = readers(dests)
        form[f"{attribute}.2.Name"] = FRAME
        form[f"{attribute}.2.Value.DataType"] = "Binary"
        form[f"{attribute}.2.Value.BinaryValue"] = base64.b64encode(frame).decode()
    return form
