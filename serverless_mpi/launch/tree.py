"""The tree in which the ranks of a job start each other: which rank starts which, and how wide.

Pure functions of numbers. Rank r starts the ranks branching*r + 1 to branching*r + branching, as in
a heap: every level except the last is full, so no tree of that branching is shallower, and a rank
computes its children from its own number, the size and the branching.

References
----------
FSD-Inference, ICDE 2024, "hierarchical function launch".
"""

from __future__ import annotations

from serverless_mpi.aws import limits

# What a level costs: a child must have started before it can start its own children, and is started
# after its elder siblings.
START_S = limits.AWS.cold_start_s.value
CALL_S = limits.AWS.invoke_s.value


def children(rank: int, size: int, branching: int) -> range:
    """Return the ranks that a rank starts, in order; empty for a leaf.

    Parameters
    ----------
    rank
        The parent.
    size
        Number of ranks of the job.
    branching
        Most children of a rank.
    """
    first = branching * rank + 1
    return range(min(first, size), min(first + branching, size))


def parent(rank: int, branching: int) -> int | None:
    """Return the rank that starts a rank; None for rank 0, which the launcher starts.

    Parameters
    ----------
    rank
        The child.
    branching
        Most children of a rank.
    """
    return (rank - 1) // branching if rank else None


def depth(size: int, branching: int) -> int:
    """Return the number of levels below rank 0.

    Parameters
    ----------
    size
        Number of ranks of the job.
    branching
        Most children of a rank.
    """
    levels, last = 0, size - 1
    while last > 0:
        last = (last - 1) // branching
        levels += 1
    return levels


def seconds(size: int, branching: int, start_s: float = START_S, call_s: float = CALL_S) -> float:
    """Return when the last rank begins, in seconds after rank 0 has begun.

    An upper bound: each level waits for the last call of the level above.

    Parameters
    ----------
    size
        Number of ranks of the job.
    branching
        Most children of a rank.
    start_s
        Seconds from a call to the first statement of the rank that it starts.
    call_s
        Seconds of one call.
    """
    return depth(size, branching) * (start_s + min(branching, size - 1) * call_s)


def choose(size: int, start_s: float = START_S, call_s: float = CALL_S) -> int:
    """Return the branching with which the last rank begins soonest.

    Parameters
    ----------
    size
        Number of ranks of the job.
    start_s, call_s
        As in `seconds`.

    Returns
    -------
    int
        The narrowest of several equally good ones; 1 for at most two ranks.
    """
    if size < 3:
        return 1
    # Of each depth only the narrowest tree can be best; one deeper than a binary tree never is.
    narrowest = {_narrowest(size, levels) for levels in range(1, depth(size, 2) + 1)}
    return min(sorted(narrowest), key=lambda branching: seconds(size, branching, start_s, call_s))


def _narrowest(size: int, levels: int) -> int:
    """Return the least branching with which `size` ranks need at most `levels` levels."""
    low, high = 1, size - 1
    while low < high:
        middle = (low + high) // 2
        if depth(size, middle) <= levels:
            high = middle
        else:
            low = middle + 1
    return low
