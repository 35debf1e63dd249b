"""The log of a place: which checkpoint is the last, and who may write the next.

A place (a folder, a prefix of a bucket) has *records* with rising numbers and *parts*. A record is
made whole or not at all, and only if there is none with its number. It says which run made it and
which checkpoint is the last. There are two kinds: a run that begins *claims* the place by a record
that repeats the checkpoint found there, and a run that has saved *publishes* a new checkpoint.

Invariants:

- A run makes the record that follows its own last one, and no other. So when a later run has
  claimed the place, the earlier one cannot publish any more: it is *fenced*, wherever it was
  stopped and whenever it wakes.
- The record with the highest number holds. Only what has a lower number than the checkpoint that
  it names is removed. So a run that wakes late cannot get past that record; what it makes below has
  no effect, and is removed with the next ones.
- A checkpoint is published when all its parts are complete. A part has its checkpoint's number and
  its run's name, so no run ever writes over another's.

The functions here are generators that yield what is to be done and receive its result; `perform`
does it on a `places.Place`, and tests stop or interleave them anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from serverless_mpi.checkpoint.part import PartIdentity, seal
from serverless_mpi.checkpoint.places import Place
from serverless_mpi.core import tags
from serverless_mpi.errors import CheckpointError

FORMAT = 1
_NAME = re.compile(r"(record|part|draft)-(\d{10})(?:-[0-9a-f-]+)?")
T = TypeVar("T")


@dataclass(frozen=True)
class Saved:
    """A checkpoint.

    Attributes
    ----------
    number, owner, size, step
        As in `PartIdentity`; every part of it has these.
    """

    number: int
    owner: str
    size: int
    step: int

    def part(self, rank: int) -> PartIdentity:
        """Return the identity of a rank's part.

        Parameters
        ----------
        rank
            In 0..size-1.
        """
        return PartIdentity(self.number, self.owner, rank, self.size, self.step)


@dataclass(frozen=True)
class Record:
    """An entry of the log.

    Attributes
    ----------
    number
        Its number.
    owner
        Random name of the run that made it.
    program, version
        Name of the program, and the version that it states.
    saved
        The last checkpoint; None if there is none yet.
    """

    number: int
    owner: str
    program: str
    version: str
    saved: Saved | None

    @property
    def name(self) -> str:
        """Name of the file or object."""
        return f"record-{self.number:010d}"

    def to_bytes(self, key: bytes) -> bytes:
        """Return the record as a line of JSON and a line with its tag.

        Parameters
        ----------
        key
            32 bytes to authenticate it, or none.
        """
        text = json.dumps({"format": FORMAT, **asdict(self)}).encode()
        return text + b"\n" + seal(text, key).hex().encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, key: bytes) -> Record:
        """Return what `to_bytes` made.

        Parameters
        ----------
        data
            The bytes.
        key
            As for `to_bytes`.

        Raises
        ------
        CheckpointError
            They are damaged, of another version of this package, or made with another key.
        """
        text, _, tag = data.partition(b"\n")
        if not tags.same(tag, seal(text, key).hex().encode() + b"\n"):
            reason = ", or was written with another key" if key else ""
            raise CheckpointError(f"it is damaged{reason}")
        fields = json.loads(text)
        if fields.pop("format") != FORMAT:
            raise CheckpointError("another version of serverless_mpi wrote it")
        saved = fields.pop("saved")
        return cls(**fields, saved=None if saved is None else Saved(**saved))


# -- what is to be done


@dataclass(frozen=True)
class Names:
    """List all names; the result is a list."""


@dataclass(frozen=True)
class Read:
    """Read a file; the result is its bytes, or None if there is none."""

    name: str


@dataclass(frozen=True)
class Create:
    """Make a file with these bytes, whole or not at all; the result is False if there is one."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Remove:
    """Remove files; one that is gone already is fine."""

    names: tuple[str, ...]


Request = Names | Read | Create | Remove
Plan = Generator[Request, Any, T]


def number_of(name: str) -> int | None:
    """Return the number in a name of a place; None if the name is not one of a log.

    Parameters
    ----------
    name
        Name of a file or object.
    """
    found = _NAME.fullmatch(name)
    return int(found.group(2)) if found else None


def _last_record(names: Iterable[str]) -> str | None:
    records = (name for name in names if name.startswith("record-") and number_of(name) is not None)
    return max(records, default=None)


def claim(owner: str, program: str, version: str, key: bytes = b"") -> Plan[Record]:
    """Claim a place for a run that begins; the result is the record, with the last checkpoint.

    Parameters
    ----------
    owner, program, version
        As in `Record`.
    key
        32 bytes to authenticate records, or none.

    Raises
    ------
    CheckpointError
        The last record is damaged, or of another program or version; nothing has been written.
    """
    while True:
        last = _last_record((yield Names()))
        saved, number = None, 0
        if last is not None:
            data = yield Read(last)
            if data is None:  # another run has published a newer one, and removed this
                continue
            try:
                before = Record.from_bytes(data, key)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{last} cannot be used: {error}; name another place with to=, or remove this"
                ) from None
            for what, ours, theirs in (
                ("program", program, before.program),
                ("version", version, before.version),
            ):
                if ours != theirs:
                    raise CheckpointError(
                        f"its checkpoints are of {what} {theirs!r}, and this is {what} {ours!r};"
                        " name another place with to=, or remove this one"
                    )
            saved, number = before.saved, before.number
        record = Record(number + 1, owner, program, version, saved)
        if (yield Create(record.name, record.to_bytes(key))):
            return record


def publish(before: Record, saved: Saved, key: bytes = b"") -> Plan[Record]:
    """Publish a checkpoint whose parts are all complete; the result is its record.

    Parameters
    ----------
    before
        The run's own last record.
    saved
        The checkpoint; its number is the one after `before`.
    key
        As for `claim`.

    Raises
    ------
    CheckpointError
        A later run has claimed the place.
    """
    record = Record(saved.number, before.owner, before.program, before.version, saved)
    if not (yield Create(record.name, record.to_bytes(key))):
        raise CheckpointError(
            "a later run has taken over its checkpoints, so this one cannot save any more; end one"
            " of the two, or give each a place of its own with to="
        )
    return record


def clean(saved: Saved) -> Plan[None]:
    """Remove what is older than a published checkpoint, and what killed runs left.

    Parameters
    ----------
    saved
        The checkpoint.
    """
    names = yield Names()
    old = [name for name in names if (number_of(name) or saved.number) < saved.number]
    if old:
        yield Remove(tuple(old))


def _bytes(data: memoryview | None) -> bytes | None:
    return None if data is None else bytes(data)


def perform(plan: Plan[T], place: Place) -> T:
    """Do what a generator of this module yields; return its result.

    Parameters
    ----------
    plan
        The generator.
    place
        Where.
    """
    actions: dict[type, Callable[[Any], Any]] = {
        Names: lambda _: place.names(),
        Read: lambda request: _bytes(place.read(request.name)),
        Create: lambda request: place.create(request.name, request.data),
        Remove: lambda request: place.remove(request.names),
    }
    result = None
    while True:
        try:
            request = plan.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        result = actions[type(request)](request)
