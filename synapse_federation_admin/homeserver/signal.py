# SPDX-License-Identifier: Apache-2.0
"""Has something called in every process of the homeserver."""

from collections.abc import Awaitable, Callable
from typing import Any


class Signal:
    """Calls a function whenever another process says so.

    For Synapse it is a cached function, of which all processes are told when it is
    invalidated: what a module may send over replication without a stream of its own
    (`ModuleApi.register_cached_function`, `ModuleApi.invalidate_cache`).
    """

    def __init__(self, name: str, received: Callable[..., None]) -> None:
        # By these two every process knows it.
        self.__module__ = __name__
        self.__name__ = name
        self._received = received

    def invalidate(self, key: tuple[Any, ...]) -> None:
        """Receive it. Only Synapse calls this."""
        self._received(*key)

    def invalidate_all(self) -> None:
        """Receive it. Only Synapse calls this."""
        self._received()


# Sends a signal to every process, this one among them, with what is to be received.
Send = Callable[..., Awaitable[None]]
