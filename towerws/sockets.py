"""Outgoing connections of Twisted, and what they leave behind."""

from __future__ import annotations

from typing import Any


def release(transport: Any) -> None:
    """Break the cycle that a closed outgoing socket is part of. Otherwise only a full collection frees it (`towerws/process.py`).

    The socket, its connector and the endpoint's factory refer to each other, and to OpenSSL's buffers.
    """
    while (inner := getattr(transport, "transport", None)) is not None:  # with TLS
        transport = inner
    connector = getattr(transport, "connector", None)
    if connector is not None:
        connector.transport = None
        connector.factory._connector = None  # noqa: SLF001
