# SPDX-License-Identifier: Apache-2.0
"""Makes a request as an attempt; what Synapse logs of it is harmless.

Synapse logs the status line of an answer, its `Content-Type`, and what of it cannot be
parsed, as the server has sent it. A hostile server could write to the log what it
likes, and as much: so that is made printable ASCII, and bounded.
"""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.iweb import IAgent, IResponse
from zope.interface import implementer

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.attempt import Attempt

# From this HTTP status on an answer is no success.
_ERROR = 300


@implementer(IAgent)
class AttemptAgent:
    """Makes a request, and tells what has stopped it; what is logged of it is plain."""

    def __init__(self, agent: IAgent, attempt: Attempt | None = None) -> None:
        """Wrap an agent.

        Args:
            agent: Makes the request.
            attempt: What it has for a reactor; None: another process goes out.
        """
        self._agent = agent
        self._attempt = attempt

    def request(self, *args: Any, **kwargs: Any) -> "Deferred[IResponse]":
        """Make a request: see `twisted.web.iweb.IAgent`."""
        return self._agent.request(*args, **kwargs).addCallbacks(self._plain, self._why)

    def _plain(self, response: IResponse) -> IResponse:
        attempt = self._attempt
        wrong = attempt.wrong_delegation if attempt else None
        if wrong is not None and response.code >= _ERROR:
            # Of a path in it becomes one of the request, which nobody knows there.
            raise wrong
        response.phrase = _plain_text(response.phrase).encode()
        headers = response.headers.getRawHeaders(b"Content-Type")
        if headers is not None:
            response.headers.setRawHeaders(
                b"Content-Type", [_plain_text(headers[0]).encode()]
            )
        return response

    def _why(self, failure: Failure) -> Failure:
        assert failure.value is not None
        error = failure.value
        if self._attempt is not None:
            error = self._attempt.explained(error)
        _make_plain(error)
        return failure if error is failure.value else Failure(error)


def _make_plain(error: BaseException) -> None:
    error.args = tuple(
        _plain_text(arg) if isinstance(arg, str | bytes) else arg for arg in error.args
    )
    for reason in getattr(error, "reasons", ()):
        _make_plain(reason.value)


def _plain_text(text: str | bytes) -> str:
    """Return a text as it may be logged."""
    if isinstance(text, bytes):
        text = text[: limits.LOGGED].decode("latin-1")
    return ascii(text[: limits.LOGGED])[1:-1][: limits.LOGGED]
