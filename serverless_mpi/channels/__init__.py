"""The table of channels: a name and where its class is, imported on first use."""

from __future__ import annotations

from serverless_mpi import plugins
from serverless_mpi.channels.base import Channel

CHANNELS: dict[str, str] = {
    "hybrid": "serverless_mpi.channels.hybrid:HybridChannel",
    "queue": "serverless_mpi.channels.queue:QueueChannel",
    "object": "serverless_mpi.channels.object:ObjectChannel",
    "direct": "serverless_mpi.channels.direct:DirectChannel",
    "memory": "serverless_mpi.channels.memory:MemoryChannel",
}
DEFAULT = "hybrid"


def load(name: str) -> type[Channel]:
    """The channel class of that name.

    Raises
    ------
    UsageError
        No such channel; the message names the known ones.
    """
    channel: type[Channel] = plugins.load(plugins.CHANNELS, CHANNELS, name, "channel")
    return channel
