# SPDX-License-Identifier: Apache-2.0
"""Requests to other servers that are made to see what comes of them."""

import secrets
from http import HTTPStatus

from synapse.http.federation.well_known_resolver import WellKnownLookupResult
from synapse.module_api import JsonDict

from synapse_federation_admin.homeserver.errors import (
    HttpResponseException,
    RequestSendFailed,
)
from synapse_federation_admin.homeserver.network import GRACE_MS, Network
from synapse_federation_admin.homeserver.traffic import unobserved
from synapse_federation_admin.homeserver.transactions import SEND_PATH

KEYS_PATH = "/_matrix/key/v2/server"


class Requests(Network):
    """Makes them past Synapse's retry limiter: none is real traffic."""

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
            await unobserved(
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
        return True


def _is_busy(error: BaseException) -> bool:
    """Tell whether a server refuses a transaction only as it is busy with another."""
    return (
        isinstance(error, HttpResponseException)
        and error.code == HTTPStatus.TOO_MANY_REQUESTS
        and b"Too many concurrent transactions" in error.response
    )
