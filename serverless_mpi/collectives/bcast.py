"""Broadcast: the root's blob to every rank. P ranks, blobs of n bytes.

References
----------
MPI 4.1, section 6.4.
"""

from __future__ import annotations

from serverless_mpi.collectives.choose import algorithm
from serverless_mpi.collectives.cost import Formula, Tally, log2_rounds
from serverless_mpi.collectives.steps import Blob, Recv, Send, Steps, parts


def fan_out_cost(t: Tally) -> None:
    """State the cost of `fan_out`, which ends some reductions as well.

    Parameters
    ----------
    t
        Receives the cost.
    """
    others = t.size - 1
    t.step(t.n, t.put(t.n, 1, others) + t.get(t.n))
    t.all(t.put(t.n, 1, others) + t.get(t.n) * others)


@algorithm("bcast", cost=fan_out_cost)
def fan_out(rank: int, size: int, root: int, data: Blob | None) -> Steps:
    """Send the blob from the root to all ranks at once.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    data
        Blob of the root; None on other ranks. Borrowed until the call ends.

    Returns
    -------
    Blob
        The root's blob.

    Notes
    -----
    1 round; 1 message of n bytes, which P-1 ranks read.
    """
    if rank == root:
        assert data is not None
        if size > 1:
            yield Send(tuple(other for other in range(size) if other != root), parts(data))
        return data
    return (yield Recv(root))


def _binomial_cost(t: Tally) -> None:
    t.step(t.n, t.put(t.n) + t.get(t.n), log2_rounds(t.size))
    t.all(t.put(t.n, t.size // 2, t.size - 1) + t.get(t.n) * (t.size - 1))


@algorithm("bcast", cost=_binomial_cost)
def binomial(rank: int, size: int, root: int, data: Blob | None) -> Steps:
    """Send the blob down a binomial tree.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    data
        Blob of the root; None on other ranks. Borrowed until the call ends.

    Returns
    -------
    Blob
        The root's blob.

    Notes
    -----
    At most ceil(log2 P) rounds. A rank sends at most 1 message of n bytes, which at most ceil(log2
    P) ranks read: all its children, the one with the largest subtree first.
    """
    relative = (rank - root) % size
    reach = 1  # of the subtree below this rank: relative .. relative + reach - 1
    while reach < size and not relative & reach:
        reach *= 2
    if relative:
        data = yield Recv((rank - reach) % size)
    children = []
    while reach > 1:  # the child with the most descendants first
        reach //= 2
        if relative + reach < size:
            children.append((rank + reach) % size)
    return (yield from _give(data, children))


def _tree_cost(arity: int) -> Formula:
    """Return the formula of a tree with this number of children per rank."""

    def formula(t: Tally) -> None:
        reached, level, rounds = 1, 1, 0
        while reached < t.size:
            level, rounds = level * arity, rounds + 1
            reached += level
        t.step(t.n, t.put(t.n, 1, min(arity, t.size - 1)) + t.get(t.n), rounds)
        t.all(t.put(t.n, -(-(t.size - 1) // arity), t.size - 1) + t.get(t.n) * (t.size - 1))

    return formula


@algorithm("bcast", cost=_tree_cost(4), name="tree_4", arity=4)
def tree(rank: int, size: int, root: int, data: Blob | None, *, arity: int = 4) -> Steps:
    """Send the blob down a complete tree, where each rank has up to `arity` children.

    Parameters
    ----------
    rank, size
        Rank of the caller, and number of ranks.
    root
        Rank of the root.
    data
        Blob of the root; None on other ranks. Borrowed until the call ends.
    arity
        Most children of a rank.

    Returns
    -------
    Blob
        The root's blob.

    Notes
    -----
    As many rounds as the tree has levels below the root. A rank sends at most 1 message of n bytes,
    which `arity` ranks read.
    """
    relative = (rank - root) % size
    if relative:
        data = yield Recv(((relative - 1) // arity + root) % size)
    first = arity * relative + 1
    return (
        yield from _give(
            data, [(child + root) % size for child in range(first, min(first + arity, size))]
        )
    )


def _give(data: Blob | None, children: list[int]) -> Steps:
    """Send a blob to the children and return it."""
    assert data is not None
    if children:
        yield Send(tuple(children), parts(data))
    return data
