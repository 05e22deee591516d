# SPDX-License-Identifier: Apache-2.0
"""The connections of requests of our own: one each, with an end.

That a server which sends without an end is dropped is in test_e2e_single.
"""

from unittest import mock

from netaddr import IPAddress
from synapse.http.client import _is_ip_blocked
from twisted.internet.defer import ensureDeferred
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.internet.testing import StringTransport
from zope.interface import alsoProvides

from synapse_federation_admin.failures.classify import is_ours
from synapse_federation_admin.homeserver import lookups, network
from synapse_federation_admin.homeserver.bounded_reactor import BoundedReactor
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.outbound import Outbound
from tests import unittest


class ContactConnectionsTestCase(unittest.HomeserverTestCase):
    """The connections of the client for contacts, in Synapse's harness."""

    def contact(self, contacting: Homeserver) -> StringTransport:
        """Make a contact, answer it, and return the connection that it has made."""
        self.reactor.lookups.update({ip: ip for ip in ("1.2.3.4", "127.0.0.1")})
        before = len(self.reactor.tcpClients)
        answer = ensureDeferred(
            contacting.federation.contact(
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

    def test_old(self) -> None:
        """A connection is dropped when it is too old, whatever comes over it."""
        bounded = BoundedReactor(self.reactor, max_lifetime_s=5)
        bounded.connectTCP("1.2.3.4", 8448, ClientFactory.forProtocol(Protocol))
        connection = self.reactor.tcpClients[-1][2].buildProtocol(None)
        transport = StringTransport()
        alsoProvides(transport, ITCPTransport)
        connection.makeConnection(transport)
        for _ in range(4):
            self.reactor.advance(1)
            connection.dataReceived(b"x")
        self.assertFalse(transport.disconnected)
        self.reactor.advance(1)
        self.assertTrue(transport.disconnected)

    def test_bug(self) -> None:
        """An error of ours in what reads is not taken for what a server has sent."""
        bounded = BoundedReactor(self.reactor, max_lifetime_s=5)
        bounded.connectTCP("1.2.3.4", 8448, ClientFactory.forProtocol(Protocol))
        connection = self.reactor.tcpClients[-1][2].buildProtocol(None)
        connection.makeConnection(StringTransport())
        with mock.patch.object(Protocol, "dataReceived", side_effect=IndexError):
            self.assertRaises(IndexError, connection.dataReceived, b"x")

    def test_nothing_is_remembered(self) -> None:
        """Whether a server has a well-known file is looked up for each contact.

        Else one that could not be reached would seem to be down for an hour.
        """
        made = network.Network(Homeserver(self.hs.get_module_api()), max_lifetime_s=1)
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
        outbound = Outbound(Homeserver(self.hs.get_module_api()), max_lifetime_s=1)

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
        outbound = Outbound(Homeserver(self.hs.get_module_api()), max_lifetime_s=1)

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
