# SPDX-License-Identifier: Apache-2.0
"""Time, and what goes on in the background: as Synapse's own does."""

import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager
from functools import cached_property, partial
from typing import Any, TypeVar

from synapse.logging.context import PreserveLoggingContext
from synapse.module_api import LoggingTransaction, make_deferred_yieldable
from synapse.module_api.errors import SynapseError
from synapse.util.async_helpers import Linearizer
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    TimeoutError as DeferredTimeoutError,
)
from twisted.python.failure import Failure

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.database import Database

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Sends a signal to every process, this one among them, with what is to be received.
Send = Callable[..., Awaitable[None]]

# A lock that is held per key: `async with lock(key)`.
KeyedLock = Callable[[Hashable], AbstractAsyncContextManager[None]]

# After a round of periodic work: how many times as long as it took to wait at least,
# but not longer than this.
_REST_FACTOR = 100
_LONGEST_REST_MS = 600_000

# After so many rounds in a row that a bug has stopped, each next one waits twice as
# long, up to this.
_BUGS = 3
_LONGEST_AFTER_BUGS_MS = 3_600_000

# When to try again where the database is away: periodic work, at the latest, and all
# else.
_AGAIN_MS = 60_000
_DATABASE_AGAIN_MS = 5_000

# How long Synapse's shutdown waits for what is still to be done.
_SHUTDOWN_S = 5


class Background(Database):
    """Runs what no request waits for."""

    async def sleep_ms(self, duration_ms: int) -> None:
        """Wait."""
        await self._api.sleep(duration_ms / 1000)

    def turn(self) -> "Turn":
        """Begin what would hold everybody up if it was done at once."""
        return Turn(self)

    def run_in_background(
        self, desc: str, func: Callable[..., Awaitable[None]], *args: object
    ) -> None:
        """Start a background process of Synapse's: own log context, own metrics.

        Args:
            desc: Its name in metrics: one of a few, not one per destination.
            func: What to run. What it raises is logged by Synapse, with its traceback;
                but not that it was called off as Synapse shuts down, and of what it
                needs and cannot be used (a `SynapseError`), or where the database is
                away, only what that says.
            args: Arguments for `func`.
        """
        self._api.run_as_background_process(desc, self._run, desc, func, *args)

    async def _run(
        self, desc: str, func: Callable[..., Awaitable[None]], *args: object
    ) -> None:
        try:
            await func(*args)
        except CancelledError:
            if not self.is_shutting_down:
                raise
        except SynapseError as e:
            logger.warning("%s: %s", desc, e)
        except Exception as e:
            if not self.is_database_away(e):
                raise
            logger.warning("%s: the database is away: %s", desc, e)

    async def run_to_end(
        self,
        desc: str,
        func: Callable[[], Awaitable[T]],
        timeout_ms: int | None = None,
    ) -> T:
        """Run something in the background, and wait for it.

        It goes on if who waits is called off: as when a client goes away.

        Args:
            desc: Its name in metrics: one of a few.
            func: What to run. What it raises is raised here; if nobody waits any more,
                Synapse logs it.
            timeout_ms: How long to wait.

        Raises:
            TimeoutError: It took longer.
        """
        return await self.single_flight.run(desc, object(), func, timeout_ms=timeout_ms)

    @cached_property
    def single_flight(self) -> "SingleFlight":
        """Runs what many ask for at the same time once for all of them."""
        return SingleFlight(self)

    async def await_database(self, func: Callable[[], Awaitable[T]]) -> T:
        """Call something that uses the database; again while that is away.

        Raises:
            Exception: What else it raises.
        """
        while True:
            try:
                return await func()
            except CancelledError:
                # Synapse is shutting down.
                raise
            except Exception as e:
                if not self.is_database_away(e):
                    raise
                is_back = partial(self._database_is_back, e)
            # One looks, and says so, for all who wait.
            await self.single_flight.run(
                "federation_admin_database_away", (), is_back, joins=True
            )

    async def _database_is_back(self, error: Exception | None) -> None:
        while error is not None:
            logger.warning("What needs the database waits until it is back: %s", error)
            await self.sleep_ms(_DATABASE_AGAIN_MS)
            try:
                error = await self.run_db_interaction(
                    "federation_admin_database_away",
                    lambda txn: txn.execute("SELECT 1"),
                )
            except CancelledError:
                raise
            except Exception as e:
                error = e if self.is_database_away(e) else None

    def every(
        self,
        desc: str,
        interval_ms: int,
        func: Callable[[], Awaitable[None]],
        *,
        first_after_ms: int,
        rests: bool = True,
    ) -> None:
        """Do something again and again, until Synapse shuts down.

        An error is logged, and the next round tries again. What cannot be used, or that
        the database is away, is said once; then the next round comes soon. Any other is
        a bug, and logged with its traceback; if it stays, less and less often.

        Args:
            desc: Its name in metrics, and in the log.
            interval_ms: How long to wait after a round.
            func: One round.
            first_after_ms: How long to wait before the first round; 0: it begins now.
            rests: Whether a round that takes long is followed by a long rest.
        """
        bugs, said = 0, ""

        async def round_() -> None:
            nonlocal bugs, said
            began_s, next_ms = time.monotonic(), interval_ms
            bugs_before, said_before, bugs, said = bugs, said, 0, ""
            try:
                await func()
            except CancelledError:
                # Synapse is shutting down.
                raise
            except SynapseError as e:
                # What it needs cannot be used, and says why.
                said = str(e)
            except Exception as e:
                if self.is_database_away(e):
                    said = f"the database is away: {e}"
                    next_ms = min(interval_ms, _AGAIN_MS)
                else:
                    logger.exception("%s has failed", desc)
                    bugs = bugs_before + 1
                    longest_ms = max(interval_ms, _LONGEST_AFTER_BUGS_MS)
                    next_ms = min(interval_ms << max(0, bugs - _BUGS), longest_ms)
            if said not in ("", said_before):
                logger.warning("%s: %s", desc, said)
            # By a clock that does not jump: the reactor's may be put right meanwhile.
            took_ms = (time.monotonic() - began_s) * 1000
            rest_ms = min(_REST_FACTOR * took_ms, _LONGEST_REST_MS)
            again(max(next_ms, rest_ms) if rests else next_ms)

        def again(wait_ms: float) -> None:
            self._api.delayed_background_call(wait_ms, round_, desc=desc)

        if first_after_ms:
            again(first_after_ms)
        else:
            self.run_in_background(desc, round_)

    def signal(self, name: str, received: Callable[..., None]) -> Send:
        """Make a signal to all processes of the homeserver; in each of them, at start.

        Args:
            name: Its name, which no other signal has.
            received: Called when a process sends it, with the texts that it sends: in
                this one at once, in the others after they have been told of what it has
                changed before in Synapse's caches.

        Returns:
            What sends it. Raises what the database raises.
        """
        signal = _Signal(name, received)
        self._api.register_cached_function(signal)  # type: ignore[arg-type]

        async def send(*texts: str) -> None:
            if self.has_other_processes:
                await self._api.invalidate_cache(signal, texts)  # type: ignore[arg-type]
            else:
                received(*texts)

        return send

    async def delete_tasks(self, action: str) -> None:
        """Delete the tasks of a kind from Synapse's task scheduler."""

        def delete_tasks_txn(txn: LoggingTransaction) -> None:
            txn.execute("DELETE FROM scheduled_tasks WHERE action = ?", (action,))

        await self.run_db_interaction("federation_admin_tasks", delete_tasks_txn)

    def linearizer(self, name: str, max_count: int = 1) -> KeyedLock:
        """Make a lock that is held per key, for log contexts as Synapse keeps them."""
        return Linearizer(
            name=name, clock=self._hs.get_clock(), max_count=max_count
        ).queue

    def before_shutdown(self, desc: str, func: Callable[[], Awaitable[None]]) -> None:
        """Have something done when Synapse shuts down, before the database goes.

        Args:
            desc: Its name in metrics.
            func: What to run. Synapse waits for it, but not for long.
        """
        reactor = self._hs.get_reactor()

        def run() -> "Deferred[None]":
            done: Deferred[None] = self._hs.run_as_background_process(
                desc, self._run, desc, func
            )
            return done.addTimeout(_SHUTDOWN_S, reactor).addErrback(
                lambda _: logger.warning("Shutting down before %s was done", desc)
            )

        # Synapse's own way to register it does not have the reactor wait.
        reactor.addSystemEventTrigger("before", "shutdown", run)


class Turn:
    """A turn of the reactor in which something begins that takes several."""

    def __init__(self, background: Background) -> None:
        self._background = background
        # For how long it has lasted, nobody knows.
        self._began_s = 0.0

    async def end_if_long(self) -> None:
        """Let others go on, if they have waited for long enough."""
        if (time.monotonic() - self._began_s) * 1000 > limits.TURN_MS:
            await self._background.sleep_ms(0)
            self._began_s = time.monotonic()


class _Signal:
    """Calls a function whenever another process says so.

    For Synapse it is a cached function, of which all processes are told when it is
    invalidated: what a module may send over replication without a stream of its own
    (`ModuleApi.register_cached_function`, `ModuleApi.invalidate_cache`).
    """

    def __init__(self, name: str, received: Callable[..., None]) -> None:
        # By these two every process knows it, also one of another version.
        self.__module__ = "synapse_federation_admin"
        self.__name__ = name
        self._received = received

    def invalidate(self, key: tuple[Any, ...]) -> None:
        """Receive it. Only Synapse calls this."""
        self._received(*key)

    def invalidate_all(self) -> None:
        """Receive it. Only Synapse calls this."""
        self._received()


class SingleFlight:
    """Runs things once for all who ask for them at the same time."""

    def __init__(self, background: Background) -> None:
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
