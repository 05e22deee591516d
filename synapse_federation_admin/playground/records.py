# SPDX-License-Identifier: Apache-2.0
"""How a fake remote server behaves, and what it has seen."""

import json
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from attrs import frozen

from synapse_federation_admin.playground.client import Json
from synapse_federation_admin.playground.events import Identity
from synapse_federation_admin.playground.processes import WaitTimeoutError

T = TypeVar("T")

Special = Callable[[str, bytes], tuple[int, Json] | None]


class Behaviour(Enum):
    """How a remote server treats whoever contacts it."""

    HEALTHY = "healthy"
    DOWN = "down"
    """The port is closed: connections are refused."""
    EXPIRED_CERTIFICATE = "expired certificate"
    WRONG_NAME_CERTIFICATE = "certificate for another name"
    BAD_GATEWAY = "answers 502"
    HANGING = "accepts, never answers"
    SLOW = "healthy but slow"
    UNTRUSTED_CERTIFICATE = "certificate of its own making"
    PLAIN_HTTP = "speaks plain HTTP"
    FORBIDDEN = "refuses us"
    TOO_LARGE = "takes no message, but what is empty"
    RATE_LIMITED = "answers 429"
    NOT_FOUND = "answers 404, with a web page"
    NO_NAME = "its name is gone"
    """Its port is closed, too."""


class MessageKind(Enum):
    """What a transaction carried."""

    PDU = "PDU"
    TO_DEVICE = "to-device message"


@frozen
class Request:
    """An HTTP request that was read."""

    monotonic: float
    """Seconds, as `time.monotonic()`."""
    path: str
    """With the query."""


@frozen
class Message:
    """A PDU or a to-device message that was received and accepted."""

    monotonic: float
    """Seconds, as `time.monotonic()`."""
    kind: MessageKind
    content: Json

    def has(self, text: str) -> bool:
        """Tell whether a text occurs in the content."""
        return text in json.dumps(self.content, ensure_ascii=False)


class Records:
    """What a remote server has seen, and what it answers by.

    Attributes:
        identity: Its name and key.
        slowness_s: How many seconds each answer takes while it is SLOW.
        special: What it answers otherwise than its behaviour says: status and body, by
            path and body; None: as ever.
    """

    def __init__(self, server_name: str, slowness_s: float) -> None:
        self.identity = Identity(server_name)
        self.slowness_s = slowness_s
        self.special: Special = lambda _path, _body: None
        self._news = threading.Condition()
        self._connections: list[float] = []
        self._requests: list[Request] = []
        self._messages: list[Message] = []
        self._transactions: set[str] = set()

    @property
    def connections(self) -> list[float]:
        """When it accepted each connection, as `time.monotonic()`, oldest first."""
        with self._news:
            return list(self._connections)

    @property
    def requests(self) -> list[Request]:
        """The requests that it has read, oldest first."""
        with self._news:
            return list(self._requests)

    @property
    def messages(self) -> list[Message]:
        """The PDUs and to-device messages that it has received, oldest first."""
        with self._news:
            return list(self._messages)

    def wait_for_request(
        self, since: float, timeout_s: float, path: str = ""
    ) -> Request:
        """Wait for a request, read at or after a `time.monotonic()`.

        Args:
            since: seconds, as `time.monotonic()`.
            timeout_s: seconds.
            path: what its path must contain.

        Raises:
            WaitTimeoutError: there was none for `timeout_s` seconds.
        """
        return self._wait_for(
            self._requests,
            lambda request: request.monotonic >= since and path in request.path,
            f"a request for …{path}…",
            timeout_s,
        )

    def wait_for_message(
        self, kind: MessageKind, text: str, timeout_s: float
    ) -> Message:
        """Wait for a message with a text in its content, or find it if it is here.

        Raises:
            WaitTimeoutError: there was none for `timeout_s` seconds.
        """
        return self._wait_for(
            self._messages,
            lambda message: message.kind is kind and message.has(text),
            f"the {kind.value} {text!r}",
            timeout_s,
        )

    def _wait_for(
        self, seen: list[T], wanted: Callable[[T], bool], what: str, timeout_s: float
    ) -> T:
        def find() -> T | None:
            return next((item for item in seen if wanted(item)), None)

        with self._news:
            found = self._news.wait_for(find, timeout_s)
        if found is None:
            name = self.identity.server_name
            raise WaitTimeoutError(f"Waited {timeout_s:g} s for {what} to reach {name}")
        return found

    def saw_request(self, path: str) -> None:
        """Remember a request."""
        with self._news:
            self._requests.append(Request(time.monotonic(), path))
            self._news.notify_all()

    def saw_transaction(self, transaction_id: str, transaction: Json) -> None:
        """Remember what a transaction carried, unless it is a repetition."""
        carried = [
            *((MessageKind.PDU, pdu["content"]) for pdu in transaction.get("pdus", [])),
            *(
                (MessageKind.TO_DEVICE, edu["content"])
                for edu in transaction.get("edus", [])
                if edu["edu_type"] == "m.direct_to_device"
            ),
        ]
        now = time.monotonic()
        with self._news:
            if transaction_id not in self._transactions:
                self._transactions.add(transaction_id)
                self._messages += [Message(now, *each) for each in carried]
                self._news.notify_all()

    def saw_connection(self) -> None:
        """Remember that a connection was accepted."""
        with self._news:
            self._connections.append(time.monotonic())
            self._news.notify_all()
