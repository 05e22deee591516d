# SPDX-License-Identifier: Apache-2.0
"""Signing in and out, in this process and by Synapse's own servlets.

They are those of `/_matrix/client/v3/login` and `/logout`, with their checks and rate
limits, so that what this homeserver refuses there is refused here.
"""

import hmac
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from synapse.api.ratelimiting import Ratelimiter
from synapse.http.client import read_body_with_max_size
from synapse.logging.context import make_deferred_yieldable
from synapse.module_api import JsonDict, ModuleApi, SynapseRequest
from synapse.module_api.errors import Codes, SynapseError
from synapse.rest.client.login import LoginRestServlet
from synapse.rest.client.logout import LogoutRestServlet
from twisted.internet.defer import CancelledError
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from synapse_federation_admin import limits

if TYPE_CHECKING:
    from synapse.server import HomeServer

logger = logging.getLogger(__name__)


class Sessions:
    """Makes and ends access tokens of this homeserver.

    Attributes:
        public_baseurl: Where this homeserver says that clients reach it.
    """

    def __init__(self, api: ModuleApi) -> None:
        self._hs: HomeServer = api._hs
        self.public_baseurl: str = api.public_baseurl

    def secret(self, purpose: str) -> bytes:
        """Return a secret that all processes of this homeserver share.

        Args:
            purpose: What it is for; each purpose has its own.
        """
        key = self._hs.config.key.macaroon_secret_key
        return hmac.digest(key, purpose.encode(), "sha256")

    @cached_property
    def _login(self) -> LoginRestServlet:
        return LoginRestServlet(self._hs)

    @cached_property
    def _tries(self) -> Ratelimiter:
        return Ratelimiter(
            self._hs.get_datastores().main,
            self._hs.get_clock(),
            self._hs.config.ratelimiting.rc_login_address,
        )

    async def count_try(
        self, request: SynapseRequest, *, goes_on: bool = False
    ) -> None:
        """Count what somebody whom nobody knows has the authentication service do.

        Passwords that are tried Synapse counts itself, likewise by `rc_login.address`.

        Args:
            request: The request.
            goes_on: Whether it goes on with what was begun, by a limit of its own: a
                page that waits for somebody to sign in asks every 5 seconds.

        Raises:
            SynapseError: 429, that were too many from this address.
        """
        address = getattr(request.getClientAddress(), "host", "")
        limit = (limits.GOING_ON_HZ, limits.GOING_ON_BURST) if goes_on else ()
        await self._tries.ratelimit(None, (address, goes_on), *limit)

    def login_flows(self, request: SynapseRequest) -> Sequence[JsonDict]:
        """Return the ways to sign in that this homeserver announces itself.

        None where accounts are with an authentication service.
        """
        if self.has_service:
            return ()
        _, answer = self._login.on_GET(request)
        flows: Sequence[JsonDict] = answer["flows"]
        return flows

    async def log_in(
        self, request: SynapseRequest, body: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Sign somebody in, by the body of `POST /_matrix/client/v3/login`.

        Raises:
            SynapseError: As that is answered: 403 for a wrong password, 429.
        """
        request.content = BytesIO(json.dumps(body).encode())
        _, answer = await self._login.on_POST(request)
        found: Mapping[str, Any] = dict(answer)
        return found

    async def log_out(self, request: SynapseRequest) -> None:
        """End the access token that a request brings.

        Raises:
            SynapseError: 401 if it has ended already.
        """
        await LogoutRestServlet(self._hs).on_POST(request)

    # -- an authentication service -----------------------------------------------------

    @property
    def has_service(self) -> bool:
        """Whether accounts are with an authentication service (OAuth 2.0)."""
        return hasattr(self._hs.get_auth(), "auth_metadata")

    async def service(self) -> Mapping[str, Any]:
        """Return what the authentication service announces (RFC 8414).

        It is what `/_matrix/client/v1/auth_metadata` answers; Synapse keeps it.

        Raises:
            SynapseError: 503, it cannot be had.
        """
        read = getattr(self._hs.get_auth(), "auth_metadata")  # noqa: B009  # see above
        try:
            found: Mapping[str, Any] = await read()
        except CancelledError:
            raise
        except Exception as e:
            raise away(e) from e
        return found

    async def call_service(
        self, url: str, *, form: Mapping[str, str] | None = None, body: object = None
    ) -> tuple[int, Mapping[str, Any]]:
        """Send a form, or JSON, to the authentication service.

        Returns:
            The HTTP status, below 500, and the JSON object; {} if it is none.

        Raises:
            SynapseError: 503, it does not answer, or has failed.
        """
        if form is None:
            media_type, data = "application/json", json.dumps(body).encode()
        else:
            media_type = "application/x-www-form-urlencoded"
            data = urlencode(form).encode()
        headers = Headers({"Content-Type": [media_type]})
        headers.addRawHeader("Accept", "application/json")
        content = BytesIO()
        try:
            response = await self._hs.get_proxied_http_client().request(
                "POST", url, data=data, headers=headers
            )
            reading = read_body_with_max_size(response, content, limits.SERVICE_BYTES)
            reading.addTimeout(limits.SERVICE_S, self._hs.get_reactor())
            await make_deferred_yieldable(reading)
        except CancelledError:
            raise
        except Exception as e:
            raise away(e) from e
        return _answer(response, content.getvalue())


def _answer(response: IResponse, content: bytes) -> tuple[int, Mapping[str, Any]]:
    if response.code >= HTTPStatus.INTERNAL_SERVER_ERROR or response.code in _BUSY:
        raise away(f"it answers {response.code}")
    try:
        found = json.loads(content)
    except ValueError:
        found = {}
    return response.code, found if isinstance(found, dict) else {}


# It says so of itself: nobody's session has ended by that.
_BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


def away(why: object) -> SynapseError:
    """Return the error that says that the authentication service is away."""
    logger.warning("Cannot ask the authentication service: %s", why)
    return SynapseError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The authentication service of this homeserver does not answer. Until it does, "
        "nobody can sign in; who is signed in stays so.",
        Codes.UNKNOWN,
    )
