"""An import finder that makes `from mpi4py import MPI` load `serverless_mpi.MPI`.

Where mpi4py is installed, its pure-Python modules (mpi4py.util, mpi4py.futures) work on top of it.
Where it is not, a bare `mpi4py` package stands in for it, with this package's own futures.

Pitfall: the alias and its target are one module object, so the import machinery writes the alias's
spec into it; `_AliasLoader` restores the module's own.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace

from serverless_mpi import __version__

# name -> (module of this package, whether also if mpi4py is installed)
_ALIASES = {
    "mpi4py.MPI": ("serverless_mpi.MPI", True),
    "mpi4py.futures": ("serverless_mpi.futures", False),
}


class _Rc(SimpleNamespace):
    """mpi4py.rc: its options are accepted and have no effect."""

    def __call__(self, **options: object) -> None:
        for name, value in options.items():
            if not hasattr(self, name):
                raise TypeError(f"unexpected argument {name!r}")
            setattr(self, name, value)


class _AliasLoader(importlib.abc.Loader):
    """Loads an alias as the module object of its target."""

    def __init__(self, target: str) -> None:
        self._target = target

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._target)
        self._own = (module.__spec__, module.__name__)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # the import machinery has written the alias's spec into the shared module
        module.__spec__, module.__name__ = self._own


class _PackageLoader(importlib.abc.Loader):
    """A bare `mpi4py` where the real one is not installed."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__path__ = []
        # The version whose names and semantics this package keeps.
        module.__version__ = "4.1.2"  # type: ignore[attr-defined]
        module.__doc__ = f"mpi4py as provided by serverless_mpi {__version__}"
        module.get_config = dict  # type: ignore[attr-defined]
        module.rc = _Rc(  # type: ignore[attr-defined]
            initialize=True,
            threads=True,
            thread_level="multiple",
            finalize=None,
            fast_reduce=True,
            recv_mprobe=True,
            irecv_bufsz=32768,
            errors="exception",
        )


class AliasFinder(importlib.abc.MetaPathFinder):
    """Finds mpi4py.MPI before any other finder, and mpi4py if no other finder does."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in _ALIASES:
            own, always = _ALIASES[fullname]
            if always or importlib.machinery.PathFinder.find_spec(fullname, path) is None:
                return importlib.machinery.ModuleSpec(fullname, _AliasLoader(own))
        if (
            fullname == "mpi4py"
            and importlib.machinery.PathFinder.find_spec(fullname, path) is None
        ):
            return importlib.machinery.ModuleSpec(fullname, _PackageLoader(), is_package=True)
        return None


def own_futures() -> None:
    """Let mpi4py.futures be this package's even if mpi4py is installed.

    For a process whose workers are started by `serverless_mpi.futures`: the executor of mpi4py
    could not use them.
    """
    _ALIASES["mpi4py.futures"] = ("serverless_mpi.futures", True)


def install() -> None:
    """Put the finder in front of all others, once."""
    if not any(isinstance(finder, AliasFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, AliasFinder())
