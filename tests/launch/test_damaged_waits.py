"""A damaged record of a rank's waits is ignored: no deadlock is reported, and there is no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serverless_mpi.deadlock import detect_deadlock

GOOD = {"at": 110.0, "since": 10.0, "waits": ["recv"], "awaited": ["a message"]}


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"[]",
        b"7",
        b"\xff",
        b'{"at": 110}',
        b"[" * 100_000,
        *(
            json.dumps({**GOOD, name: value}).encode()
            for name, value in (("at", None), ("since", "x"), ("waits", 3), ("awaited", [1]))
        ),
    ],
    ids=lambda data: data[:20].decode(errors="replace"),
)
def test_a_damaged_record_is_ignored(tmp_path: Path, damaged: bytes) -> None:
    for rank in range(2):
        (tmp_path / f"waits-{rank}.json").write_text(json.dumps(GOOD))
    assert detect_deadlock(tmp_path, [0, 1], 60.0) is not None
    (tmp_path / "waits-1.json").write_bytes(damaged)
    assert detect_deadlock(tmp_path, [0, 1], 60.0) is None
