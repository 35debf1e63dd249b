"""The program of the ranks: `smpirun -n N -m serverless_mpi.calls [FILE]`."""

from serverless_mpi.calls.rank import main

main()
