"""Programs whose answer has the same bits however often they start again.

    smpirun -n N --restarts K tests/restarts/programs.py NAME STEPS [FOLDER]

With FOLDER checkpoints are there, and each rank adds lines to FOLDER/log-RANK: "P PID" when it begins, and
"S STEP" after a step. Rank 0 prints the SHA-256 of the answer.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from serverless_mpi import MPI, checkpoint
from serverless_mpi.inference import dataset, engine, networks, partition

SIZE = 4000
State = dict[str, Any]


def solver(comm: Any) -> tuple[State, Callable[[State], None]]:
    """Conjugate gradients for a Laplacian, with its rows dealt to the ranks."""
    edges = np.linspace(0, SIZE, comm.size + 1).astype(int)
    counts = np.diff(edges)
    own = slice(edges[comm.rank], edges[comm.rank + 1])
    right = np.random.default_rng(1).standard_normal(SIZE)[own]
    state = {
        "x": np.zeros(right.size),
        "r": right.copy(),
        "p": right.copy(),
        "rr": comm.allreduce(float(right @ right)),
    }
    whole = np.empty(SIZE)

    def step(state: State) -> None:
        comm.Allgatherv(state["p"], [whole, counts])
        padded = np.concatenate([[0.0], whole, [0.0]])
        product = (2.1 * whole - padded[:-2] - padded[2:])[own]
        alpha = state["rr"] / comm.allreduce(float(state["p"] @ product))
        state["x"] += alpha * state["p"]
        state["r"] -= alpha * product
        after = comm.allreduce(float(state["r"] @ state["r"]))
        state["p"] = state["r"] + (after / state["rr"]) * state["p"]
        state["rr"] = after

    return state, step


def walk(comm: Any) -> tuple[State, Callable[[State], None]]:
    """Random walkers that change ranks; each rank has a generator of its own."""
    generator = np.random.default_rng([7, comm.rank])
    state = {"walkers": generator.random((200, 2)), "generator": generator}

    def step(state: State) -> None:
        moved = state["walkers"] + 0.1 * state["generator"].standard_normal(state["walkers"].shape)
        target = np.floor(moved[:, 0] * comm.size).astype(int) % comm.size
        arrived = comm.alltoall([moved[target == rank] for rank in range(comm.size)])
        state["walkers"] = np.concatenate(arrived)

    return state, step


def network(comm: Any) -> tuple[State, Callable[[State], None]]:
    """Distributed inference; each step is a batch of images through all layers."""
    layers = networks.random(64, 6, seed=5)
    owners = partition.make(layers, comm.size, "greedy")
    parts = partition.build(layers, owners, comm.rank)
    images = np.ascontiguousarray(dataset.digits(64))
    state = {"at": 0, "digests": []}

    def step(state: State) -> None:
        batch = np.roll(images, -8 * state["at"], axis=1)[:, :8]
        own = np.ascontiguousarray(batch[owners.rows(0, comm.rank)])
        y, samples, _ = engine.infer(comm, parts, own, layers.bias)
        digest = hashlib.sha256(np.ascontiguousarray(y).tobytes() + samples.tobytes())
        state["digests"] = [*state["digests"], digest.hexdigest()]
        state["at"] += 1

    return state, step


PROGRAMS = {"solver": solver, "walk": walk, "network": network}


def main(name: str, steps: int, folder: Path | None = None) -> None:
    """Be a rank."""
    comm = MPI.COMM_WORLD
    state, step = PROGRAMS[name](comm)
    log = None if folder is None else open(folder / f"log-{comm.rank}", "a", buffering=1)
    if log is not None:
        log.write(f"P {os.getpid()}\n")
    for number in checkpoint.steps(comm, steps, state, "3 steps", folder):
        step(state)
        if log is not None:
            log.write(f"S {number}\n")
    if "generator" in state:
        state["generator"] = repr(state["generator"].bit_generator.state)
    parts = [np.asarray(state[key]).tobytes() for key in sorted(state)]
    answers = comm.gather(hashlib.sha256(b"".join(parts)).hexdigest())
    if comm.rank == 0:
        print(hashlib.sha256("".join(answers).encode()).hexdigest(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *map(Path, sys.argv[3:]))
