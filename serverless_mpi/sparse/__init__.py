"""NumPy's face of the C kernel: sparse layers times dense activations, float32.

y = min(max(z, 0), cap) where z = W x + bias on the nonzeros of W x. Rows are neurons, columns are
samples.

Activations are arrays in C order, (neurons, samples), or `Panels`, the kernel's own layout, which
costs no conversion: from layer to layer they stay panels. Every function takes either, and gives
back what it took.

The order of a sum: the entries of the row as they stand, one fused multiply-add each (one
rounding), from 0, or from what `out` holds if it accumulates. No path, thread count, panel or block
of rows changes it; a sum that is continued in a second call, with the rest of the row's entries,
has the bits of one that was not interrupted.
"""

from serverless_mpi.sparse.cpus import default_threads
from serverless_mpi.sparse.layers import CAP, forward, layer, multiply, path, serial_forward
from serverless_mpi.sparse.panels import WIDTH, Panels
from serverless_mpi.sparse.prepare import merged, relabelled
from serverless_mpi.sparse.rows import Floats, SparseRows, frozen

__all__ = [
    "CAP",
    "WIDTH",
    "Floats",
    "Panels",
    "SparseRows",
    "default_threads",
    "forward",
    "frozen",
    "layer",
    "merged",
    "multiply",
    "path",
    "relabelled",
    "serial_forward",
]
