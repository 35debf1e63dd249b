"""Reports the calls of a program to an observer, such as a tracer.

A hook inside each of some 200 methods would cost every call even without an observer.  So the
methods of a class are wrapped here, at most once per process, when an observer is installed before
the program runs.  Without one this module is not imported.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable

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
    wrap(classes, lambda name, method: _observed(name, method, on_call))


def wrap(
    classes: Iterable[type], wrapped: Callable[[str, Callable[..., object]], Callable[..., object]]
) -> None:
    """Replace every public, communicating method of `classes` and their bases.

    Parameters
    ----------
    classes
        Classes of the API; bases outside the package are left alone.
    wrapped
        Given the name of a method and its function, returns what replaces the function.
    """
    bases = {base: None for cls in classes for base in cls.__mro__}
    for base in bases:
        if not base.__module__.startswith(_PACKAGE):
            continue
        for name, member in list(vars(base).items()):
            if name.startswith(_LOCAL):
                continue
            if isinstance(member, (classmethod, staticmethod)):
                setattr(base, name, type(member)(wrapped(name, member.__func__)))
            elif callable(member) and not isinstance(member, type):
                setattr(base, name, wrapped(name, member))


def _observed(
    name: str, method: Callable[..., object], on_call: Callable[[str, int], None]
) -> Callable[..., object]:
    """`method`, reported.  No signal handler runs between its return and the caller's."""

    @functools.wraps(method)
    def observed(*arguments: object, **keywords: object) -> object:
        begin = time.perf_counter_ns()
        shield.enter()
        try:
            return method(*arguments, **keywords)
        finally:
            on_call(name, begin)
            shield.leave()

    return observed
