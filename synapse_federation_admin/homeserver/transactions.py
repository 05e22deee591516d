# SPDX-License-Identifier: Apache-2.0
"""What this process's federation sender sends, and what comes of it."""

import json
import logging
from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from synapse.util.retryutils import NotRetryingDestination
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web.iweb import IResponse

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.errors import HttpResponseException

if TYPE_CHECKING:
    from synapse.server import HomeServer

logger = logging.getLogger(__name__)

SEND_PATH = "/_matrix/federation/v1/send"

_SEND = f"{SEND_PATH}/".encode()


class Transaction:
    """A transaction that is sent. What is asked of it is found out then.

    Attributes:
        destination: To whom.
        begun_ts: When it was sent last, in ms since the epoch.
        is_under_way: Whether a request with it is: not while Synapse waits before it
            sends it once more.
        has_ended: Whether it was taken, or Synapse has given up on it for now.
        error: Why it was not taken; None if it was, or if it has not ended.
        status: With what status the last answer has begun; None if none has.
        bytes: The size of its body; None if it was not seen.
    """

    def __init__(self, transaction: Any, begun_ts: int) -> None:
        self.destination: str = transaction.destination
        self.begun_ts = begun_ts
        self.is_under_way = True
        self.has_ended = False
        self.error: Exception | None = None
        self.status: int | None = None
        self.bytes: int | None = None
        self._transaction = transaction

    @property
    def is_answered(self) -> bool:
        """Whether an answer of 2xx has begun: Synapse takes that for a success."""
        return self.status is not None and self.status < HTTPStatus.MULTIPLE_CHOICES

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


def why_no_answer(answer: Any) -> HttpResponseException | None:
    """Return what is wrong with a JSON object that answers a transaction with 2xx.

    A homeserver says in it what has come of each PDU; so that `pdus` is there, or, of
    one that says nothing where there are none, nothing at all. Synapse takes anything.
    """
    if not answer or not isinstance(answer, dict) or "pdus" in answer:
        return None
    said = {key: answer.get(key) for key in ("errcode", "error")}
    texts = {k: text[: limits.TEXT] for k, text in said.items() if type(text) is str}
    return HttpResponseException(HTTPStatus.OK, "OK", json.dumps(texts).encode())


# Is told of each transaction that has ended.
Ended = Callable[[Transaction], None]


class Transactions:
    """The transactions that this process is sending."""

    def __init__(self, hs: "HomeServer") -> None:
        """Watch them, from now on."""
        self._clock = hs.get_clock()
        self._observers: list[Ended] = []
        self._refused_observers: list[Ended] = []
        # Of each destination there is one at a time.
        self._sending: dict[str, Transaction] = {}
        self._watch_transactions(hs.get_federation_transport_client())
        self._watch_requests(hs.get_federation_http_client().agent)

    def observe(self, ended: Ended) -> None:
        """Have a function told of each that has ended.

        What goes wrong in it is logged, and changes nothing of it.
        """
        self._observers.append(ended)

    def observe_refused(self, refused: Ended) -> None:
        """Have a function told of each that is answered so that it may be sent again.

        On the reactor, in the midst of the request: it must be quick.
        """
        self._refused_observers.append(refused)

    def under_way(self, destination: str) -> Transaction | None:
        """Return the transaction that is under way to a destination, if one is."""
        sent = self._sending.get(destination)
        return sent if sent is not None and sent.is_under_way else None

    def _watch_transactions(self, client: Any) -> None:
        send = client.send_transaction

        @wraps(send)
        async def observed(transaction: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                sent = Transaction(transaction, self._clock.time_msec())
                self._sending[sent.destination] = sent
            except Exception:
                # Whatever is wrong here, the transaction is sent.
                logger.exception("A transaction is not observed")
                return await send(transaction, *args, **kwargs)
            try:
                answer = await send(transaction, *args, **kwargs)
            except (CancelledError, NotRetryingDestination):
                # It was not sent, or nobody knows what has come of it.
                raise
            except Exception as e:
                sent.error = e
                self._tell(sent)
                raise
            else:
                sent.error = why_no_answer(answer)
                self._tell(sent)
            finally:
                sent.is_under_way = False
                self._sending.pop(sent.destination, None)
            return answer

        client.send_transaction = observed

    def _tell(self, sent: Transaction) -> None:
        sent.has_ended = True
        self._tell_all(self._observers, sent)

    @staticmethod
    def _tell_all(observers: list[Ended], sent: Transaction) -> None:
        for observer in observers:
            try:
                observer(sent)
            except Exception:
                logger.exception("Could not take note of a transaction")

    def _watch_requests(self, agent: Any) -> None:
        request = agent.request

        @wraps(request)
        def observed(method: bytes, uri: bytes, *args: Any, **kwargs: Any) -> Any:
            answer = request(method, uri, *args, **kwargs)
            try:
                if _SEND in uri:
                    length = getattr(kwargs.get("bodyProducer"), "length", None)
                    self._asked(uri, answer, length)
            except Exception:
                # Whatever is wrong here, the request goes on.
                logger.exception("A transaction is not observed")
            return answer

        agent.request = observed

    def _asked(
        self, uri: bytes, answer: "Deferred[IResponse]", length: int | None
    ) -> None:
        """Take note of a request with a transaction."""
        name = uri.partition(b"//")[2].partition(b"/")[0]
        sent = self._sending.get(name.decode("ascii", "replace"))
        if sent is not None:
            sent.is_under_way, sent.begun_ts = True, self._clock.time_msec()
            sent.bytes = length
            answer.addBoth(self._answered, sent)

    def _answered(self, answer: IResponse | Failure, sent: Transaction) -> Any:
        """Take note of an answer, or of none, after which it may be sent once more."""
        sent.status = None if isinstance(answer, Failure) else answer.code
        code = sent.status or HTTPStatus.BAD_GATEWAY
        if (
            code >= HTTPStatus.INTERNAL_SERVER_ERROR
            or code == HTTPStatus.TOO_MANY_REQUESTS
        ):
            sent.is_under_way = False
            if sent.status is not None:
                self._tell_all(self._refused_observers, sent)
        return answer
