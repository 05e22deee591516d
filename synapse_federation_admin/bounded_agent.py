# SPDX-License-Identifier: Apache-2.0
"""An HTTP agent whose answers cannot be longer than a bound, nor outlive their reader.

Synapse's federation client bounds the body of a successful answer, but reads that of an
error to its end, and goes on reading after its own timeout. A hostile server could fill
the homeserver's memory with one answer.
"""

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, ITransport
from twisted.internet.protocol import Protocol
from twisted.python.components import proxyForInterface
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer


class BodyTooLongError(Exception):
    """The body of an answer was longer than the agent allows."""


@implementer(IAgent)
class BoundedAgent:
    """Passes requests on to another agent, and bounds the answers."""

    def __init__(self, agent: IAgent, max_body_bytes: int) -> None:
        self._agent = agent
        self._max_body_bytes = max_body_bytes
        self._bodies: list[_BoundedBody] = []

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,  # noqa: N803  # IAgent's name
    ) -> "Deferred[IResponse]":
        """Make a request: see `twisted.web.iweb.IAgent.request`."""
        answer = self._agent.request(method, uri, headers, bodyProducer)
        return answer.addCallback(_BoundedResponse, self)

    def bound(self, protocol: IProtocol) -> IProtocol:
        """Wrap what receives a body."""
        body = _BoundedBody(protocol, self._max_body_bytes)
        self._bodies.append(body)
        return body

    def close(self) -> None:
        """Break off every answer that is still being read."""
        for body in self._bodies:
            body.abort()
        self._bodies.clear()


class _BoundedResponse(proxyForInterface(IResponse)):  # type: ignore[misc]  # a class made at run time
    def __init__(self, response: IResponse, agent: BoundedAgent) -> None:
        super().__init__(response)
        self._agent = agent

    def deliverBody(self, protocol: IProtocol) -> None:
        self.original.deliverBody(self._agent.bound(protocol))


class _BoundedBody(Protocol):
    def __init__(self, reader: IProtocol, max_bytes: int) -> None:
        self._reader = reader
        self._bytes_left = max_bytes
        self._finished = False

    def connectionMade(self) -> None:
        assert self.transport is not None
        self._reader.makeConnection(self.transport)

    def dataReceived(self, data: bytes) -> None:
        if self._finished:
            return
        self._bytes_left -= len(data)
        if self._bytes_left >= 0:
            self._reader.dataReceived(data)
            return
        self.connectionLost(Failure(ResponseFailed([Failure(BodyTooLongError())])))
        _abort(self.transport)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # no default: always given
        if not self._finished:
            self._finished = True
            self._reader.connectionLost(reason)

    def abort(self) -> None:
        if not self._finished:
            self._finished = True
            _abort(self.transport)


def _abort(transport: ITransport | None) -> None:
    """Drop a connection without waiting for the other side to agree.

    A polite close of a TLS connection waits for the peer, who may never answer and
    never stop sending. The transport that a body's reader is given is a proxy without
    `abortConnection` (`twisted/web/_newclient.py`, `TransportProxyProducer`).
    """
    if transport is None:
        return
    connection = getattr(transport, "_producer", None)
    abort = getattr(connection, "abortConnection", transport.loseConnection)
    abort()
