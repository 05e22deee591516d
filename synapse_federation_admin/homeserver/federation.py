# SPDX-License-Identifier: Apache-2.0
"""Requests of this process's to other servers."""

from typing import TYPE_CHECKING

from synapse.module_api import JsonDict
from twisted.internet.endpoints import HostnameEndpoint

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.network import Network, unlimited

if TYPE_CHECKING:
    from synapse.server import HomeServer

    from synapse_federation_admin.homeserver.outbound import Outbound

_PATH = "/_matrix/federation/v1/version"


class Federation(Network):
    """Asks other servers, with Synapse's federation client and its settings."""

    def __init__(self, hs: "HomeServer") -> None:
        super().__init__(hs, max_lifetime_s=limits.CONTACT_CONNECTION_S)
        self._client = self.client()
        self._unlimited_client = unlimited(self._client)

    @property
    def longest_send_attempt_ms(self) -> int:
        """How long a federation sender may take over one transaction, all retries."""
        federation = self._hs.config.federation
        retries = federation.max_long_retries
        # Synapse adds up to 40 % of jitter to the delays between the attempts.
        return int(
            federation.client_timeout_ms * (retries + 1)
            + federation.max_long_retry_delay_ms * 1.4 * retries
        )

    def can_be_host(self, host: str) -> bool:
        """Tell whether Synapse can connect to a host of this name, if there is one.

        Twisted is stricter than the DNS: of underscores, or hyphens at the ends.
        """
        endpoint = HostnameEndpoint(self._hs.get_reactor(), host, 443)
        return not endpoint._badHostname

    async def contact(
        self, destination: str, *, timeout_ms: int, ignore_backoff: bool
    ) -> JsonDict:
        """Make one real request to a destination: `GET /_matrix/federation/v1/version`.

        It goes through a federation client of Synapse's own, so that whitelist, IP
        blocklist, proxy, `outbound_federation_restricted_to`, certificates and the
        retry limiter are Synapse's; only its connections are bounded. The limiter puts
        a destination that does not answer into backoff, and takes one that does out of
        it.

        Args:
            destination: The server name.
            timeout_ms: How long it has to answer.
            ignore_backoff: Ask even if it is in backoff; a failure then leaves the
                retry timings as they are.

        Returns:
            The body: https://spec.matrix.org/v1.11/server-server-api/#get_matrixfederationv1version

        Raises:
            Exception: Whatever Synapse's client raises; nothing of it is our fault.
        """
        return await self._client.get_json(
            destination, path=_PATH, timeout=timeout_ms, ignore_backoff=ignore_backoff
        )

    async def probe(self, destination: str, *, timeout_ms: int) -> JsonDict:
        """Make the same request past the retry limiter.

        It is made even if the destination is in backoff, and whatever comes of it, no
        retry timing is changed and nobody is woken.
        """
        return await self._unlimited_client.get_json(
            destination, path=_PATH, timeout=timeout_ms, ignore_backoff=True
        )

    def outbound(self, max_lifetime_ms: int) -> "Outbound":
        """Make the way out to other servers, step by step.

        Args:
            max_lifetime_ms: How long a connection may last.
        """
        from synapse_federation_admin.homeserver.outbound import Outbound

        return Outbound(self._hs, max_lifetime_s=max_lifetime_ms / 1000)
