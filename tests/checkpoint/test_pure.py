"""Format, log and cadence of checkpoints: without a clock, a thread or a file."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless_mpi.checkpoint import log, part
from serverless_mpi.checkpoint.cadence import Action, Cadence, Period, Vote
from serverless_mpi.checkpoint.log import Create, Names, Read, Record, Saved
from serverless_mpi.errors import CheckpointError, UsageError

KEY = bytes(range(32))
IDENTITY = part.PartIdentity(7, "ab", 1, 2, 30)

# -- parts

arrays = st.sampled_from(
    [
        np.arange(0.0),
        np.arange(7, dtype=np.int8),
        np.arange(1000.0),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(20.0)[::3],
        np.array(["a", None], dtype=object),
    ]
)
values = st.one_of(arrays, st.integers(), st.text(), st.binary(), st.lists(st.floats(), max_size=3))
states = st.dictionaries(st.text(max_size=5), values, max_size=4)


def joined(state: dict[str, Any], key: bytes, staging: part.Staging | None = None) -> bytearray:
    regions = (staging or part.Staging()).take(state)
    return bytearray(b"".join(part.encode(regions, IDENTITY, key)))


@given(states, st.sampled_from([b"", KEY]))
def test_a_state_comes_back(state: dict[str, Any], key: bytes) -> None:
    staging = part.Staging()
    joined({"before": np.ones(50)}, key, staging)
    back = part.decode(memoryview(joined(state, key, staging)), IDENTITY, key)
    assert pickle.dumps(back) == pickle.dumps(pickle.loads(pickle.dumps(state)))
    for value in back.values():
        if isinstance(value, np.ndarray):
            assert value.flags.writeable


def test_a_snapshot_is_a_copy_and_memory_is_used_again() -> None:
    staging, array = part.Staging(), np.arange(1000.0)
    regions = staging.take({"u": array})
    array[:] = 0
    assert np.frombuffer(regions[1])[999] == 999
    again = staging.take({"u": array})
    assert np.shares_memory(np.frombuffer(regions[1]), np.frombuffer(again[1]))


@given(st.data(), st.sampled_from([b"", KEY]))
def test_a_changed_or_cut_part_is_refused_and_not_unpickled(
    data: st.DataObject, key: bytes
) -> None:
    whole = joined({"u": np.arange(9.0), "text": "x"}, key)
    at = data.draw(st.integers(0, len(whole) - 1))
    padding = decoded_from(whole, key)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part.pickle, "loads", lambda *_, **__: pytest.fail("unpickled"))
        with pytest.raises(CheckpointError):
            part.decode(memoryview(whole[:at]), IDENTITY, key)
        whole[at] ^= 1 << data.draw(st.integers(0, 7))
        if at not in padding:
            with pytest.raises(CheckpointError):
                part.decode(memoryview(whole), IDENTITY, key)


def decoded_from(whole: bytearray, key: bytes) -> set[int]:
    """Places between the regions, which nothing reads."""
    head, at = part._head(memoryview(whole), key)
    gaps: set[int] = set()
    for length in head["lengths"]:
        start = -(-at // 64) * 64
        gaps |= set(range(at, start))
        at = start + length
    return gaps


def test_another_part_or_key_is_refused() -> None:
    whole = memoryview(joined({"u": 1}, KEY))
    other = part.PartIdentity(7, "ab", 0, 2, 30)
    with pytest.raises(CheckpointError, match="another part"):
        part.decode(whole, other, KEY)
    for key in (b"", bytes(32)):
        with pytest.raises(CheckpointError, match="damaged"):
            part.decode(whole, IDENTITY, key)


def test_what_cannot_be_pickled_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"state\['f'\] cannot be pickled"):
        part.Staging().take({"u": 1, "f": lambda: 0})


# -- the log


class Files(dict[str, bytes]):
    """A place, one request at a time; `open_parts` are those that are being written."""

    def do(self, request: Any) -> Any:
        if isinstance(request, Names):
            return list(self)
        if isinstance(request, Read):
            return self.get(request.name)
        if isinstance(request, Create):
            return self.setdefault(request.name, request.data) is request.data
        for name in request.names:
            self.pop(name, None)
        return None


class Run:
    """A run that claims a place and then saves again and again; each `step` is one request."""

    def __init__(self, files: Files, owner: str, size: int = 2) -> None:
        self.files, self.owner, self.size = files, owner, size
        self.record: Record | None = None
        self.published: list[Saved] = []
        self.found: Saved | None = None
        self.fenced = False
        self._work = self._life()

    def step(self) -> bool:
        """Do the next request; whether there may be more."""
        return next(self._work, None) is not None

    def _do(self, plan: log.Plan[Any]) -> Iterator[int]:
        result = None
        while True:
            try:
                request = plan.send(result)
            except StopIteration as end:
                return end.value
            result = self.files.do(request)
            yield 1

    def _life(self) -> Iterator[int]:
        record = yield from self._do(log.claim(self.owner, "prog", "1"))
        self.record, self.found = record, record.saved
        if self.found is not None:
            self.whole(self.found)
        while True:
            saved = Saved(record.number + 1, self.owner, self.size, 10 * record.number)
            for rank in range(self.size):
                name = saved.part(rank).name
                assert name not in self.files
                self.files[name] = b"cut"
                yield 1
                self.files[name] = name.encode()
                yield 1
            try:
                record = yield from self._do(log.publish(record, saved))
            except CheckpointError as error:
                assert "a later run" in str(error)
                self.fenced = True
                return
            self.published.append(saved)
            yield from self._do(log.clean(saved))

    def whole(self, saved: Saved) -> None:
        for rank in range(saved.size):
            name = saved.part(rank).name
            assert self.files[name] == name.encode()


def last(files: Files) -> Saved | None:
    """What a run that begins now would find."""
    run = Run(Files(files), "probe")
    while run.record is None:
        run.step()
    return run.found


@given(st.integers(0, 60))
def test_a_kill_anywhere_leaves_the_old_or_the_new_one_whole(kill: int) -> None:
    files = Files()
    run = Run(files, "a")
    for _ in range(kill):
        before = last(files)
        run.step()
        after = last(files)
        assert (
            after == before
            or run.published
            and after in (before, run.published[-1])
            or (
                after is not None and before is None or after.number > before.number  # type: ignore[union-attr]
            )
        )
    then = Run(files, "b")
    while not then.published:
        then.step()
    while then.step() and len(then.published) < 2:
        pass
    for _ in range(6):
        then.step()
    names = [name for name in files if name.split("-")[2:3] == ["a"]]
    assert not names, "the killed run left parts"


@given(st.lists(st.integers(0, 2), max_size=120), st.lists(st.integers(1, 60), max_size=2))
def test_runs_that_wake_late_change_nothing(turns: list[int], starts: list[int]) -> None:
    """Up to three runs act in any order; the one that claimed last holds the place."""
    files = Files()
    runs: list[Run] = []
    starts = [0, *sorted(starts)]
    for number, turn in enumerate(turns):
        if starts and number >= starts[0]:
            starts.pop(0)
            runs.append(Run(files, "abc"[len(runs)]))
            while runs[-1].record is None:  # it claims at once, the others sleep
                runs[-1].step()
        holder = runs[-1]
        runs[turn % len(runs)].step()
        found = last(files)
        expected = holder.published[-1] if holder.published else holder.found
        # its own record may be there, and it does not know yet
        assert found == expected or found is not None and found.owner == holder.owner
        assert not holder.fenced
        if found is not None:
            holder.whole(found)


def test_other_programs_versions_and_damage_are_refused() -> None:
    files = Files()
    claimed(files, "prog", "1")
    before = dict(files)
    for program, version, text in (
        ("other", "1", "of program 'prog'"),
        ("prog", "2", "of version '1'"),
    ):
        with pytest.raises(CheckpointError, match=text):
            claimed(files, program, version)
    with pytest.raises(CheckpointError, match="another key"):
        claimed(files, "prog", "1", KEY)
    assert files == before
    files["record-0000000001"] = b"{}\n"
    with pytest.raises(CheckpointError, match="record-0000000001 cannot be used: it is damaged"):
        claimed(files, "prog", "1")


def claimed(files: Files, program: str, version: str, key: bytes = b"") -> Record:
    plan = log.claim("a", program, version, key)
    result = None
    while True:
        try:
            result = files.do(plan.send(result))
        except StopIteration as end:
            return end.value


def test_files_of_others_are_left_alone() -> None:
    files = Files({"notes.txt": b"", "record-1": b""})
    run = Run(files, "a")
    for _ in range(60):
        run.step()
    assert {"notes.txt", "record-1"} <= set(files)


# -- the cadence


@pytest.mark.parametrize(
    "every, expected",
    [
        ("60 s", (60, 0)),
        ("5min", (300, 0)),
        ("250 ms", (0.25, 0)),
        ("1.5 h", (5400, 0)),
        ("1 step", (0, 1)),
        ("100 steps", (0, 100)),
        (2, (2, 0)),
    ],
)
def test_periods(every: object, expected: tuple[float, int]) -> None:
    assert Period.parse(every) == Period(*expected)


@pytest.mark.parametrize("every", ["", "60", "0 s", "-1 s", "1.5 steps", "0 steps", None, True, 0])
def test_what_is_no_period_is_refused(every: object) -> None:
    with pytest.raises(UsageError, match="every="):
        Period.parse(every)


def play(
    period: Period, durations: list[list[float]], write_s: float = 0.0, first: int = 0
) -> tuple[list[int], int]:
    """Steps of saves and number of votes; durations[step][rank] is how long each rank computes.

    Ranks do not wait for each other but for votes, as in a program without messages.
    """
    size = len(durations[0])
    ranks = [Cadence(period, first) for _ in range(size)]
    now, saved = [0.0] * size, [0.0] * size
    done = [0.0] * size
    saves, votes = [], 0
    pending: list[Vote] | None = None
    for step, took in enumerate(durations, first):
        if pending is not None:
            tally = Vote(
                max(vote.elapsed for vote in pending), any(vote.busy for vote in pending), 0
            )
            now = [max(now)] * size
            actions = {rank.decide(step, tally) for rank in ranks}
            (action,) = actions
            if action is Action.SAVE:
                saves.append(step)
                saved, done = list(now), [moment + write_s for moment in now]
            elif action is Action.PUBLISH:
                done[0] = now[0] + write_s
            pending = None
        (at,) = {rank.votes_at for rank in ranks}
        assert at >= step or pending is not None
        if at == step:
            votes += 1
            pending = [
                Vote(moment - past, moment < end, 0)
                for moment, past, end in zip(now, saved, done, strict=True)
            ]
        now = [moment + one for moment, one in zip(now, took, strict=True)]
    return saves, votes


def test_long_steps_are_saved_once_a_period() -> None:
    saves, votes = play(Period(60.0, 0), [[1.0, 1.0]] * 600, write_s=2.0)
    gaps = np.diff([0, *saves])
    assert len(saves) >= 8 and gaps.min() >= 60 and gaps.max() <= 68
    assert votes <= 26 * len(saves)


def test_short_steps_are_saved_once_a_period_with_few_votes() -> None:
    saves, votes = play(Period(1.0, 0), [[1e-3]] * 20_000)
    gaps = np.diff([0, *saves]) * 1e-3
    assert gaps.min() >= 1.0 and gaps.max() <= 1.2
    assert votes <= 40 * len(saves)


def test_steps_are_counted() -> None:
    saves, votes = play(Period(0.0, 100), [[1.0]] * 1000)
    assert saves == list(range(100, 1000, 100))
    assert play(Period(0.0, 1), [[1.0]] * 10)[0] == [1, 3, 5, 7, 9]
    assert play(Period(0.0, 5), [[1.0]] * 20, first=3)[0] == [8, 13, 18]


@given(
    st.sampled_from([Period(0.5, 0), Period(0.0, 3), Period(0.0, 1)]),
    st.lists(st.lists(st.floats(0, 2), min_size=3, max_size=3), min_size=1, max_size=60),
    st.floats(0, 3),
)
def test_all_ranks_decide_alike(
    period: Period, durations: list[list[float]], write_s: float
) -> None:
    play(period, durations, write_s)  # which unpacks sets of one


def test_a_failure_is_seen_by_all() -> None:
    cadence = Cadence(Period(1.0, 0), 0)
    assert cadence.decide(2, Vote(0.1, False, 3)) is Action.FAIL
