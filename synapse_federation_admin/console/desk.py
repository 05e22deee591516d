# SPDX-License-Identifier: Apache-2.0
"""What those pages need that sign people in and out."""

import logging
from collections.abc import Awaitable
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import urlsplit

from synapse.module_api import SynapseRequest
from synapse.module_api.errors import SynapseError

from synapse_federation_admin import limits
from synapse_federation_admin.console.cookie import (
    Origin,
    Renewal,
    Session,
    cookie_name,
)
from synapse_federation_admin.console.oauth import OAuth
from synapse_federation_admin.homeserver.admin_resource import CONSOLE_PATH
from synapse_federation_admin.homeserver.sessions import Sessions, away

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Desk:
    """Keeps sessions in browsers, and reaches who gives tokens.

    Attributes:
        sessions: This homeserver.
        oauth: Its authentication service, where it has one.
        secret: With which sessions sign; that of every process of the homeserver.
    """

    def __init__(self, sessions: Sessions, server_name: str) -> None:
        self.sessions = sessions
        self.secret = sessions.secret("synapse_federation_admin.console")
        self.oauth = OAuth(sessions, self.secret, server_name)
        self._cookie = cookie_name(server_name)
        self._renewal_cookie = cookie_name(server_name, "renewal")

    # -- what the browser keeps --------------------------------------------------------

    def keep(
        self, request: SynapseRequest, session: Session, renewal: Renewal | None = None
    ) -> None:
        """Have the browser keep a session, until it is closed.

        Args:
            request: Whose answer it is.
            session: The session.
            renewal: What renews its access token; None: nothing does.

        Raises:
            SynapseError: 400, no browser would keep it.
        """
        cookies = {self._cookie: session.value()}
        if renewal is not None:
            cookies[self._renewal_cookie] = renewal.value()
        elif request.getCookie(self._renewal_cookie.encode()):
            cookies[self._renewal_cookie] = ""
        for name, value in cookies.items():
            if len(name) + len(value) > limits.COOKIE_BYTES:
                raise SynapseError(
                    HTTPStatus.BAD_REQUEST,
                    f"This token is too long: in a cookie it takes "
                    f"{len(name) + len(value)} bytes, and browsers keep "
                    f"{limits.COOKIE_BYTES}. Use it with the API or the command line",
                )
        for name, value in cookies.items():
            request.addCookie(
                name,
                value,
                path=f"{CONSOLE_PATH}/",
                httpOnly=True,
                sameSite="lax",
                secure=request.isSecure(),
            )

    def session(self, request: SynapseRequest) -> Session | None:
        """Return the session that the browser keeps; None: it keeps none of ours."""
        value = request.getCookie(self._cookie.encode())
        return Session.parse(value.decode("latin-1")) if value else None

    def renewal(self, request: SynapseRequest) -> Renewal | None:
        """Return what renews the session of a request; None: nothing does."""
        value = request.getCookie(self._renewal_cookie.encode())
        return Renewal.parse(value.decode("latin-1")) if value else None

    # -- tokens ------------------------------------------------------------------------

    async def known(self, check: Awaitable[T]) -> T:
        """Return what Synapse's check of an access token does.

        Raises:
            SynapseError: What the check raises; 503 says who is away.
        """
        try:
            return await check
        except SynapseError as e:
            if e.code == HTTPStatus.SERVICE_UNAVAILABLE and self.sessions.has_service:
                raise away(e) from e
            raise

    async def end(
        self, request: SynapseRequest, session: Session, renewal: Renewal | None
    ) -> None:
        """End the access token of a session, if the console has obtained it.

        Raises:
            SynapseError: 503, the authentication service is away.
        """
        if session.origin is Origin.LOGIN:
            use_token(request, session.token)
            try:
                await self.sessions.log_out(request)
            except SynapseError as e:
                if e.code != HTTPStatus.UNAUTHORIZED:
                    raise
                logger.info("The access token of a session had ended already")
        elif session.origin is Origin.SERVICE and renewal:
            await self.oauth.revoke(renewal.client_id, renewal.token or session.token)

    async def replace(
        self,
        request: SynapseRequest,
        before: Session,
        session: Session,
        renewal: Renewal | None = None,
    ) -> None:
        """Have the browser keep a session, and end the one that it has kept.

        Raises:
            SynapseError: 400, no browser would keep it: then it has ended.
        """
        try:
            self.keep(request, session, renewal)
        except SynapseError:
            await self.end_if_it_can(request, session, renewal)
            raise
        if before.token != session.token:
            await self.end_if_it_can(request, before, self.renewal(request))

    async def end_if_it_can(
        self, request: SynapseRequest, session: Session, renewal: Renewal | None
    ) -> None:
        """End what nobody has any more; what cannot be ended ends by itself."""
        try:
            await self.end(request, session, renewal)
        except SynapseError as e:
            logger.warning("A session that nobody uses has not been ended: %s", e)

    def origin(self, request: SynapseRequest) -> str:
        """Return the origin of the console, as the browser has it.

        At the host of `public_baseurl` it is https if that is, even if a proxy does not
        say so.
        """
        public = self.sessions.public_baseurl
        is_public = public.startswith("https:") and is_of_here(request, public)
        scheme = "https" if request.isSecure() or is_public else "http"
        host = request.getHeader("Host") or ""
        origin = f"{scheme}://{host.removesuffix(f':{_PORTS[scheme]}')}"
        return origin if is_of_here(request, origin) else f"{scheme}://localhost"


_PORTS = {"http": 80, "https": 443}


def use_token(request: SynapseRequest, token: str) -> None:
    """Have an access token be the one that a request brings."""
    request.requestHeaders.setRawHeaders(
        b"Authorization", [b"Bearer " + token.encode()]
    )


def is_of_here(request: SynapseRequest, origin: str) -> bool:
    """Tell whether an `Origin`, or an address, is that of the console.

    By the host that the browser has asked for, which may be anything. A proxy may add
    the port that the scheme has anyway, and does not have to say which scheme it is.
    """
    try:
        address, asked = urlsplit(origin), urlsplit(f"//{request.getHeader('Host')}")
        port = _PORTS.get(address.scheme)
        return (asked.hostname, asked.port or port) == (
            address.hostname,
            address.port or port,
        )
    except ValueError:
        return False
