"""Two jobs that meet at a published port: meeting.py accept|connect SERVICE. They end with the sum of both."""

from __future__ import annotations

import sys
import time

from serverless_mpi import MPI

world, role, service = MPI.COMM_WORLD, *sys.argv[1:]
port = None
if world.rank == 0 and role == "accept":
    port = MPI.Open_port()
    MPI.Publish_name(service, port)
while world.rank == 0 and port is None:
    try:
        port = MPI.Lookup_name(service)
    except MPI.Exception as error:
        if error.Get_error_class() != MPI.ERR_NAME:
            raise
        time.sleep(0.05)
other = world.Accept(port) if role == "accept" else world.Connect(port)
merged = other.Merge(high=role == "connect")
assert merged.size == world.size + other.remote_size
print(role, world.rank, merged.rank, merged.allreduce(1), other.allreduce(world.rank))
merged.Disconnect()
other.Disconnect()
