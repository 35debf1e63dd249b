"""What smpirun says of collectives: --explain after a job, --simulate instead of one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serverless_mpi import MPI
from serverless_mpi.env import ENV_EXPLAIN
from serverless_mpi.errors import UsageError
from serverless_mpi.explain import explain, shown_size, simulate, size_of
from serverless_mpi.metering import Prices
from tests.harness import run, smpirun

PRICES = Prices.load()


def test_sizes() -> None:
    assert [size_of(*pair) for pair in (("8", ""), ("64", "KB"), ("8", "m"), ("1", "gb"))] == [
        8,
        65536,
        8 << 20,
        1 << 30,
    ]
    assert [shown_size(n) for n in (0, 8, 65536, 8 << 20, 1000)] == [
        "0B",
        "8B",
        "64KB",
        "8MB",
        "1000B",
    ]


def test_simulate_says_requests_seconds_and_dollars() -> None:
    lines = list(simulate(["allreduce:1KB", "barrier"], 30, "queue", "aws", "eu-central-1", PRICES))
    assert (
        lines[0].startswith("30 ranks over queue, latency aws, eu-central-1")
        and "30 functions" in lines[1]
    )
    (allreduce,) = [line.split() for line in lines if line.startswith("allreduce")]
    assert (
        allreduce[1:3] == ["30", "allreduce_fan"]
        and float(allreduce[-2]) > 0.1
        and float(allreduce[-1]) > 0
    )
    assert any("sns.Publish" in line for line in lines)


@pytest.mark.parametrize("call", ["prog.py", "allreduce:much", "barier"])
def test_what_cannot_be_simulated_is_said(call: str) -> None:
    with pytest.raises(UsageError, match="not a collective"):
        list(simulate([call], 4, "queue", "aws", "us-east-1", PRICES))
    with pytest.raises(UsageError, match="known are aws, express, emulator"):
        list(simulate(["barrier"], 4, "queue", "mars", "us-east-1", PRICES))


def rows(records: list[Any], channel: str) -> dict[str, list[str]]:
    """collective -> [calls, ranks, algorithm, rounds, messages, bytes, requests, seconds, USD]."""
    lines = [line.split() for line in list(explain(records, channel, "us-east-1", PRICES))[2:]]
    assert len({line[1] for line in lines}) == len(lines)
    return {line[1]: [line[0], *line[2:]] for line in lines}


def test_explain_counts_a_call_once_whatever_the_ranks() -> None:
    record = {
        "collectives": [
            ["bcast", 2, 8, "fan_out", None, 3, 1, 8],
            ["inter_bcast", 2, None, "bcast_fan", [1, 0], 1, 1, 30],
        ]
    }
    found = rows([record, record], "hybrid")
    assert found["bcast:8B"][:6] == ["3", "2", "fan_out", "1", "1", "8"]
    assert found["inter_bcast:30B"][:6] == ["1", "2", "bcast_fan", "1", "1", "30"]


def test_what_cannot_be_played_through_is_said() -> None:
    lost = {
        "collectives": [
            ["neighbor_allgather", 2, None, "allgather_fan", [7, 0, [[1, 0]], [[1, 0]]], 1, 1, 8]
        ]
    }
    large = {"collectives": [["barrier", 1000, 0, "fan", None, 1000, 0, 0]]}
    for record in (lost, large):  # a rank that left no record, so many ranks
        assert "not forecast" in list(explain([record], "queue", "us-east-1", PRICES))[-1]
    assert (
        "not forecast"
        in list(
            explain(
                [{"collectives": [["barrier", 2, 0, "fan", None, 2, 0, 0]]}],
                "memory",
                "us-east-1",
                PRICES,
            )
        )[-1]
    )


def between(comm: Any) -> None:
    """Calls between ranks 0, 1 and 2, 3, 4 of five; blobs of 24 bytes, or of 8 a rank of the other group."""
    low = comm.rank < 2
    group = comm.Split(low)
    both = group.Create_intercomm(0, comm, 2 if low else 0)
    some, room, root = np.ones(3), np.zeros(3), MPI.ROOT if group.rank == 1 else MPI.PROC_NULL
    each, into = np.ones(both.remote_size), np.zeros(both.remote_size)
    both.Barrier()
    both.Bcast(some, root if low else 1)
    both.Gather(None if low else some, np.zeros(9) if low else None, root if low else 1)
    both.Scatter(np.ones(9) if low else None, None if low else room, root if low else 1)
    both.Allgather(some, np.zeros(3 * both.remote_size))
    both.Alltoall(each, into)
    both.Reduce(None if low else some, room if low else None, MPI.SUM, root if low else 1)
    both.Allreduce(some, room)
    both.Reduce_scatter(np.ones(6), np.zeros(6 // group.size), [6 // group.size] * group.size)


def among_neighbors(comm: Any) -> None:
    """Calls along a line of five, and on a graph where rank 0 gives to 1 twice and to 2, and 3 to 0."""
    line = comm.Create_cart([5], [False])
    line.Neighbor_allgather(np.ones(2), np.zeros((2, 2)))
    line.Neighbor_alltoall(np.ones((2, 3)), np.zeros((2, 3)))
    sources = {0: [3], 1: [0, 0], 2: [0]}.get(comm.rank, [])
    dests = {0: [1, 2, 1], 3: [0]}.get(comm.rank, [])
    graph = comm.Create_dist_graph_adjacent(sources, dests)
    graph.neighbor_allgather(b"four")
    graph.neighbor_alltoall([b"four"] * len(dests))


@pytest.mark.parametrize("fanout", [False, True])
def test_calls_of_two_groups_and_of_neighbors_are_counted_from_their_generators(
    fanout: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_EXPLAIN, "1")

    def body(comm: Any) -> Any:
        runtime = comm._runtime
        runtime.figures = replace(runtime.figures, fanout=fanout)
        between(comm)
        among_neighbors(comm)
        return {"collectives": [[*call, *counts] for call, counts in runtime.chosen.items()]}

    # as a rank's record is written and read
    found = rows(json.loads(json.dumps(run(5, body))), "queue")
    expected = {
        "inter_barrier:0B": ("barrier_leaders", 3, 2 * 3 + 2, 0),
        "inter_bcast:24B": ("bcast_fan", 1, 3, 24) if fanout else ("bcast_leader", 2, 3, 2 * 24),
        "inter_gather:24B": ("gather_flat", 1, 3, 3 * 24),
        "inter_scatter:24B": ("scatter_packed", 1, 3, 3 * 24),
        "inter_allgather:24B": ("allgather_fan", 1, 2 * 6, 5 * 24),
        "inter_alltoall:8B": ("alltoall_packed", 1, 2 * 6, 2 * 6 * 8),
        "inter_reduce:24B": ("reduce_flat", 1, 3, 3 * 24),
        # to the leaders, between them, and back with one Send a group
        "inter_allreduce:24B": ("allreduce_fan", 1, 2 * 6, 5 * 24)
        if fanout
        else ("allreduce_leaders", 3, 2 * 5 - 2, 7 * 24),
        # to the leaders 48 bytes a rank, between them twice 48, back 24 to one and 16 to each of two
        "inter_reduce_scatter:48B": (
            "reduce_scatter_leaders",
            3,
            3 + 2 + 3,
            3 * 48 + 2 * 48 + 24 + 2 * 16,
        ),
    }
    assert {
        name: (row[2], *(int(n.replace(",", "")) for n in row[3:6]))
        for name, row in found.items()
        if "inter_" in name
    } == expected
    assert all(
        row[:2] == ["1", "5"] and float(row[-1]) > 0
        for name, row in found.items()
        if name in expected
    )
    along = {name: row for name, row in found.items() if "neighbor_" in name}
    assert along["neighbor_allgather:16B"][:6] == ["1", "5", "allgather_fan", "1", "8", str(5 * 16)]
    assert along["neighbor_alltoall:24B"][:6] == [
        "1",
        "5",
        "alltoall_direct",
        "1",
        "8",
        str(8 * 24),
    ]
    (gathered,) = (
        row
        for name, row in along.items()
        if name.startswith("neighbor_allgather") and name != "neighbor_allgather:16B"
    )
    (scattered,) = (
        row
        for name, row in along.items()
        if name.startswith("neighbor_alltoall") and name != "neighbor_alltoall:24B"
    )
    assert gathered[3:5] == ["1", "3"] and scattered[3:5] == [
        "1",
        "4",
    ]  # one message for two edges; one for each


def test_on_the_command_line(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("from serverless_mpi import MPI\nMPI.COMM_WORLD.barrier()\n")
    done = smpirun("-n", 3, "--channel", "direct", "--explain", program)
    assert done.returncode == 0 and "barrier:0B" in done.stderr
    done = smpirun("--simulate", "-n", 9, "--channel", "object", "bcast:8MB")
    assert done.returncode == 0 and "fan_out" in done.stdout and "s3.PUT" in done.stdout
    done = smpirun("--simulate", "-n", 9, "prog.py")
    assert done.returncode == 2 and "not a collective" in done.stderr
