# SPDX-License-Identifier: Apache-2.0
"""An agent whose answers may be logged.

Synapse logs the status line of an answer, its `Content-Type`, and what of it cannot be
parsed, as the server has sent it. A hostile server could write to the log what it
likes, and as much.
"""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.iweb import IAgent, IResponse
from zope.interface import implementer

from synapse_federation_admin import limits


@implementer(IAgent)
class PlainAgent:
    """Passes answers on: what of them is logged is printable ASCII, and bounded."""

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(self, *args: Any, **kwargs: Any) -> "Deferred[IResponse]":
        """Make a request: see `twisted.web.iweb.IAgent`."""
        return self._agent.request(*args, **kwargs).addCallbacks(
            self._plain, self._plain_failure
        )

    @staticmethod
    def _plain(response: IResponse) -> IResponse:
        response.phrase = _plain_text(response.phrase).encode()
        headers = response.headers.getRawHeaders(b"Content-Type")
        if headers is not None:
            response.headers.setRawHeaders(
                b"Content-Type", [_plain_text(headers[0]).encode()]
            )
        return response

    @classmethod
    def _plain_failure(cls, failure: Failure) -> Failure:
        assert failure.value is not None
        cls._make_plain(failure.value)
        return failure

    @classmethod
    def _make_plain(cls, error: BaseException) -> None:
        error.args = tuple(
            _plain_text(arg) if isinstance(arg, str | bytes) else arg
            for arg in error.args
        )
        for reason in getattr(error, "reasons", ()):
            cls._make_plain(reason.value)


def _plain_text(text: str | bytes) -> str:
    """Return a text as it may be logged."""
    if isinstance(text, bytes):
        text = text[: limits.LOGGED].decode("latin-1")
    return ascii(text[: limits.LOGGED])[1:-1][: limits.LOGGED]
