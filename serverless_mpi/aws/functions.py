"""Lambda: invoke a function without waiting for it.

Source: AWS Lambda API Reference, Invoke.
"""

from __future__ import annotations

from serverless_mpi.aws.http import Client
from serverless_mpi.errors import ChannelError

MAX_EVENT_BYTES = (
    1 << 20
)  # payload of an asynchronous invocation: 1 MB (quota since October 2025); synchronous: 6 MB


class Functions:
    """The calls of the data path."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def start(self, function: str, payload: bytes) -> None:
        """Have `function` (a name, or name:alias) invoked with `payload`, a JSON text.

        An attempt whose answer was lost is made again, so the function may be invoked twice.

        Raises
        ------
        ChannelError
            The payload is too large, the function is not there, may not be invoked, or is throttled for good.
        """
        if len(payload) > MAX_EVENT_BYTES:
            raise ChannelError(
                f"{len(payload):,} bytes are too much for an asynchronous invocation, which takes {MAX_EVENT_BYTES:,}"
            )
        name, _, alias = function.partition(":")
        answer = self._client.request(
            "Invoke",
            "POST",
            f"/2015-03-31/functions/{name}/invocations",
            {"Qualifier": alias} if alias else {},
            headers={"x-amz-invocation-type": "Event", "content-type": "application/json"},
            body=payload,
            nbytes=len(payload),
            messages=1,
        )
        if answer.status != 202:
            raise self._client.refused(f"start {function}", answer)
