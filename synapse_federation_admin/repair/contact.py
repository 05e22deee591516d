# SPDX-License-Identifier: Apache-2.0
"""Contacts destinations: an empty transaction, and what comes of it as a value."""

from collections.abc import Awaitable

import attr
from synapse.module_api import JsonDict

from synapse_federation_admin import limits
from synapse_federation_admin.failures.bounds import bounded
from synapse_federation_admin.failures.classify import result_or_failure
from synapse_federation_admin.failures.kinds import Failure
from synapse_federation_admin.failures.names import why_not_contacted
from synapse_federation_admin.failures.second_look import may_be_more, second_look
from synapse_federation_admin.failures.text import message_of
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.values import Contact, ReconnectOutcome, Server


async def probe(homeserver: Homeserver, name: str, *, timeout_ms: int) -> Contact:
    """Contact a destination; whatever comes of it, nothing is changed.

    Args:
        homeserver: Makes the request.
        name: The server name.
        timeout_ms: How long it has to answer: to be connected to and to send the
            headers of its answer, and then as long again to send the rest.
    """
    if failure := why_not_contacted(homeserver, name):
        return Contact(0, failure=failure)
    request = homeserver.federation.probe(name, timeout_ms=timeout_ms)
    contact = await contact_of(homeserver, request)
    failure = contact.failure
    if failure is None or not may_be_more(failure):
        return contact
    more = await second_look(homeserver, name, failure, timeout_ms=timeout_ms)
    return contact._replace(failure=more)


async def contact_of(homeserver: Homeserver, request: Awaitable[None]) -> Contact:
    """Await a request, and return what came of it."""
    begun_ms = homeserver.now_ms()
    # If it is a bug on this side, the failure says so.
    found = await result_or_failure(request)
    duration_ms = homeserver.now_ms() - begun_ms
    if isinstance(found, Failure):
        return Contact(duration_ms, failure=found)
    return Contact(duration_ms, Server())


async def with_software(
    homeserver: Homeserver, name: str, contact: Contact, *, timeout_ms: int
) -> Contact:
    """Ask a server that has answered what it runs; if it does not say, that is that."""
    body = await result_or_failure(
        homeserver.federation.version(name, timeout_ms=timeout_ms)
    )
    if isinstance(body, Failure):
        return contact
    server = body.get("server")
    says = server if isinstance(server, dict) else {}
    named = Server(_said(says.get("name")), _said(says.get("version")))
    return contact._replace(server=named)


def outcome_of(contact: Contact) -> ReconnectOutcome:
    """Return what a contact proves; whatever is of this side proves nothing."""
    if contact.failure is None:
        return ReconnectOutcome.CONNECTED
    if contact.failure.is_ours:
        return ReconnectOutcome.INTERNAL
    return ReconnectOutcome.STILL_FAILING


def shown_contact(contact: Contact) -> JsonDict:
    """Return a contact as the API and the audit show it."""
    failure = contact.failure
    return {
        "duration_ms": contact.duration_ms,
        "server": attr.asdict(contact.server) if contact.server else None,
        "error": {
            "kind": failure.kind.value,
            "reason": failure.reason.value if failure.reason else None,
            "message": message_of(failure),
        }
        if failure
        else None,
    }


def _said(text: object) -> str | None:
    return bounded(text, limits.SOFTWARE) if isinstance(text, str) else None
