# SPDX-License-Identifier: Apache-2.0
"""Contacts destinations in the background."""

import logging
from collections.abc import Callable

from twisted.internet.defer import CancelledError

from synapse_federation_admin.homeserver import Homeserver

logger = logging.getLogger(__name__)

# Contacts under way at once in one process; the others wait for their turn. Somebody
# who resets ten thousand destinations in a loop must not open ten thousand connections.
MAX_CONTACTS = 50

# The answer to the reset goes out first, and so does what waits in this process.
_HEAD_START_MS = 20

# A remote server has a say in its name and in the text of an error: what is logged of
# them is escaped and cut to this.
_MAX_LOGGED_CHARACTERS = 300


class BackgroundContacts:
    """Makes one real request to a destination: one at a time for each of them."""

    def __init__(self, homeserver: Homeserver, *, timeout_ms: int) -> None:
        self._homeserver = homeserver
        self._timeout_ms = timeout_ms
        self._turn = homeserver.linearizer("federation_admin_contact", MAX_CONTACTS)
        # The destinations with a contact queued or under way, and whether one more is
        # wanted after it.
        self._wanted_again: dict[str, bool] = {}

    def is_busy(self, name: str) -> bool:
        """Tell whether a contact with a destination is queued or under way."""
        return name in self._wanted_again

    def start(self, name: str, done: Callable[[str, bool], None]) -> None:
        """Contact a destination.

        If a contact with it is under way, it is contacted once more afterwards: the one
        under way began earlier, and may tell of an older state.

        Args:
            name: The server name.
            done: Called with the name, and whether it answered well, when there is no
                contact with it left to wait for.
        """
        if name in self._wanted_again:
            self._wanted_again[name] = True
            return
        self._wanted_again[name] = False
        self._homeserver.run_in_background(
            "federation_admin_contact", self._run, name, done
        )

    async def _run(self, name: str, done: Callable[[str, bool], None]) -> None:
        answered = False
        try:
            await self._homeserver.sleep_ms(_HEAD_START_MS)
            answered = await self._contact(name)
            while self._wanted_again[name]:
                self._wanted_again[name] = False
                answered = await self._contact(name)
        finally:
            del self._wanted_again[name]
        done(name, answered)

    async def _contact(self, name: str) -> bool:
        """Make the request, and return whether it was answered well."""
        async with self._turn(""):
            try:
                await self._homeserver.contact(
                    name,
                    timeout_ms=self._timeout_ms,
                    # If another attempt has put it into backoff by now, ask all the
                    # same; a failure then leaves that backoff as it is. Else a failure
                    # has to lead to one.
                    ignore_backoff=await self._homeserver.is_backing_off(name),
                )
            except CancelledError:
                # Synapse is shutting down.
                raise
            except Exception as error:
                # Whatever it is, it is between us and the remote server, and Synapse's
                # retry limiter has already drawn its conclusions from it.
                logger.info(
                    "Contact with %s after the reset of its connection failed: %s",
                    _loggable(name),
                    _loggable(f"{type(error).__name__}: {error}"),
                )
                return False
        logger.info(
            "Contact with %s after the reset of its connection succeeded",
            _loggable(name),
        )
        return True


def _loggable(text: str) -> str:
    return ascii(text)[:_MAX_LOGGED_CHARACTERS]
