"""MPI without servers: `from serverless_mpi import MPI` replaces `from mpi4py import MPI`."""

__version__ = "0.1.0"
