# SPDX-License-Identifier: Apache-2.0
"""What many ask for at the same time runs once, in the background, for all of them."""

from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

from synapse.logging.context import PreserveLoggingContext
from synapse.module_api import make_deferred_yieldable
from twisted.internet.defer import Deferred, TimeoutError as DeferredTimeoutError
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from synapse_federation_admin.homeserver.background import Background

T = TypeVar("T")


class SingleFlight:
    """Runs things once for all who ask for them at the same time."""

    def __init__(self, background: "Background") -> None:
        self._background = background
        self._lock = background.linearizer("federation_admin_single_flight")
        self._newest: dict[Hashable, _Flight] = {}

    async def run(
        self,
        desc: str,
        key: Hashable,
        func: Callable[[], Awaitable[T]],
        *,
        joins: bool = False,
        timeout_ms: int | None = None,
    ) -> T:
        """Run something, once for all who ask for it at the same time.

        Of one key one runs at a time. Who asks while it runs gets what comes of the
        next one, and not of this one, which may have read what was there before they
        asked.

        Args:
            desc: Its name in metrics: one of a few.
            key: What it is: equal keys, with equal names, stand for the same result.
            func: What to run. What it raises is raised to all who wait; if nobody waits
                any more, Synapse logs it.
            joins: Take also what comes of the one that runs.
            timeout_ms: How long to wait for the result; it goes on all the same.

        Raises:
            TimeoutError: It took longer.
        """
        waiter: Deferred[T] = Deferred()
        if timeout_ms is not None:
            waiter.addTimeout(timeout_ms / 1000, self._background.reactor)
        of = (desc, key)
        flight = self._newest.get(of)
        if flight is None or (flight.has_begun and not joins):
            flight = self._newest[of] = _Flight()
            # Before it runs: it may end at once.
            flight.waiters.append(waiter)
            self._background.run_in_background(desc, self._run, of, func, flight)
        else:
            flight.waiters.append(waiter)
        try:
            return await make_deferred_yieldable(waiter)
        except DeferredTimeoutError as e:
            raise TimeoutError from e

    async def _run(
        self, of: Hashable, func: Callable[[], Awaitable[Any]], flight: "_Flight"
    ) -> None:
        """Run something in its turn, and tell all who wait for it."""
        result: Any
        try:
            async with self._lock(of):
                flight.has_begun = True
                result = await func()
        except Exception:
            # Also if it is called off: all who wait are told.
            result = Failure()
        # What was to run next may have been called off before.
        if self._newest.get(of) is flight:
            del self._newest[of]
        # The time of some is over, and others were called off.
        waiting = [waiter for waiter in flight.waiters if not waiter.called]
        with PreserveLoggingContext():
            for waiter in waiting:
                waiter.callback(result)
        if not waiting and isinstance(result, Failure):
            result.raiseException()


class _Flight:
    """What runs, or waits for its turn, and who waits for it."""

    def __init__(self) -> None:
        self.has_begun = False
        self.waiters: list[Deferred[Any]] = []
