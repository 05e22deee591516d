# SPDX-License-Identifier: Apache-2.0
"""Requests of this process's to other servers."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from synapse.module_api import JsonDict
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import HostnameEndpoint

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.errors import (
    HttpResponseException,
    RequestSendFailed,
)
from synapse_federation_admin.homeserver.process import outbound_instances
from synapse_federation_admin.homeserver.requests import KEYS_PATH, Requests
from synapse_federation_admin.homeserver.traffic import tell_answered

if TYPE_CHECKING:
    from synapse.server import HomeServer

    from synapse_federation_admin.homeserver.outbound import Outbound

_VERSION = "/_matrix/federation/v1/version"


class Federation(Requests):
    """Asks other servers, with Synapse's federation client and its settings."""

    def __init__(self, hs: "HomeServer", is_shutting_down: Callable[[], bool]) -> None:
        super().__init__(hs, max_lifetime_s=limits.CONTACT_CONNECTION_S)
        self._is_shutting_down = is_shutting_down

    def can_be_host(self, host: str) -> bool:
        """Tell whether Synapse can connect to a host of this name, if there is one.

        Twisted is stricter than the DNS: of underscores, or hyphens at the ends.
        """
        endpoint = HostnameEndpoint(self._hs.get_reactor(), host, 443)
        return not endpoint._badHostname

    async def probe(self, destination: str, *, timeout_ms: int) -> None:
        """Send the same past the retry limiter: see `send_empty`.

        Raises:
            CancelledError: Synapse is shutting down, and closes all connections: that
                is no answer.
        """
        try:
            is_taken = await self.send_empty(destination, timeout_ms=timeout_ms)
        except Exception as e:
            if self._is_shutting_down():
                raise CancelledError from e
            raise
        # Not before its answer was read, which may be none.
        if is_taken:
            tell_answered(self._hs, destination)

    async def version(self, destination: str, *, timeout_ms: int) -> JsonDict:
        """Ask a destination for the name and the version of its software.

        Backoff or not, and without any change of it.

        Returns:
            The body: https://spec.matrix.org/v1.11/server-server-api/#get_matrixfederationv1version

        Raises:
            Exception: Whatever Synapse's client raises.
        """
        body, _ = await self.get(destination, _VERSION, timeout_ms=timeout_ms)
        return body

    async def is_us(self, destination: str, *, timeout_ms: int) -> bool:
        """Ask a destination for its keys; return whether they are our own."""
        try:
            body, _ = await self.get(destination, KEYS_PATH, timeout_ms=timeout_ms)
        except (HttpResponseException, RequestSendFailed):
            return False
        return self.are_own_keys(body)

    async def alias_of(self, host: str) -> str:
        """Return the last name of which a host name is an alias; "" if it is none.

        Or if this process does not go out itself.
        """
        if outbound_instances(self._hs) is not None:
            return ""
        return await self.look_ups.alias_of(host, limits.DNS_ANSWER_MS / 1000)

    def outbound(self, max_lifetime_ms: int) -> "Outbound":
        """Make the way out to other servers, step by step.

        Args:
            max_lifetime_ms: How long a connection may last.
        """
        from synapse_federation_admin.homeserver.outbound import Outbound

        return Outbound(self._hs, max_lifetime_s=max_lifetime_ms / 1000)
