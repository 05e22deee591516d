# SPDX-License-Identifier: Apache-2.0
"""Reconnects one destination: contacts it first, and changes only what proved to work.

However many ask at the same time, and whichever process they ask, a destination is
contacted once. Who asks while an attempt is under way waits for that one. Within a
process the attempt is known in memory, and to the others by its row in
`federation_admin_attempts`, where its result is left for them.
"""

import json
import logging
import secrets
from collections.abc import Callable
from typing import Any

import attr
from synapse.module_api import LoggingTransaction

from synapse_federation_admin.destinations.backlog import BacklogStore
from synapse_federation_admin.destinations.store import DestinationStore
from synapse_federation_admin.homeserver import Homeserver, Pending
from synapse_federation_admin.models import (
    Actor,
    AuditAction,
    AuditEntry,
    Contact,
    Destination,
    Failure,
    FailureKind,
    ReconnectOutcome,
    Told,
)
from synapse_federation_admin.repair.audit import Audit
from synapse_federation_admin.repair.contact import (
    MAX_CONTACTS,
    probe,
    shown_contact,
)
from synapse_federation_admin.repair.follow_up import FollowUp
from synapse_federation_admin.repair.wake import Wake

logger = logging.getLogger(__name__)

# How long a destination has to answer, however long those who ask are willing to wait:
# as long as Synapse gives it to answer a transaction.
_CONTACT_TIMEOUT_MS = 60_000

# After this an attempt of another process has come to its end, or its process has.
_LONGEST_ATTEMPT_MS = 150_000

# How often to look whether an attempt of another process has ended.
_LOOK_EVERY_MS = 100

# Ended attempts that are kept in memory, for those who asked before they ended.
_MAX_ENDED = 1000


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Reconnected:
    """What came of a request to reconnect a destination.

    Attributes:
        outcome: In a word.
        before: The destination before.
        after: The destination afterwards, as far as it has come.
        contact: What came of the contact; None if it goes on.
        told: Which processes were told.
    """

    outcome: ReconnectOutcome
    before: Destination
    after: Destination
    contact: Contact | None
    told: Told


@attr.s(slots=True, frozen=True, auto_attribs=True)
class _Result:
    """What came of an attempt."""

    before: Destination
    after: Destination
    contact: Contact
    told: Told = attr.Factory(Told)

    @property
    def reconnected(self) -> Reconnected:
        outcome = (
            ReconnectOutcome.STILL_FAILING
            if self.contact.failure
            else ReconnectOutcome.CONNECTED
        )
        return Reconnected(outcome, self.before, self.after, self.contact, self.told)


class _Attempt:
    """One contact with a destination, for all who ask at the same time."""

    def __init__(self) -> None:
        self.attempt_id = secrets.token_hex(8)
        # What the row says before the contact, once it is read; None if Synapse knows
        # nothing of the destination: then there is no result.
        self.before: Pending[Destination | None]
        self.result: Pending[_Result]
        # The entry of who has asked first: the contact is made once it is written.
        self.first: Pending[AuditEntry]
        # Entries of the audit that end with it, in the transaction in which it does.
        self.entries: list[AuditEntry] = []
        self.ended_ts: int | None = None


class Reconnect:
    """Reconnects destinations, one by one."""

    def __init__(
        self,
        homeserver: Homeserver,
        destinations: DestinationStore,
        backlog: BacklogStore,
        audit: Audit,
        wake: Wake,
        follow_up: FollowUp,
    ) -> None:
        self._homeserver = homeserver
        self._destinations = destinations
        self._backlog = backlog
        self._audit = audit
        self._wake = wake
        self._follow_up = follow_up
        # By name: those under way, and those that have ended lately.
        self._attempts: dict[str, _Attempt] = {}
        self._slots = homeserver.linearizer(
            "federation_admin_reconnect_contacts", MAX_CONTACTS
        )

    async def reconnect(
        self,
        name: str,
        actor: Actor,
        *,
        asked_ts: int,
        timeout_ms: int,
        force: bool = False,
        reason: str | None = None,
    ) -> Reconnected | None:
        """Contact a destination, and if it answers have everybody send to it again.

        Args:
            name: The destination's exact name.
            actor: Who asks for it.
            asked_ts: When: an attempt that ended before is of no use.
            timeout_ms: How long to wait; the attempt goes on all the same.
            force: Clear the retry timings even if it does not answer well.
            reason: Why, for the audit.

        Returns:
            What came of it; None if Synapse knows nothing of this destination. Raises
            what the database raises; then the retry timings are as they were.
        """

        def entry_for(attempt: _Attempt, before: Destination) -> AuditEntry:
            return self._audit.entry(
                AuditAction.RECONNECT,
                actor,
                destination=name,
                reason=reason,
                details={
                    "attempt_id": attempt.attempt_id,
                    "failure_ts": before.failure_ts,
                    **({"force": True} if force else {}),
                },
            )

        attempt = self._attempts.get(name)
        is_first = attempt is None or (
            attempt.ended_ts is not None and attempt.ended_ts < asked_ts
        )
        if attempt is None or is_first:
            attempt = self._begin(name, asked_ts, entry_for, force)
        before = await attempt.before.wait()
        if before is None:
            return None
        if is_first:
            entry = await attempt.first.wait()
        else:
            entry = entry_for(attempt, before)
            await self._audit.insert(entry)
            if not force and attempt.ended_ts is None:
                attempt.entries.append(entry)
        finished = self._homeserver.begin(
            "federation_admin_reconnect",
            lambda: self._finish(name, attempt, entry, force),
        )
        left_ms = timeout_ms - (self._homeserver.now_ms() - asked_ts)
        try:
            return await finished.wait(max(left_ms, 1))
        except TimeoutError:
            return Reconnected(
                ReconnectOutcome.PENDING, before, before, contact=None, told=Told()
            )

    def _begin(
        self,
        name: str,
        asked_ts: int,
        entry_for: Callable[[_Attempt, Destination], AuditEntry],
        force: bool,
    ) -> _Attempt:
        attempt = _Attempt()
        if len(self._attempts) >= _MAX_ENDED:
            self._attempts = {
                name: other
                for name, other in self._attempts.items()
                if other.ended_ts is None
            }
        self._attempts[name] = attempt
        begin = self._homeserver.begin
        attempt.before = begin("federation_admin_reconnect", lambda: self._look(name))
        attempt.first = begin(
            "federation_admin_reconnect",
            lambda: self._enter(name, attempt, entry_for, force),
        )
        attempt.result = begin(
            "federation_admin_reconnect", lambda: self._attempt(name, attempt, asked_ts)
        )
        return attempt

    async def _enter(
        self,
        name: str,
        attempt: _Attempt,
        entry_for: Callable[[_Attempt, Destination], AuditEntry],
        force: bool,
    ) -> AuditEntry:
        """Write the entry of who has asked first, before anything is done."""
        before = await attempt.before.wait()
        if before is None:
            raise LookupError(name)
        entry = entry_for(attempt, before)
        await self._audit.insert(entry)
        if not force:
            attempt.entries.append(entry)
        return entry

    async def _look(self, name: str) -> Destination | None:
        """Return what the row says; None if Synapse knows nothing of a destination."""
        row = await self._destinations.get(name)
        if row is None:
            backlog = (await self._backlog.of([name]))[name]
            if not backlog.is_empty:
                row = Destination(name, None, None, None, None)
        return row

    async def _attempt(self, name: str, attempt: _Attempt, asked_ts: int) -> _Result:
        try:
            before = await attempt.before.wait()
            if before is None:
                raise LookupError(name)
            await attempt.first.wait()
            result = None
            while result is None:
                lease, started_ts = await self._take(name, attempt, asked_ts)
                if lease == attempt.attempt_id:
                    result = await self._contact(name, attempt, before)
                else:
                    result = await self._wait_for_other(name, lease, started_ts)
            if result.contact.failure is None:
                result = attr.evolve(result, told=self._wake.everywhere(name))
            return result
        finally:
            if attempt.ended_ts is None:
                attempt.ended_ts = self._homeserver.now_ms()

    async def _take(
        self, name: str, attempt: _Attempt, asked_ts: int
    ) -> tuple[str, int]:
        """Make this attempt the one under way, if no other process makes one.

        Returns:
            The ID of the attempt that counts, and when it was begun.
        """
        await self._audit.ready()
        now_ts = self._homeserver.now_ms()
        own = self._homeserver.instance_name

        def take_txn(txn: LoggingTransaction) -> tuple[str, int]:
            # An attempt of this process of which it knows nothing is from an earlier
            # life of its.
            txn.execute(
                "INSERT INTO federation_admin_attempts AS a "
                "(destination, attempt_id, instance, started_ts) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (destination) DO UPDATE SET "
                "attempt_id = EXCLUDED.attempt_id, instance = EXCLUDED.instance, "
                "started_ts = EXCLUDED.started_ts, ended_ts = NULL, result = NULL "
                "WHERE a.ended_ts < ? OR a.instance = ? "
                "OR (a.ended_ts IS NULL AND a.started_ts < ?)",
                (
                    *(name, attempt.attempt_id, own, now_ts),
                    *(asked_ts, own, now_ts - _LONGEST_ATTEMPT_MS),
                ),
            )
            txn.execute(
                "SELECT attempt_id, started_ts FROM federation_admin_attempts "
                "WHERE destination = ?",
                (name,),
            )
            ((attempt_id, started_ts),) = txn.fetchall()
            return str(attempt_id), int(started_ts)

        return await self._homeserver.run_db_interaction(
            "federation_admin_reconnect", take_txn
        )

    async def _wait_for_other(
        self, name: str, attempt_id: str, started_ts: int
    ) -> _Result | None:
        """Wait for another process's attempt; None if it will never end."""
        deadline_ts = started_ts + _LONGEST_ATTEMPT_MS

        def look_txn(txn: LoggingTransaction) -> tuple[Any, ...] | None:
            txn.execute(
                "SELECT ended_ts, result FROM federation_admin_attempts "
                "WHERE destination = ? AND attempt_id = ?",
                (name, attempt_id),
            )
            return txn.fetchone()

        while self._homeserver.now_ms() < deadline_ts:
            row = await self._homeserver.run_db_interaction(
                "federation_admin_reconnect", look_txn
            )
            if row is None:
                return None
            if row[0] is not None:
                return _from_json(row[1])
            await self._homeserver.sleep_ms(_LOOK_EVERY_MS)
        return None

    async def _contact(
        self, name: str, attempt: _Attempt, before: Destination
    ) -> _Result:
        """Make the contact, and if it was answered well, clear and wake."""
        homeserver = self._homeserver
        async with self._slots(""):
            contact = await probe(homeserver, name, timeout_ms=_CONTACT_TIMEOUT_MS)
        connected = contact.failure is None
        # Where somebody has changed the row by hand, Synapse may still be backing off,
        # as it finds in its cache.
        backs_off = connected and await homeserver.is_backing_off(name)
        # From here on nobody joins: his entry would be too late.
        entries, attempt.entries = attempt.entries, []
        outcome = (
            ReconnectOutcome.CONNECTED if connected else ReconnectOutcome.STILL_FAILING
        )
        ended = [
            self._audit.ended(entry, outcome.value, {"contact": shown_contact(contact)})
            for entry in entries
        ]

        def end_txn(txn: LoggingTransaction) -> _Result:
            row = self._destinations.get_txn(txn, name)
            if connected and row is not None and (row.is_failing or backs_off):
                homeserver.clear_retry_timings_txn(txn, name)
                row = self._destinations.get_txn(txn, name)
            result = _Result(before, row or before, contact)
            self._audit.end_txn(txn, ended)
            txn.execute(
                "UPDATE federation_admin_attempts SET ended_ts = ?, result = ? "
                "WHERE destination = ? AND attempt_id = ?",
                (homeserver.now_ms(), _to_json(result), name, attempt.attempt_id),
            )
            return result

        try:
            result = await homeserver.run_db_interaction(
                "federation_admin_reconnect", end_txn
            )
        except Exception:
            await self._give_up(name, attempt)
            raise
        attempt.ended_ts = homeserver.now_ms()
        return result

    async def _give_up(self, name: str, attempt: _Attempt) -> None:
        """Have no other process wait for an attempt whose outcome is lost."""

        def give_up_txn(txn: LoggingTransaction) -> None:
            txn.execute(
                "DELETE FROM federation_admin_attempts "
                "WHERE destination = ? AND attempt_id = ?",
                (name, attempt.attempt_id),
            )

        try:
            await self._homeserver.run_db_interaction(
                "federation_admin_reconnect", give_up_txn
            )
        except Exception as e:
            logger.warning("Could not give an attempt up: %s", e)

    async def _finish(
        self, name: str, attempt: _Attempt, entry: AuditEntry, force: bool
    ) -> Reconnected:
        """Return what came of it for one of those who have asked; end his entry."""
        try:
            result = await attempt.result.wait()
        except Exception:
            await self._audit.end_as_failed(entry)
            raise
        if force and result.contact.failure is not None:
            return await self._force(name, result, entry)
        found = result.reconnected
        shown = {"contact": shown_contact(result.contact)}
        # If it has not ended with the attempt: writing it twice does no harm.
        await self._audit.end(self._audit.ended(entry, found.outcome.value, shown))
        return found

    async def _force(
        self, name: str, result: _Result, entry: AuditEntry
    ) -> Reconnected:
        """Clear and wake, though the destination does not answer."""
        homeserver = self._homeserver
        outcome = ReconnectOutcome.FORCED
        ended = self._audit.ended(
            entry, outcome.value, {"contact": shown_contact(result.contact)}
        )

        def force_txn(txn: LoggingTransaction) -> tuple[Destination, Destination]:
            before = self._destinations.get_txn(txn, name)
            after = before
            if before is not None:
                homeserver.clear_retry_timings_txn(txn, name)
                after = self._destinations.get_txn(txn, name)
            self._audit.end_txn(txn, [ended])
            return before or result.before, after or result.before

        before, after = await homeserver.run_db_interaction(
            "federation_admin_reconnect", force_txn
        )
        told = Told()
        if homeserver.is_server_name(name):
            told = self._wake.everywhere(name)
            # It has failed since when it failed before, whatever comes of it now.
            self._follow_up.start(
                name,
                failing_since_ts=before.failure_ts,
                delivered=before.last_successful_stream_ordering,
                contact=False,
            )
        return Reconnected(outcome, before, after, result.contact, told)


def _to_json(result: _Result) -> str:
    failure = result.contact.failure
    return json.dumps(
        {
            "before": list(result.before),
            "after": list(result.after),
            "contact": [
                result.contact.duration_ms,
                result.contact.server_name,
                result.contact.server_version,
            ],
            "failure": [failure.kind.value, failure.message] if failure else None,
        }
    )


def _from_json(text: str) -> _Result:
    found = json.loads(text)
    failure = found["failure"]
    duration_ms, server_name, server_version = found["contact"]
    return _Result(
        Destination(*found["before"]),
        Destination(*found["after"]),
        Contact(
            duration_ms,
            server_name,
            server_version,
            Failure(FailureKind(failure[0]), failure[1]) if failure else None,
        ),
    )
