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
from collections.abc import Callable

import attr
from twisted.internet.defer import CancelledError

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.retry_timings import BeforeReset
from synapse_federation_admin.repair.contact import BackgroundContacts
from synapse_federation_admin.repair.wake import Wake
from synapse_federation_admin.storage.outcomes import Contact

logger = logging.getLogger(__name__)

# How often to look at a row: at first often, since Synapse stores the outcome of a
# contact in the background and what a sender finds out follows soon, and then after a
# quarter of the time that has gone by since the contact.
_LOOK_OFTENEST_MS = 200
_LOOK_RAREST_MS = 30_000

# How long a destination has to answer the second contact, at least: as long as Synapse
# gives it to answer a transaction.
_PATIENT_TIMEOUT_MS = 60_000

# How long a row must show no failure until the destination counts as recovered. It may
# be clear only because another process has reset it, too, and is about to find out that
# it is still down.
_RECOVERED_AFTER_MS = 120_000

# Destinations followed at once. Each takes some 400 bytes.
MAX_FOLLOWED = 100_000

# Rows looked at in one transaction.
_BATCH = 100

# Whoever is due is found by a pass over all of them. With so many of them the passes
# are 1 ms further apart.
_FOLLOWED_PER_MS = 50


@attr.s(slots=True, auto_attribs=True, eq=False)
class _Followed:
    """A destination that was reset."""

    # Since when it had been failing; None if Synapse did not know.
    failure_ts: int | None
    # Its `last_successful_stream_ordering` then.
    delivered: int | None
    # When no attempt from before can be under way any more.
    until_ts: int
    # When the last contact ended, and when to look at the row next.
    contacted_ts: int = 0
    look_ts: int = 0
    # Whether it has answered the last contact.
    answered: bool = False
    # Whether it was contacted once more, though it was in backoff.
    contacted_again: bool = False
    # Since when its row has shown no failure.
    clear_since_ts: int | None = None
    # Called once, with what came of the first contact.
    done: Callable[[Contact], None] | None = None


class FollowUp:
    """Contacts destinations that were reset, and sees to what comes of it."""

    def __init__(
        self, homeserver: Homeserver, wake: Wake, *, contact_timeout_ms: int
    ) -> None:
        self._homeserver = homeserver
        self._wake = wake
        self._contact_timeout_ms = contact_timeout_ms
        self._contacts = BackgroundContacts(homeserver, self._contacted)
        # In the order of their resets.
        self._followed: dict[str, _Followed] = {}
        self._looking = False
        # Whether it was logged that there are too many.
        self._warned = False

    def start(
        self,
        name: str,
        *,
        failing_since_ts: int | None,
        delivered: int | None,
        contact: bool = True,
        done: Callable[[Contact], None] | None = None,
    ) -> None:
        """Contact and follow a destination whose retry timings have just been cleared.

        Args:
            name: The server name.
            failing_since_ts: Its `failure_ts` before it was cleared, in ms.
            delivered: Its `last_successful_stream_ordering` then.
            contact: Whether to contact it; it is followed in any case.
            done: Called with what came of the contact.
        """
        now_ts = self._homeserver.now_ms()
        before = self._followed.pop(name, None)
        if (
            before is not None
            and before.failure_ts
            and (before.until_ts > now_ts or self._contacts.is_busy(name))
            # Else it got through since that reset, and has failed anew.
            and before.delivered == delivered
        ):
            failing_since_ts = min(failing_since_ts or now_ts, before.failure_ts)
        if len(self._followed) >= MAX_FOLLOWED:
            if not self._warned:
                self._warned = True
                logger.warning(
                    "%s destinations were reset within a short time: others are not "
                    "contacted, and their failure_ts may be lost",
                    MAX_FOLLOWED,
                )
            return
        self._followed[name] = _Followed(
            failing_since_ts,
            delivered,
            until_ts=now_ts + self._homeserver.federation.longest_send_attempt_ms,
            contacted_ts=now_ts,
            done=done,
        )
        if contact:
            self._contacts.start(name, timeout_ms=self._contact_timeout_ms)
        if not self._looking:
            self._looking = True
            self._homeserver.run_in_background(
                "federation_admin_follow_up", self._look_while_followed
            )

    def _contacted(self, name: str, contact: Contact) -> None:
        answered = contact.failure is None
        followed = self._followed.get(name)
        if followed is not None and followed.done is not None:
            done, followed.done = followed.done, None
            done(contact)
        if followed is not None:
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
            self._wake.everywhere(name)

    async def _look_while_followed(self) -> None:
        try:
            while self._followed:
                await self._homeserver.sleep_ms(
                    max(_LOOK_OFTENEST_MS, len(self._followed) // _FOLLOWED_PER_MS)
                )
                try:
                    await self._look_at_due()
                except CancelledError:
                    # Synapse is shutting down.
                    raise
                except Exception:
                    logger.exception("Could not follow destinations after a reset")
                    await self._homeserver.sleep_ms(_LOOK_RAREST_MS)
            self._warned = False
        finally:
            self._looking = False

    async def _look_at_due(self) -> None:
        now_ts = self._homeserver.now_ms()
        due = [
            name
            for name, followed in self._followed.items()
            if followed.look_ts <= now_ts and not self._contacts.is_busy(name)
        ]
        for start in range(0, len(due), _BATCH):
            await self._look(due[start : start + _BATCH])

    async def _look(self, names: list[str]) -> None:
        """Look at some rows, and see to them."""
        looked_at = {n: self._followed[n] for n in names if n in self._followed}
        try:
            failing = await self._homeserver.retry_timings.restore_failure_ts(
                {name: _to_restore(f) for name, f in looked_at.items()}
            )
        except CancelledError:
            # Synapse is shutting down.
            raise
        except Exception:
            # The database will be back.
            logger.warning(
                "Could not look at destinations after a reset", exc_info=True
            )
            failing = None
        now_ts = self._homeserver.now_ms()
        for name, followed in looked_at.items():
            if self._followed.get(name) is not followed or self._contacts.is_busy(name):
                # Reset again in the meantime.
                continue
            interval_ms = (now_ts - followed.contacted_ts) // 4
            followed.look_ts = now_ts + min(
                max(interval_ms, _LOOK_OFTENEST_MS), _LOOK_RAREST_MS
            )
            if followed.until_ts <= now_ts:
                del self._followed[name]
            elif failing is not None:
                self._conclude(
                    name, followed, now_ts, name in failing, failing.get(name, False)
                )

    def _conclude(
        self,
        name: str,
        followed: _Followed,
        now_ts: int,
        failing: bool,
        delivered_since: bool,
    ) -> None:
        if failing:
            followed.clear_since_ts = None
            if (followed.answered or delivered_since) and not followed.contacted_again:
                followed.contacted_again = True
                self._contacts.start(
                    name, timeout_ms=max(self._contact_timeout_ms, _PATIENT_TIMEOUT_MS)
                )
            elif followed.answered:
                # It answers our request, but not those of a sender.
                followed.answered = False
        elif not followed.answered:
            if followed.clear_since_ts is None:
                followed.clear_since_ts = now_ts
            if now_ts - followed.clear_since_ts >= _RECOVERED_AFTER_MS:
                del self._followed[name]


def _to_restore(followed: _Followed) -> BeforeReset:
    return BeforeReset(
        None if followed.answered else followed.failure_ts, followed.delivered
    )
