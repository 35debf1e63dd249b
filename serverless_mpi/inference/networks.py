"""Networks: RadiX-Net as the Graph Challenge has it, and random ones of the same shape.

Layers are given as rows of output neurons: y = W x for a column x of input neurons. A `Network`
makes its layers one at a time, each time it is iterated, so that no reader has to hold them all.
Sources: Kepner and Robinett, "RadiX-Net: Structured Sparse Matrices for Deep Neural Networks"
(2019); MIT/IEEE/Amazon Sparse DNN Graph Challenge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log2
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.sparse import SparseRows

BIAS = {1024: -0.3, 4096: -0.35, 16384: -0.4, 65536: -0.45}  # the challenge's, by neurons
COPIES = 16  # of each class of neurons
DEGREE = 32  # inputs of a neuron
_CHUNK = 1 << 22  # random numbers that a random network draws at once


class Layers(Protocol):
    """What readers of a network need: a list of layers, or a `Network`."""

    def __iter__(self) -> Iterator[SparseRows]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Network:
    """A network whose layers are generated, or read, by every iteration.

    Attributes
    ----------
    neurons, layers, bias
        Neurons per layer; number of layers; bias of every layer.
    make
        Returns an iterator over the layers.
    name
        For messages.
    """

    neurons: int
    layers: int
    bias: float
    make: Callable[[], Iterator[SparseRows]]
    name: str = "network"

    def __iter__(self) -> Iterator[SparseRows]:
        return self.make()

    def __len__(self) -> int:
        return self.layers


def check_size(neurons: int, layers: int) -> None:
    """Raise ValueError unless RadiX-Net exists in that size."""
    if neurons not in BIAS:
        raise ValueError(
            f"RadiX-Net has {', '.join(map(str, BIAS))} neurons per layer, not {neurons}"
        )
    if layers < 1:
        raise ValueError(f"a network needs at least 1 layer, not {layers}")


def radix(neurons: int, layers: int, seed: int = 0) -> Network:
    """Return the challenge's network: 32 inputs and outputs per neuron, every weight 1/16.

    The first log2(neurons / 16) layers are as they are; each later repetition of
    them has its inputs permuted, by `seed`.
    """
    check_size(neurons, layers)
    return Network(
        neurons, layers, BIAS[neurons], lambda: _radix_layers(neurons, layers, seed), "radix"
    )


def random(neurons: int, layers: int, seed: int = 0) -> Network:
    """Return a network that does not saturate: DEGREE random inputs per neuron, weights of both
    signs.

    Raises
    ------
    ValueError
        There are fewer neurons than DEGREE, or no layers.
    """
    if neurons < DEGREE or layers < 1:
        raise ValueError(f"a random network needs at least {DEGREE} neurons and 1 layer")
    return Network(neurons, layers, 0.0, lambda: _random_layers(neurons, layers, seed), "random")


def radixnet(neurons: int, layers: int, seed: int = 0) -> list[SparseRows]:
    """Return all layers of `radix`."""
    return list(radix(neurons, layers, seed))


def randomnet(neurons: int, layers: int, seed: int = 0) -> list[SparseRows]:
    """Return all layers of `random`."""
    return list(random(neurons, layers, seed))


def _radix_layers(neurons: int, layers: int, seed: int) -> Iterator[SparseRows]:
    classes = neurons // COPIES
    depth = int(log2(classes))
    chance = np.random.default_rng(seed)
    outputs = np.arange(neurons) % classes
    place: NDArray[np.int64] = np.arange(neurons)  # input neuron that stands where neuron i did
    for number in range(layers):
        k = number % depth
        if number and k == 0:
            place = np.argsort(chance.permutation(neurons))
        inputs = np.stack(
            [outputs, (outputs + (1 << k)) % classes], axis=1
        )  # classes of a neuron's inputs
        copies = (inputs[:, :, None] + classes * np.arange(COPIES)).reshape(neurons, DEGREE)
        columns = np.sort(place[copies], axis=1)
        yield SparseRows(np.arange(neurons + 1) * DEGREE, columns.reshape(-1), 1 / 16, neurons)


def _random_layers(neurons: int, layers: int, seed: int) -> Iterator[SparseRows]:
    chance = np.random.default_rng(seed)
    rows = max(1, _CHUNK // neurons)
    for _ in range(layers):
        columns = np.concatenate(
            [
                np.sort(
                    np.argpartition(
                        chance.random((min(rows, neurons - at), neurons)), DEGREE - 1, axis=1
                    )[:, :DEGREE],
                    axis=1,
                )
                for at in range(0, neurons, rows)
            ]
        )
        weights = chance.normal(0.02, 0.25, columns.size).astype(np.float32)
        yield SparseRows(np.arange(neurons + 1) * DEGREE, columns.reshape(-1), weights, neurons)
