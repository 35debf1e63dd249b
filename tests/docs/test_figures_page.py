"""The page of AWS's limits and figures has a row for each entry of the table."""

from __future__ import annotations

from serverless_mpi.aws import limits
from tests.docs.test_links import generate


def test_every_entry_is_on_the_page_with_its_source() -> None:
    rows = [line for line in generate.aws_figures().splitlines() if line.startswith("| `")]
    names = [row.split("`")[1] for row in rows]
    assert names == [name for name, _ in limits.all_limits()] + [n for n, _ in limits.AWS.items()]
    assert all(row.count(" | ") == 5 for row in rows)
    assert "| `LAMBDA_MOST_MB` | 10,240 MB | 3,008 to 10,240 | the most memory" in "\n".join(rows)
    assert "](https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html)" in rows[-6]
