"""Every use of the job's key has a purpose, and a tag of one purpose is not valid for another."""

from __future__ import annotations

import ast
from pathlib import Path

from serverless_mpi.core.tags import PROOF_BYTES, TAG_BYTES, Purpose, make, same, start

PACKAGE = Path(__file__).resolve().parents[2] / "serverless_mpi"
KEY = bytes(range(32))


def test_a_tag_fits_one_purpose_one_key_and_one_length() -> None:
    tags = {make(key, purpose, b"covered") for purpose in Purpose for key in (KEY, bytes(32))}
    tags |= {make(KEY, purpose, b"covered", PROOF_BYTES)[:TAG_BYTES] for purpose in Purpose}
    assert len(tags) == 3 * len(Purpose)
    assert all(len(purpose.value) <= 16 for purpose in Purpose)


def test_a_tag_made_in_parts_is_the_tag() -> None:
    digest = start(KEY, Purpose.CONSOLE)
    digest.update(b"cov")
    digest.update(b"ered")
    assert digest.digest() == make(KEY, Purpose.CONSOLE, b"covered")


def test_anything_but_the_whole_tag_is_another() -> None:
    tag = make(KEY, Purpose.CONSOLE, b"covered")
    assert same(tag, tag) and same(memoryview(tag), tag)
    for other in (b"", tag[:-1], tag + b"\0", bytes(TAG_BYTES)):
        assert not same(other, tag)


def test_no_other_file_keys_a_hash() -> None:
    """Else two uses of the key could share their tags."""
    keyed = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and any(word.arg == "person" for word in node.keywords):
                keyed.add(path.name)
            elif isinstance(node, ast.Call) and "blake2" in ast.unparse(node.func):
                keyed |= {path.name for word in node.keywords if word.arg == "key"}
    assert keyed == {"tags.py"}
