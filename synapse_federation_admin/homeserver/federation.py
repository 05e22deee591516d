# SPDX-License-Identifier: Apache-2.0
"""Requests of our own to other servers."""

import secrets
from collections.abc import Callable
from http import HTTPStatus

from synapse.http.federation.well_known_resolver import WellKnownLookupResult
from synapse.module_api import JsonDict
from twisted.internet.defer import CancelledError
from unpaddedbase64 import encode_base64

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.errors import (
    HttpResponseException,
    RequestSendFailed,
)
from synapse_federation_admin.homeserver.network import GRACE_MS, Network
from synapse_federation_admin.homeserver.traffic import tell_answered, unobserved
from synapse_federation_admin.homeserver.transactions import SEND_PATH, why_no_answer

KEYS_PATH = "/_matrix/key/v2/server"

_VERSION_PATH = "/_matrix/federation/v1/version"


class Federation(Network):
    """Asks other servers, with Synapse's federation client and its settings.

    But for `contact`, past Synapse's retry limiter: none is real traffic.
    """

    async def get(
        self,
        destination: str,
        path: str,
        *,
        timeout_ms: int,
        delegation: WellKnownLookupResult | None = None,
    ) -> tuple[JsonDict, dict[bytes, list[bytes]]]:
        """Return the body and the headers of an answer.

        Args:
            destination: The server name.
            path: Of what.
            timeout_ms: How long it has to answer.
            delegation: What its well-known file says; None: fetch it.

        Raises:
            Exception: Whatever Synapse's client raises.
        """
        client = self.client(timeout_ms, delegation)
        return await unobserved(
            client.get_json_with_headers(
                destination, path, timeout=timeout_ms + GRACE_MS, ignore_backoff=True
            )
        )

    async def send_empty(
        self,
        destination: str,
        *,
        timeout_ms: int,
        delegation: WellKnownLookupResult | None = None,
    ) -> bool:
        """Send a destination an empty transaction: the contact.

        It is sent even if the destination is in backoff, and whatever comes of it, no
        retry timing is changed and nobody is woken.

        Args:
            destination: The server name.
            timeout_ms: How long it has to answer.
            delegation: What its well-known file says; None: fetch it.

        Returns:
            Whether it was taken. If not, the server is still busy with another
            transaction of ours, which is as good: it is so told by one that has
            accepted our signature (`synapse/federation/federation_server.py`).

        Raises:
            Exception: Whatever Synapse's client raises.
        """
        # Synapse's own are numbers. What a server has seen once it answers from memory,
        # and drops what is in it.
        transaction_id = f"federation_admin_{secrets.token_hex(8)}"
        transaction = {
            "origin": self._hs.hostname,
            "origin_server_ts": self._hs.get_clock().time_msec(),
            "pdus": [],
            "edus": [],
        }
        client = self.client(timeout_ms, delegation)
        try:
            answer = await unobserved(
                client.put_json(
                    destination,
                    path=f"{SEND_PATH}/{transaction_id}",
                    data=transaction,
                    timeout=timeout_ms + GRACE_MS,
                    ignore_backoff=True,
                )
            )
        except RequestSendFailed as e:
            if not _is_busy(e.inner_exception):
                raise
            return False
        if (error := why_no_answer(answer)) is not None:
            raise error
        return True

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
        # Only v1's reset needs it.
        from synapse.util.retryutils import get_retry_limiter

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
        """Send it past the retry limiter, and tell that it was taken: see `send_empty`.

        Raises:
            CancelledError: Synapse is shutting down, and closes all connections: that
                is no answer.
        """
        try:
            is_taken = await self.send_empty(destination, timeout_ms=timeout_ms)
        except Exception as e:
            if self._homeserver.is_shutting_down:
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
        body, _ = await self.get(destination, _VERSION_PATH, timeout_ms=timeout_ms)
        return body

    async def is_us(self, destination: str, *, timeout_ms: int) -> bool:
        """Ask a destination for its keys; return whether they are our own."""
        try:
            body, _ = await self.get(destination, KEYS_PATH, timeout_ms=timeout_ms)
        except (HttpResponseException, RequestSendFailed):
            return False
        return self.are_own_keys(body)

    def are_own_keys(self, body: object) -> bool:
        """Tell whether an answer of `/_matrix/key/v2/server` is this homeserver's own.

        It has our server name, and one of our keys: whatever the address, that is we.
        """
        if not isinstance(body, dict) or body.get("server_name") != self._hs.hostname:
            return False
        ours, keys = self._hs.signing_key, body.get("verify_keys")
        key = keys.get(f"{ours.alg}:{ours.version}") if isinstance(keys, dict) else None
        own = encode_base64(ours.verify_key.encode())
        return isinstance(key, dict) and key.get("key") == own

    async def alias_of(self, host: str) -> str:
        """Return the last name of which a host name is an alias; "" if it is none.

        Or if this process does not go out itself.
        """
        if self.instances is not None:
            return ""
        return await self.look_ups.alias_of(host, limits.DNS_ANSWER_MS / 1000)


def _is_busy(error: BaseException) -> bool:
    """Tell whether a server refuses a transaction only as it is busy with another."""
    return (
        isinstance(error, HttpResponseException)
        and error.code == HTTPStatus.TOO_MANY_REQUESTS
        and b"Too many concurrent transactions" in error.response
    )
