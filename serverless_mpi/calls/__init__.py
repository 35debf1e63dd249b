"""Call a function on N ranks from a script or a notebook: `serverless_mpi.run`.

The caller starts `smpirun` as a child process (caller.py).  The program of its ranks is
rank.py, which takes calls, runs them, and writes what they return.  The format of calls
and outcomes is in messages.py.  So a call has everything that a job of the command line
has, on every platform, and the caller's process has neither an MPI runtime nor signal
handlers of the launcher.
"""

from serverless_mpi.calls.caller import CallError, Cluster, RankTraceback, Result, run

__all__ = ["CallError", "Cluster", "RankTraceback", "Result", "run"]
