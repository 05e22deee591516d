# SPDX-License-Identifier: Apache-2.0
"""Requests of this process's to other servers."""

import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from synapse.module_api import JsonDict
from synapse.util.retryutils import get_retry_limiter
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import HostnameEndpoint

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.errors import (
    HttpResponseException,
    RequestSendFailed,
)
from synapse_federation_admin.homeserver.network import GRACE_MS, Network
from synapse_federation_admin.homeserver.process import outbound_instances
from synapse_federation_admin.homeserver.traffic import tell_answered
from synapse_federation_admin.homeserver.transactions import SEND_PATH
from synapse_federation_admin.homeserver.way_out import unobserved

if TYPE_CHECKING:
    from synapse.http.matrixfederationclient import MatrixFederationHttpClient
    from synapse.server import HomeServer

    from synapse_federation_admin.homeserver.outbound import Outbound

_VERSION = "/_matrix/federation/v1/version"
_KEYS = "/_matrix/key/v2/server"


class Federation(Network):
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

    async def contact(
        self,
        destination: str,
        *,
        timeout_ms: int,
        ignore_backoff: bool,
        is_ours: Callable[[Exception], bool],
    ) -> None:
        """Send a destination an empty transaction, as real traffic is sent.

        Whitelist, IP blocklist, proxy, `outbound_federation_restricted_to`,
        certificates, signature and the retry limiter are Synapse's; only the connection
        is bounded. The limiter puts a destination that does not take it into backoff,
        and takes one that does out of it, as after a transaction of a sender's.

        Args:
            destination: The server name.
            timeout_ms: How long it has to answer.
            ignore_backoff: Ask even if it is in backoff; a failure then leaves the
                retry timings as they are.
            is_ours: Tells whether it failed by our own fault; the retry timings are
                then left as they are, too.

        Raises:
            Exception: Whatever Synapse's client raises.
        """
        hs = self._hs
        limiter = await get_retry_limiter(
            destination=destination,
            our_server_name=hs.hostname,
            hs=hs,
            clock=hs.get_clock(),
            store=hs.get_datastores().main,
            ignore_backoff=ignore_backoff,
            notifier=hs.get_notifier(),
            replication_client=hs.get_replication_command_handler(),
            backoff_on_all_error_codes=True,
        )
        with limiter:
            try:
                await self.probe(destination, timeout_ms=timeout_ms)
            except Exception as e:
                # Synapse is shutting down, or it is ours.
                if isinstance(e, CancelledError) or is_ours(e):
                    limiter.backoff_on_failure = False
                raise

    async def probe(self, destination: str, *, timeout_ms: int) -> None:
        """Send the same past the retry limiter: see `send_empty`.

        Raises:
            CancelledError: Synapse is shutting down, and closes all connections: that
                is no answer.
        """
        client = self.client(timeout_ms)
        contact = send_empty(self._hs, client, destination, timeout_ms=timeout_ms)
        try:
            is_taken = await unobserved(contact)
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
        return await unobserved(
            self.client(timeout_ms).get_json(
                destination,
                path=_VERSION,
                timeout=timeout_ms + GRACE_MS,
                ignore_backoff=True,
            )
        )

    async def is_us(self, destination: str, *, timeout_ms: int) -> bool:
        """Ask a destination for its keys; return whether they are our own."""
        try:
            body = await unobserved(
                self.client(timeout_ms).get_json(
                    destination,
                    path=_KEYS,
                    timeout=timeout_ms + GRACE_MS,
                    ignore_backoff=True,
                )
            )
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


async def send_empty(
    hs: "HomeServer",
    client: "MatrixFederationHttpClient",
    destination: str,
    *,
    timeout_ms: int,
) -> bool:
    """Send a destination an empty transaction, past the retry limiter.

    It is sent even if the destination is in backoff, and whatever comes of it, no retry
    timing is changed and nobody is woken.

    Args:
        hs: The homeserver.
        client: Makes this request.
        destination: The server name.
        timeout_ms: How long it has to answer.

    Returns:
        Whether it was taken. If not, the server is still busy with another transaction
        of ours, which is as good: it is so told by one that has accepted our signature
        (`synapse/federation/federation_server.py`).

    Raises:
        Exception: Whatever Synapse's client raises.
    """
    # Synapse's own are numbers. What a server has seen once it answers from memory, and
    # drops what is in it.
    transaction_id = f"federation_admin_{secrets.token_hex(8)}"
    transaction = {
        "origin": hs.hostname,
        "origin_server_ts": hs.get_clock().time_msec(),
        "pdus": [],
        "edus": [],
    }
    try:
        await client.put_json(
            destination,
            path=f"{SEND_PATH}/{transaction_id}",
            data=transaction,
            timeout=timeout_ms + GRACE_MS,
            ignore_backoff=True,
        )
    except RequestSendFailed as e:
        if not _is_busy(e.inner_exception):
            raise
        return False
    return True


def _is_busy(error: BaseException) -> bool:
    """Tell whether a server refuses a transaction only as it is busy with another."""
    return (
        isinstance(error, HttpResponseException)
        and error.code == HTTPStatus.TOO_MANY_REQUESTS
        and b"Too many concurrent transactions" in error.response
    )
