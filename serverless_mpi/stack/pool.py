"""Leases of a stack's queues: which job uses which queue.

The leases are one small object in the bucket. A launcher reads it, and replaces it by a PUT that S3
executes only if the object is still the one that was read (If-Match), so two launchers never take
the same queue. A lease expires at the time limit of its job, after which no function of the job
runs.

Besides jobs, a deploy leases what it probes (`hold_free`).

References
----------
"Conditional writes", Amazon S3 User Guide:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serverless_mpi.errors import ChannelError, UsageError
from serverless_mpi.stack.stack import Stack, explained

KEY = "pool.json"
ATTEMPTS = 20
MARGIN_S = 120.0  # after a job's limit: functions that were started late, and clocks that differ

Held = dict[str, dict[str, Any]]  # job -> {"slots": [...], "console": n, "until": epoch seconds}


@dataclass(frozen=True)
class Lease:
    """What a job has leased.

    Attributes
    ----------
    job_id
        Whose it is.
    slots
        Numbers of queues, in the order of the job's ranks.
    console
        Number of a console queue.
    """

    job_id: str
    slots: tuple[int, ...]
    console: int


def take(
    stack: Stack, job_id: str, slots: int, limit_s: float, clock: Callable[[], float] = time.time
) -> Lease:
    """Lease queues and a console.

    Parameters
    ----------
    stack
        Stack whose pool it is.
    job_id
        Id of the job that leases.
    slots
        Number of queues; 0 for a channel that needs none.
    limit_s
        Time limit of the job in seconds; the lease is longer by MARGIN_S.
    clock
        Returns seconds since the epoch.

    Raises
    ------
    UsageError
        The pool is too small, or others have it; the text says until when.
    ChannelError
        The table of leases is damaged, or changed in each of ATTEMPTS attempts.
    """
    if slots > stack.ranks:
        raise UsageError(
            f"{slots} functions need {slots} queues, and stack {stack.name} has {stack.ranks}:"
            f" run `smpi deploy --ranks {slots}`, run several ranks in each function (-ppn), or use"
            " --channel object, which needs none"
        )
    lease: list[Lease] = []

    def change(held: Held) -> None:
        used = {slot for one in held.values() for slot in one["slots"]}
        free = [slot for slot in range(stack.ranks) if slot not in used][:slots]
        consoles = {one["console"] for one in held.values()}
        console = next((number for number in range(stack.jobs) if number not in consoles), None)
        if len(free) < slots or console is None:
            soonest = min(one["until"] for one in held.values()) - clock()
            raise UsageError(
                f"other jobs use the queues of stack {stack.name} ({', '.join(held)}); the first"
                f" lease ends within {soonest:.0f} s. `smpi jobs` lists running jobs; `smpi clean`"
                " frees the queues of jobs whose launcher died"
            )
        held[job_id] = {"slots": free, "console": console, "until": clock() + limit_s + MARGIN_S}
        lease[:] = [Lease(job_id, tuple(free), console)]

    _change(stack, change, clock)
    return lease[0]


def hold_free(
    stack: Stack, holder: str, limit_s: float, clock: Callable[[], float] = time.time
) -> tuple[int, ...]:
    """Lease every queue that is free, and no console.

    Parameters
    ----------
    stack
        Stack whose pool it is.
    holder
        Whose lease it is: letters and digits, at most 16.
    limit_s
        Seconds, to which MARGIN_S is added.
    clock
        Returns seconds since the epoch.

    Returns
    -------
    tuple of int
        Slots, ascending.

    Raises
    ------
    ChannelError
        The table of leases is damaged, or changed in each of ATTEMPTS attempts.
    """
    free: list[int] = []

    def change(held: Held) -> None:
        held.pop(holder, None)  # of an attempt that was interrupted
        used = {slot for lease in held.values() for slot in lease["slots"]}
        free[:] = [slot for slot in range(stack.ranks) if slot not in used]
        held[holder] = {"slots": list(free), "console": -1, "until": clock() + limit_s + MARGIN_S}

    _change(stack, change, clock)
    return tuple(free)


def give_back(
    stack: Stack,
    job_id: str,
    unsure: Sequence[int] = (),
    wait_s: float | None = None,
    clock: Callable[[], float] = time.time,
) -> None:
    """End a lease; a second call does nothing.

    Parameters
    ----------
    stack
        Stack whose pool it is.
    job_id
        Id of the job, or the holder, whose lease it is.
    unsure
        Slots on which a rank may still run, and would take the next job's messages. They stay
        leased, and the console with them.
    wait_s
        For how many more seconds; None for the rest of the lease.
    clock
        Returns seconds since the epoch.

    Raises
    ------
    ChannelError
        The table of leases is damaged, or changed in each of ATTEMPTS attempts.
    """

    def change(held: Held) -> None:
        one = held.pop(job_id, None)
        if one is not None and unsure:
            until = one["until"] if wait_s is None else min(one["until"], clock() + wait_s)
            held[job_id] = {**one, "slots": list(unsure), "until": until}

    _change(stack, change, clock)


def held(stack: Stack, clock: Callable[[], float] = time.time) -> Held:
    """Return the leases that have not ended.

    Parameters
    ----------
    stack
        Stack whose pool it is.
    clock
        Returns seconds since the epoch.

    Returns
    -------
    dict
        Id of the job or holder -> `slots`, `console`, and `until`: the end of the lease in seconds
        since the epoch.

    Raises
    ------
    ChannelError
        The table of leases is damaged.
    """
    return _read(stack, stack.client("s3"), clock)[0]


def _read(stack: Stack, s3: Any, clock: Callable[[], float]) -> tuple[Held, dict[str, str]]:
    """Return the leases, and the condition under which they may be replaced."""
    with explained("read who has the queues", stack.endpoint, stack.region):
        try:
            answer = s3.get_object(Bucket=stack.bucket, Key=KEY)
        except s3.exceptions.NoSuchKey:
            return {}, {"IfNoneMatch": "*"}
        leases = _checked(answer["Body"].read(), stack)
        return {job: one for job, one in leases.items() if one["until"] > clock()}, {
            "IfMatch": answer["ETag"]
        }


def _checked(text: bytes, stack: Stack) -> Held:
    """Return the leases in an object.

    A damaged one would give one queue to two jobs, or none to anybody.
    """
    try:
        leases: Held = json.loads(text)
        good = all(
            re.fullmatch("[0-9a-z]{1,16}", job)
            and all(type(slot) is int and 0 <= slot for slot in one["slots"])
            and type(one["console"]) is int
            and 0 <= float(one["until"]) < math.inf
            for job, one in leases.items()
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        good = False
    if not good:
        raise ChannelError(
            f"{KEY} in bucket {stack.bucket}, the table of leased queues, is damaged: when no job"
            f" of stack {stack.name} runs, `aws s3 rm s3://{stack.bucket}/{KEY}` frees them all"
        )
    return leases


def _change(stack: Stack, change: Callable[[Held], Any], clock: Callable[[], float]) -> None:
    s3 = stack.client("s3")
    for _ in range(ATTEMPTS):
        leases, condition = _read(stack, s3, clock)
        change(leases)
        try:
            with explained("lease queues", stack.endpoint, stack.region):
                s3.put_object(
                    Bucket=stack.bucket, Key=KEY, Body=json.dumps(leases).encode(), **condition
                )
            return
        except ChannelError as error:
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", "")
            if code not in (
                "PreconditionFailed",
                "ConditionalRequestConflict",
                "412",
                "409",
                "NoSuchKey",
            ):
                raise
    raise ChannelError(
        f"the leases of stack {stack.name} changed {ATTEMPTS} times while this job tried to take"
        " one; try again"
    )
