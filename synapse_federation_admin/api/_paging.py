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
from collections.abc import Callable
from typing import Any, TypeVar

from synapse_federation_admin.api._base import invalid_param
from synapse_federation_admin.api.schemas.model import Paged

T = TypeVar("T")

_CHECKSUM_BYTES = 8

# What of a query may be another for the next page.
_NOT_OF_THE_LIST = {"limit", "from_", "include", "total"}


class Paging:
    """One page of a list.

    Attributes:
        after: What its token says, a tuple if that is several; None at the first page.
    """

    def __init__(self, query: Paged, *of: str) -> None:
        """Read the parameter `from`.

        Args:
            query: The query.
            of: What else makes the list.

        Raises:
            SynapseError: 400 `M_INVALID_PARAM`: the token is not of this list.
        """
        wanted = {
            # The same values keep the same rows, in any order.
            key: sorted(set(value)) if isinstance(value, list) else value
            for key, value in query.model_dump(
                mode="json", exclude=_NOT_OF_THE_LIST
            ).items()
        }
        self._list = json.dumps([type(query).__name__, wanted, of]).encode("ascii")
        self._limit = query.limit
        self.after: Any = None
        if query.from_ is not None:
            self.after = self._parse(query.from_)

    @property
    def limit(self) -> int:
        """How many rows to read: one more than are shown, to know of the next page."""
        return self._limit + 1

    def cut(
        self, rows: list[T], says: Callable[[T], object]
    ) -> tuple[list[T], dict[str, str]]:
        """Return the rows of the page, and the key `next_token` if there are more.

        Args:
            rows: What was read.
            says: Returns what the token says, by the last row of the page.
        """
        if len(rows) < self.limit:
            return rows, {}
        shown = rows[: self._limit]
        return shown, {"next_token": self._token(says(shown[-1]))}

    def _token(self, says: object) -> str:
        body = json.dumps(says).encode("ascii")
        checksum = hashlib.sha256(self._list + b"\n" + body).digest()[:_CHECKSUM_BYTES]
        return urlsafe_b64encode(checksum + body).rstrip(b"=").decode("ascii")

    def _parse(self, text: str) -> Any:
        try:
            token = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
            says = json.loads(token[_CHECKSUM_BYTES:])
            # Base64 has several texts for the same bytes: the whole text is compared.
            if self._token(says) == text:
                return tuple(says) if isinstance(says, list) else says
        except (ValueError, RecursionError):
            pass
        raise invalid_param(
            "Query parameter 'from' must be the 'next_token' of a page with the same "
            "filters and the same order"
        )
