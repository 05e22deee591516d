# SPDX-License-Identifier: Apache-2.0
"""Answers that have no end, over real connections, plain and TLS."""

from collections.abc import Generator
from typing import Any

import treq
import trustme
from OpenSSL import SSL
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import LoopingCall, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, ResponseFailed
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from synapse_federation_admin.bounded_agent import BodyTooLongError, BoundedAgent

LIMIT = 64 * 1024


class HostileServer(Protocol):
    """Answers 502, and then goes on sending; never agrees to end the connection."""

    chunk = b"x" * 16384
    interval = 0.001

    def connectionMade(self) -> None:
        self.sent = 0
        self.lost: Deferred[None] = Deferred()
        self.factory.connections.append(self)  # type: ignore[union-attr]
        self.sending = LoopingCall(self.send)

    def dataReceived(self, data: bytes) -> None:
        if not self.sending.running:
            assert self.transport is not None
            self.transport.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            self.sending.start(self.interval)

    def send(self) -> None:
        assert self.transport is not None
        self.transport.write(self.chunk)
        self.sent += len(self.chunk)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.sending.running:
            self.sending.stop()
        self.lost.callback(None)


class DrippingServer(HostileServer):
    """One byte at a time."""

    chunk = b"x"
    interval = 0.01


@implementer(IPolicyForHTTPS)
class TrustAnything:
    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        return ssl.CertificateOptions(verify=False)


class BoundedAgentTestCase(TestCase):
    """With the real reactor."""

    timeout = 20

    def listen(self, server: type[Protocol], *, tls: bool) -> tuple[Factory, bytes]:
        factory = Factory.forProtocol(server)
        factory.connections = []  # type: ignore[attr-defined]
        if tls:
            certificate = trustme.CA().issue_cert("127.0.0.1")
            context = SSL.Context(SSL.TLS_METHOD)
            certificate.configure_cert(context)
            options = ssl.CertificateOptions()
            options.getContext = lambda: context  # type: ignore[method-assign]
            port = reactor.listenSSL(0, factory, options, interface="127.0.0.1")  # type: ignore[attr-defined]
        else:
            port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        scheme = "https" if tls else "http"
        return factory, f"{scheme}://127.0.0.1:{port.getHost().port}/".encode()

    def agent(self) -> BoundedAgent:
        return BoundedAgent(Agent(reactor, TrustAnything()), LIMIT)

    @inlineCallbacks
    def check_too_long(self, *, tls: bool) -> Generator[Any, Any, None]:
        factory, url = self.listen(HostileServer, tls=tls)
        response = yield self.agent().request(b"GET", url)
        self.assertEqual(response.code, 502)

        failure = yield self.assertFailure(treq.content(response), ResponseFailed)

        self.assertIsInstance(failure.reasons[0].value, BodyTooLongError)
        (connection,) = factory.connections  # type: ignore[attr-defined]
        yield connection.lost
        # The rest is what the buffers of two sockets hold.
        self.assertLess(connection.sent, 16 * 1024 * 1024)

    def test_too_long(self) -> "Deferred[None]":
        """A body beyond the limit fails, and the connection is dropped."""
        return self.check_too_long(tls=False)

    def test_too_long_tls(self) -> "Deferred[None]":
        """So it is with TLS, where a polite end would wait for the other side."""
        return self.check_too_long(tls=True)

    @inlineCallbacks
    def check_close(self, *, tls: bool) -> Generator[Any, Any, None]:
        factory, url = self.listen(DrippingServer, tls=tls)
        agent = self.agent()
        response = yield agent.request(b"GET", url)
        body = treq.content(response)
        yield deferLater(reactor, 0.1)  # type: ignore[arg-type]

        agent.close()

        (connection,) = factory.connections  # type: ignore[attr-defined]
        yield connection.lost
        self.assertNoResult(body)

    def test_close(self) -> "Deferred[None]":
        """Closing the agent drops an answer that is still coming in."""
        return self.check_close(tls=False)

    def test_close_tls(self) -> "Deferred[None]":
        """So it is with TLS."""
        return self.check_close(tls=True)

    @inlineCallbacks
    def test_short(self) -> Generator[Any, Any, None]:
        """An answer within the limit is passed on as it is."""

        class Short(Protocol):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"y" * LIMIT)
                self.transport.loseConnection()

        _, url = self.listen(Short, tls=False)
        agent = self.agent()
        response = yield agent.request(b"GET", url)
        body = yield treq.content(response)
        self.assertEqual(body, b"y" * LIMIT)
        agent.close()

    def assertNoResult(self, deferred: "Deferred[Any]") -> None:
        super().assertNoResult(deferred)
        deferred.addErrback(lambda _: None)
