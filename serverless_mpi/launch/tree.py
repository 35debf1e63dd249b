"""The tree in which the ranks of a job start each other: who starts whom, and how wide.

Pure functions of numbers.  Rank r starts the ranks branching*r + 1 .. branching*r + branching, as in a heap: every
level is full but the last, so no tree of that branching is shallower, and a rank needs only its own number, the
size and the branching to know its children.
Source of the scheme: FSD-Inference, ICDE 2024, "hierarchical function launch".
"""

from __future__ import annotations

from serverless_mpi.aws import limits

# What a level costs: a child must have started before it can start its own children, and is started after its elder
# siblings.
START_S = limits.AWS.cold_start_s.value
CALL_S = limits.AWS.invoke_s.value


def children(rank: int, size: int, branching: int) -> range:
    """The ranks that `rank` starts, in order; empty for a leaf."""
    first = branching * rank + 1
    return range(min(first, size), min(first + branching, size))


def parent(rank: int, branching: int) -> int | None:
    """The rank that starts `rank`; None for rank 0, which the launcher starts."""
    return (rank - 1) // branching if rank else None


def depth(size: int, branching: int) -> int:
    """Levels below rank 0 in a tree of `size` ranks."""
    levels, last = 0, size - 1
    while last > 0:
        last = (last - 1) // branching
        levels += 1
    return levels


def seconds(size: int, branching: int, start_s: float = START_S, call_s: float = CALL_S) -> float:
    """When the last rank begins, counted from rank 0's beginning, if each level waits for its last call."""
    return depth(size, branching) * (start_s + min(branching, size - 1) * call_s)


def choose(size: int, start_s: float = START_S, call_s: float = CALL_S) -> int:
    """The branching with which the last of `size` ranks begins soonest; the narrowest of several; 1 for a single rank.

    start_s: from a call to the first statement of the rank it starts, in seconds; call_s: of one call, in seconds.
    """
    if size < 3:
        return 1
    # For each depth only the narrowest tree matters; a binary tree is the deepest that can pay.
    narrowest = {_narrowest(size, levels) for levels in range(1, depth(size, 2) + 1)}
    return min(sorted(narrowest), key=lambda branching: seconds(size, branching, start_s, call_s))


def _narrowest(size: int, levels: int) -> int:
    """The least branching with which `size` ranks need no more than `levels` levels."""
    low, high = 1, size - 1
    while low < high:
        middle = (low + high) // 2
        if depth(size, middle) <= levels:
            high = middle
        else:
            low = middle + 1
    return low
