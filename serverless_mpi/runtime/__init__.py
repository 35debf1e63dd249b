"""One rank at run time: the clock, the lock and the threads around the sans-IO core.

| module | what it does |
|---|---|
| `operation` | a communication in progress, with a producer and a consumer side |
| `send_queue` | gathers outgoing frames and gives them to the channel |
| `progress` | the lock, receiving frames, and waiting |
| `serving` | answers requests of other ranks while the program computes: the agent thread |
| `collective_driver` | runs the generator of a collective |
| `statistics` | the counters that a rank leaves for the launcher |
| `runtime` | `Runtime`: what `api/` calls |
| `process` | `get_runtime`: the runtime of this process |
| `host` | forked children, warnings, and ending the process |
"""

from __future__ import annotations

from serverless_mpi.env import ENV_MAX_HELD
from serverless_mpi.runtime.host import end
from serverless_mpi.runtime.process import get_runtime
from serverless_mpi.runtime.progress import never
from serverless_mpi.runtime.runtime import Runtime

__all__ = ["ENV_MAX_HELD", "Runtime", "end", "get_runtime", "never"]
