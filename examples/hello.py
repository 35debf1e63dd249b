"""Every rank greets; rank 0 prints the greetings in order.

smpirun -n 4 examples/hello.py          mpirun -n 4 python examples/hello.py
"""

from serverless_mpi import MPI

comm = MPI.COMM_WORLD
greetings = comm.gather(f"hello from rank {comm.rank} of {comm.size}", root=0)
if greetings is not None:
    print("\n".join(greetings))
