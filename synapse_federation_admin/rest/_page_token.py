# SPDX-License-Identifier: Apache-2.0
"""v2's `next_token`: where the next page begins, sealed by this homeserver.

A token holds the position behind the last row and the number of all rows, if that was
asked for; an authentication code over both and over the list's order and filter shows
that this homeserver made it, and made it for this list.
"""

import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode

import attr

from synapse_federation_admin.models import DestinationFilter, Position, Sort

_CODE_BYTES = 16


@attr.s(slots=True, frozen=True, auto_attribs=True)
class PageToken:
    """What a token says.

    Attributes:
        after: The position behind which the page begins.
        total: How many rows the list had at its first page; None if not counted.
    """

    after: Position
    total: int | None


class PageTokens:
    """Makes and reads tokens."""

    def __init__(self, secret: bytes) -> None:
        """Take the secret that all processes of a homeserver share."""
        self._secret = secret

    def make(self, wanted: DestinationFilter, sort: Sort, token: PageToken) -> str:
        """Return the text of a token for a list."""
        says = [token.after.value, token.after.destination, token.total]
        body = json.dumps(says).encode("ascii")
        sealed = self._code(wanted, sort, body) + body
        return urlsafe_b64encode(sealed).rstrip(b"=").decode("ascii")

    def read(
        self, wanted: DestinationFilter, sort: Sort, text: str
    ) -> PageToken | None:
        """Return what a token for a list says; None if it was not made for it."""
        try:
            padded = text.encode("ascii") + b"=" * (-len(text) % 4)
            sealed = urlsafe_b64decode(padded)
        except ValueError:
            return None
        code, body = sealed[:_CODE_BYTES], sealed[_CODE_BYTES:]
        if not hmac.compare_digest(code, self._code(wanted, sort, body)):
            return None
        value, destination, total = json.loads(body)
        token = PageToken(Position(value, destination), total)
        # Base64 has several texts for the same bytes.
        return token if self.make(wanted, sort, token) == text else None

    def _code(self, wanted: DestinationFilter, sort: Sort, body: bytes) -> bytes:
        listing = [
            wanted.name_contains,
            wanted.name_glob,
            sorted(status.value for status in wanted.statuses),
            wanted.failing_for_ms,
            sort.order_by.value,
            sort.direction.value,
        ]
        sealed = json.dumps(listing).encode("ascii") + b"\n" + body
        return hmac.digest(self._secret, sealed, "sha256")[:_CODE_BYTES]
