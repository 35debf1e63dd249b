"""Extensions of other distributions: channels, launchers and algorithms, found by entry point.

A distribution names its extensions in its metadata:

    [project.entry-points."serverless_mpi.channels"]
    folder = "folder_channel:FolderChannel"

    [project.entry-points."serverless_mpi.launchers"]
    bare = "bare_launcher:BareLauncher"

    [project.entry-points."serverless_mpi.algorithms"]
    chain = "chain_bcast"

Reading metadata takes 10 ms or more, at every start on Lambda.  So it is read only
for a name that is not the package's own, and for algorithms only by the launcher:
the job (`JobSpec.plugins`) names their modules to the ranks, on every platform.
All ranks then register the same algorithms, as the choice between them requires.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from serverless_mpi.errors import JobError, UsageError

CHANNELS = "serverless_mpi.channels"
LAUNCHERS = "serverless_mpi.launchers"
ALGORITHMS = "serverless_mpi.algorithms"


@cache
def targets(group: str) -> Mapping[str, str]:
    """Return the entry points of a group.

    Parameters
    ----------
    group
        CHANNELS, LAUNCHERS or ALGORITHMS.

    Returns
    -------
    Mapping
        Name -> "module:attribute", or "module" for algorithms.
    """
    from importlib.metadata import entry_points  # 10 ms of import that ranks do not need

    return {entry.name: entry.value for entry in entry_points(group=group)}


def names(group: str, own: Mapping[str, str]) -> list[str]:
    """Return all names of a group, the package's own first.

    Parameters
    ----------
    group
        CHANNELS or LAUNCHERS.
    own
        The package's own: name -> "module:attribute".
    """
    return [*own, *(name for name in sorted(targets(group)) if name not in own)]


def load(group: str, own: Mapping[str, str], name: str, what: str) -> Any:
    """Import the object of that name.

    Parameters
    ----------
    group
        CHANNELS or LAUNCHERS.
    own
        The package's own: name -> "module:attribute".  An entry point cannot replace one.
    name
        What the user asked for.
    what
        Kind of the object, for the error text: "channel" or "platform".

    Raises
    ------
    UsageError
        There is no such name (the text lists the known ones), or its module cannot be imported.
    """
    target = own.get(name) or targets(group).get(name)
    if target is None:
        raise UsageError(f"unknown {what} {name!r}; known: {', '.join(names(group, own))}")
    try:
        return resolve(target)
    except (ImportError, AttributeError) as error:
        if name in own:
            raise
        raise UsageError(
            f"{what} {name!r} is an extension ({target}) that cannot be imported: {error}"
        ) from error


def resolve(target: str) -> Any:
    """Import an object.

    Parameters
    ----------
    target
        "module:attribute".

    Raises
    ------
    ImportError, AttributeError
        The module or the attribute does not exist.
    """
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def algorithm_modules() -> tuple[str, ...]:
    """Return the modules whose import registers algorithms, sorted, so equal in all processes."""
    return tuple(sorted(set(targets(ALGORITHMS).values())))


def import_algorithms(modules: Iterable[str]) -> None:
    """Import modules that register algorithms.

    Parameters
    ----------
    modules
        What `algorithm_modules` returned to the launcher.

    Raises
    ------
    JobError
        A module cannot be imported here, although the launcher found it.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise JobError(
                f"this rank cannot import {module}, which the launcher found as an extension with"
                f" collective algorithms ({error}); install it for the ranks too"
                " (on lambda: name it in the file of --requirements)"
            ) from error
