"""One short combination of each fault; `python -m tests.faults` runs all of them in full length."""

from __future__ import annotations

from tests.faults.__main__ import run_all
from tests.faults.suite import CHANNELS, FAULTS, PROGRAMS, combinations, sample

SEED = 1
WORKERS = 2


def test_each_fault_ends_with_the_right_answer_or_a_named_error() -> None:
    results = run_all(sample(SEED), SEED, quick=True, workers=WORKERS)
    assert len(results) == len(FAULTS)
    assert not [f"{one.combination}: {one.notes}" for one in results if not one.good]
    missed = [str(one.combination) for one in results if not one.injected and not one.notes]
    assert not missed, f"the fault did not occur: {missed}"


def test_each_combination_is_run_or_has_a_reason_not_to() -> None:
    chosen = combinations()
    assert len(set(chosen)) == len(chosen)
    left_out = 0
    for fault in FAULTS.values():
        assert set(fault.not_on) <= set(CHANNELS) and set(fault.not_for) <= set(PROGRAMS)
        assert all([*fault.not_on.values(), *fault.not_for.values()])
        left_out += len(CHANNELS) * len(PROGRAMS)
        left_out -= (len(CHANNELS) - len(fault.not_on)) * (len(PROGRAMS) - len(fault.not_for))
    assert len(chosen) + left_out == len(FAULTS) * len(CHANNELS) * len(PROGRAMS)
