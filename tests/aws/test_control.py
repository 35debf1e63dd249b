"""Removing what a job left: keys of a deletion that fail for a moment are deleted again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from serverless_mpi.aws.control import delete_objects


@pytest.mark.parametrize("attempts, failed", [(1, {}), (3, {}), (9, {"b": "InternalError"})])
def test_keys_that_fail_for_a_moment_are_deleted_again(
    attempts: int, failed: dict[str, str]
) -> None:
    """S3 answers a DeleteObjects with 200 and an error for single keys."""
    asked: list[list[str]] = []

    def call(Bucket: str, Delete: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
        asked.append([one["Key"] for one in Delete["Objects"]])
        if len(asked) < attempts:
            return {"Errors": [{"Key": "b", "Code": "InternalError"}]}
        return {}

    assert delete_objects(call, "bucket", ["a", "b", "c"]) == failed
    assert asked == [["a", "b", "c"], *[["b"]] * (min(attempts, 5) - 1)]
    assert delete_objects(call, "bucket", []) == {}
