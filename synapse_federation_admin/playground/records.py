# SPDX-License-Identifier: Apache-2.0
"""How a fake remote server behaves, and what it has seen."""

import json
from enum import Enum
from typing import Any

from attrs import frozen

Json = dict[str, Any]


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
