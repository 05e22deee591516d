# SPDX-License-Identifier: Apache-2.0
"""v2's `next_token`: where the next page of a list begins.

A token says a position, and has a checksum over it and over what makes the list: its
kind, its filter, its order. So a token of another list, or one that was cut or changed,
is told from one of this list. Only admins can ask with one, so nobody has to be kept
from making one up.
"""

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import attr

from synapse_federation_admin.api._base import invalid_param
from synapse_federation_admin.destinations.values import (
    DestinationFilter,
    Position,
    Sort,
)

_CHECKSUM_BYTES = 8


def make_token(listing: Sequence[object], says: Sequence[object]) -> str:
    """Return the text of a token.

    Args:
        listing: What makes the list: its kind, its filter, its order.
        says: What the token says.
    """
    body = json.dumps(says).encode("ascii")
    token = urlsafe_b64encode(_checksum(listing, body) + body)
    return token.rstrip(b"=").decode("ascii")


def parse_token(listing: Sequence[object], text: str | None) -> list[Any] | None:
    """Return what the token in the parameter `from` says; None if there is none.

    Args:
        listing: As for `make_token`.
        text: The text of the token.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`: it is not of this list.
    """
    if text is None:
        return None
    with suppress(ValueError):
        token = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        body = token[_CHECKSUM_BYTES:]
        if token == _checksum(listing, body) + body:
            says: list[Any] = json.loads(body)
            # Base64 has several texts for the same bytes.
            if make_token(listing, says) == text:
                return says
    raise invalid_param(
        "Query parameter 'from' must be the 'next_token' of a page with the same "
        "filters and the same order"
    )


def _checksum(listing: Sequence[object], body: bytes) -> bytes:
    summed = json.dumps(listing).encode("ascii") + b"\n" + body
    return hashlib.sha256(summed).digest()[:_CHECKSUM_BYTES]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class PageToken:
    """What a token of a list of destinations says.

    Attributes:
        after: The position behind which the page begins.
        total: How many rows the list had at its first page; None if not counted.
    """

    after: Position
    total: int | None

    def text(self, wanted: DestinationFilter, sort: Sort) -> str:
        """Return its text, for the list that it is of."""
        says = [self.after.value, self.after.destination, self.total]
        return make_token(_listing(wanted, sort), says)

    @classmethod
    def parse(
        cls, text: str | None, wanted: DestinationFilter, sort: Sort
    ) -> "PageToken | None":
        """Return what a text says; None if there is none.

        Raises:
            SynapseError: 400 `M_INVALID_PARAM`: it is not of this list.
        """
        says = parse_token(_listing(wanted, sort), text)
        if says is None:
            return None
        value, destination, total = says
        return cls(Position(value, destination), total)


def _listing(wanted: DestinationFilter, sort: Sort) -> list[object]:
    return [
        "destinations",
        wanted.name_contains,
        wanted.name_glob,
        sorted(status.value for status in wanted.statuses),
        wanted.failing_for_ms,
        sorted(wanted.failures),
        sort.order_by.value,
        sort.direction.value,
    ]
