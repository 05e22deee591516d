# SPDX-License-Identifier: Apache-2.0
"""Contacts destinations in the background."""

import logging
from collections import deque
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

    def __init__(
        self, homeserver: Homeserver, done: Callable[[str, bool], None]
    ) -> None:
        """Make the queue.

        Args:
            homeserver: Makes the requests.
            done: Called with a name, and whether it answered well, when there is no
                contact with it left to wait for. Not if a contact is cancelled.
        """
        self._homeserver = homeserver
        self._done = done
        # Who waits for a contact; only names, since there may be many.
        self._queue: deque[str] = deque()
        # Who waits for a contact, or is being contacted: how long it has to answer the
        # contact that it waits for, in ms; 0 if it waits for none.
        self._timeouts_ms: dict[str, int] = {}
        # Background processes, each of which makes one contact after the other.
        self._processes = 0

    def is_busy(self, name: str) -> bool:
        """Tell whether a destination waits for a contact, or is being contacted."""
        return name in self._timeouts_ms

    @property
    def busy_count(self) -> int:
        """How many destinations wait for a contact, or are being contacted."""
        return len(self._timeouts_ms)

    def start(self, name: str, *, timeout_ms: int) -> None:
        """Contact a destination.

        If a contact with it is under way, it is contacted once more afterwards: the one
        under way began earlier, and may tell of an older state.

        Args:
            name: The server name.
            timeout_ms: How long it has to answer.
        """
        if name not in self._timeouts_ms:
            self._queue.append(name)
        self._timeouts_ms[name] = max(self._timeouts_ms.get(name, 0), timeout_ms)
        if self._queue and self._processes < MAX_CONTACTS:
            self._processes += 1
            self._homeserver.run_in_background("federation_admin_contact", self._run)

    async def _run(self) -> None:
        try:
            while self._queue:
                await self._contact_next()
        finally:
            self._processes -= 1

    async def _contact_next(self) -> None:
        name = self._queue.popleft()
        try:
            await self._homeserver.sleep_ms(_HEAD_START_MS)
            timeout_ms = self._timeouts_ms[name]
            self._timeouts_ms[name] = 0
            answered = await self._contact(name, timeout_ms)
        except BaseException:
            del self._timeouts_ms[name]
            raise
        if self._timeouts_ms[name]:
            self._queue.append(name)
            return
        del self._timeouts_ms[name]
        try:
            self._done(name, answered)
        except Exception:
            # The others in the queue are still to be contacted.
            logger.exception("Could not conclude from a contact")

    async def _contact(self, name: str, timeout_ms: int) -> bool:
        """Make the request, and return whether it was answered well."""
        try:
            await self._homeserver.contact(
                name,
                timeout_ms=timeout_ms,
                # If another attempt has put it into backoff by now, ask all the same; a
                # failure then leaves that backoff as it is. Else a failure has to lead
                # to one.
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
