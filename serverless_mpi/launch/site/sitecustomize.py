"""Prepares every Python interpreter of a job: output by line, stacks on SIGQUIT, and `mpi4py`
as this package.

The launcher puts this folder first in PYTHONPATH, so the interpreter imports this file at its
start. An interpreter that lacks serverless_mpi is left as it is. The interpreter's own
sitecustomize, which this one hides, runs as well. Imports are inside the functions so that no name
of this file remains in the program.
"""


def _begin() -> None:
    """Remove this folder from the path, report the start, set up output and alias."""
    import faulthandler
    import os
    import signal
    import sys

    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]
    if "SMPI_ALIAS" not in os.environ:  # set for a job's ranks and what they start
        return
    fork = os.environ.pop("SMPI_FORK", None)
    if fork is not None:
        loaded = set(sys.modules)
        try:
            from serverless_mpi import forks
        except ImportError:  # the launcher starts ranks by themselves
            os._exit(0)
        forks.serve(fork, loaded)  # returns in each rank
    begun = os.environ.pop("SMPI_BEGUN", None)
    if begun is not None:  # a rank of a tree: the launcher starts its children while it imports
        os.write(int(begun), int(os.environ["SMPI_RANK"]).to_bytes(4, "little"))
        os.close(int(begun))
    faulthandler.register(signal.SIGQUIT, 2)  # it also shows the stack of a thread that is in C
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)  # a pipe would be written in blocks
    # the names of job.MPI_LAUNCHER_VARIABLES: a rank of a real MPI that a rank of this job started
    launchers = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
    foreign = "SMPI_JOB" not in os.environ and any(name in os.environ for name in launchers)
    if os.environ.get("SMPI_ALIAS") == "1" and not foreign:
        try:
            from serverless_mpi import alias
        except ImportError as error:
            if error.name not in ("serverless_mpi", "serverless_mpi.alias", None):
                raise
        else:
            alias.install()


def _chain() -> None:
    """Run the sitecustomize that this one hides, if there is one."""
    import importlib.machinery
    import importlib.util
    import sys

    spec = importlib.machinery.PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_begin()
_chain()
