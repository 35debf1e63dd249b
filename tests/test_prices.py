"""An invalid price table is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from serverless_mpi.errors import UsageError
from serverless_mpi.metering import Prices


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"dated": 1}', "[" * 100_000, "\0"])
def test_what_is_not_a_price_table_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="prices.json is not a price table"):
        Prices.load(path)
