"""Reports the calls of a program to an observer, such as a tracer.

A hook inside each of some 200 methods would cost every call even without an observer.  So the
methods of a class are wrapped here, at most once per process, when an observer is installed before
the program runs.  Without one this module is not imported.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

from serverless_mpi.signals import shield

_PACKAGE = "serverless_mpi."
# beginnings of the names of methods that do not communicate
_LOCAL = ("_", "Get_", "Set_", "Is_", "Attach_", "Detach_", "py2f", "f2py", "tocint", "fromint")


def observe(classes: Iterable[type], on_call: Callable[[str, int], None]) -> None:
    """Report every call of a public, communicating method of `classes` and their bases.

    Parameters
    ----------
    classes
        Classes of the API; bases outside the package are left alone.
    on_call
        Called in the calling thread when a method has returned or raised, with the method's name
        and the time at which it was called, in ns of `time.perf_counter_ns`.
    """
    bases = {base: None for cls in classes for base in cls.__mro__}
    for base in bases:
        if not base.__module__.startswith(_PACKAGE):
            continue
        for name, member in list(vars(base).items()):
            if name.startswith(_LOCAL):
                continue
            if isinstance(member, (classmethod, staticmethod)):
                setattr(base, name, type(member)(_observed(name, member.__func__, on_call)))
            elif callable(member) and not isinstance(member, type):
                setattr(base, name, _observed(name, member, on_call))


def _observed(
    name: str, method: Callable[..., Any], on_call: Callable[[str, int], None]
) -> Callable[..., Any]:
    """`method`, reported.  No signal handler runs between its return and the caller's."""

    @functools.wraps(method)
    def observed(*arguments: Any, **keywords: Any) -> Any:
        begin = time.perf_counter_ns()
        shield.enter()
        try:
            return method(*arguments, **keywords)
        finally:
            on_call(name, begin)
            shield.leave()

    return observed
