# SPDX-License-Identifier: Apache-2.0
"""Something that goes on in the background, for which many wait."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from synapse.logging.context import (
    PreserveLoggingContext,
)
from synapse.module_api import (
    make_deferred_yieldable,
)
from synapse.util.async_helpers import ObservableDeferred
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import (
    IReactorTime,
)
from twisted.python.failure import Failure

if TYPE_CHECKING:
    pass

T = TypeVar("T")


class Pending(Generic[T]):
    """Something that goes on in the background, for which many may wait."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
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

    async def run(self, func: Callable[[], Awaitable[T]]) -> None:
        """Run it, and hand out what comes of it. Only `Homeserver.begin` calls this."""
        try:
            result = await func()
        except Exception:
            failure = Failure()
            with PreserveLoggingContext():
                self._deferred.errback(failure)
        else:
            with PreserveLoggingContext():
                self._deferred.callback(result)
