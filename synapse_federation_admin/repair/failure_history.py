# SPDX-License-Identifier: Apache-2.0
"""Keeps since when a destination has been failing across a reset of its connection.

A reset clears `failure_ts`. When the destination is still failing afterwards, Synapse
writes the time of the new failure there, and "failing for 90 days" would become
"failing for a second".

Two kinds of attempts write that: our contact, some seconds after the reset, and an
attempt of a federation sender, woken by the reset, which gives up only after all its
retries: with Synapse's defaults some 25 minutes later, and it had looked at the row
while that was cleared. So a destination is watched for as long as such an attempt may
take.
"""

import attr

from synapse_federation_admin.homeserver import Homeserver

# When to look for the failure that a contact has just had: Synapse stores it in the
# background, so the row may say so only a moment later.
_LOOK_AFTER_MS = (50, 100, 200, 400, 800, 1600, 3200, 6400, 12800)

_WATCH_EVERY_MS = 30_000

# Destinations remembered at once; beyond that the oldest are let go of.
MAX_REMEMBERED = 10_000

_BATCH = 100


@attr.s(slots=True, auto_attribs=True)
class _Remembered:
    failure_ts: int
    until_ts: int


class FailureHistory:
    """Gives destinations that still fail after a reset their old `failure_ts` back."""

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        # In the order in which they were last remembered.
        self._remembered: dict[str, _Remembered] = {}
        self._watched: set[str] = set()

    def remember(self, name: str, failure_ts: int) -> None:
        """Remember since when a destination has been failing, in ms."""
        before = self._remembered.pop(name, None)
        if before is not None:
            failure_ts = min(failure_ts, before.failure_ts)
        elif len(self._remembered) >= MAX_REMEMBERED:
            self.forget(next(iter(self._remembered)))
        self._remembered[name] = _Remembered(
            failure_ts,
            self._homeserver.now_ms() + self._homeserver.longest_send_attempt_ms,
        )

    def forget(self, name: str) -> None:
        """Let go of a destination: it has recovered."""
        self._remembered.pop(name, None)
        self._watched.discard(name)

    async def restore(self, name: str) -> None:
        """Give a destination its old `failure_ts` back once it is failing again.

        Then watch it, in the background, until no attempt that began before that can
        still be under way. A destination that does not begin to fail again, because
        Synapse takes the error that it answered with for an answer, is let go of.
        """
        for delay_ms in _LOOK_AFTER_MS:
            if name not in self._remembered:
                return
            await self._homeserver.sleep_ms(delay_ms)
            if await self._restore_batch([name]):
                self._watch(name)
                return
        self.forget(name)

    def _watch(self, name: str) -> None:
        if name not in self._remembered:
            return
        watching = bool(self._watched)
        self._watched.add(name)
        if not watching:
            self._homeserver.run_in_background(
                "federation_admin_failure_history", self._watch_all
            )

    async def _watch_all(self) -> None:
        while self._watched:
            await self._homeserver.sleep_ms(_WATCH_EVERY_MS)
            names = list(self._watched)
            for start in range(0, len(names), _BATCH):
                batch = names[start : start + _BATCH]
                failing = await self._restore_batch(batch)
                now_ts = self._homeserver.now_ms()
                for name in batch:
                    remembered = self._remembered.get(name)
                    if (
                        remembered is None
                        or name not in failing
                        or remembered.until_ts < now_ts
                    ):
                        self.forget(name)

    async def _restore_batch(self, names: list[str]) -> set[str]:
        """Restore where needed, and return which of the destinations are failing."""
        return await self._homeserver.restore_failure_ts(
            [
                (name, self._remembered[name].failure_ts)
                for name in names
                if name in self._remembered
            ]
        )
