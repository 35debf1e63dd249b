"""When to save: what all ranks decide alike, from one small nonblocking reduction now and then.

Clocks differ, and a checkpoint must be taken before the same step on all ranks. So ranks *vote*:
before step s each starts a nonblocking Allreduce (MAX) of three numbers, which completes while the
program computes step s, and before step s + 1 all decide by the result, which all have in common:
save now, publish what was saved, or nothing; and before which step they vote again.

Invariants:

- A decision uses the tally, step numbers and earlier decisions, and nothing of one rank alone.
- Every rank votes before the same steps, so the reductions match. A rank waits for one before step
  s + 1 only until all others have come to step s, which they do without it, because no message
  crosses the boundary of a step.
- At most one save is in progress. If one is due before the last has been published, it is delayed.

A tally contains past steps only, so a save can begin one interval between votes late: an eighth of
the period at most, unless steps suddenly become longer.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from serverless_mpi.errors import UsageError

VOTES_PER_PERIOD = 16
FIELDS = 3  # numbers in a vote
_EVERY = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|min|h|steps?)")
_SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Period:
    """How often to save: one of the two is 0.

    Attributes
    ----------
    seconds
        Time between saves.
    steps
        Steps between saves.
    """

    seconds: float
    steps: int

    @classmethod
    def parse(cls, every: object) -> Period:
        """Return the period that a program names.

        Parameters
        ----------
        every
            "60 s", "500 ms", "5 min", "1 h", "100 steps", or a number of seconds.

        Raises
        ------
        UsageError
            It is none of these, or not above 0.
        """
        if isinstance(every, int | float) and not isinstance(every, bool):
            every = f"{every:f} s"
        found = _EVERY.fullmatch(every.strip()) if isinstance(every, str) else None
        if found is not None:
            amount, unit = float(found.group(1)), found.group(2)
            if unit in _SECONDS and amount > 0:
                return cls(amount * _SECONDS[unit], 0)
            if unit not in _SECONDS and amount >= 1 and amount == int(amount):
                return cls(0.0, int(amount))
        raise UsageError(
            f"every={every!r} is not a period such as '60 s', '5 min', '1 h' or '100 steps'"
        )


@dataclass(frozen=True)
class Vote:
    """What one rank reports, or the maximum over all ranks.

    Attributes
    ----------
    elapsed
        Seconds since the last save, or since the loop began.
    busy
        Whether something that was started is not finished: preparing, writing, publishing.
    failed
        1 + the highest rank that failed; 0 for none.
    """

    elapsed: float
    busy: bool
    failed: int


class Action(enum.Enum):
    """What all ranks do before a step."""

    NOTHING = enum.auto()
    SAVE = enum.auto()
    PUBLISH = enum.auto()
    FAIL = enum.auto()


class _Phase(enum.Enum):
    IDLE = enum.auto()
    WRITING = enum.auto()
    PUBLISHING = enum.auto()


class Cadence:
    """The decisions of a loop; every rank has one, and all are in the same state.

    Parameters
    ----------
    period
        How often to save.
    first
        First step of the loop.

    Attributes
    ----------
    votes_at
        Before this step the ranks vote next.
    saved_at
        Step of the last save; the first step of the loop before that.
    """

    def __init__(self, period: Period, first: int) -> None:
        self._period = period
        self._phase = _Phase.IDLE
        self._gap = 1  # steps between the last two votes
        self.saved_at = first
        self.votes_at = first + (period.steps - 1 if period.steps else 1)

    @property
    def saving(self) -> bool:
        """Whether a save has begun and is not published."""
        return self._phase is not _Phase.IDLE

    def decide(self, step: int, tally: Vote) -> Action:
        """Return what to do before a step; the ranks voted before the previous one.

        Parameters
        ----------
        step
            The step.
        tally
            Maximum of the votes.
        """
        if tally.failed:
            return Action.FAIL
        action = Action.NOTHING
        if not tally.busy:
            if self._phase is _Phase.WRITING:
                self._phase, action = _Phase.PUBLISHING, Action.PUBLISH
            elif self._phase is _Phase.PUBLISHING:
                self._phase = _Phase.IDLE
            if self._phase is _Phase.IDLE and self._due(step, tally):
                self._phase, action = _Phase.WRITING, Action.SAVE
        self._schedule(step, tally, action)
        if action is Action.SAVE:
            self.saved_at = step
        return action

    def _due(self, step: int, tally: Vote) -> bool:
        if self._period.steps:
            return step - self.saved_at >= self._period.steps
        return tally.elapsed >= self._period.seconds

    def _schedule(self, step: int, tally: Vote, action: Action) -> None:
        """Set the step before which the ranks vote next."""
        if action in (Action.SAVE, Action.PUBLISH):
            self._gap = 1
        elif self._period.steps and self._phase is _Phase.IDLE:
            self._gap = max(1, self.saved_at + self._period.steps - step)
        else:
            self._gap = min(2 * self._gap, self._longest(step, tally))
        self.votes_at = step + self._gap - 1

    def _longest(self, step: int, tally: Vote) -> int:
        """Return the longest interval until the next decision, in steps."""
        if self._period.steps:
            return max(1, self._period.steps // VOTES_PER_PERIOD)
        step_s = tally.elapsed / max(1, step - 1 - self.saved_at)
        left = self._period.seconds - tally.elapsed
        wanted = self._period.seconds / VOTES_PER_PERIOD
        if left > 0:
            wanted = min(wanted, left)
        return max(1, int(wanted / step_s)) if step_s > 0 else 2 * self._gap
