"""Each parser of foreign bytes on some hundred mutated inputs; `python -m tests.fuzz` tries a million."""

from __future__ import annotations

from tests.fuzz.run import all_in_child, load

INPUTS, SECONDS, SEED = 1000, 0.8, 20


def test_every_input_ends_with_a_value_or_the_documented_error() -> None:
    names = list(load())
    reports = all_in_child(names, INPUTS, SECONDS, SEED)
    failures = {report.name: report.failures for report in reports if report.failures}
    assert not failures
    assert [report.name for report in reports] == names
    assert all(report.inputs >= 64 for report in reports)
