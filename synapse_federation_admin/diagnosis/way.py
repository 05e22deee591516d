# SPDX-License-Identifier: Apache-2.0
"""What all stages of one diagnosis need: the way out, and until when."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from synapse.module_api import make_deferred_yieldable, run_in_background
from twisted.internet.defer import (
    FirstError,
    TimeoutError as DeferredTimeoutError,
    gatherResults,
)

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.outbound import Outbound

T = TypeVar("T")


class Way:
    """The way out to other servers, and until when it may take.

    Attributes:
        homeserver: Reaches Synapse.
        outbound: Looks up and connects.
    """

    def __init__(
        self, homeserver: Homeserver, outbound: Outbound, timeout_ms: int
    ) -> None:
        """Begin to count the time.

        Args:
            homeserver: Reaches Synapse.
            outbound: Looks up and connects.
            timeout_ms: How long the whole may take.
        """
        self.homeserver = homeserver
        self.outbound = outbound
        self._reactor = homeserver.reactor
        self._timeout_ms = timeout_ms
        self._ends_s = self._reactor.seconds() + timeout_ms / 1000

    @property
    def now_ms(self) -> float:
        """The time, to be compared with another."""
        return self._reactor.seconds() * 1000

    def since(self, begun_ms: float) -> int:
        """Return how long something has taken, in ms."""
        return round(self.now_ms - begun_ms)

    def left_ms(self, share: float = 1, *, reserve: float = 0) -> int:
        """Return how long a step may take.

        Args:
            share: The most, as a share of the whole time, if that is left.
            reserve: What share of the whole time has to be left afterwards.
        """
        left_ms = (self._ends_s - self._reactor.seconds()) * 1000
        left_ms -= self._timeout_ms * reserve
        return max(1, int(min(left_ms, self._timeout_ms * share)))

    async def within(
        self, limit_ms: int, func: Callable[..., Awaitable[T]], *args: object
    ) -> T:
        """Run something, and call it off when its time is over.

        Args:
            limit_ms: How long it may take.
            func: What to run.
            args: Arguments for `func`.

        Raises:
            twisted.internet.defer.TimeoutError: It was called off.
            Exception: What `func` raises.
        """
        deferred = run_in_background(func, *args)
        deferred.addTimeout(limit_ms / 1000, self._reactor)
        result: T = await make_deferred_yieldable(deferred)
        return result


TimeIsOver = DeferredTimeoutError


async def side_by_side(*funcs: Callable[[], Awaitable[T]]) -> list[T]:
    """Run several things at once; return what comes of each, or raise what one does."""
    running = [run_in_background(func) for func in funcs]
    try:
        results: list[T] = await make_deferred_yieldable(
            gatherResults(running, consumeErrors=True)
        )
    except FirstError as e:
        e.subFailure.raiseException()
    return results
