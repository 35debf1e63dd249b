"""Networks: RadiX-Net as the Graph Challenge defines it, and random ones of the same shape.

A layer has a row per output neuron: y = W x for a column x of input neurons. A `Network` makes its
layers one at a time whenever it is iterated, so that no reader must hold them all.

References
----------
Kepner and Robinett, "RadiX-Net: Structured Sparse Matrices for Deep Neural Networks" (2019);
MIT/IEEE/Amazon Sparse DNN Graph Challenge, https://graphchallenge.mit.edu.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import log2
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.sparse import Ending, SparseRows

BIAS = {1024: -0.3, 4096: -0.35, 16384: -0.4, 65536: -0.45}  # neurons -> the challenge's bias
COPIES = 16  # neurons of a class, which have the same inputs
DEGREE = 32  # inputs of a neuron
_CHUNK = 1 << 22  # random numbers that a random network draws together


class Layers(Protocol):
    """Interface of a network to its readers: a list of layers, or a `Network`.

    A layer's shape is that of its matrix; a network's `endings` say what follows the sums.
    """

    def __iter__(self) -> Iterator[SparseRows]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Network:
    """A network whose layers are generated, or read, by every iteration.

    Attributes
    ----------
    neurons, layers, bias
        Inputs of the first layer; number of layers; bias of every layer without an ending.
    make
        Returns an iterator over the layers.
    name
        For messages.
    endings
        Bias and activation of each layer; None if all are the challenge's.
    """

    neurons: int
    layers: int
    bias: float
    make: Callable[[], Iterator[SparseRows]]
    name: str = "network"
    endings: Sequence[Ending] | None = None

    def __iter__(self) -> Iterator[SparseRows]:
        return self.make()

    def __len__(self) -> int:
        return self.layers


def endings_of(network: Layers) -> Sequence[Ending] | None:
    """Return the endings of a network's layers; None if all are the challenge's.

    Parameters
    ----------
    network
        The network.
    """
    endings: Sequence[Ending] | None = getattr(network, "endings", None)
    return endings


def check_size(neurons: int, layers: int) -> None:
    """Check that the challenge has a RadiX-Net of a size.

    Parameters
    ----------
    neurons
        Neurons per layer.
    layers
        Number of layers.

    Raises
    ------
    ValueError
        It has not.
    """
    if neurons not in BIAS:
        raise ValueError(
            f"RadiX-Net has {', '.join(map(str, BIAS))} neurons per layer, not {neurons}"
        )
    if layers < 1:
        raise ValueError(f"a network needs at least 1 layer, not {layers}")


def radix(neurons: int, layers: int, seed: int = 0) -> Network:
    """Return the challenge's network: 32 inputs and outputs per neuron, every weight 1/16.

    The structure repeats after log2(neurons / 16) layers. The inputs of each repetition are
    permuted at random.

    Parameters
    ----------
    neurons
        Neurons per layer, of BIAS.
    layers
        Number of layers.
    seed
        Seed of the permutations.

    Raises
    ------
    ValueError
        The challenge has no network of that size.
    """
    check_size(neurons, layers)
    return Network(
        neurons, layers, BIAS[neurons], lambda: _radix_layers(neurons, layers, seed), "radix"
    )


def random(neurons: int, layers: int, seed: int = 0) -> Network:
    """Return a network of random structure and weights of both signs, which does not saturate.

    Parameters
    ----------
    neurons
        Neurons per layer; each has DEGREE inputs.
    layers
        Number of layers.
    seed
        Seed of structure and weights.

    Raises
    ------
    ValueError
        There are fewer neurons than DEGREE, or no layers.
    """
    if neurons < DEGREE or layers < 1:
        raise ValueError(f"a random network needs at least {DEGREE} neurons and 1 layer")
    return Network(neurons, layers, 0.0, lambda: _random_layers(neurons, layers, seed), "random")


def radixnet(neurons: int, layers: int, seed: int = 0) -> list[SparseRows]:
    """Return all layers of `radix`, with the same parameters.

    Parameters
    ----------
    neurons, layers, seed
        As in `radix`.
    """
    return list(radix(neurons, layers, seed))


def randomnet(neurons: int, layers: int, seed: int = 0) -> list[SparseRows]:
    """Return all layers of `random`, with the same parameters.

    Parameters
    ----------
    neurons, layers, seed
        As in `random`.
    """
    return list(random(neurons, layers, seed))


def _radix_layers(neurons: int, layers: int, seed: int) -> Iterator[SparseRows]:
    classes = neurons // COPIES
    depth = int(log2(classes))
    rng = np.random.default_rng(seed)
    outputs = np.arange(neurons) % classes
    renamed: NDArray[np.int64] = np.arange(neurons)  # input neuron in the position of neuron i
    for number in range(layers):
        k = number % depth
        if number and k == 0:
            renamed = np.argsort(rng.permutation(neurons))
        # A neuron of class c reads all copies of the classes c and c + 2^k.
        inputs = np.stack([outputs, (outputs + (1 << k)) % classes], axis=1)
        copies = (inputs[:, :, None] + classes * np.arange(COPIES)).reshape(neurons, DEGREE)
        columns = np.sort(renamed[copies], axis=1)
        yield SparseRows(np.arange(neurons + 1) * DEGREE, columns.reshape(-1), 1 / 16, neurons)


def _random_layers(neurons: int, layers: int, seed: int) -> Iterator[SparseRows]:
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // neurons)
    for _ in range(layers):
        columns = np.concatenate(
            [
                np.sort(
                    np.argpartition(
                        rng.random((min(rows, neurons - at), neurons)), DEGREE - 1, axis=1
                    )[:, :DEGREE],
                    axis=1,
                )
                for at in range(0, neurons, rows)
            ]
        )
        weights = rng.normal(0.02, 0.25, columns.size).astype(np.float32)
        yield SparseRows(np.arange(neurons + 1) * DEGREE, columns.reshape(-1), weights, neurons)
