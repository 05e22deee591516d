# SPDX-License-Identifier: Apache-2.0
"""Synapse's resolvers of delegation, which tell an attempt what they find."""

import json
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from synapse.http.federation.srv_resolver import Server, SrvResolver
from synapse.http.federation.well_known_resolver import (  # type: ignore[attr-defined]  # where json_decoder is differs by release
    WellKnownLookupResult,
    WellKnownResolver,
    json_decoder,
)
from twisted.internet import error as net
from twisted.internet.defer import Deferred
from twisted.web.iweb import IResponse

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.attempt import Attempt
from synapse_federation_admin.homeserver.errors import (
    Obstacle,
    ObstacleError,
)
from synapse_federation_admin.homeserver.lookups import (
    Answers,
    LookUps,
)
from synapse_federation_admin.homeserver.server_name import is_server_name

# What SRV records may lead to.
_HOST_NAME = re.compile(rb"[0-9A-Za-z._-]{1,255}")


class AttemptWellKnownResolver(WellKnownResolver):
    """Asks for well-known files, and tells an attempt what they delegate to."""

    def __init__(self, attempt: Callable[[], Attempt], **kwargs: Any) -> None:
        """Wrap Synapse's.

        Args:
            attempt: Returns that of the request that a file is asked for.
            kwargs: What Synapse's wants.
        """
        super().__init__(**kwargs)
        self._attempt = attempt

    async def get_well_known(self, server_name: bytes) -> WellKnownLookupResult:
        """Return what the file says: see Synapse's."""
        attempt = self._attempt()
        attempt.is_fetching = True
        found = await super().get_well_known(server_name)
        attempt.file_fetched()
        if found.delegated_server:
            _look_at(found.delegated_server.decode("ascii", "replace"), attempt)
        return found


def _look_at(m_server: str, attempt: Attempt) -> None:
    # An empty one delegates to nobody.
    is_known = attempt.delegated_to is not None
    if m_server and not is_known and not is_server_name(m_server):
        attempt.delegated_to = m_server[: limits.WORD]


class ContactWellKnownResolver(AttemptWellKnownResolver):
    """Has Synapse log no more of well-known files than it needs."""

    def __init__(
        self,
        attempt: Attempt,
        delegation: WellKnownLookupResult | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(lambda: attempt, **kwargs)
        self._delegation = delegation

    async def get_well_known(self, server_name: bytes) -> WellKnownLookupResult:
        """Return what the file says, if that is not known: see Synapse's."""
        return self._delegation or await super().get_well_known(server_name)

    async def _make_well_known_request(
        self, server_name: bytes, retry: bool
    ) -> tuple[IResponse, bytes]:
        """Make the request: see Synapse's."""
        response, body = await super()._make_well_known_request(server_name, retry)
        if response.code != HTTPStatus.OK:
            # It is not looked into.
            return response, b""
        try:
            # As Synapse reads it.
            content = json_decoder.decode(body.decode("utf-8"))
        except (ValueError, RecursionError):
            # Of what is no JSON it logs nothing.
            return response, body
        m_server = content.get("m.server") if isinstance(content, dict) else None
        if not isinstance(m_server, str) or not m_server.isascii():
            return response, b"{}"
        _look_at(m_server, self._attempt())
        if not m_server.isprintable() or len(m_server) > limits.SERVER_NAME:
            m_server = "not-a-server-name."
        return response, json.dumps({"m.server": m_server}).encode()


class AttemptSrvResolver(SrvResolver):
    """Looks SRV records up, and tells an attempt of it."""

    def __init__(self, attempt: Attempt, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._attempt = attempt

    async def resolve_service(self, service_name: bytes) -> list[Server]:
        """Look up: see Synapse's."""
        self._attempt.require_time()
        name = service_name.decode("ascii", "replace")
        self._attempt.looked_up.append(name)
        try:
            found = await super().resolve_service(service_name)
        except net.ConnectError:
            self._attempt.is_service_refused = True
            raise
        finally:
            self._attempt.looked_up.remove(name)
        # The root is the target of a service that is decidedly not there (RFC 2782).
        # Synapse sees it in some of its forms only.
        if found and all(server.host in (b"", b".") for server in found):
            self._attempt.is_service_refused = True
        return found


class ContactSrvResolver(AttemptSrvResolver):
    """Looks up within limits, and passes nothing on that can be no host name."""

    def __init__(self, attempt: Attempt, look_ups: LookUps) -> None:
        super().__init__(attempt, dns_client=self)
        self._look_ups = look_ups

    def lookupService(self, name: bytes) -> "Deferred[Answers]":
        """Look up: see `twisted.names.client.lookupService`."""
        return self._look_ups.services(name.decode("ascii"), self._attempt.left_s)

    async def resolve_service(self, service_name: bytes) -> list[Server]:
        """Look up: see Synapse's."""
        found = await super().resolve_service(service_name)
        plain = [server for server in found if _HOST_NAME.fullmatch(server.host)]
        if found and not plain:
            name = service_name.decode("ascii", "replace")
            raise ObstacleError(Obstacle.NO_HOST_NAME, name)
        return plain[: limits.SRV_SERVERS]
