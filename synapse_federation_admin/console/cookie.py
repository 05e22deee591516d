# SPDX-License-Identifier: Apache-2.0
"""The cookie that keeps a session, and the token of forms that is bound to it."""

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from enum import Enum
from urllib.parse import quote, unquote

import attr


def cookie_name(server_name: str, purpose: str = "session") -> str:
    """Return the name of a cookie, which no other homeserver of this host has.

    Browsers keep cookies by host, not by port.

    Args:
        server_name: That of the homeserver.
        purpose: `session`, or `renewal` for what renews the access token of an
            authentication service.
    """
    digest = hashlib.sha256(server_name.encode()).hexdigest()[:12]
    return f"federation_admin_{purpose}_{digest}"


class Origin(Enum):
    """Where the access token of a session comes from."""

    # Nobody has signed in.
    NONE = "n"
    # Pasted: it is somebody else's to end.
    PASTED = "p"
    # This homeserver gave it to the console.
    LOGIN = "l"
    # Its authentication service did.
    SERVICE = "s"


_TOKEN = re.compile("[!-~]+")
_RENEWAL = re.compile(r"(?P<id>[^~]*)~(?P<ends>[0-9]{1,16})~(?P<token>[^~]*)")
_COOKIE = re.compile(
    r"(?P<id>[\w-]{22})\.((?P<begun>[\w-]{22})\.)?(?P<origin>[a-z])\.(?P<token>.*)",
    re.ASCII,
)


def is_access_token(text: str) -> bool:
    """Tell whether a text can be an access token: in a header it is one word."""
    return _TOKEN.fullmatch(text) is not None


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Session:
    """A session, as the browser keeps it.

    Attributes:
        id: Random. It stays when the access token is another one.
        origin: Where the token comes from.
        token: The access token; "" where nobody has signed in.
        begun: The ID that it had before somebody signed in; "" if that is none.
    """

    id: str
    origin: Origin = Origin.NONE
    token: str = attr.ib(default="", repr=False)
    begun: str = ""

    @staticmethod
    def new() -> "Session":
        """Return a session in which nobody has signed in."""
        return Session(secrets.token_urlsafe(16))

    @staticmethod
    def parse(value: str) -> "Session | None":
        """Return the session of a cookie; None if it is none of ours."""
        found = _COOKIE.fullmatch(value)
        if found is None:
            return None
        try:
            origin = Origin(found["origin"])
        except ValueError:
            return None
        token = unquote(found["token"])
        if not is_access_token(token or "none"):
            return None
        return Session(found["id"], origin, token, found["begun"] or "")

    def signed_in(self, origin: Origin, token: str) -> "Session":
        """Return the session in which somebody has signed in.

        Its ID is another one: who has put the old one in this browser must not know the
        token of its forms. What was begun before, as in other tabs, can go on.
        """
        return Session(Session.new().id, origin, token, self.begun or self.id)

    def value(self) -> str:
        """Return the value of the cookie."""
        ids = f"{self.id}.{self.begun}" if self.begun else self.id
        return f"{ids}.{self.origin.value}.{quote(self.token, safe='')}"

    def form_token(self, secret: bytes) -> str:
        """Return the token that each form of this session brings."""
        return hmac.new(secret, self.id.encode(), "sha256").hexdigest()

    def is_form_token(self, secret: bytes, token: str) -> bool:
        """Tell whether a token is that of this session's forms."""
        return hmac.compare_digest(self.form_token(secret).encode(), token.encode())

    def sign(self, secret: bytes, purpose: str, text: str = "") -> str:
        """Return the signature of a text, which holds for this session only.

        It holds on when somebody has signed in.
        """
        message = f"{purpose}\n{self.begun or self.id}\n{text}".encode()
        return urlsafe_b64encode(hmac.digest(secret, message, "sha256")).decode()[:43]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Renewal:
    """What renews the access token of an authentication service.

    Attributes:
        client_id: Whose the tokens are.
        expires_ts: When the access token ends, in ms since the epoch.
        token: The refresh token; "" where there is none.
    """

    client_id: str
    expires_ts: int
    token: str = attr.ib(repr=False)

    @staticmethod
    def parse(value: str) -> "Renewal | None":
        """Return what a cookie holds; None if it is none of ours."""
        found = _RENEWAL.fullmatch(value)
        if found is None:
            return None
        return Renewal(
            unquote(found["id"]), int(found["ends"]), unquote(found["token"])
        )

    def value(self) -> str:
        """Return the value of the cookie."""
        client_id, token = (
            quote(text, safe="").replace("~", "%7E")
            for text in (self.client_id, self.token)
        )
        return f"{client_id}~{self.expires_ts}~{token}"
