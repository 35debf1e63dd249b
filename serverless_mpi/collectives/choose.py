"""The registry of collective algorithms, and the choice among them.

An algorithm is registered once, beside its generator:

    @algorithm("bcast", cost=chain_cost)
    def chain(rank, size, root, data): ...

From then on it is chosen where it is best, and is included in `--explain`,
`--simulate`, `--algorithm` and the contract suite (`serverless_mpi.testing`).

Of the algorithms whose condition holds, `select` takes the cheapest of the
fastest by their cost formulas; among equals, the one registered first.  So
within a file, simple algorithms stand before elaborate ones.

Invariant: two ranks of one call must choose the same algorithm.  Conditions
and formulas therefore see only `Facts`, which all ranks of a call share, and
every rank must have registered the same algorithms (a launcher passes the
names of plug-in modules to all ranks).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, TypeVar

from serverless_mpi.collectives.cost import Cost, Facts, Formula, Tally
from serverless_mpi.collectives.operations import OPERATIONS
from serverless_mpi.collectives.steps import Steps
from serverless_mpi.errors import UsageError

__all__ = ["ALGORITHMS", "Algorithm", "Facts", "algorithm", "find", "forced", "select"]

EQUALLY_FAST = 1.1  # formulas are no better than this: seconds within this factor count as equal

Condition = Callable[[Facts], bool]
G = TypeVar("G", bound=Callable[..., Steps])


@dataclass(frozen=True, eq=False)
class Algorithm:
    """One registered algorithm.

    Attributes
    ----------
    operation
        Its key in `operations.OPERATIONS`.
    name
        Unique within the operation; shown by ``--explain``, taken by ``--algorithm``.
    generator
        Makes the steps of one rank: generator(rank, size, *arguments of the operation).
    formula
        What a call costs; None only for operations whose cost cannot be modelled.
    condition
        Whether it can serve a call at all.
    placed
        The generator depends on the nodes of the ranks: it takes the call's `facts`, too.
    """

    operation: str
    name: str
    generator: Callable[..., Steps]
    formula: Formula | None
    condition: Condition
    placed: bool = False

    def on(self, facts: Facts) -> Algorithm:
        """Return the algorithm for calls with these facts, which a placed generator takes.

        Parameters
        ----------
        facts
            What all ranks of the call share.
        """
        if not self.placed:
            return self
        return replace(self, generator=partial(self.generator, facts=facts))

    def cost(self, facts: Facts) -> Cost:
        """Evaluate the formula.

        Parameters
        ----------
        facts
            What all ranks of the call share.
        """
        assert self.formula is not None, f"{self.operation} has no cost model"
        tally = Tally(facts)
        self.formula(tally)
        return tally.cost()


# operation -> its algorithms, in the order of registration
ALGORITHMS: dict[str, list[Algorithm]] = {operation: [] for operation in OPERATIONS}


def always(_: Facts) -> bool:
    """Condition that holds for every call.

    Parameters
    ----------
    _
        What all ranks of a call share; not used.
    """
    return True


def fanout(facts: Facts) -> bool:
    """Condition: one put reaches many ranks for one price.

    Parameters
    ----------
    facts
        What all ranks of a call share.
    """
    return facts.figures.fanout


def ranges(facts: Facts) -> bool:
    """Condition: one put can carry a separate part for each rank.

    Parameters
    ----------
    facts
        What all ranks of a call share.
    """
    return facts.figures.ranges


def known_length(facts: Facts) -> bool:
    """Condition: all ranks share the length of a blob.

    It holds for buffers, whose blobs are vectors that can be cut, and not for pickled objects.

    Parameters
    ----------
    facts
        What all ranks of a call share.
    """
    return facts.nbytes is not None


def fanout_or_few_ranks(facts: Facts) -> bool:
    """Condition: one put reaches many ranks, or a tree would not have fewer rounds.

    Parameters
    ----------
    facts
        What all ranks of a call share.
    """
    return facts.figures.fanout or facts.size <= 4


def algorithm(
    operation: str,
    *,
    cost: Formula | None = None,
    condition: Condition = always,
    name: str | None = None,
    placed: bool = False,
    **fixed: Any,
) -> Callable[[G], G]:
    """Register the decorated generator as an algorithm of `operation`.

    Parameters
    ----------
    operation
        A key of `operations.OPERATIONS`, such as "bcast".
    cost
        Formula of the call's cost: it takes a `cost.Tally` and states steps and work on it.
        Required unless the operation is one whose cost cannot be modelled (between two
        groups, along the edges of a topology).
    condition
        Whether the algorithm can serve a call; it sees only what all ranks share.
    name
        Shown by ``--explain``; by default the function's name.
    placed
        Whether the generator takes the call's `facts` as a keyword argument.
    **fixed
        Keyword arguments of the generator that are fixed for this registration.

    Returns
    -------
    The decorator, which returns the generator function unchanged.

    Raises
    ------
    UsageError
        The operation does not exist, the name is taken, or the cost is missing.
    """
    if operation not in OPERATIONS:
        raise UsageError(f"no collective {operation!r}; known: {', '.join(OPERATIONS)}")

    def register(generator: G) -> G:
        title = name or generator.__name__
        if OPERATIONS[operation].modelled and cost is None:
            raise UsageError(
                f"{operation} algorithm {title!r} states no cost: pass cost=, a function of a"
                " serverless_mpi.collectives.cost.Tally"
            )
        if any(row.name == title for row in ALGORITHMS[operation]):
            raise UsageError(f"{operation} has an algorithm {title!r} already; pass another name=")
        bound = partial(generator, **fixed) if fixed else generator
        ALGORITHMS[operation].append(Algorithm(operation, title, bound, cost, condition, placed))
        select.cache_clear()
        return generator

    return register


def find(operation: str, name: str) -> Algorithm:
    """Return a registered algorithm.

    Parameters
    ----------
    operation
        A key of `operations.OPERATIONS`.
    name
        Name of the algorithm.

    Raises
    ------
    UsageError
        No such operation or algorithm; the message names the known ones.
    """
    if operation not in ALGORITHMS:
        raise UsageError(f"no collective {operation!r}; known: {', '.join(ALGORITHMS)}")
    for row in ALGORITHMS[operation]:
        if row.name == name:
            return row
    names = ", ".join(row.name for row in ALGORITHMS[operation])
    raise UsageError(f"{operation} has no algorithm {name!r}; known: {names}")


def forced(algorithms: Mapping[str, str]) -> dict[str, Algorithm]:
    """Return the algorithms that a user has chosen.

    Parameters
    ----------
    algorithms
        Operation -> name of the algorithm.

    Returns
    -------
    dict
        Operation -> algorithm.

    Raises
    ------
    UsageError
        No such operation or algorithm.
    """
    return {operation: find(operation, name) for operation, name in algorithms.items()}


@lru_cache(4096)
def select(operation: str, facts: Facts) -> Algorithm:
    """Choose the algorithm of a call. Ranks with equal facts choose the same one.

    Parameters
    ----------
    operation
        A key of `operations.OPERATIONS`.
    facts
        What all ranks of the call share.

    Returns
    -------
    Algorithm
        The cheapest of those whose seconds are at most EQUALLY_FAST times the least.
    """
    rows = [row for row in ALGORITHMS[operation] if row.condition(facts)]
    if len(rows) == 1 or not OPERATIONS[operation].modelled:
        return rows[0]
    costs = [row.cost(facts) for row in rows]
    fastest = min(cost.seconds for cost in costs)
    able = [index for index, cost in enumerate(costs) if cost.seconds <= EQUALLY_FAST * fastest]
    return rows[min(able, key=lambda index: (costs[index].usd, index))]
