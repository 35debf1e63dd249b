"""Collective algorithms as generators: no clock, thread, socket or randomness here.

Importing the package registers every algorithm of it (see `choose.py`).
"""

from serverless_mpi.collectives import allgather as allgather
from serverless_mpi.collectives import alltoall as alltoall
from serverless_mpi.collectives import barrier as barrier
from serverless_mpi.collectives import bcast as bcast
from serverless_mpi.collectives import gather as gather
from serverless_mpi.collectives import inter as inter
from serverless_mpi.collectives import neighbor as neighbor
from serverless_mpi.collectives import reduce as reduce
from serverless_mpi.collectives import scan as scan

# registered last: among equals, a one-level algorithm is chosen
from serverless_mpi.collectives import hierarchy as hierarchy  # isort: skip
