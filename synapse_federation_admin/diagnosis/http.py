# SPDX-License-Identifier: Apache-2.0
"""One GET request, and its answer within bounds."""

from datetime import timezone
from email.utils import parsedate_to_datetime

import attr
from synapse.module_api import make_deferred_yieldable
from twisted.internet.defer import CancelledError
from twisted.internet.protocol import Protocol
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent

from synapse_federation_admin.homeserver.errors import (
    BodyExceededMaxSize,
    RequestSendFailed,
)
from synapse_federation_admin.homeserver.outbound import Outbound

REDIRECTS = (301, 302, 303, 307, 308)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Answer:
    """An answer to a request.

    Attributes:
        status: The HTTP status.
        headers: Its headers.
        body: The body; None if it is too large, or that of a redirect.
        error: Why the body could not be read to its end, if it could not.
    """

    status: int
    headers: Headers
    body: bytes | None = None
    error: Exception | None = None

    def header(self, name: str) -> bytes | None:
        """Return the value of a header: the first one, where it is repeated."""
        values = self.headers.getRawHeaders(name.encode())
        return values[0] if values else None

    @property
    def date_ts(self) -> int | None:
        """The time by the server's clock, in ms, if it tells."""
        if self.header("Age") is not None:
            # It is that of a cache, and of an answer that was made earlier.
            return None
        return parse_date_ts(self.header("Date"))


class _HangUp(Protocol):
    """Wants nothing of a body."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.loseConnection()


async def ask(
    outbound: Outbound, agent: IAgent, url: str, headers: Headers, max_bytes: int
) -> Answer:
    """Make a GET request.

    Args:
        outbound: Reads bodies.
        agent: Makes the request.
        url: Of what.
        headers: The headers of the request.
        max_bytes: The size up to which the body is read.

    Raises:
        CancelledError: It was called off.
        RequestSendFailed: There was no answer; `inner_exception` says why.
    """
    try:
        response = await make_deferred_yieldable(
            agent.request(b"GET", url.encode("ascii"), headers)
        )
        answer = Answer(response.code, response.headers)
        if response.code in REDIRECTS:
            response.deliverBody(_HangUp())
            return answer
        body = await outbound.read_body(response, max_bytes)
    except CancelledError:
        raise
    except BodyExceededMaxSize as e:
        return attr.evolve(answer, error=e)
    except Exception as e:
        # As Synapse's client does it: what the network raises is so told from a bug.
        raise RequestSendFailed(e, can_retry=False) from e
    return attr.evolve(answer, body=body)


def parse_date_ts(date: bytes | None) -> int | None:
    """Return what a `Date` stands for, in ms since the epoch; None if it is none."""
    if date is None:
        return None
    try:
        parsed = parsedate_to_datetime(date.decode("ascii"))
        if parsed.tzinfo is None:
            parsed = parsed.replace(tzinfo=timezone.utc)
        return int(parsed.timestamp() * 1000)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
