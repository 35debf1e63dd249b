"""Dynamic processes on one machine: bridges between groups of processes, spawned jobs, and ports.

| module | what it does |
|---|---|
| `bridge` | describes a bridge: the job that two groups of processes form |
| `request` | what a rank asks of the launcher of the job that it spawns, and the reply |
| `spawner` | starts that launcher, and ends with it |
| `ports` | ports, service names, and the handshake of the two groups that meet at a port |

Two ideas carry all of it (docs/processes.md):

- A *bridge* is a job of its own. It has an id, a key, the channel `direct`, and as its ranks the
  processes of both groups, in an order on which they agree. A process has one runtime for its own
  job and one for each bridge, so an intercommunicator is an ordinary communicator of another
  runtime, and nothing of the core, the channels or the collectives differs.
- A spawned job is an ordinary job, started by an ordinary launcher, which is a process that the
  root of the Spawn starts.

References
----------
MPI 4.1, chapter 11.
"""
