# SPDX-License-Identifier: Apache-2.0
"""What a process that goes out for others tells them of a failure, to be believed.

Where `outbound_federation_restricted_to` sends requests through another process, that
one answers 502 with the failure as text (`synapse/http/proxy.py`). A remote server can
answer 502 with any text, too. So what is believed has a code of authentication that is
made with `worker_replication_secret`, which no other server knows.
"""

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from http import HTTPStatus
from typing import TYPE_CHECKING

from synapse.logging.context import current_context
from twisted.internet import error as net

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.errors import (
    HttpResponseException,
    MetElsewhereError,
    Obstacle,
    ObstacleError,
    innermost,
)

if TYPE_CHECKING:
    from synapse.server import HomeServer

_RELAYED = b"ProxyResource: Error when proxying request: "
_TOLD = re.compile(rb"federation_admin_met:([0-9a-f]{64}):([0-9A-Za-z_=-]+)")


class Relay:
    """Tells other processes of this homeserver of failures, and hears of theirs."""

    def __init__(self, hs: "HomeServer") -> None:
        """Take the secret that all processes of the homeserver share."""
        self._secret = (hs.config.worker.worker_replication_secret or "").encode()

    def is_for_another(self) -> bool:
        """Tell whether the request that is made here is another process's."""
        request = current_context().request if self._secret else None
        return request is not None and request.url.startswith("matrix-federation:")

    def signed(self, told: str) -> Exception:
        """Return an exception whose text tells the other process what was met."""
        text = urlsafe_b64encode(told.encode())
        return Exception(f"federation_admin_met:{self._code(text)}:{text.decode()}")

    def met(self, error: BaseException) -> BaseException:
        """Return what the other process has met, if it tells; else the error.

        For a process that does not go out itself.
        """
        cause = innermost(error)
        if isinstance(cause, net.ConnectError | net.DNSLookupError):
            # That process is all that this one connects to.
            return ObstacleError(Obstacle.OTHER_PROCESS, cause=cause)
        is_502 = getattr(cause, "code", None) == HTTPStatus.BAD_GATEWAY
        if not isinstance(cause, HttpResponseException) or not is_502:
            return error
        body = (cause.response or b"")[: limits.ERROR_BYTES]
        found = _TOLD.search(body)
        if found and hmac.compare_digest(self._code(found[2]).encode(), found[1]):
            return MetElsewhereError(urlsafe_b64decode(found[2]).decode())
        if _RELAYED in body:
            return ObstacleError(Obstacle.UNTOLD)
        return error

    def _code(self, text: bytes) -> str:
        return hmac.new(self._secret, text, "sha256").hexdigest()
