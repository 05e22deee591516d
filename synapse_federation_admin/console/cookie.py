# SPDX-License-Identifier: Apache-2.0
"""The cookie that keeps a session, and the token of forms that is bound to it."""

import hmac
import re
import secrets
from enum import Enum
from urllib.parse import quote, unquote

import attr

COOKIE = "federation_admin"


class Origin(Enum):
    """Where the access token of a session comes from."""

    # Nobody has signed in.
    NONE = "n"
    # Pasted: it is somebody else's to end.
    PASTED = "p"
    # This homeserver gave it to the console.
    LOGIN = "l"


_COOKIE = re.compile(r"(?P<id>[\w-]{22})\.(?P<origin>[a-z])\.(?P<token>.*)", re.ASCII)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Session:
    """A session, as the browser keeps it.

    Attributes:
        id: Random. It stays when the access token is another one.
        origin: Where the token comes from.
        token: The access token; "" where nobody has signed in.
    """

    id: str
    origin: Origin = Origin.NONE
    token: str = attr.ib(default="", repr=False)

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
        return Session(found["id"], origin, unquote(found["token"]))

    def value(self) -> str:
        """Return the value of the cookie."""
        return f"{self.id}.{self.origin.value}.{quote(self.token, safe='')}"

    def form_token(self, secret: bytes) -> str:
        """Return the token that each form of this session brings."""
        return hmac.new(secret, self.id.encode(), "sha256").hexdigest()

    def is_form_token(self, secret: bytes, token: str) -> bool:
        """Tell whether a token is that of this session's forms."""
        return hmac.compare_digest(self.form_token(secret).encode(), token.encode())
