# SPDX-License-Identifier: Apache-2.0
"""What this process's federation sender sends, and what comes of it."""

import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from canonicaljson import encode_canonical_json
from synapse.util.retryutils import NotRetryingDestination
from twisted.internet.defer import CancelledError

if TYPE_CHECKING:
    from synapse.server import HomeServer

logger = logging.getLogger(__name__)


class Transaction:
    """A transaction that was sent. What is asked of it is found out then.

    Attributes:
        destination: To whom.
    """

    def __init__(self, transaction: Any) -> None:
        self.destination: str = transaction.destination
        self._transaction = transaction

    async def size(self, pause: Callable[[], Awaitable[None]]) -> int:
        """Return how many bytes its body has.

        It may be millions: it is encoded piece by piece, none larger than an event.

        Args:
            pause: Lets the reactor get on; is awaited after each piece.
        """
        body = self._transaction.get_dict()
        lists = {key: body[key] for key in ("pdus", "edus") if key in body}
        size = len(encode_canonical_json({**body, **dict.fromkeys(lists, ())}))
        for pieces in lists.values():
            size += max(len(pieces) - 1, 0)
            for piece in pieces:
                size += len(encode_canonical_json(piece))
                await pause()
        return size

    @property
    def pdus(self) -> int:
        """How many PDUs are in it."""
        return len(self._transaction.pdus)

    @property
    def edus(self) -> int:
        """How many EDUs are in it."""
        return len(self._transaction.edus)

    @property
    def to_device_messages(self) -> int:
        """How many of its EDUs are to-device messages."""
        types = [edu["edu_type"] for edu in self._transaction.edus]
        return types.count("m.direct_to_device")


# Is told of each transaction, and why it was not taken; None if it was.
Ended = Callable[[Transaction, Exception | None], None]


def observe_transactions(hs: "HomeServer", ended: Ended) -> None:
    """Have a function called whenever a transaction of this process's has ended.

    That is: when it was taken, or when Synapse has given up on it for now. What goes
    wrong in the function is logged, and changes nothing of it.
    """
    client = hs.get_federation_transport_client()
    send = client.send_transaction

    def tell(transaction: Any, error: Exception | None) -> None:
        try:
            ended(Transaction(transaction), error)
        except Exception:
            logger.exception("Could not take note of a transaction")

    @wraps(send)
    async def observed(transaction: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            answer = await send(transaction, *args, **kwargs)
        except (CancelledError, NotRetryingDestination):
            # It was not sent, or nobody knows what has come of it.
            raise
        except Exception as e:
            tell(transaction, e)
            raise
        tell(transaction, None)
        return answer

    client.send_transaction = observed  # type: ignore[method-assign]  # nothing else tells what was in it
