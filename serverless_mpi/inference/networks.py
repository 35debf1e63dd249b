"""Networks: RadiX-Net as the Graph Challenge has it, and random ones of the same shape.

Layers are given as rows of output neurons: y = W x for a column x of input neurons.
Sources: Kepner and Robinett, "RadiX-Net: Structured Sparse Matrices for Deep Neural Networks" (2019); MIT/IEEE/Amazon
Sparse DNN Graph Challenge.
"""

from __future__ import annotations

from math import log2

import numpy as np
from numpy.typing import NDArray

from serverless_mpi.sparse import SparseRows

BIAS = {1024: -0.3, 4096: -0.35, 16384: -0.4, 65536: -0.45}  # the challenge's, by neurons
COPIES = 16  # of each class of neurons
DEGREE = 32  # inputs of a neuron


def check_size(neurons: int, layers: int) -> None:
    """Raise ValueError unless RadiX-Net has that size."""
    if neurons not in BIAS:
        raise ValueError(f"RadiX-Net has {', '.join(map(str, BIAS))} neurons a layer, not {neurons}")
    if layers < 1:
        raise ValueError(f"a network needs at least 1 layer, not {layers}")


def radixnet(neurons: int, layers: int, seed: int = 0) -> list[SparseRows]:
    """The challenge's network: 32 inputs and 32 outputs a neuron, every weight 1/16.

    The first log2(neurons / 16) layers are as they are; each later repetition of
    them has its inputs permuted, by `seed`.
    """
    check_size(neurons, layers)
    classes = neurons // COPIES
    depth = int(log2(classes))
    chance = np.random.default_rng(seed)
    outputs = np.arange(neurons) % classes
    made: list[SparseRows] = []
    place: NDArray[np.int64] = np.arange(neurons)  # input neuron that stands where neuron i did
    for number in range(layers):
        k = number % depth
        if number and k == 0:
            place = np.argsort(chance.permutation(neurons))
        inputs = np.stack([outputs, (outputs + (1 << k)) % classes], axis=1)  # classes of a neuron's inputs
        copies = (inputs[:, :, None] + classes * np.arange(COPIES)).reshape(neurons, DEGREE)
        columns = np.sort(place[copies], axis=1)
        made.append(SparseRows(np.arange(neurons + 1) * DEGREE, columns.reshape(-1), 1 / 16, neurons))
    return made


def randomnet(neurons: int, layers: int, seed: int = 0) -> list[SparseRows]:
    """A network whose activations do not saturate: DEGREE distinct random inputs a neuron, weights of both signs."""
    if neurons < DEGREE or layers < 1:
        raise ValueError(f"a random network needs at least {DEGREE} neurons and 1 layer")
    chance = np.random.default_rng(seed)
    made = []
    for _ in range(layers):
        columns = np.sort(np.argpartition(chance.random((neurons, neurons)), DEGREE, axis=1)[:, :DEGREE], axis=1)
        weights = chance.normal(0.02, 0.25, columns.size).astype(np.float32)
        made.append(SparseRows(np.arange(neurons + 1) * DEGREE, columns.reshape(-1), weights, neurons))
    return made
