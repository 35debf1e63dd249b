"""NumPy interface of the C kernel: sparse layers times dense activations, in float32.

y = min(max(z, 0), cap), where z = W x + bias on the nonzeros of W x. Rows are neurons, columns are
samples. Activations are C-contiguous arrays of shape (neurons, samples), or `Panels`, the kernel's
own layout, which needs no conversion between layers. A function returns the type that it received.

Layers with another bias or activation end with an `Ending`: `ended_layer` computes one.

Order of a sum: the entries of the row in their order, one fused multiply-add each (one rounding),
from 0, or from the contents of `out` when accumulating. It does not depend on the instruction set,
the number of threads, the panel or the block of rows. A sum that a second call continues, with the
remaining entries of the row, has the bits of one that was computed in one call.
"""

from serverless_mpi.sparse.cpus import default_threads
from serverless_mpi.sparse.endings import Activation, Ending, ended_layer, finish, serial_run
from serverless_mpi.sparse.equal import forward_distinct
from serverless_mpi.sparse.layers import CAP, forward, layer, multiply, path, serial_forward
from serverless_mpi.sparse.panels import WIDTH, Panels
from serverless_mpi.sparse.prepare import merged, relabelled
from serverless_mpi.sparse.rows import Floats, SparseRows, frozen

__all__ = [
    "CAP",
    "WIDTH",
    "Activation",
    "Ending",
    "Floats",
    "Panels",
    "SparseRows",
    "default_threads",
    "ended_layer",
    "finish",
    "forward",
    "forward_distinct",
    "frozen",
    "layer",
    "merged",
    "multiply",
    "path",
    "relabelled",
    "serial_forward",
    "serial_run",
]
