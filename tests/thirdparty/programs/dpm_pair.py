"""mpi4py's demo cpi-dpm.py as a server of two ranks and a client, which are jobs of their own.

dpm_pair.py DEMO     the folder `compute-pi` of mpi4py's demos
"""

from __future__ import annotations

import subprocess
import sys
import time

from mpi4py import MPI

smpirun = [sys.executable, "-m", "serverless_mpi.launch", "--channel", "direct"]
program = ["cpi-dpm.py"]
server = subprocess.Popen([*smpirun, "-n", "2", *program, "server"], cwd=sys.argv[1])
while server.poll() is None:
    try:
        MPI.Lookup_name("cpi")
        break
    except MPI.Exception:
        time.sleep(0.05)
client = subprocess.run(
    [*smpirun, "-n", "1", *program, "client"],
    cwd=sys.argv[1],
    input=b"100\n",
    capture_output=True,
    check=True,
)
print(client.stdout.decode())
sys.exit(server.wait())
