# SPDX-License-Identifier: Apache-2.0
"""Contacts destinations: one real request, and what comes of it as a value."""

import logging
from collections import deque
from collections.abc import Awaitable, Callable

from synapse.module_api import JsonDict
from twisted.internet.defer import CancelledError

from synapse_federation_admin.failures.bounds import bounded
from synapse_federation_admin.failures.classify import failure_of, forget_frames
from synapse_federation_admin.failures.kinds import Failure, FailureKind, Reason
from synapse_federation_admin.failures.text import message_of
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.outcomes import Contact

logger = logging.getLogger(__name__)

# Contacts under way at once in one process after resets, and as many for reconnects;
# the others wait for their turn. Somebody who resets ten thousand destinations in a
# loop must not open ten thousand connections.
MAX_CONTACTS = 50

# The answer to the reset goes out first, and so does what waits in this process.
_HEAD_START_MS = 20

# How much is kept of what a server says of itself.
_MAX_SERVER_TEXT = 100


async def probe(homeserver: Homeserver, name: str, *, timeout_ms: int) -> Contact:
    """Contact a destination; whatever comes of it, nothing is changed.

    Args:
        homeserver: Makes the request.
        name: The server name.
        timeout_ms: How long it has to answer: to be connected to and to send the
            headers of its answer, and then as long again to send the rest.
    """
    if not homeserver.is_server_name(name):
        return Contact(0, failure=Failure(FailureKind.INVALID_NAME))
    return await _contact(
        homeserver, lambda: homeserver.federation.probe(name, timeout_ms=timeout_ms)
    )


async def _contact(
    homeserver: Homeserver, request: Callable[[], Awaitable[JsonDict]]
) -> Contact:
    """Make a request, and return what came of it."""
    begun_ms = homeserver.now_ms()
    try:
        body = await request()
    except CancelledError:
        # Synapse is shutting down.
        raise
    except Exception as error:
        # If it is a bug on this side, the failure says so.
        failure = failure_of(error, homeserver.federation.has_addresses)
        forget_frames(error)
        return Contact(homeserver.now_ms() - begun_ms, failure=failure)
    duration_ms = homeserver.now_ms() - begun_ms
    if not isinstance(body, dict):
        failure = Failure(FailureKind.INVALID_RESPONSE, Reason.NOT_JSON)
        return Contact(duration_ms, failure=failure)
    server = body.get("server")
    says = server if isinstance(server, dict) else {}
    return Contact(duration_ms, _said(says.get("name")), _said(says.get("version")))


def shown_contact(contact: Contact) -> JsonDict:
    """Return a contact as the API and the audit show it."""
    failure = contact.failure
    return {
        "duration_ms": contact.duration_ms,
        "server": None
        if failure
        else {"name": contact.server_name, "version": contact.server_version},
        "error": {
            "kind": failure.kind.value,
            "reason": failure.reason.value if failure.reason else None,
            "message": message_of(failure),
        }
        if failure
        else None,
    }


def _said(text: object) -> str | None:
    return bounded(text, _MAX_SERVER_TEXT) if isinstance(text, str) else None


class BackgroundContacts:
    """Makes one real request to a destination: one at a time for each of them."""

    def __init__(
        self, homeserver: Homeserver, done: Callable[[str, Contact], None]
    ) -> None:
        """Make the queue.

        Args:
            homeserver: Makes the requests.
            done: Called with a name, and what came of the last contact with it, when
                there is none left to wait for. Not if a contact is cancelled.
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
            contact = await self._contact(name, timeout_ms)
        except BaseException:
            del self._timeouts_ms[name]
            raise
        if self._timeouts_ms[name]:
            self._queue.append(name)
            return
        del self._timeouts_ms[name]
        try:
            self._done(name, contact)
        except Exception:
            # The others in the queue are still to be contacted.
            logger.exception("Could not conclude from a contact")

    async def _contact(self, name: str, timeout_ms: int) -> Contact:
        """Make the request, of whose outcome Synapse's retry limiter is to know."""
        # If another attempt has put it into backoff by now, ask all the same; a failure
        # then leaves that backoff as it is. Else a failure has to lead to one.
        ignore_backoff = await self._homeserver.retry_timings.is_backing_off(name)
        contact = await _contact(
            self._homeserver,
            lambda: self._homeserver.federation.contact(
                name, timeout_ms=timeout_ms, ignore_backoff=ignore_backoff
            ),
        )
        logger.info(
            "Contact with %s after the reset of its connection %s",
            bounded(name),
            f"failed: {message_of(contact.failure)}"
            if contact.failure
            else "succeeded",
        )
        return contact
