# SPDX-License-Identifier: Apache-2.0
"""v2's `next_token`: where the next page begins, sealed by this homeserver.

A token of a list of destinations holds the position behind the last row and the number
of all rows, if that was asked for. An authentication code over what it says, and over
the list's order and filter, shows that this homeserver made it, and for this list.
"""

import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Any

import attr

from synapse_federation_admin.api._base import invalid_param
from synapse_federation_admin.destinations.values import (
    DestinationFilter,
    Position,
    Sort,
)

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


class Seal:
    """Makes and reads tokens that say where a page of some list begins."""

    def __init__(self, secret: bytes) -> None:
        """Take a secret that all processes of a homeserver share."""
        self._secret = secret

    def make(self, listing: Sequence[object], says: Sequence[object]) -> str:
        """Return the text of a token.

        Args:
            listing: What makes the list: its filter, its order.
            says: What the token says.
        """
        body = json.dumps(says).encode("ascii")
        sealed = self._code(listing, body) + body
        return urlsafe_b64encode(sealed).rstrip(b"=").decode("ascii")

    def read(self, listing: Sequence[object], text: str) -> list[Any] | None:
        """Return what a token for a list says; None if it was not made for it."""
        try:
            padded = text.encode("ascii") + b"=" * (-len(text) % 4)
            sealed = urlsafe_b64decode(padded)
        except ValueError:
            return None
        code, body = sealed[:_CODE_BYTES], sealed[_CODE_BYTES:]
        if not hmac.compare_digest(code, self._code(listing, body)):
            return None
        says: list[Any] = json.loads(body)
        # Base64 has several texts for the same bytes.
        return says if self.make(listing, says) == text else None

    def position(self, listing: Sequence[object], text: str | None) -> list[Any] | None:
        """Return what the parameter `from` of a request says; None if it has none.

        Raises:
            SynapseError: 400 `M_INVALID_PARAM`: it is not of this list.
        """
        if text is None:
            return None
        says = self.read(listing, text)
        if says is None:
            raise invalid_param(
                "Query parameter 'from' must be the 'next_token' of a page with the "
                "same filters and the same order"
            )
        return says

    def _code(self, listing: Sequence[object], body: bytes) -> bytes:
        sealed = json.dumps(listing).encode("ascii") + b"\n" + body
        return hmac.digest(self._secret, sealed, "sha256")[:_CODE_BYTES]


class PageTokens:
    """Makes and reads the tokens of lists of destinations."""

    def __init__(self, secret: bytes) -> None:
        """Take a secret that all processes of a homeserver share."""
        self._seal = Seal(secret)

    def make(self, wanted: DestinationFilter, sort: Sort, token: PageToken) -> str:
        """Return the text of a token for a list."""
        says = [token.after.value, token.after.destination, token.total]
        return self._seal.make(_listing(wanted, sort), says)

    def parse_from(
        self, text: str | None, wanted: DestinationFilter, sort: Sort
    ) -> PageToken | None:
        """Return what the parameter `from` of a request says; None if it has none.

        Raises:
            SynapseError: 400 `M_INVALID_PARAM`: it is not of this list.
        """
        says = self._seal.position(_listing(wanted, sort), text)
        if says is None:
            return None
        value, destination, total = says
        return PageToken(Position(value, destination), total)


def _listing(wanted: DestinationFilter, sort: Sort) -> list[object]:
    return [
        wanted.name_contains,
        wanted.name_glob,
        sorted(status.value for status in wanted.statuses),
        wanted.failing_for_ms,
        sorted(wanted.failures),
        sort.order_by.value,
        sort.direction.value,
    ]
