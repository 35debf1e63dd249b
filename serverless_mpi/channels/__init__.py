"""The table of channels: a name and where its class is, imported on first use.

Extensions add channels by entry points (`plugins.py`); everything that others
must know of a channel is an attribute of its class (`channels/base.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from serverless_mpi import plugins
from serverless_mpi.channels.base import Channel
from serverless_mpi.errors import UsageError

CHANNELS: dict[str, str] = {
    "hybrid": "serverless_mpi.channels.hybrid:HybridChannel",
    "queue": "serverless_mpi.channels.queue:QueueChannel",
    "object": "serverless_mpi.channels.object:ObjectChannel",
    "direct": "serverless_mpi.channels.direct:DirectChannel",
    "routed": "serverless_mpi.channels.routed:RoutedChannel",
    "memory": "serverless_mpi.channels.memory:MemoryChannel",
}
DEFAULT = "hybrid"
AUTO, LINKED = "auto", "routed"  # the default of smpirun; what it is for options of links
SINGLE_RANK = "memory"  # of a process that no launcher started
ONE_MACHINE = "direct"  # of bridges between jobs, and of spawned jobs, on one machine


def names() -> list[str]:
    """Return the names of all channels, the package's own first."""
    return plugins.names(plugins.CHANNELS, CHANNELS)


def chosen(name: str, options: Sequence[object]) -> str:
    """Return the channel of a job.

    Parameters
    ----------
    name
        What the user asked for: a channel's name, or AUTO.
    options
        Values of the options that only LINKED has; None for those that were not given.
    """
    if name != AUTO:
        return name
    return DEFAULT if all(option is None for option in options) else LINKED


def load(name: str) -> type[Channel]:
    """Return the channel class of that name.

    Parameters
    ----------
    name
        A name of `names`.

    Returns
    -------
    type[Channel]
        The class; its module is imported if it is not yet.

    Raises
    ------
    UsageError
        There is no such channel; the message lists the known ones.
    """
    channel: type[Channel] = plugins.load(plugins.CHANNELS, CHANNELS, name, "channel")
    return channel


def load_for(name: str, platform: str, ranks: int) -> type[Channel]:
    """Return the channel class of that name if it can serve a job.

    Parameters
    ----------
    name
        The channel's name.
    platform
        Name of the launcher, which starts one process per rank.
    ranks
        Number of ranks.

    Raises
    ------
    UsageError
        There is no such channel, or it cannot connect that many ranks on that platform.
    """
    channel = load(name)
    if not works_on(channel, platform):
        known = [own for own in CHANNELS if works_on(load(own), platform)]
        raise UsageError(
            f"channel {name} does not work on platform {platform}; these do: {', '.join(known)}"
        )
    if channel.one_process and ranks > 1:
        raise UsageError(
            f"channel {name} connects threads of one process: use -n 1, or another channel"
        )
    return channel


def works_on(channel: type[Channel], platform: str) -> bool:
    """Return whether ranks that a platform starts can use a channel.

    Parameters
    ----------
    channel
        The channel's class, which states its platforms.
    platform
        Name of the launcher.
    """
    return channel.platforms is None or platform in channel.platforms
