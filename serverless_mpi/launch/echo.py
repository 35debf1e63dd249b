"""The function behind a stack's URL: answers with the address from which it was asked.

A rank of channel routed asks it, signed with the keys of its role, and announces the
answer to its peers (channels/linker.py).  It imports nothing and reads nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def handler(event: Mapping[str, Any], context: object) -> dict[str, str]:
    """Answer with the caller's public address; the platform calls this.

    Parameters
    ----------
    event
        Request of a function URL, payload format 2.0.
    context
        Not used.
    """
    return {"sourceIp": str(event["requestContext"]["http"]["sourceIp"])}
