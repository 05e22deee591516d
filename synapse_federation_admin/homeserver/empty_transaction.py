# SPDX-License-Identifier: Apache-2.0
"""The contact: an empty transaction, which is what real traffic is made of."""

import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING

from synapse_federation_admin.homeserver.errors import (
    HttpResponseException,
    RequestSendFailed,
)
from synapse_federation_admin.homeserver.network import GRACE_MS
from synapse_federation_admin.homeserver.transactions import SEND_PATH

if TYPE_CHECKING:
    from synapse.http.matrixfederationclient import MatrixFederationHttpClient
    from synapse.server import HomeServer


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
