"""MPI programs without servers: `from serverless_mpi import MPI` in place of `from mpi4py import MPI`."""

__version__ = "0.1.0"
