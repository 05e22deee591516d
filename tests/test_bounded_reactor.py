# SPDX-License-Identifier: Apache-2.0
"""Connections that would have no end, over real sockets, plain and TLS."""

import socket
import ssl
import threading
import time
from collections.abc import Generator
from typing import Any
from unittest import mock

import treq
import trustme
from netaddr import IPAddress
from parameterized import parameterized
from synapse.http.client import _is_ip_blocked
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, inlineCallbacks
from twisted.internet.ssl import CertificateOptions
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.protocols import tls
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, ResponseFailed
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from synapse_federation_admin.failures.classify import is_ours
from synapse_federation_admin.homeserver import lookups, network
from synapse_federation_admin.homeserver.bounded_reactor import BoundedReactor
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.outbound import Outbound
from tests import unittest

LIMIT = 256 * 1024

BODY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 1000000000000\r\n\r\n"
HEADERS = b"HTTP/1.1 200 OK\r\n"


class HostileServer:
    """Begins one answer, goes on sending for ever, and reads nothing more.

    So it never agrees to the end of a TLS connection either.

    Attributes:
        sent: The bytes that it could send after the beginning.
        dropped: Whether the connection was dropped by the client.
    """

    def __init__(
        self, *, with_tls: bool, beginning: bytes, chunk: bytes, interval_s: float = 0
    ) -> None:
        self.sent = 0
        self.dropped = False
        self._beginning = beginning
        self._chunk = chunk
        self._interval_s = interval_s
        self._context = None
        if with_tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            trustme.CA().issue_cert("127.0.0.1").configure_cert(self._context)
        self._listening = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if with_tls else "http"
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
            try:
                connection.sendall(self._beginning)
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


class BoundedReactorTestCase(TestCase):
    """With the real reactor."""

    timeout = 20

    def setUp(self) -> None:
        # Synapse's harness puts its fake clock here, for good.
        self.patch(tls, "_get_default_clock", lambda: reactor)

    def agent(self, max_lifetime_s: float = 10) -> Agent:
        bounded = BoundedReactor(
            reactor, max_received_bytes=LIMIT, max_lifetime_s=max_lifetime_s
        )
        return Agent(bounded, TrustAnything())

    @parameterized.expand(
        [
            # An endless body; headers without end; an answer that comes byte by byte.
            (with_tls, beginning, chunk, interval_s)
            for with_tls in (False, True)
            for beginning, chunk, interval_s in (
                (BODY, b"x" * 16384, 0),
                (HEADERS, b"X-Header: " + b"x" * 8192 + b"\r\n", 0),
                (BODY, b"x", 0.01),
            )
        ]
    )
    @inlineCallbacks
    def test_dropped(
        self, with_tls: bool, beginning: bytes, chunk: bytes, interval_s: float
    ) -> Generator[Any, Any, None]:
        """What has no end fails, and the connection is dropped at once."""
        server = HostileServer(
            with_tls=with_tls, beginning=beginning, chunk=chunk, interval_s=interval_s
        )
        started = time.monotonic()
        agent = self.agent(max_lifetime_s=0.5 if interval_s else 10)
        asked = agent.request(b"GET", server.url)
        if beginning == BODY:
            response = yield asked
            self.assertEqual(response.code, 502)
            asked = treq.content(response)
        yield self.assertFailure(asked, ResponseFailed)
        yield self.check_dropped(server)
        self.assertLess(time.monotonic() - started, 4)

    @inlineCallbacks
    def check_dropped(self, server: HostileServer) -> Generator[Any, Any, None]:
        yield deferToThread(server.thread.join)
        self.assertTrue(server.dropped)
        # More than the limit only by what the buffers of two sockets hold.
        self.assertLess(server.sent, 16 * 1024 * 1024)

    @parameterized.expand([(False,), (True,)])
    @inlineCallbacks
    def test_within_the_bounds(self, with_tls: bool) -> Generator[Any, Any, None]:
        """An answer within the bounds is passed on as it is."""
        body = b"x" * (LIMIT // 2)
        beginning = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        server = HostileServer(
            with_tls=with_tls, beginning=beginning, chunk=body, interval_s=0.1
        )
        response = yield self.agent(max_lifetime_s=1).request(b"GET", server.url)
        received = yield treq.content(response)
        self.assertTrue(received == body)
        # Nobody has asked for what came after it.
        yield self.check_dropped(server)


class ContactConnectionsTestCase(unittest.HomeserverTestCase):
    """The connections of the client for contacts, in Synapse's harness."""

    def contact(self, contacting: Homeserver) -> StringTransport:
        """Make a contact, answer it, and return the connection that it has made."""
        self.reactor.lookups.update({ip: ip for ip in ("1.2.3.4", "127.0.0.1")})
        before = len(self.reactor.tcpClients)
        answer = ensureDeferred(
            contacting.contact(
                "1.2.3.4:8448",
                timeout_ms=10_000,
                ignore_backoff=True,
                is_ours=is_ours,
            )
        )
        self.pump()
        self.assertEqual(len(self.reactor.tcpClients), before + 1)
        connection = self.reactor.tcpClients[-1][2].buildProtocol(None)
        transport = StringTransport()
        connection.makeConnection(transport)
        self.pump()
        self.assertIn(b"PUT ", transport.value())
        connection.dataReceived(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\n\r\n{}"
        )
        self.get_success(answer)
        return transport

    def check_one_connection_each(self) -> None:
        # Without TLS.
        with mock.patch.object(network.Network, "_policy_of", return_value=None):
            contacting = Homeserver(self.hs.get_module_api())
            for _ in range(2):
                self.assertTrue(self.contact(contacting).disconnecting)

    def test_nothing_is_remembered(self) -> None:
        """Whether a server has a well-known file is looked up for each contact.

        Else one that could not be reached would seem to be down for an hour.
        """
        made = network.Network(self.hs, max_lifetime_s=1)
        client = made.client(1000)
        resolver = client.agent._agent._agent._well_known_resolver  # type: ignore[attr-defined]
        asked = []

        async def fetch(server_name: bytes) -> tuple[bytes | None, float]:
            asked.append(server_name)
            return None, 3600

        with mock.patch.object(resolver, "_fetch_well_known", fetch):
            for _ in range(2):
                self.get_success(resolver.get_well_known(b"a.example"))
        self.assertEqual(asked, [b"a.example"] * 2)

    def test_requests(self) -> None:
        """Requests side by side have a client each: what one meets is its own."""
        outbound = Outbound(self.hs, max_lifetime_s=1)

        async def answer(*_: object, **__: object) -> object:
            return {}, {}

        with mock.patch.object(
            outbound,
            "client",
            side_effect=lambda *_, **__: mock.Mock(get_json_with_headers=answer),
        ) as client:
            for _ in range(2):
                self.get_success(outbound.get("a.example", "/path", timeout_ms=1000))
        self.assertEqual(client.call_count, 2)

    @unittest.override_config(
        {
            "ip_range_blacklist": [
                *("10.1.0.0/16", "10.2.0.0/16", "192.0.2.1/32", "192.0.2.3/32"),
                *("::1/128", "fc00::/7", "fe80::/10"),
            ],
            "ip_range_whitelist": ["10.2.7.0/24", "fc00::7/128"],
        }
    )
    def test_many_addresses(self) -> None:
        """Each of thousands of addresses is judged as Synapse does."""
        config = self.hs.config.server
        few = [
            *("10.0.255.255", "10.1.0.0", "10.2.255.255", "10.3.0.0", "10.2.7.1"),
            *("192.0.2.1", "192.0.2.2", "192.0.2.3", "::ffff:10.1.2.3", "::1", "::2"),
            *("fbff::", "fc00::", "fc00::7", "fdff::1", "fe00::", "fe80::1", "::"),
            *("2002:0a01:0001::", "255.255.255.255", "0.0.0.0"),
        ]
        many = [f"2001:db8::{number:x}" for number in range(2000)]
        found = [(None, None, None, "", (address, 8448)) for address in (*few, *many)]
        outbound = Outbound(self.hs, max_lifetime_s=1)

        def judge() -> dict[str, bool]:
            return self.get_success(
                outbound.look_up("a.example", 8448, 1000, as_server_name=False)
            )

        with mock.patch.object(lookups, "getaddrinfo", return_value=found):
            judged = judge()
            # Those of one host at a time.
            locked = mock.Mock(side_effect=lambda *_, **__: outbound._judging.locked())
            with mock.patch.object(outbound, "is_blocked", locked):
                self.assertTrue(all(judge().values()))
        expected = {
            address: _is_ip_blocked(
                IPAddress(address),
                config.federation_ip_range_allowlist,
                config.federation_ip_range_blocklist,
            )
            for address in (*few, *many)
        }
        self.assertEqual(judged, expected)
        self.assertEqual(len(set(expected.values())), 2)
        # A server name that is an address is looked for in the first list only.
        self.assertFalse(outbound.is_blocked("10.2.7.1"))
        self.assertTrue(outbound.is_blocked("10.2.7.1", as_server_name=True))
        self.assertTrue(outbound.is_blocked("fe80::1%eth0"))

    def test_direct(self) -> None:
        """Each request has a connection of its own, which ends with it."""
        self.check_one_connection_each()

    @unittest.override_config(
        {
            "outbound_federation_restricted_to": ["sender"],
            "instance_map": {"sender": {"host": "127.0.0.1", "port": 1}},
            "worker_replication_secret": "secret",
        }
    )
    def test_through_another_process(self) -> None:
        """So it is where requests go out through another process only."""
        self.check_one_connection_each()
