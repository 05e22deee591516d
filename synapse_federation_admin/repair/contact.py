# SPDX-License-Identifier: Apache-2.0
"""Contacts a destination in the background, after its retry timings were reset."""

import logging

from synapse_federation_admin.homeserver import Homeserver
from synapse_federation_admin.repair.failure_history import FailureHistory

logger = logging.getLogger(__name__)

# Contacts under way at once in one process; the others wait for their turn. Somebody
# who resets ten thousand destinations in a loop must not open ten thousand connections.
MAX_CONTACTS = 50

# A remote server has a say in the text of an error: it is escaped and cut to this.
_MAX_LOGGED_CHARACTERS = 300


class BackgroundContacts:
    """Makes one real request to a destination: one at a time for each of them."""

    def __init__(self, homeserver: Homeserver, *, timeout_ms: int) -> None:
        self._homeserver = homeserver
        self._timeout_ms = timeout_ms
        self._turn = homeserver.linearizer("federation_admin_contact", MAX_CONTACTS)
        self._history = FailureHistory(homeserver)
        # The destinations with a contact under way, and whether one more is wanted.
        self._wanted_again: dict[str, bool] = {}

    def start(self, name: str, *, failing_since_ts: int | None) -> None:
        """Contact a destination whose retry timings have just been cleared.

        If a contact with it is under way, it is contacted once more afterwards: that
        one began before the timings were cleared, and may tell of an older state.

        Args:
            name: The server name.
            failing_since_ts: Its `failure_ts` before it was cleared, in ms. If the
                destination turns out to be failing still, it gets this back.
        """
        if failing_since_ts is not None:
            self._history.remember(name, failing_since_ts)
        if name in self._wanted_again:
            self._wanted_again[name] = True
            return
        self._wanted_again[name] = False
        self._homeserver.run_in_background(
            "federation_admin_contact", self._contact_until_settled, name
        )

    async def _contact_until_settled(self, name: str) -> None:
        try:
            answered = await self._contact(name, ignore_backoff=False)
            while self._wanted_again[name]:
                self._wanted_again[name] = False
                # The contact before this one may have put it back into backoff.
                answered = await self._contact(name, ignore_backoff=True)
        finally:
            del self._wanted_again[name]
        if answered:
            self._history.forget(name)
        else:
            await self._history.restore(name)

    async def _contact(self, name: str, *, ignore_backoff: bool) -> bool:
        """Make the request, and return whether it was answered well."""
        async with self._turn(""):
            try:
                await self._homeserver.contact(
                    name, timeout_ms=self._timeout_ms, ignore_backoff=ignore_backoff
                )
            except Exception as error:
                # Whatever it is, it is between us and the remote server, and Synapse's
                # retry limiter has already drawn its conclusions from it.
                logger.info(
                    "Contact with %s after the reset of its connection failed: %s",
                    name,
                    ascii(f"{type(error).__name__}: {error}")[:_MAX_LOGGED_CHARACTERS],
                )
                return False
        logger.info("Contact with %s after the reset of its connection succeeded", name)
        return True
