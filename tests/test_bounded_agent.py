# SPDX-License-Identifier: Apache-2.0
"""Answers that have no end, over real connections, plain and TLS."""

import socket
import ssl
import threading
import time
from collections.abc import Generator
from typing import Any

import treq
import trustme
from parameterized import parameterized
from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.protocols import tls
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, ResponseFailed
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from synapse_federation_admin.bounded_agent import BodyTooLongError, BoundedAgent

LIMIT = 64 * 1024


class HostileServer:
    """Answers one request with an endless body, and reads nothing more ever after.

    So it never agrees to the end of a TLS connection either.

    Attributes:
        sent: The bytes of the body that it could send.
        dropped: Whether the connection was dropped by the client.
    """

    def __init__(self, *, tls: bool, chunk: bytes, interval_s: float) -> None:
        self.sent = 0
        self.dropped = False
        self._chunk = chunk
        self._interval_s = interval_s
        self._context = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            trustme.CA().issue_cert("127.0.0.1").configure_cert(self._context)
        self._listening = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._listening.getsockname()[1]}/".encode()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        self._listening.close()
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True)
        connection.recv(65536)
        deadline = time.monotonic() + 5
        connection.settimeout(5)
        with connection:
            connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            try:
                while time.monotonic() < deadline:
                    connection.sendall(self._chunk)
                    self.sent += len(self._chunk)
                    time.sleep(self._interval_s)
            except TimeoutError:
                pass
            except OSError:
                self.dropped = True


@implementer(IPolicyForHTTPS)
class TrustAnything:
    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        return CertificateOptions(verify=False)


class BoundedAgentTestCase(TestCase):
    """With the real reactor."""

    timeout = 20

    def setUp(self) -> None:
        # Synapse's harness puts its fake clock here, for good.
        self.patch(tls, "_get_default_clock", lambda: reactor)

    def agent(self) -> BoundedAgent:
        return BoundedAgent(Agent(reactor, TrustAnything()), LIMIT)

    @parameterized.expand([(False,), (True,)])
    @inlineCallbacks
    def test_too_long(self, with_tls: bool) -> Generator[Any, Any, None]:
        """A body beyond the limit fails, and the connection is dropped at once."""
        server = HostileServer(tls=with_tls, chunk=b"x" * 16384, interval_s=0)
        response = yield self.agent().request(b"GET", server.url)
        self.assertEqual(response.code, 502)

        failure = yield self.assertFailure(treq.content(response), ResponseFailed)

        self.assertIsInstance(failure.reasons[0].value, BodyTooLongError)
        yield deferToThread(server.thread.join)
        self.assertTrue(server.dropped)
        # More than the limit only by what the buffers of two sockets hold.
        self.assertLess(server.sent, 16 * 1024 * 1024)

    @parameterized.expand([(False,), (True,)])
    @inlineCallbacks
    def test_close(self, with_tls: bool) -> Generator[Any, Any, None]:
        """Closing the agent drops an answer that comes in byte by byte."""
        server = HostileServer(tls=with_tls, chunk=b"x", interval_s=0.01)
        agent = self.agent()
        response = yield agent.request(b"GET", server.url)
        body = treq.content(response)
        yield deferLater(reactor, 0.1)  # type: ignore[arg-type]

        agent.close()

        yield deferToThread(server.thread.join)
        self.assertTrue(server.dropped)
        self.assertNoResult(body)

    @inlineCallbacks
    def test_short(self) -> Generator[Any, Any, None]:
        """A body of just the limit is passed on as it is."""
        server = HostileServer(tls=False, chunk=b"x" * LIMIT, interval_s=10)
        agent = self.agent()
        received = []
        response = yield agent.request(b"GET", server.url)
        body = treq.collect(response, received.append)
        yield deferLater(reactor, 0.5)  # type: ignore[arg-type]

        self.assertEqual(b"".join(received), b"x" * LIMIT)
        self.assertNoResult(body)
        agent.close()
