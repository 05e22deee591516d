# SPDX-License-Identifier: Apache-2.0
"""Keeps what comes of real federation requests, of this process's.

What is taken from the traffic costs some microseconds and stays in memory; every three
seconds it is written, in one small transaction. So `kill -9` loses three seconds of it
at most, and however many requests fail, there are as many transactions.

All is bounded: in memory `_MAX_WAITING` failures, of different destinations and kinds,
wait to be written, and as many answers; in the table each destination has one row for
each kind. Old rows are deleted (`synapse_federation_admin.repair.housekeeping`).
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.defer import TimeoutError as DeferredTimeoutError

from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.kinds import Failure, FailureKind, Reason
from synapse_federation_admin.failures.text import message_of
from synapse_federation_admin.history.batch import Batch, Key, WaitingFailures
from synapse_federation_admin.history.outages import SETTLED_MS
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.traffic import led_to_blocked_addresses
from synapse_federation_admin.storage.schema import SchemaTooNewError, Tables
from synapse_federation_admin.storage.sql import MAX_NAME
from synapse_federation_admin.storage.successes import SUCCESS_EVERY_MS

logger = logging.getLogger(__name__)

# How long what was taken may wait until it is written; and at most, while that fails.
_WRITE_EVERY_MS = 3000
_RARELY_MS = 60_000

# How much one transaction writes, and how much may wait.
_WRITTEN_AT_ONCE = 1000
_MAX_WAITING = 20_000

# Of how many names it is looked up whether the DNS answers, for each transaction.
_LOOKED_UP = 3

# Of how many destinations it is known when it was written that they answer: of more it
# is written more often than each SUCCESS_EVERY_MS.
_MAX_KNOWN = 50_000

FindWithoutDns = Callable[[Sequence[str]], Awaitable[set[str]]]


class Recorder:
    """Takes note of what comes of this process's federation requests."""

    def __init__(
        self,
        homeserver: Homeserver,
        tables: Tables,
        without_dns: FindWithoutDns,
        *,
        contact_timeout_ms: int,
    ) -> None:
        """Take note of nothing yet.

        Args:
            homeserver: Reaches Synapse.
            tables: The tables.
            without_dns: Returns those of some server names about which the DNS does not
                answer; it takes two seconds at most.
            contact_timeout_ms: How long the contact after a reset may take.
        """
        self._without_dns = without_dns
        self._homeserver = homeserver
        self._tables = tables
        self._settled_ms = contact_timeout_ms + SETTLED_MS
        self._failures: dict[Key, WaitingFailures] = {}
        # When a destination answered, and when it did so after it had failed.
        self._successes: dict[str, int] = {}
        self._recoveries: dict[str, int] = {}
        # When it was last taken note of that a destination answered, the newest last.
        self._known: dict[str, int] = {}
        self._is_writing = False
        # Whether it has been said that there is no room, and that nothing is written.
        self._has_said_full = False
        self._has_said_failing = False

    def start(self) -> None:
        """Begin to take note; what has not been written is when Synapse shuts down."""
        self._homeserver.metrics.show_failures(
            kind.value for kind in FailureKind if kind is not FailureKind.INTERNAL
        )
        self._homeserver.observe_traffic(self)
        self._homeserver.before_shutdown(
            "federation_admin_record", lambda: self.write(looks=False)
        )

    # -- what is taken from the traffic, on the reactor ------------------------------

    def failed(self, destination: str, error: BaseException) -> None:
        """Take note of a failure."""
        if len(destination) > MAX_NAME:
            return
        # If the request itself was called off, it is not theirs.
        failure = (
            Failure(FailureKind.OTHER, Reason.CALLED_OFF)
            if isinstance(error, CancelledError)
            else failure_of(error, led_to_blocked_addresses)
        )
        if failure.is_ours:
            # A bug on this side tells nothing of the other server.
            return
        now_ts = self._homeserver.now_ms()
        self._known.pop(destination, None)
        key = (destination, failure.kind)
        known = self._failures.get(key)
        if known is not None:
            known.last_ts = now_ts
            known.count += 1
            known.message = message_of(failure)
            known.issuer = failure.facts.issuer
        elif self._has_room(self._failures):
            self._failures[key] = WaitingFailures(
                *(now_ts, now_ts, 1, message_of(failure)),
                failure.facts.issuer,
                _is_unconnected(error),
            )
            self._write_soon()

    def recovered(self, destination: str) -> None:
        """Take note that a destination which was failing has answered."""
        if len(destination) > MAX_NAME:
            return
        if destination in self._recoveries or self._has_room(self._recoveries):
            self._recoveries[destination] = self._homeserver.now_ms()
            self._write_soon()

    def answered(self, destination: str) -> None:
        """Take note that a destination has answered."""
        now_ts = self._homeserver.now_ms()
        known_ts = self._known.get(destination)
        if known_ts is not None and now_ts - known_ts < SUCCESS_EVERY_MS:
            return
        if len(destination) > MAX_NAME or not self._has_room(self._successes):
            return
        self._successes[destination] = now_ts
        self._known.pop(destination, None)
        self._known[destination] = now_ts
        if len(self._known) > _MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._write_soon()

    def _has_room(self, waiting: Mapping[Any, Any]) -> bool:
        if len(waiting) < _MAX_WAITING:
            return True
        if not self._has_said_full:
            self._has_said_full = True
            logger.warning(
                "What came of federation requests to %s destinations waits to be "
                "written: that of others is not recorded until it is",
                len(waiting),
            )
        return False

    # -- what is written --------------------------------------------------------------

    def _write_soon(self) -> None:
        if not self._is_writing:
            self._is_writing = True
            self._homeserver.run_in_background(
                "federation_admin_record", self._write_while_any
            )

    @property
    def _has_any(self) -> bool:
        return bool(self._failures or self._recoveries or self._successes)

    async def _write_while_any(self) -> None:
        wait_ms = _WRITE_EVERY_MS
        try:
            while self._has_any:
                await self._homeserver.sleep_ms(wait_ms)
                try:
                    await self.write()
                except CancelledError:
                    # Synapse is shutting down.
                    raise
                except Exception as e:
                    wait_ms = min(2 * wait_ms, _RARELY_MS)
                    if not self._is_kept(e):
                        logger.exception("Some federation failures are not recorded")
                    elif not self._has_said_failing:
                        self._has_said_failing = True
                        logger.warning("Cannot record federation failures yet: %s", e)
                else:
                    wait_ms = _WRITE_EVERY_MS
                    self._has_said_full = self._has_said_failing = False
        finally:
            self._is_writing = False

    def _is_kept(self, error: BaseException) -> bool:
        """Tell whether what an error has kept from being written may be later.

        If that is a bug, it would be one again.
        """
        return isinstance(
            error, (SchemaTooNewError, CancelledError)
        ) or self._homeserver.is_database_away(error)

    async def write(self, *, looks: bool = True) -> None:
        """Write all that has been taken note of. Raises what the database raises.

        What could not be written because the database is away is kept.

        Args:
            looks: Find out first whether what led to no connection in time is because
                of the DNS.
        """
        if not self._has_any:
            return
        for _ in range(2 * _MAX_WAITING // _WRITTEN_AT_ONCE):
            failed = _take(self._failures)
            recoveries = _take(self._recoveries)
            answers = _take(self._successes)
            if not (failed or recoveries or answers):
                return
            if looks:
                failed = await self._settled(failed)
            batch = Batch.make(
                failed, recoveries, answers, self._homeserver.instance_name
            )
            now_ts = self._homeserver.now_ms()
            try:
                await self._tables.run(
                    "federation_admin_record",
                    partial(
                        batch.write_txn,
                        is_postgres=self._homeserver.is_postgres,
                        now_ts=now_ts,
                        settled_ts=now_ts - self._settled_ms,
                    ),
                    read_committed=True,
                )
            except BaseException as e:
                if self._is_kept(e):
                    self._put_back(failed, recoveries, answers)
                raise
            for (_, kind), found in failed.items():
                self._homeserver.metrics.count_failures(kind.value, found.count)

    async def _settled(
        self, failures: dict[Key, WaitingFailures]
    ) -> dict[Key, WaitingFailures]:
        """Find out whether what led to no connection in time is because of the DNS.

        Synapse's limit of time then is over before its resolver's is: all that it tells
        is the former. A few names are looked up, which stand for all.
        """
        late = [
            name
            for (name, _), found in failures.items()
            if found.is_unconnected and not found.is_settled
        ]
        if not late:
            return failures
        sample = late[:_LOOKED_UP]
        try:
            without = await self._without_dns(sample)
        except BaseException:
            self._put_back(failures, {}, {})
            raise
        is_ours = len(without) == len(sample)
        settled: dict[Key, WaitingFailures] = {}
        for (name, kind), found in failures.items():
            found.is_settled = True
            key = (name, kind)
            if name in without or (is_ours and name in late):
                key = (name, FailureKind.DNS_FAILED)
                found.message = message_of(Failure(key[1], Reason.DNS_NO_ANSWER))
            settled[key] = found
        return settled

    def _put_back(
        self,
        failures: dict[Key, WaitingFailures],
        recoveries: dict[str, int],
        successes: dict[str, int],
    ) -> None:
        for key, found in failures.items():
            later = self._failures.get(key)
            if later is None:
                self._failures[key] = found
            else:
                later.first_ts = found.first_ts
                later.count += found.count
        self._recoveries = {**recoveries, **self._recoveries}
        self._successes = {**successes, **self._successes}


def _take(waiting: dict[Any, Any]) -> dict[Any, Any]:
    """Take some of what waits, the oldest."""
    taken = dict(zip(tuple(waiting)[:_WRITTEN_AT_ONCE], waiting.values(), strict=False))
    for key in taken:
        del waiting[key]
    return taken


def _is_unconnected(error: BaseException) -> bool:
    """Tell whether the time was over before there was a connection.

    A connection that is called off, or still being made, has errors of its own.
    """
    return isinstance(getattr(error, "inner_exception", None), DeferredTimeoutError)
