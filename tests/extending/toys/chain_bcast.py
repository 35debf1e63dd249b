"""A broadcast along a chain of ranks, written from the documentation alone."""

from serverless_mpi.collectives.choose import algorithm
from serverless_mpi.collectives.cost import Tally
from serverless_mpi.collectives.steps import Blob, Recv, Send, Steps, parts


def chain_cost(tally: Tally) -> None:
    """P-1 rounds, in each of which one rank receives the blob and passes it on."""
    hop = tally.put(tally.n) + tally.get(tally.n)
    tally.step(tally.n, hop, tally.size - 1)
    tally.all(hop * (tally.size - 1))


@algorithm("bcast", cost=chain_cost)
def chain(rank: int, size: int, root: int, data: Blob | None) -> Steps:
    """P-1 rounds; each rank but the last sends 1 message of n bytes to the next one."""
    position = (rank - root) % size
    if position:
        data = yield Recv((rank - 1) % size)
    assert data is not None
    if position < size - 1:
        yield Send(((rank + 1) % size,), parts(data))
    return data
