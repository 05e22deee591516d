# SPDX-License-Identifier: Apache-2.0
"""What those pages need that sign people in and out."""

from synapse.module_api import SynapseRequest

from synapse_federation_admin.console.cookie import (
    COOKIE,
    RENEWAL_COOKIE,
    Renewal,
    Session,
)
from synapse_federation_admin.console.oauth import OAuth
from synapse_federation_admin.homeserver.admin_resource import CONSOLE_PATH
from synapse_federation_admin.homeserver.sessions import Sessions


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

    def keep(
        self, request: SynapseRequest, session: Session, renewal: Renewal | None = None
    ) -> None:
        """Have the browser keep a session, until it is closed.

        Args:
            request: Whose answer it is.
            session: The session.
            renewal: What renews its access token; None: nothing does.
        """
        _set(request, COOKIE, session.value())
        if renewal is not None:
            _set(request, RENEWAL_COOKIE, renewal.value())
        elif request.getCookie(RENEWAL_COOKIE.encode()):
            _set(request, RENEWAL_COOKIE, "")

    @staticmethod
    def renewal(request: SynapseRequest) -> Renewal | None:
        """Return what renews the session of a request; None: nothing does."""
        value = request.getCookie(RENEWAL_COOKIE.encode())
        return Renewal.parse(value.decode("latin-1")) if value else None


def origin_of(request: SynapseRequest) -> str:
    """Return the origin of the console, as the browser has it."""
    host = request.getHeader("Host") or "localhost"
    return f"{'https' if request.isSecure() else 'http'}://{host}"


def _set(request: SynapseRequest, name: str, value: str) -> None:
    request.addCookie(
        name,
        value,
        path=f"{CONSOLE_PATH}/",
        httpOnly=True,
        sameSite="lax",
        secure=request.isSecure(),
    )
