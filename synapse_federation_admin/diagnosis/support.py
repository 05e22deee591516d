# SPDX-License-Identifier: Apache-2.0
"""Fetches whom to ask about a server: what its admins say of themselves.

https://spec.matrix.org/v1.11/client-server-api/#getwell-knownmatrixsupport

What they say may be anything: what is not plainly a user ID, an address of email or an
https URL is left out.
"""

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from synapse_federation_admin import limits
from synapse_federation_admin.diagnosis.diagnose import Diagnoses
from synapse_federation_admin.diagnosis.stages import SkipReason
from synapse_federation_admin.diagnosis.way import Way
from synapse_federation_admin.diagnosis.well_known import fetch
from synapse_federation_admin.failures.bounds import json_object, word
from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.kinds import Failure, FailureKind, Reason
from synapse_federation_admin.failures.names import why_not_contacted
from synapse_federation_admin.homeserver.errors import RequestSendFailed
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.newest import keep_newest
from synapse_federation_admin.homeserver.server_name import ServerName, is_server_name

PATH = "/.well-known/matrix/support"

# How long it may take, and how old an answer may become that is told again.
_TIMEOUT_MS = 10_000
_KEEP_MS = 600_000

# All that is read of the file: Synapse's own is some hundred bytes.
_MOST_BYTES = 16 * 1024

_LOCALPART = re.compile(r"@[!-9;-~]{1,254}")
_EMAIL = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_{|}~-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)*[A-Za-z0-9-]{1,63}"
)
_MOST_OF_ID = 255
_URL = re.compile(r"https://[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")


class SupportContact(NamedTuple):
    """Whom to ask.

    Attributes:
        role: For what: `m.role.admin`, `m.role.security` or another word; "" if it is
            not said.
        matrix_id: A user ID; None if there is none.
        email_address: An address of email; None if there is none.
    """

    role: str
    matrix_id: str | None
    email_address: str | None


class Support(NamedTuple):
    """Whom to ask about a server, as it says itself.

    Attributes:
        destination: The server name.
        checked_ts: When it was asked.
        url: Where; "" if it was not.
        status: The HTTP status of the answer; None if there was none.
        contacts: Whom to ask.
        left_out: How many contacts are not told: too many, or none that are valid.
        support_page: A page of its; None if there is none.
        error: Why there was no answer that can be read; None if there was one, or 404.
        skipped: Why it was not asked; None if it was.
    """

    destination: str
    checked_ts: int
    url: str = ""
    status: int | None = None
    contacts: tuple[SupportContact, ...] = ()
    left_out: int = 0
    support_page: str | None = None
    error: Failure | None = None
    skipped: SkipReason | None = None


class SupportFiles:
    """Fetches support files, with the bounds of a diagnosis; keeps them for a while."""

    def __init__(self, homeserver: Homeserver, diagnoses: Diagnoses) -> None:
        self._homeserver = homeserver
        self._diagnoses = diagnoses
        # The newest at the end.
        self._found: dict[str, Support] = {}

    async def of(self, name: str) -> Support:
        """Return whom to ask about a server.

        Args:
            name: The server name, valid or not.

        Raises:
            LimitExceededError: Too much else is under way.
        """
        now_ms = self._homeserver.now_ms()
        known = self._found.get(name)
        if known is not None and known.checked_ts <= now_ms < (
            known.checked_ts + _KEEP_MS
        ):
            return known
        return await self._homeserver.single_flight.run(
            "federation_admin_support", name, lambda: self._ask(name), joins=True
        )

    async def _ask(self, name: str) -> Support:
        if error := why_not_contacted(self._homeserver, name):
            return Support(name, self._homeserver.now_ms(), error=error)
        server = ServerName.parse(name)
        nothing = Support(name, self._homeserver.now_ms())
        if server.is_literal:
            return nothing._replace(skipped=SkipReason.NAME_IS_ADDRESS)

        async def ask(way: Way) -> Support:
            if way.outbound.instances is not None:
                return nothing._replace(skipped=SkipReason.ANOTHER_PROCESS)
            try:
                requests, answer, _ = await fetch(way, server.host, PATH)
            except RequestSendFailed as e:
                # It could not be asked, by a fault of this side.
                return nothing._replace(error=failure_of(e))
            last = requests[-1]
            found = nothing._replace(
                url=requests[0].url, status=last.status, error=last.error
            )
            if answer is None or answer.body is None:
                return found
            return read_support(found, answer.body)

        found = await self._diagnoses.in_turn(_TIMEOUT_MS, ask)
        if found.error is None or not found.error.is_ours:
            keep_newest(self._found, name, found, limits.KEPT_DIAGNOSES)
        return found


def read_support(found: Support, body: bytes) -> Support:
    """Add what a file says to what is known of it.

    Args:
        found: What is known.
        body: The file.
    """
    content = json_object(body) if len(body) <= _MOST_BYTES else None
    if content is None:
        is_long = len(body) > _MOST_BYTES
        reason = Reason.BODY_TOO_LARGE if is_long else Reason.NOT_JSON
        return found._replace(error=Failure(FailureKind.INVALID_RESPONSE, reason))
    listed = content.get("contacts")
    said = listed if isinstance(listed, list) else []
    contacts = [contact for each in said if (contact := _contact(each))]
    told = tuple(contacts[: limits.TOLD_CONTACTS])
    return found._replace(
        contacts=told,
        left_out=len(said) - len(told),
        support_page=_page(content.get("support_page")),
    )


def _contact(value: object) -> SupportContact | None:
    if not isinstance(value, dict):
        return None
    matrix_id, email = value.get("matrix_id"), value.get("email_address")
    contact = SupportContact(
        word(value.get("role")) or "",
        matrix_id if _is_user_id(matrix_id) else None,
        email if isinstance(email, str) and _EMAIL.fullmatch(email) else None,
    )
    return contact if contact.matrix_id or contact.email_address else None


def _is_user_id(value: object) -> bool:
    if not isinstance(value, str) or len(value) > _MOST_OF_ID:
        return False
    localpart, _, server = value.partition(":")
    return bool(_LOCALPART.fullmatch(localpart)) and is_server_name(server)


def _page(value: object) -> str | None:
    """Return a page's URL: https, and no more in it than a host and a path."""
    if not isinstance(value, str) or len(value) > limits.TEXT:
        return None
    try:
        parts = urlsplit(value)
        has_user = "@" in parts.netloc
        is_host = bool(parts.hostname) and is_server_name(parts.netloc)
    except ValueError:
        return None
    return value if _URL.fullmatch(value) and is_host and not has_user else None
