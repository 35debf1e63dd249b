"""Lambda: invoke a function without waiting for it.

Source: AWS Lambda API Reference, Invoke.
"""

from __future__ import annotations

from serverless_mpi.aws import limits
from serverless_mpi.aws.http import Client
from serverless_mpi.errors import ChannelError

MAX_EVENT_BYTES = limits.LAMBDA_EVENT_BYTES.value


class Functions:
    """The calls of the data path.  Thread-safe."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def start(self, function: str, payload: bytes) -> None:
        """Invoke a function asynchronously.

        Parameters
        ----------
        function
            A name, or name:alias.
        payload
            A JSON text of at most MAX_EVENT_BYTES.

        Raises
        ------
        ChannelError
            The payload is too large, or the function does not exist, may not be invoked, or is
            throttled for the whole budget.

        Notes
        -----
        An attempt whose answer was lost is repeated, so the function may run twice.
        """
        if len(payload) > MAX_EVENT_BYTES:
            raise ChannelError(
                f"a payload of {len(payload):,} bytes is too large for an asynchronous invocation,"
                f" which takes {MAX_EVENT_BYTES:,}"
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
