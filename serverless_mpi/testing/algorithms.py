"""The contract of a collective algorithm: compare it with the definition of its operation.

`check_algorithm` plays calls of any size, root, blob lengths and order of
delivery in one process and compares what every rank returns with what the MPI
standard defines.  It also compares the cost formula with the messages, puts and
rounds of a run.  An algorithm that loses a blob, returns zeros, folds in another
order, deadlocks, or understates its cost fails.

The definitions (`_Call` and the functions below it) are written from MPI 4.1,
chapter 6 and section 8.6, and share nothing with the algorithms.
"""

from __future__ import annotations

import operator
import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from serverless_mpi.channels.base import CostParameters
from serverless_mpi.collectives.choose import ALGORITHMS, Algorithm
from serverless_mpi.collectives.cost import Facts
from serverless_mpi.collectives.operations import BETWEEN, OPERATIONS, example_calls
from serverless_mpi.collectives.steps import Combine, Elementwise, Steps, whole
from serverless_mpi.testing import dry_run

__all__ = ["SIZES", "check_algorithm", "registered"]

SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17)
_LENGTHS = (0, 1, 5, 40)  # bytes of a blob
_COST_BLOB = 48  # bytes per rank; formulas halve it several times

# Media on which an algorithm may be permitted: with and without fan-out and ranges.
_MEDIA = tuple(
    CostParameters(0.1, 1e8, 4e-7, 8e-7, fanout, 10, ranges=ranges)
    for fanout in (True, False)
    for ranges in (True, False)
)


def registered() -> Iterable[Algorithm]:
    """Yield every registered algorithm, including those of imported plug-ins."""
    for rows in ALGORITHMS.values():
        yield from rows


def check_algorithm(
    algorithm: Algorithm, *, sizes: Sequence[int] = SIZES, calls: int = 6, seed: int = 0
) -> None:
    """Check an algorithm against the definition of its operation and against its cost formula.

    Parameters
    ----------
    algorithm
        The algorithm, as `choose.find` returns it.
    sizes
        Numbers of ranks to try; between two groups, each splits in all ways that leave
        at least one rank in either group, up to seven.
    calls
        Random calls per size.
    seed
        Seed of the random calls; equal seeds make equal calls.

    Raises
    ------
    AssertionError
        A rank returned another result than the operation defines, or the formula's
        messages, puts or rounds are not those of a run.
    JobError
        The algorithm deadlocks, or sends a message that no rank receives.
    """
    operation = OPERATIONS[algorithm.operation]
    for size in sizes:
        for number in range(calls):
            rng = random.Random(f"{seed} {algorithm.operation} {algorithm.name} {size} {number}")
            if operation.neighbours:
                call = _neighbour_call(algorithm, size, rng)
            elif operation.between:
                call = _two_group_call(algorithm, min(size, 7), rng.randint(1, 7), rng)
            else:
                facts = Facts(size, None, rng.choice(_MEDIA), _nodes(algorithm, size, rng))
                if algorithm.placed and not algorithm.condition(facts):
                    continue  # too few ranks for two nodes of which one has two
                call = _one_group_call(algorithm.on(facts), size, rng)
            got, _ = dry_run.run(call.ranks, rng.randrange)
            for rank, expected in enumerate(call.expected):
                if expected is ANYTHING:
                    continue
                returned = _plain(got[rank], expected)
                assert returned == expected, (
                    f"{algorithm.operation} by {algorithm.name!r} on {len(call.ranks)} ranks:"
                    f" rank {rank} returned {_shown(returned)},"
                    f" the operation defines {_shown(expected)}"
                )
        facts = Facts(size, None, _MEDIA[0], _halves(size) if algorithm.placed else ())
        if algorithm.placed and not algorithm.condition(facts):
            continue
        if algorithm.operation == "allreduce":
            _check_equal_bits(algorithm.on(facts), size, random.Random(f"{seed} {size}"))
        if algorithm.formula is not None:
            _check_cost(algorithm, size)


def _halves(size: int) -> tuple[int, ...]:
    """Return two nodes of which the first has half of the ranks, rounded up."""
    return tuple(2 * rank // (size + 1) for rank in range(size))


def _nodes(algorithm: Algorithm, size: int, rng: random.Random) -> tuple[int, ...]:
    """Return random nodes that a placed algorithm serves; ranges of ranks where needed."""
    if not algorithm.placed:
        return ()
    mixed = tuple(rng.randrange(1 + size // 2) for _ in range(size))
    choices = (mixed, tuple(sorted(mixed)), _halves(size))
    for nodes in choices:
        if algorithm.condition(Facts(size, None, _MEDIA[0], nodes)):
            return nodes
    return ()


def _check_cost(algorithm: Algorithm, size: int) -> None:
    """Compare the formula's messages, puts and rounds with those of a run."""
    nbytes = _COST_BLOB * size
    nodes = _halves(size) if algorithm.placed else ()
    offered = (Facts(size, nbytes, medium, nodes) for medium in _MEDIA)
    facts = next(facts for facts in offered if algorithm.condition(facts))
    make = algorithm.on(facts).generator
    calls = example_calls(algorithm.operation, make, size, memoryview(bytes(nbytes)))
    _, counted = dry_run.run(calls)
    stated = algorithm.cost(facts)
    name = f"the cost of {algorithm.operation} by {algorithm.name!r} on {size} ranks"
    if size == 1:
        assert counted.messages == 0, f"{name}: a lone rank sends {counted.messages} messages"
        return
    assert stated.messages == counted.messages, (
        f"{name} states {stated.messages} messages; a run takes {counted.messages}"
    )
    assert stated.puts == sum(counted.sends), (
        f"{name} states {stated.puts} puts; a run takes {sum(counted.sends)}"
    )
    # The formula is for the worst root and the worst order of delivery.
    assert counted.rounds <= stated.rounds <= counted.rounds + 1, (
        f"{name} states {stated.rounds} rounds; a run takes {counted.rounds}"
    )


def _check_equal_bits(algorithm: Algorithm, size: int, rng: random.Random) -> None:
    """Check that all ranks of an allreduce get the same bits, whatever is rounded."""

    def add(a: memoryview, b: memoryview) -> memoryview:
        return memoryview(array("d", map(operator.add, a.cast("d"), b.cast("d"))).tobytes())

    operands = [
        array("d", [rng.uniform(-1, 1) * 10.0 ** rng.randrange(20) for _ in range(7)])
        for _ in range(size)
    ]
    ranks = [
        algorithm.generator(rank, size, memoryview(operand.tobytes()), Elementwise(add, 8))
        for rank, operand in enumerate(operands)
    ]
    got, _ = dry_run.run(ranks, rng.randrange)
    assert len({bytes(whole(result)) for result in got}) == 1, (
        f"allreduce by {algorithm.name!r} on {size} ranks: ranks returned different roundings"
    )


# --- example calls and what they must return -----------------------------------------------


class _Anything:
    """Marks a rank whose result the operation does not define."""


ANYTHING = _Anything()


@dataclass
class _Call:
    """The generators of all ranks, and what each must return."""

    ranks: list[Steps]
    expected: list[Any]


def _concatenate(a: memoryview, b: memoryview) -> memoryview:
    """Concatenate, which is associative but not commutative, so that a wrong order shows."""
    return memoryview(bytes(a) + bytes(b))


def _matrix_product(a: memoryview, b: memoryview) -> memoryview:
    """Multiply 2 x 2 matrices of bytes modulo 251: element-wise, associative, not commutative."""
    product = bytearray()
    for at in range(0, len(a), 4):
        (p, q, r, s), (t, u, v, w) = a[at : at + 4], b[at : at + 4]
        product += bytes(
            x % 251 for x in (p * t + q * v, p * u + q * w, r * t + s * v, r * u + s * w)
        )
    return memoryview(product)


def _add(a: memoryview, b: memoryview) -> memoryview:
    """Add bytes modulo 256."""
    return memoryview(bytes((x + y) % 256 for x, y in zip(a, b, strict=True)))


def _blob(rng: random.Random) -> memoryview:
    return memoryview(rng.randbytes(rng.choice(_LENGTHS)))


def _needs_equal_lengths(algorithm: Algorithm, size: int) -> bool:
    """Return whether the algorithm serves only calls whose blobs have one known length."""
    if algorithm.placed:
        return False
    return not any(algorithm.condition(Facts(size, None, figures)) for figures in _MEDIA)


def _operands(
    algorithm: Algorithm, size: int, rng: random.Random
) -> tuple[list[memoryview], Combine]:
    """Return one operand for each rank, and an operator that shows any wrong order."""
    if not _needs_equal_lengths(algorithm, size):
        return [_blob(rng) for _ in range(size)], _concatenate
    grain = rng.choice((4, 8, 0))
    elements = 2 * rng.randrange(20)
    operands = [memoryview(rng.randbytes(4 * elements)) for _ in range(size)]
    return operands, Elementwise(_matrix_product, grain)


def _fold(operands: Sequence[memoryview], combine: Callable[[Any, Any], Any]) -> bytes:
    return bytes(reduce(combine, operands))


def _one_group_call(algorithm: Algorithm, size: int, rng: random.Random) -> _Call:
    """Make a call among all ranks (MPI 4.1, chapter 6)."""
    make, name = algorithm.generator, algorithm.operation
    root = rng.randrange(size)
    if name == "barrier":
        return _barrier_call(size, lambda rank: make(rank, size))
    if name in ("reduce", "allreduce", "scan", "exscan"):
        operands, combine = _operands(algorithm, size, rng)
        total = _fold(operands, combine)
        if name == "reduce":
            ranks = [make(rank, size, root, operands[rank], combine) for rank in range(size)]
            return _Call(ranks, [total if rank == root else None for rank in range(size)])
        ranks = [make(rank, size, operands[rank], combine) for rank in range(size)]
        if name == "allreduce":
            return _Call(ranks, [total] * size)
        if name == "scan":
            return _Call(ranks, [_fold(operands[: rank + 1], combine) for rank in range(size)])
        below = [_fold(operands[:rank], combine) if rank else None for rank in range(size)]
        return _Call(ranks, below)
    equal = rng.choice(_LENGTHS) if _needs_equal_lengths(algorithm, size) else None

    def blob() -> memoryview:
        return _blob(rng) if equal is None else memoryview(rng.randbytes(equal))

    if name in ("alltoall", "reduce_scatter"):
        table = [[blob() for _ in range(size)] for _ in range(size)]
        columns = [[table[source][rank] for source in range(size)] for rank in range(size)]
        if name == "alltoall":
            ranks = [make(rank, size, table[rank]) for rank in range(size)]
            return _Call(ranks, [[bytes(blob) for blob in column] for column in columns])
        ranks = [make(rank, size, table[rank], _concatenate) for rank in range(size)]
        return _Call(ranks, [_fold(column, _concatenate) for column in columns])
    blobs = [blob() for _ in range(size)]
    plain = [bytes(blob) for blob in blobs]
    if name == "bcast":
        cut = len(blobs[root]) // 2
        pieces = [blobs[root][:cut], blobs[root][cut:]]  # a blob may come in several pieces
        ranks = [make(rank, size, root, pieces if rank == root else None) for rank in range(size)]
        return _Call(ranks, [plain[root]] * size)
    if name == "gather":
        ranks = [make(rank, size, root, blobs[rank]) for rank in range(size)]
        return _Call(ranks, [plain if rank == root else None for rank in range(size)])
    if name == "scatter":
        ranks = [make(rank, size, root, blobs if rank == root else None) for rank in range(size)]
        return _Call(ranks, plain)
    assert name == "allgather", f"the contract has no definition of {name}"
    return _Call([make(rank, size, blobs[rank]) for rank in range(size)], [plain] * size)


def _barrier_call(size: int, member: Callable[[int], Steps]) -> _Call:
    """Make a call in which each rank returns how many ranks had entered when it left."""
    entered: list[int] = []

    def rank_steps(rank: int) -> Steps:
        entered.append(rank)
        yield from member(rank)
        return b"%d" % len(entered)

    return _Call([rank_steps(rank) for rank in range(size)], [b"%d" % size] * size)


@dataclass(frozen=True)
class _Groups:
    """Two groups of ranks: their sizes, the numbers of their ranks, and all (group, rank)."""

    sizes: tuple[int, int]

    @property
    def members(self) -> list[tuple[int, int]]:
        return [(group, rank) for group in (0, 1) for rank in range(self.sizes[group])]

    def numbers(self, group: int) -> tuple[range, range]:
        """Return the numbers of the own and of the remote ranks, as an algorithm takes them."""
        low, high = self.sizes
        numbers = (range(low), range(low, low + high))
        return numbers[group], numbers[1 - group]


def _two_group_call(algorithm: Algorithm, low: int, high: int, rng: random.Random) -> _Call:
    """Make a call between groups of `low` and `high` ranks (MPI 4.1, section 6.2.3)."""
    make, name = algorithm.generator, algorithm.operation.removeprefix(BETWEEN)
    groups = _Groups((low, high))
    if name == "barrier":
        return _two_group_barrier(make, groups)
    if name in ("bcast", "gather", "reduce", "scatter"):
        return _two_group_rooted(make, name, groups, rng)
    if name == "alltoall":
        sizes = groups.sizes
        table = [
            [[_blob(rng) for _ in range(sizes[1 - group])] for _ in range(sizes[group])]
            for group in (0, 1)
        ]
        ranks = [
            make(rank, groups.numbers(group), table[group][rank]) for group, rank in groups.members
        ]
        columns = [[bytes(row[rank]) for row in table[1 - group]] for group, rank in groups.members]
        return _Call(ranks, columns)
    if name in ("allgather", "allreduce"):
        blobs = [[_blob(rng) for _ in range(size)] for size in groups.sizes]
        plain = [[bytes(blob) for blob in group] for group in blobs]
        extra = () if name == "allgather" else (_concatenate,)
        ranks = [
            make(rank, groups.numbers(group), blobs[group][rank], *extra)
            for group, rank in groups.members
        ]
        results: list[Any] = plain if name == "allgather" else [b"".join(group) for group in plain]
        return _Call(ranks, [results[1 - group] for group, _ in groups.members])
    assert name == "reduce_scatter", f"the contract has no definition of {name}"
    return _two_group_reduce_scatter(make, groups, rng)


def _two_group_rooted(
    make: Callable[..., Steps], name: str, groups: _Groups, rng: random.Random
) -> _Call:
    """Make a rooted call: data moves between the root and all ranks of the other group."""
    side = rng.randrange(2)  # the root's group
    root = (side, rng.randrange(groups.sizes[side]))
    root_number = groups.numbers(side)[0][root[1]]
    blobs = [[_blob(rng) for _ in range(size)] for size in groups.sizes]
    remote = blobs[1 - side]

    def argument(member: tuple[int, int]) -> object:
        """Return the data of a rank; None where the operation ignores it."""
        group, rank = member
        if name in ("gather", "reduce"):
            return blobs[group][rank] if group != side else None
        if member != root:
            return None
        return blobs[side][rank] if name == "bcast" else remote

    def result(member: tuple[int, int]) -> object:
        group, rank = member
        if name in ("gather", "reduce"):
            plain = [bytes(blob) for blob in remote]
            at_root = plain if name == "gather" else b"".join(plain)
            return at_root if member == root else None
        if group == side:
            return ANYTHING
        return bytes(blobs[side][root[1]] if name == "bcast" else remote[rank])

    extra = (_concatenate,) if name == "reduce" else ()
    ranks = [
        make(
            member[1],
            groups.numbers(member[0]),
            # Of the root's group only the root has a root argument, as with MPI.PROC_NULL.
            root_number if member[0] != side or member == root else None,
            argument(member),
            *extra,
        )
        for member in groups.members
    ]
    return _Call(ranks, [result(member) for member in groups.members])


def _two_group_barrier(make: Callable[..., Steps], groups: _Groups) -> _Call:
    """Make a call in which each rank returns how many remote ranks had entered when it left."""
    entered = [0, 0]

    def rank_steps(group: int, rank: int) -> Steps:
        entered[group] += 1
        yield from make(rank, groups.numbers(group))
        return b"%d" % entered[1 - group]

    ranks = [rank_steps(group, rank) for group, rank in groups.members]
    return _Call(ranks, [b"%d" % groups.sizes[1 - group] for group, _ in groups.members])


def _two_group_reduce_scatter(
    make: Callable[..., Steps], groups: _Groups, rng: random.Random
) -> _Call:
    """Make a call in which each rank gives a vector and gets its piece of the other group's sum."""
    total, sizes = rng.randrange(30), groups.sizes
    vectors = [[memoryview(rng.randbytes(total)) for _ in range(size)] for size in sizes]
    cuts = [sorted([0, total, *(rng.randint(0, total) for _ in range(size - 1))]) for size in sizes]
    ranks = [
        make(
            rank,
            groups.numbers(group),
            [vectors[group][rank][a:b] for a, b in zip(cuts[group], cuts[group][1:])],
            _add,
        )
        for group, rank in groups.members
    ]
    sums = [_fold(vectors[1 - group], _add) for group in (0, 1)]
    pieces = [
        sums[group][cuts[group][rank] : cuts[group][rank + 1]] for group, rank in groups.members
    ]
    return _Call(ranks, pieces)


def _neighbour_call(algorithm: Algorithm, size: int, rng: random.Random) -> _Call:
    """Make a call along a random graph with borders and several edges between two ranks."""
    edges = [(rng.randrange(size), rng.randrange(size)) for _ in range(rng.randrange(4 * size))]
    out: list[list[Any]] = [[] for _ in range(size)]
    into: list[list[Any]] = [[] for _ in range(size)]
    blob_of: dict[tuple[int, int], bytes] = {}
    for source, dest in edges:
        name = len(out[source])  # unique among what the source sends
        out[source].append((dest, name))
        into[dest].append((source, name))
        blob_of[source, name] = b"%d.%d" % (source, name)
    for lists in (out, into):
        for row in lists:
            if rng.random() < 0.3:  # a border: no neighbour at this position
                row.insert(rng.randrange(len(row) + 1), None)
    make = algorithm.generator
    if algorithm.operation == "neighbor_allgather":
        blobs = [memoryview(b"%d" % rank) for rank in range(size)]
        ranks = [make(rank, size, out[rank], into[rank], blobs[rank]) for rank in range(size)]
        expected = [
            [None if edge is None else b"%d" % edge[0] for edge in into[rank]]
            for rank in range(size)
        ]
        return _Call(ranks, expected)
    assert algorithm.operation == "neighbor_alltoall"
    ranks = [
        make(
            rank,
            size,
            out[rank],
            into[rank],
            [memoryview(b"" if edge is None else blob_of[rank, edge[1]]) for edge in out[rank]],
        )
        for rank in range(size)
    ]
    expected = [
        [None if edge is None else blob_of[edge] for edge in into[rank]] for rank in range(size)
    ]
    return _Call(ranks, expected)


def _plain(value: Any, expected: Any) -> Any:
    """Return blobs as bytes: one blob, or a list of them where that is expected."""
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(expected, list):
        return [None if blob is None else bytes(whole(blob)) for blob in value]
    return bytes(whole(value))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
