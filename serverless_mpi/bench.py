"""Benchmarks with the names and the output of OSU's micro-benchmarks and of mpi4py.bench.

    smpirun -n 2 -m serverless_mpi.bench osu_latency
    mpirun -n 4 python -m serverless_mpi.bench osu_allreduce -m 4:65536

So a table from here can be held against one of MPICH or Open MPI.  What is measured is OSU's:

- osu_latency: half of the round trip of a message; osu_bw: a window of messages in flight, then
  one answer; osu_bibw: the same in both directions.
- A collective is timed on each rank over all iterations; the table has the average over ranks,
  and with -f the least and the greatest.
- Iterations of messages up to 8 KiB and above differ as in OSU; a slow channel needs fewer (-i).

A new collective is one row of `COLLECTIVES`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from serverless_mpi import MPI, __version__

LARGE_BYTES = 8192  # messages above it take the fewer iterations
WINDOW = 64
Array = np.ndarray


@dataclass(frozen=True)
class Collective:
    """One collective benchmark.

    Attributes
    ----------
    title
        As in OSU's heading.
    send, receive
        Blocks of the message's size in the send and receive buffers, as multiples of
        (1, number of ranks).
    call
        Called with the communicator and the two buffers.
    numbers
        Whether the message has float32 and not bytes, for reductions.
    """

    title: str
    send: tuple[int, int]
    receive: tuple[int, int]
    call: Callable[[MPI.Intracomm, Array, Array], object]
    numbers: bool = False


ONE, ALL, NONE = (1, 0), (0, 1), (0, 0)

COLLECTIVES = {
    "osu_allgather": Collective("Allgather", ONE, ALL, lambda c, s, r: c.Allgather(s, r)),
    "osu_allreduce": Collective(
        "Allreduce", ONE, ONE, lambda c, s, r: c.Allreduce(s, r), numbers=True
    ),
    "osu_alltoall": Collective(
        "All-to-All Personalized Exchange", ALL, ALL, lambda c, s, r: c.Alltoall(s, r)
    ),
    "osu_barrier": Collective("Barrier", NONE, NONE, lambda c, s, r: c.Barrier()),
    "osu_bcast": Collective("Broadcast", ONE, NONE, lambda c, s, r: c.Bcast(s, 0)),
    "osu_gather": Collective(
        "Gather", ONE, ALL, lambda c, s, r: c.Gather(s, r if c.rank == 0 else None, 0)
    ),
    "osu_reduce": Collective(
        "Reduce",
        ONE,
        ONE,
        lambda c, s, r: c.Reduce(s, r if c.rank == 0 else None, root=0),
        numbers=True,
    ),
    "osu_reduce_scatter": Collective(
        "Reduce_scatter", ALL, ONE, lambda c, s, r: c.Reduce_scatter_block(s, r), numbers=True
    ),
    "osu_scatter": Collective(
        "Scatter", ALL, ONE, lambda c, s, r: c.Scatter(s if c.rank == 0 else None, r, 0)
    ),
}


# -- point to point: a function returns one figure of a message size, on rank 0


def _latency(comm: MPI.Comm, buffer: Array, loops: int, skip: int) -> float:
    """Return microseconds one way."""
    other = 1 - comm.rank
    began = 0.0
    comm.Barrier()
    for index in range(skip + loops):
        if index == skip:
            began = MPI.Wtime()
        if comm.rank == 0:
            comm.Send(buffer, other)
            comm.Recv(buffer, other)
        else:
            comm.Recv(buffer, other)
            comm.Send(buffer, other)
    return (MPI.Wtime() - began) / loops / 2 * 1e6


def _bandwidth(comm: MPI.Comm, buffer: Array, loops: int, skip: int) -> float:
    """Return MB/s from rank 0 to rank 1."""
    answer = np.empty(1, "B")
    began = 0.0
    comm.Barrier()
    for index in range(skip + loops):
        if index == skip:
            began = MPI.Wtime()
        if comm.rank == 0:
            MPI.Request.Waitall([comm.Isend(buffer, 1) for _ in range(WINDOW)])
            comm.Recv(answer, 1)
        else:
            MPI.Request.Waitall([comm.Irecv(buffer, 0) for _ in range(WINDOW)])
            comm.Send(answer, 0)
    return buffer.nbytes * WINDOW * loops / (MPI.Wtime() - began) / 1e6


def _both_ways(comm: MPI.Comm, buffer: Array, loops: int, skip: int) -> float:
    """Return MB/s of both directions together."""
    other = 1 - comm.rank
    incoming = np.empty_like(buffer)
    began = 0.0
    comm.Barrier()
    for index in range(skip + loops):
        if index == skip:
            began = MPI.Wtime()
        requests = [comm.Irecv(incoming, other) for _ in range(WINDOW)]
        requests += [comm.Isend(buffer, other) for _ in range(WINDOW)]
        MPI.Request.Waitall(requests)
    return 2 * buffer.nbytes * WINDOW * loops / (MPI.Wtime() - began) / 1e6


@dataclass(frozen=True)
class Pair:
    """One benchmark of two ranks: title and unit as in OSU's heading, and what measures a size."""

    title: str
    column: str
    measure: Callable[[MPI.Comm, Array, int, int], float]


PAIRS = {
    "osu_latency": Pair("Latency", "Latency (us)", _latency),
    "osu_bw": Pair("Bandwidth", "Bandwidth (MB/s)", _bandwidth),
    "osu_bibw": Pair("Bi-Directional Bandwidth", "Bandwidth (MB/s)", _both_ways),
}


def _sizes(least: int, most: int) -> Iterator[int]:
    size = max(least, 1)
    while size <= most:
        yield size
        size *= 2


def _loops(options: argparse.Namespace, size: int) -> tuple[int, int]:
    """Return iterations and warm-up iterations of a message size."""
    if options.iterations is not None:
        return options.iterations, options.warmup
    return (1000, options.warmup) if size <= LARGE_BYTES else (100, options.warmup)


def _heading(comm: MPI.Intracomm, title: str, columns: Sequence[str]) -> None:
    if comm.rank == 0:
        print(f"\n# OSU MPI {title} Test, serverless_mpi {__version__} ({comm.size} ranks)")
        print("# Datatype: MPI_BYTE.")
        print(f"{'# Size':<10}" + "".join(f"{column:>20}" for column in columns), flush=True)


def _row(comm: MPI.Intracomm, size: int, figures: Sequence[float]) -> None:
    if comm.rank == 0:
        print(f"{size:<10}" + "".join(f"{figure:>20.2f}" for figure in figures), flush=True)


def pair(comm: MPI.Intracomm, name: str, options: argparse.Namespace) -> None:
    """Print the table of a benchmark of two ranks; further ranks wait.

    Parameters
    ----------
    comm
        At least two ranks.
    name
        A key of `PAIRS`.
    options
        From the command line.
    """
    chosen = PAIRS[name]
    _heading(comm, chosen.title, [chosen.column])
    two = comm.Split(0 if comm.rank < 2 else 1, comm.rank)
    for size in _sizes(*options.sizes) if comm.rank < 2 else ():
        figure = chosen.measure(two, np.zeros(size, "B"), *_loops(options, size))
        _row(comm, size, [figure])
    two.Free()
    comm.Barrier()


def collective(comm: MPI.Intracomm, name: str, options: argparse.Namespace) -> None:
    """Print the table of a collective.

    Parameters
    ----------
    comm
        Any number of ranks.
    name
        A key of `COLLECTIVES`.
    options
        From the command line.
    """
    chosen = COLLECTIVES[name]
    columns = ["Avg Latency(us)"]
    if options.full:
        columns += ["Min Latency(us)", "Max Latency(us)", "Iterations"]
    _heading(comm, chosen.title, columns)
    kind = np.dtype("f4" if chosen.numbers else "B")
    sizes = _sizes(max(options.sizes[0], kind.itemsize), options.sizes[1])
    for size in [0] if chosen.send == NONE else sizes:
        count = size // kind.itemsize
        send, receive = (
            np.zeros(count * (one + per_rank * comm.size), kind)
            for one, per_rank in (chosen.send, chosen.receive)
        )
        loops, skip = _loops(options, size)
        spent = 0.0
        for index in range(skip + loops):
            began = MPI.Wtime()
            chosen.call(comm, send, receive)
            spent += (MPI.Wtime() - began) * (index >= skip)
            comm.Barrier()  # OSU's: no rank begins the next call early
        means = comm.allgather(spent / loops * 1e6)
        more = [min(means), max(means), loops] if options.full else []
        _row(comm, size, [sum(means) / comm.size, *more])


# -- mpi4py.bench's commands


def helloworld(comm: MPI.Intracomm, options: argparse.Namespace) -> None:
    """Print a line from each rank, in the order of ranks.

    Parameters
    ----------
    comm
        Any number of ranks.
    options
        From the command line.
    """
    width = len(str(comm.size - 1))
    name = MPI.Get_processor_name()
    comm.Barrier()
    if comm.rank > 0:
        comm.Recv([None, "B"], comm.rank - 1)
    print(f"Hello, World! I am process {comm.rank:{width}d} of {comm.size} on {name}.", flush=True)
    if comm.rank < comm.size - 1:
        comm.Send([None, "B"], comm.rank + 1)
    comm.Barrier()


def ringtest(comm: MPI.Intracomm, options: argparse.Namespace) -> None:
    """Time messages that travel around all ranks.

    Parameters
    ----------
    comm
        Any number of ranks.
    options
        From the command line: `n` bytes, `loops` rounds after `warmup` rounds.
    """
    data, incoming = np.full(options.n, 42, "B"), np.zeros(options.n, "B")
    below, above = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    began = 0.0
    comm.Barrier()
    for index in range(options.warmup + options.loops):
        if index == options.warmup:
            began = MPI.Wtime()
        if comm.size == 1:
            comm.Sendrecv(data, 0, recvbuf=incoming, source=0)
        elif comm.rank == 0:
            comm.Send(data, above)
            comm.Recv(incoming, below)
        else:
            comm.Recv(incoming, below)
            comm.Send(incoming, above)
    elapsed = MPI.Wtime() - began
    if not np.array_equal(data, incoming):
        comm.Abort(2)
    if comm.rank == 0:
        print(
            f"time for {options.loops} loops = {elapsed:g} seconds"
            f" ({comm.size} processes, {options.n} bytes)",
            flush=True,
        )


def pingpong(comm: MPI.Intracomm, options: argparse.Namespace) -> None:
    """Time messages between ranks 0 and 1: mean, deviation and rate of each size.

    Parameters
    ----------
    comm
        At least two ranks.
    options
        From the command line: sizes from `least` to `most` bytes, `loops` repetitions.
    """
    other = 1 - comm.rank
    if comm.rank == 0:
        figures = f"{'Time Mean [s]':>14} ± StdDev [s]  Samples"
        print(f"# {'Size [B]':>12}  {'Bandwidth [MB/s]':>18} | {figures}")
    for size in _sizes(*options.sizes) if comm.rank < 2 else ():
        data = np.zeros(size, "B")
        loops, skip = _loops(options, size)
        times = []
        for index in range(skip + loops):
            began = MPI.Wtime()
            if comm.rank == 0:
                if options.pickle:
                    comm.send(data, other)
                    comm.recv(source=other)
                else:
                    comm.Send(data, other)
                    comm.Recv(data, other)
                times += [(MPI.Wtime() - began) / 2] * (index >= skip)
            elif options.pickle:
                comm.send(comm.recv(source=other), other)
            else:
                comm.Recv(data, other)
                comm.Send(data, other)
        if comm.rank == 0:
            mean, deviation = float(np.mean(times)), float(np.std(times))
            rate = size / mean / 1e6
            print(
                f"{size:>14}  {rate:>18.3f} | {mean:>14.7e} ± {deviation:.4e}  {loops:>8}",
                flush=True,
            )
    comm.Barrier()


OWN = {"helloworld": helloworld, "ringtest": ringtest, "pingpong": pingpong}
NAMES = (*OWN, *PAIRS, *COLLECTIVES)


def _range(text: str) -> tuple[int, int]:
    """Return the bounds of MIN:MAX, :MAX or MAX in bytes."""
    first, colon, last = text.rpartition(":")
    try:
        least, most = int(first or "1"), int(last)
    except ValueError:
        least, most = 1, 0
    if not 0 <= least <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN:MAX in bytes")
    return least, most


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m serverless_mpi.bench",
        description="Run an MPI benchmark; start it with smpirun or mpirun.",
        allow_abbrev=False,
    )
    commands = made.add_subparsers(dest="name", metavar="NAME", required=True)
    for name in NAMES:
        command = commands.add_parser(name, help=_help(name))
        if name == "ringtest":
            command.add_argument("-n", type=_count, default=1, help="bytes of the message")
            command.add_argument("-l", "--loops", type=_count, default=1, help="rounds")
            command.add_argument("-s", "--skip", dest="warmup", type=int, default=0, help="warm-up")
        elif name != "helloworld":
            _add_sizes(command, name)
    return made


def _add_sizes(command: argparse.ArgumentParser, name: str) -> None:
    most = 1 << 20 if name in COLLECTIVES else 1 << 22
    command.add_argument(
        "-m", dest="sizes", metavar="MIN:MAX", type=_range, default=(1, most), help="sizes in bytes"
    )
    command.add_argument(
        "-i", dest="iterations", metavar="N", type=_count, help="iterations (1000; 100 above 8 KiB)"
    )
    command.add_argument(
        "-x", dest="warmup", metavar="N", type=int, default=10, help="warm-up iterations (10)"
    )
    if name in COLLECTIVES:
        command.add_argument("-f", dest="full", action="store_true", help="also least and greatest")
    if name == "pingpong":
        command.add_argument("-p", "--pickle", action="store_true", help="send objects")


def _help(name: str) -> str:
    if name in OWN:
        return str(OWN[name].__doc__).partition("\n")[0]
    return f"OSU's benchmark: {(PAIRS.get(name) or COLLECTIVES[name]).title}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a benchmark on this rank.

    Parameters
    ----------
    arguments
        Command line; that of the process by default.
    """
    options = parser().parse_args(arguments)
    comm = MPI.COMM_WORLD
    needs_two = options.name in PAIRS or options.name == "pingpong"
    if needs_two and comm.size < 2:
        sys.exit(
            f"{options.name} needs two ranks: smpirun -n 2 -m serverless_mpi.bench {options.name}"
        )
    if options.name in OWN:
        OWN[options.name](comm, options)
    else:
        (pair if options.name in PAIRS else collective)(comm, options.name, options)


if __name__ == "__main__":
    main()
