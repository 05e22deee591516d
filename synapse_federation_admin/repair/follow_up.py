# SPDX-License-Identifier: Apache-2.0
"""Follows a destination after its connection was reset, until that has settled.

A reset clears the destination's row, and then several attempts to reach it meet: our
contact, those of federation senders on other processes that were woken, and those that
began before the reset and know nothing of it. An attempt of a sender ends only after
all its retries, with Synapse's defaults up to 25 minutes later, and each one that fails
writes what it believes into the row. Three things may go wrong, and are put right here:

- The destination is still failing. Synapse writes the time of the new failure as
  `failure_ts`, and "failing for 90 days" becomes "failing for a second". It gets its
  old `failure_ts` back; unless something has been delivered since the reset, for then
  the failure is a new one.
- The destination has answered our contact, and an attempt from before puts it into
  backoff after all.
- The destination is slow: it has not answered our contact in time, which has put it
  into backoff, but has taken what a sender sent.

In the last two cases it is contacted once more, with patience: if it answers, Synapse's
own retry limiter takes it out of backoff and wakes every process.

What is known here is in memory, and of the resets of this process. It looks at rows
again and again, since nothing tells it: the sender may be another process, of whose
traffic this one sees nothing, and Synapse stores in the background how it ended.
"""

import logging
from collections.abc import Sequence

import attr
from twisted.internet.defer import CancelledError

from synapse_federation_admin import limits
from synapse_federation_admin.failures.bounds import bounded
from synapse_federation_admin.failures.text import message_of
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.retry_timings import BeforeReset
from synapse_federation_admin.repair.contact import (
    contact_of,
    shown_contact,
)
from synapse_federation_admin.repair.wake import Wake
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.audit_entry import AuditEntry
from synapse_federation_admin.storage.outcomes import Contact

logger = logging.getLogger(__name__)

# The answer to the reset goes out first, and so does what waits in this process.
_HEAD_START_MS = 20

# How often to look at a row: at first often, since Synapse stores the outcome of a
# contact in the background and what a sender finds out follows soon, and then after a
# quarter of the time that has gone by since the contact.
_LOOK_OFTENEST_MS = 500
_LOOK_RAREST_MS = 30_000

# How long a destination has to answer the second contact: as long as Synapse
# gives it to answer a transaction.
_PATIENT_TIMEOUT_MS = 60_000

# How long a row must show no failure until the destination counts as recovered. It may
# be clear only because another process has reset it, too, and is about to find out that
# it is still down.
_RECOVERED_AFTER_MS = 120_000

# Rows looked at in one transaction.
_BATCH = 100


@attr.s(slots=True, auto_attribs=True, eq=False)
class _Followed:
    """A destination that was reset."""

    # Since when it had been failing; None if Synapse did not know.
    failure_ts: int | None
    # Its `last_successful_stream_ordering` then.
    delivered: int | None
    # When no attempt from before can be under way any more.
    until_ts: int
    # The entries of its resets, which are to have what came of the contact.
    entries: Sequence[AuditEntry]
    # When the last contact ended, and when to look at the row next.
    contacted_ts: int
    look_ts: int = 0
    # Whether it has answered the last contact.
    answered: bool = False
    # Whether it was contacted once more, though it was in backoff.
    contacted_again: bool = False
    # Since when its row has shown no failure.
    clear_since_ts: int | None = None


class FollowUp:
    """Contacts destinations that were reset, and sees to what comes of it."""

    def __init__(
        self,
        homeserver: Homeserver,
        audit: Audit,
        wake: Wake,
        *,
        contact_timeout_ms: int,
    ) -> None:
        self._homeserver = homeserver
        self._audit = audit
        self._wake = wake
        self._contact_timeout_ms = contact_timeout_ms
        # In the order of their resets.
        self._followed: dict[str, _Followed] = {}
        self._looking = False
        # Who waits for a contact, and how long they have to answer it, in ms; and who
        # is being contacted.
        self._queue: dict[str, int] = {}
        self._under_way: set[str] = set()
        # Background processes, each of which makes one contact after the other.
        self._contacting = 0

    def start(
        self,
        name: str,
        *,
        failing_since_ts: int | None,
        delivered: int | None,
        entry: AuditEntry | None = None,
    ) -> None:
        """Follow a destination whose retry timings have just been cleared.

        Args:
            name: The server name.
            failing_since_ts: Its `failure_ts` before it was cleared, in ms.
            delivered: Its `last_successful_stream_ordering` then.
            entry: Of the reset. With it the destination is contacted, and what comes of
                that is added to the entry.
        """
        now_ts = self._homeserver.now_ms()
        before = self._followed.pop(name, None)
        # Else it got through since that reset, and has failed anew.
        if before and before.failure_ts and before.delivered == delivered:
            failing_since_ts = min(failing_since_ts or now_ts, before.failure_ts)
        if len(self._followed) >= limits.FOLLOWED_RESETS:
            logger.warning(
                "%s destinations were reset within a short time: %s is not contacted, "
                "and its failure_ts may be lost",
                limits.FOLLOWED_RESETS,
                bounded(name),
            )
            return
        self._followed[name] = _Followed(
            failing_since_ts,
            delivered,
            until_ts=now_ts + self._homeserver.federation.longest_send_attempt_ms,
            entries=(*(before.entries if before else ()), *([entry] if entry else ())),
            contacted_ts=now_ts,
        )
        if entry:
            self._begin_contact(name, self._contact_timeout_ms)
        if not self._looking:
            self._looking = True
            self._homeserver.run_in_background(
                "federation_admin_follow_up", self._look_while_followed
            )

    def _begin_contact(self, name: str, timeout_ms: int) -> None:
        """Have a destination contacted.

        If it is being contacted, that happens once more afterwards: the contact under
        way began earlier, and may tell of an older state.
        """
        self._queue[name] = max(self._queue.get(name, 0), timeout_ms)
        if self._contacting < limits.CONTACTS:
            self._contacting += 1
            self._homeserver.run_in_background(
                "federation_admin_contact", self._contact_queued
            )

    async def _contact_queued(self) -> None:
        def is_free(name: str) -> bool:
            return name not in self._under_way

        try:
            while (name := next(filter(is_free, self._queue), None)) is not None:
                self._under_way.add(name)
                try:
                    await self._contact(name)
                except CancelledError:
                    # Synapse is shutting down.
                    raise
                except Exception:
                    # The others in the queue are still to be contacted.
                    logger.exception("Could not contact %s", bounded(name))
                finally:
                    self._under_way.discard(name)
        finally:
            self._contacting -= 1

    async def _contact(self, name: str) -> None:
        """Make the request, of whose outcome Synapse's retry limiter is to know."""
        homeserver = self._homeserver
        await homeserver.sleep_ms(_HEAD_START_MS)
        timeout_ms = self._queue.pop(name)
        # If another attempt has put it into backoff by now, ask all the same; a failure
        # then leaves that backoff as it is. Else a failure has to lead to one.
        ignore_backoff = await homeserver.retry_timings.is_backing_off(name)
        request = homeserver.federation.contact(
            name, timeout_ms=timeout_ms, ignore_backoff=ignore_backoff
        )
        contact = await contact_of(homeserver, request)
        failure = contact.failure
        logger.info(
            "Contact with %s after the reset of its connection %s",
            bounded(name),
            f"failed: {message_of(failure)}" if failure else "succeeded",
        )
        if name not in self._queue:
            await self._contacted(name, contact)

    async def _contacted(self, name: str, contact: Contact) -> None:
        answered = contact.failure is None
        followed = self._followed.get(name)
        if followed is not None:
            for entry in followed.entries:
                details = {**entry.details, "contact": shown_contact(contact)}
                self._homeserver.run_in_background(
                    "federation_admin_audit",
                    self._audit.add_details,
                    attr.evolve(entry, details=details),
                )
            followed.entries = ()
            if followed.contacted_again and not answered:
                # It was up, and is down now: that is a failure of its own.
                del self._followed[name]
                return
            followed.answered = answered
            followed.contacted_ts = followed.look_ts = self._homeserver.now_ms()
            # However long the contact had to wait for its turn, what it leads to is
            # still to be seen.
            followed.until_ts = max(
                followed.until_ts, followed.contacted_ts + _RECOVERED_AFTER_MS
            )
        if answered:
            # Those who were woken at the reset may still have believed in the backoff.
            await self._wake.everywhere([name])

    def _is_busy(self, name: str) -> bool:
        """Tell whether a destination waits for a contact, or is being contacted."""
        return name in self._queue or name in self._under_way

    async def _look_while_followed(self) -> None:
        try:
            while self._followed:
                await self._homeserver.sleep_ms(_LOOK_OFTENEST_MS)
                now_ts = self._homeserver.now_ms()
                due = [
                    name
                    for name, followed in self._followed.items()
                    if followed.look_ts <= now_ts and not self._is_busy(name)
                ]
                try:
                    for start in range(0, len(due), _BATCH):
                        await self._look(due[start : start + _BATCH])
                except CancelledError:
                    # Synapse is shutting down.
                    raise
                except Exception as e:
                    if self._homeserver.is_database_away(e):
                        logger.warning("The database is away after a reset: %s", e)
                    else:
                        logger.exception("Could not follow destinations after a reset")
                    await self._homeserver.sleep_ms(_LOOK_RAREST_MS)
        finally:
            self._looking = False

    async def _look(self, names: Sequence[str]) -> None:
        """Look at some rows, and see to them."""
        looked_at = {n: self._followed[n] for n in names if n in self._followed}
        failing = await self._homeserver.retry_timings.restore_failure_ts(
            {
                name: BeforeReset(
                    None if followed.answered else followed.failure_ts,
                    followed.delivered,
                )
                for name, followed in looked_at.items()
            }
        )
        now_ts = self._homeserver.now_ms()
        for name, followed in looked_at.items():
            if self._followed.get(name) is not followed or self._is_busy(name):
                # Reset again in the meantime.
                continue
            interval_ms = (now_ts - followed.contacted_ts) // 4
            followed.look_ts = now_ts + min(interval_ms, _LOOK_RAREST_MS)
            if followed.until_ts <= now_ts or (
                name not in failing and self._has_recovered(followed, now_ts)
            ):
                del self._followed[name]
            elif name in failing:
                followed.clear_since_ts = None
                self._see_to(name, followed, delivered_since=failing[name])

    def _see_to(self, name: str, followed: _Followed, *, delivered_since: bool) -> None:
        """See to a destination that is failing."""
        if (followed.answered or delivered_since) and not followed.contacted_again:
            followed.contacted_again = True
            self._begin_contact(name, _PATIENT_TIMEOUT_MS)
        else:
            # If it answers, it does so to our request, but not to those of a sender.
            followed.answered = False

    @staticmethod
    def _has_recovered(followed: _Followed, now_ts: int) -> bool:
        """Tell whether a row that shows no failure will stay so."""
        if followed.answered:
            return False
        followed.clear_since_ts = followed.clear_since_ts or now_ts
        return now_ts - followed.clear_since_ts >= _RECOVERED_AFTER_MS
