"""Ports and service names: where groups of processes without a communicator meet (MPI 4.1, 11.4).

The work is done in dynamic.py, which programs without dynamic processes do not import.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from serverless_mpi.api.info import INFO_NULL, Info


def engine() -> ModuleType:
    """Return the module of dynamic processes, which is imported at the first call."""
    return importlib.import_module("serverless_mpi.api.dynamic")


def Open_port(info: Info = INFO_NULL) -> str:
    """Open a port, at which another group can connect to one that accepts.

    Parameters
    ----------
    info
        Not used.

    Returns
    -------
    str
        Name of the port. It contains no secret: the key of the port is in a file that only
        processes of this user can read.

    References
    ----------
    MPI 4.1, section 11.4.2.
    """
    name: str = engine().open_port()
    return name


def Close_port(port_name: str) -> None:
    """Close a port that this process has opened; communicators made at it stay.

    Parameters
    ----------
    port_name
        What `Open_port` returned.

    Raises
    ------
    MPIException
        ERR_PORT: this process has no such open port.

    References
    ----------
    MPI 4.1, section 11.4.2.
    """
    engine().close_port(port_name)


def Publish_name(service_name: str, port_name: str, info: Info = INFO_NULL) -> None:
    """Publish the name of a port under the name of a service.

    Parameters
    ----------
    service_name
        Any text. Every process of this user on this machine can look it up until this process
        unpublishes it or ends.
    port_name
        Name of a port.
    info
        Not used.

    Raises
    ------
    MPIException
        ERR_SERVICE: a process has published that service already. ERR_PORT: `port_name` is empty.

    References
    ----------
    MPI 4.1, section 11.4.4.
    """
    engine().publish_name(service_name, port_name)


def Unpublish_name(service_name: str, port_name: str, info: Info = INFO_NULL) -> None:
    """Withdraw what this process has published.

    Parameters
    ----------
    service_name, port_name
        As for `Publish_name`.
    info
        Not used.

    Raises
    ------
    MPIException
        ERR_SERVICE: this process has not published that port under that name.

    References
    ----------
    MPI 4.1, section 11.4.4.
    """
    engine().unpublish_name(service_name, port_name)


def Lookup_name(service_name: str, info: Info = INFO_NULL) -> str:
    """Return the name of the port that is published under the name of a service.

    Parameters
    ----------
    service_name
        As for `Publish_name`.
    info
        Not used.

    Raises
    ------
    MPIException
        ERR_NAME: nothing is published under that name.

    References
    ----------
    MPI 4.1, section 11.4.4.
    """
    port: str = engine().lookup_name(service_name)
    return port


__all__ = ["Close_port", "Lookup_name", "Open_port", "Publish_name", "Unpublish_name"]
