# SPDX-License-Identifier: Apache-2.0
"""What many ask for at the same time runs once, in the background, for all of them."""

from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from synapse.logging.context import PreserveLoggingContext
from synapse.module_api import make_deferred_yieldable
from synapse.util.async_helpers import ObservableDeferred
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

T = TypeVar("T")


class Flight(Generic[T]):
    """Something that goes on in the background, for which many may wait.

    Attributes:
        has_begun: Whether it does already what it is for: it may wait for its turn.
    """

    def __init__(self, reactor: IReactorTime, func: Callable[[], Awaitable[T]]) -> None:
        self.has_begun = False
        self._reactor = reactor
        self._func = func
        self._deferred: Deferred[T] = Deferred()
        self._observable = ObservableDeferred(self._deferred, consumeErrors=True)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return bool(self._deferred.called)

    async def wait(self, timeout_ms: int | None = None) -> T:
        """Return what comes of it, or raise what it raises.

        Args:
            timeout_ms: How long to wait; it goes on all the same.

        Raises:
            TimeoutError: It took longer.
        """
        observer = self._observable.observe()
        if timeout_ms is not None:
            observer.addTimeout(timeout_ms / 1000, self._reactor)
        try:
            result: T = await make_deferred_yieldable(observer)
        except DeferredTimeoutError as e:
            raise TimeoutError from e
        return result

    async def run(self) -> None:
        """Run it, and hand out what comes of it. Only `Background.begin` calls this.

        Raises what it raises if nobody waits any more.
        """
        try:
            result = await self._func()
        except Exception:
            failure = Failure()
            # Those whose time is over are still there, but have been told.
            is_awaited = not all(d.called for d in self._observable.observers())
            with PreserveLoggingContext():
                self._deferred.errback(failure)
            if not is_awaited:
                raise
        else:
            with PreserveLoggingContext():
                self._deferred.callback(result)


class SingleFlight:
    """Runs things once for all who ask for them at the same time."""

    def __init__(
        self,
        reactor: IReactorTime,
        run_in_background: Callable[[str, Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._reactor = reactor
        self._run_in_background = run_in_background
        self._newest: dict[Hashable, Flight[Any]] = {}

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
        flight = self._newest.get((desc, key))
        if flight is None or (flight.has_begun and not joins):
            flight = self._start(desc, (desc, key), func)
        result: T = await flight.wait(timeout_ms)
        return result

    def _start(
        self, desc: str, key: Hashable, func: Callable[[], Awaitable[T]]
    ) -> Flight[T]:
        before = self._newest.get(key)

        async def run_next() -> T:
            if before is not None:
                # Those who wait for it are told of its errors.
                with suppress(Exception):
                    await before.wait()
            flight.has_begun = True
            try:
                return await func()
            finally:
                if self._newest[key] is flight:
                    del self._newest[key]

        flight = Flight(self._reactor, run_next)
        self._newest[key] = flight
        self._run_in_background(desc, flight.run)
        return flight
