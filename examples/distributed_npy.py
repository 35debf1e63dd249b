"""Write a distributed array as one .npy file, read it back on the ranks, and check it with NumPy.

Each rank has a block of rows of a matrix and writes it to its place in the file; rank 0 writes the
header. The file is then an ordinary .npy, which NumPy reads without MPI.

    smpirun -n 4 python examples/distributed_npy.py                            # a temporary file
    smpirun -n 4 python examples/distributed_npy.py --file s3:///matrix.npy    # the job's bucket
    smpirun -n 4 python examples/distributed_npy.py --file s3://bucket/matrix.npy
"""

import argparse
import io
import os
import tempfile

import numpy as np
from mpi4py import MPI


def write(comm: MPI.Intracomm, name: str, block: np.ndarray, rows: int) -> None:
    """Write the blocks of all ranks, in rank order, as one array of `rows` rows."""
    shape = (rows, block.shape[1])
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": block.dtype.str, "fortran_order": False, "shape": shape}
    )
    header = head.getvalue()
    first = comm.exscan(len(block)) or 0
    file = MPI.File.Open(comm, name, MPI.MODE_WRONLY | MPI.MODE_CREATE)
    file.Set_size(0)  # of an earlier version, nothing stays
    if comm.rank == 0:
        file.Write_at(0, header)
    file.Set_view(len(header), MPI.DOUBLE)
    file.Write_at_all(first * block.shape[1], block)
    file.Close()  # only now the file has its new contents, all of them


def read(comm: MPI.Intracomm, name: str) -> np.ndarray:
    """Read a .npy file of doubles; each rank gets about as many rows as any other."""
    file = MPI.File.Open(comm, name, MPI.MODE_RDONLY)
    start = bytearray(min(1024, file.Get_size()))
    file.Read_at_all(0, start)
    head = io.BytesIO(start)
    np.lib.format.read_magic(head)
    (rows, columns), _, dtype = np.lib.format.read_array_header_1_0(head)
    first, last = (rows * rank // comm.size for rank in (comm.rank, comm.rank + 1))
    block = np.empty((last - first, columns), dtype)
    # each rank sees its rows of the matrix
    if last > first:
        mine = MPI.DOUBLE.Create_subarray(
            [rows, columns], [last - first, columns], [first, 0]
        ).Commit()
        file.Set_view(head.tell(), MPI.DOUBLE, mine)
    else:
        file.Set_view(head.tell(), MPI.DOUBLE)
    file.Read_all(block)
    file.Close()
    return block


def whole(name: str) -> np.ndarray:
    """Return the file as NumPy reads it, on one rank and without a view."""
    file = MPI.File.Open(MPI.COMM_SELF, name, MPI.MODE_RDONLY)
    data = bytearray(file.Get_size())
    file.Read(data)
    file.Close()
    return np.load(io.BytesIO(data))


def main() -> None:
    """Write, read and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--file", default="", help="path or s3://bucket/key (default: a temporary file)"
    )
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--columns", type=int, default=64)
    options = parser.parse_args()
    comm = MPI.COMM_WORLD
    name = options.file
    if not name:
        name = comm.bcast(os.path.join(tempfile.gettempdir(), f"matrix-{os.getpid()}.npy"))
    first, last = (options.rows * rank // comm.size for rank in (comm.rank, comm.rank + 1))
    matrix = np.sqrt(np.arange(options.rows * options.columns, dtype=float)).reshape(
        options.rows, options.columns
    )  # every rank knows it, to compare; it writes only its own rows
    write(comm, name, matrix[first:last], options.rows)
    block = read(comm, name)
    assert (block == matrix[first:last]).all()
    if comm.rank == 0:
        found = whole(name)
        assert found.dtype == matrix.dtype and (found == matrix).all()
        print(f"{options.rows} x {options.columns} doubles are one .npy file, equal to the matrix")
    comm.Barrier()
    if comm.rank == 0:
        MPI.File.Delete(name)


if __name__ == "__main__":
    main()
