"""What a refusal says is one line, whatever came."""

from __future__ import annotations

import pytest

from serverless_mpi.aws.connection import Answer
from serverless_mpi.aws.refusals import code_of, refused


@pytest.mark.parametrize(
    "body",
    [
        b"<html>\r\n<body>\n<h1>502 Bad Gateway</h1>\n</body>\n</html>\n",
        b"<Error><Code>Slow\nDown</Code><Message>Reduce\nyour rate</Message></Error>",
        b'{"__type": "x#Internal\\nError", "message": "first\\nsecond"}',
        b'{"message": ' + b"[" * 3000,
    ],
)
def test_an_error_is_one_line(body: bytes) -> None:
    error = refused("sqs", "receive", Answer(502, memoryview(body), {}))
    assert "\n" not in str(error) and "HTTP 502" in str(error)


def test_the_code_of_lambda_is_in_a_header() -> None:
    headers = {"x-amzn-errortype": "ExpiredTokenException:http://internal.amazon.com/coral/"}
    answer = Answer(403, memoryview(b'{"message":"The security token is expired"}'), headers)
    assert code_of(answer) == ("ExpiredTokenException", "The security token is expired")
    assert "renew them" in str(refused("lambda", "start a function", answer))
