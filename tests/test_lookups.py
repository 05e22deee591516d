# SPDX-License-Identifier: Apache-2.0
"""Look-ups, with real threads and a name server that does not answer."""

import errno
import socket
import threading
from collections.abc import Generator
from typing import Any
from unittest import mock

import psutil
from OpenSSL import SSL
from parameterized import parameterized
from synapse.util.gai_resolver import GAIResolver
from twisted.internet import error as net, reactor
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    fail,
    inlineCallbacks,
    succeed,
)
from twisted.internet.task import deferLater
from twisted.names import dns
from twisted.names.client import Resolver
from twisted.trial.unittest import TestCase

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver import attempt as attempts, errors, lookups
from synapse_federation_admin.homeserver.attempt import Attempt
from synapse_federation_admin.homeserver.bounded_reactor import BoundedReactor
from synapse_federation_admin.homeserver.errors import (
    Obstacle,
    ObstacleError,
    ProxyConnectError,
)
from synapse_federation_admin.homeserver.lookups import LookUps


def sockets() -> list[int]:
    """Return those that this process has open."""
    return [c.fd for c in psutil.Process().net_connections() if c.fd > 0]


class LookUpsTestCase(TestCase):
    """With the real reactor."""

    timeout = 20

    def setUp(self) -> None:
        self.answer = threading.Event()
        self.addCleanup(self.answer.set)
        self.patch(limits, "DNS_LOOKUPS", 2)
        self.patch(lookups, "getaddrinfo", self.getaddrinfo)
        # As Synapse does at its start.
        before = reactor.installNameResolver(GAIResolver(reactor))  # type: ignore[attr-defined, arg-type]
        self.addCleanup(reactor.installNameResolver, before)  # type: ignore[attr-defined]
        self.look_ups = LookUps(reactor)
        self.assertTrue(self.look_ups.is_real)
        self.addCleanup(self.look_ups._threads.stop)
        self.addCleanup(self.answer.set)
        self.error: Exception | None = None

    def getaddrinfo(self, host: str, *_: object) -> Any:
        """Answer when the test says so; for an address at once."""
        if host[0].isalpha():
            self.answer.wait(15)
        if self.error is not None:
            raise self.error
        return [_info("192.0.2.1")]

    @inlineCallbacks
    def check_obstacle(
        self, looking: "Deferred[Any]", obstacle: Obstacle
    ) -> Generator[Any, Any, None]:
        error = yield self.assertFailure(looking, ObstacleError)
        self.assertIs(error.obstacle, obstacle)

    @inlineCallbacks
    def test_under_way_until_it_has_ended(self) -> Generator[Any, Any, None]:
        """Who waits is told in time; the thread counts for as long as it hangs.

        Nothing queues up behind: who gets no turn is told that it is us.
        """
        self.assertEqual(self.look_ups.free, 2)
        late = [self.look_ups.addresses(f"a{n}.example", 1, 0.1) for n in range(2)]
        self.assertEqual(self.look_ups.free, 0)
        queued = self.look_ups.addresses("b.example", 1, 0.1)
        for looking in late:
            yield self.check_obstacle(looking, Obstacle.DNS_NO_ANSWER)
        yield self.check_obstacle(queued, Obstacle.OUT_OF_RESOURCES)
        self.assertEqual(self.look_ups.free, 0)
        self.assertEqual(self.look_ups._turns.waiting, [])
        # An address needs no turn.
        found = yield self.look_ups.addresses("192.0.2.1", 8448, 0)
        self.assertEqual(found, [_info("192.0.2.1")])
        self.answer.set()
        while self.look_ups.free < 2:
            yield deferLater(reactor, 0.01)  # type: ignore[arg-type]
        found = yield self.look_ups.addresses("c.example", 8448, 5)
        self.assertEqual(found, [_info("192.0.2.1")])

    @parameterized.expand(
        [
            (socket.gaierror(socket.EAI_NONAME, "x"), Obstacle.NO_SUCH_HOST),
            (socket.gaierror(socket.EAI_NODATA, "x"), Obstacle.NO_ADDRESS),
            (socket.gaierror(socket.EAI_AGAIN, "x"), Obstacle.DNS_SERVER_FAILURE),
            (socket.gaierror(socket.EAI_FAIL, "x"), Obstacle.DNS_SERVER_FAILURE),
            (OSError(errno.EMFILE, "Too many open files"), Obstacle.OUT_OF_RESOURCES),
            (UnicodeError(), Obstacle.NO_HOST_NAME),
        ]
    )
    @inlineCallbacks
    def test_why(self, error: Exception, why: Obstacle) -> Generator[Any, Any, None]:
        """What the operating system says of a name."""
        self.error = error
        self.answer.set()
        yield self.check_obstacle(self.look_ups.addresses("a.example", 1, 5), why)

    @inlineCallbacks
    def test_no_file_left(self) -> Generator[Any, Any, None]:
        """If no file can be opened, that it cannot look up now is ours."""
        self.error = socket.gaierror(socket.EAI_AGAIN, "x")
        self.answer.set()
        with mock.patch.object(
            errors.os, "open", side_effect=OSError(errno.EMFILE, "x")
        ):
            looking = self.look_ups.addresses("a.example", 1, 5)
            yield self.check_obstacle(looking, Obstacle.OUT_OF_RESOURCES)

    @inlineCallbacks
    def test_no_thread_left(self) -> Generator[Any, Any, None]:
        """If no thread can be started, that is ours; the turn is given back."""
        cannot = RuntimeError("can't start new thread")
        with mock.patch.object(threading.Thread, "start", side_effect=cannot):
            looking = self.look_ups.addresses("a.example", 1, 5)
        yield self.check_obstacle(looking, Obstacle.OUT_OF_RESOURCES)
        self.assertEqual(self.look_ups.free, 2)

    @inlineCallbacks
    def test_services_end(self) -> Generator[Any, Any, None]:
        """The sockets of SRV look-ups are closed when the time is over."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            made = Resolver(servers=[silent.getsockname()])
            self.patch(lookups, "Resolver", lambda *_, **__: made)
            before = len(sockets())
            looking = [
                self.look_ups.services(f"_matrix._tcp.a{n}.example", 0.3)
                for n in range(20)
            ]
            self.assertEqual(len(sockets()), before + 20)
            for one in looking:
                yield self.check_obstacle(one, Obstacle.DNS_NO_ANSWER)
            while len(sockets()) > before:
                yield deferLater(reactor, 0.01)  # type: ignore[arg-type]

    @inlineCallbacks
    def test_no_socket_left(self) -> Generator[Any, Any, None]:
        """If there is no socket for an SRV look-up, that is ours, and passes."""
        made = Resolver(servers=[("127.0.0.1", 9)])
        self.patch(lookups, "Resolver", lambda *_, **__: made)
        none = net.CannotListenError("", 1, OSError(errno.EMFILE, "x"))
        for _ in range(2):
            with mock.patch.object(made, "_connectedProtocol", side_effect=none):
                looking = self.look_ups.services("_matrix._tcp.a.example", 1)
            yield self.check_obstacle(looking, Obstacle.OUT_OF_RESOURCES)

    @inlineCallbacks
    def test_no_way(self) -> Generator[Any, Any, None]:
        """Without a way to the name servers nobody answers: that is no bug."""
        made = Resolver(servers=[("127.0.0.1", 9)])
        self.patch(lookups, "Resolver", lambda *_, **__: made)
        none = OSError(errno.ENETUNREACH, "Network is unreachable")
        with mock.patch.object(made, "_connectedProtocol", side_effect=none):
            asking = self.look_ups.answers_about("a.example", 1, dns.NS)
            answers = yield Deferred.fromCoroutine(asking)
        self.assertIsNone(answers)


def _info(address: str) -> tuple[Any, ...]:
    """Return an address as the operating system does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return (family, socket.SOCK_STREAM, 6, "", (address, 8448))


class AttemptTestCase(TestCase):
    """What an attempt tells of what has stopped it."""

    def attempt(
        self, left_s: float = 10, connecting: int = 0, **hosts: list[str] | Exception
    ) -> Attempt:
        """Return one that connects to so many, and has looked hosts up.

        Args:
            left_s: How much time it has left.
            connecting: To how many it is connecting.
            hosts: By the first label of their names, what came of it.
        """
        look_ups = mock.Mock(is_real=True, most=None)
        ends_s = reactor.seconds() + left_s  # type: ignore[attr-defined]
        attempt = Attempt(reactor, look_ups, ends_s=ends_s, max_lifetime_s=1)
        for label, found in hosts.items():
            look_ups.addresses.return_value = (
                fail(found)
                if isinstance(found, Exception)
                else succeed([_info(address) for address in found])
            )
            attempt.resolveHostName(mock.Mock(), f"{label}.example")
        with mock.patch.object(BoundedReactor, "connectTCP"):
            for _ in range(connecting):
                attempt.connectTCP("192.0.2.1", 8448, mock.Mock())
        return attempt

    def test_over(self) -> None:
        """From its end on it connects to nothing, and looks nothing up."""
        over = self.attempt(0)
        with self.assertRaises(net.TimeoutError):
            over.connectTCP("127.0.0.1", 1, mock.Mock())
        with self.assertRaises(net.TimeoutError):
            _ = over.nameResolver

    def test_punycode(self) -> None:
        """A host is told as it stands in the DNS, and not in letters."""
        for host in ("b\xfccher.example", "xn--bcher-kva.example"):
            told = ObstacleError(Obstacle.NO_SUCH_HOST, host)
            self.assertEqual(told.host, "xn--bcher-kva.example")
        odd = ObstacleError(Obstacle.NO_SUCH_HOST, "\xfc" * 99)
        self.assertEqual(odd.host, "\xfc" * 99)

    def test_two_addresses(self) -> None:
        """Of two addresses, one to which there is no way does not hide the other."""
        attempt = self.attempt(a=["192.0.2.1", "2001:db8::1"])
        refused = net.ConnectionRefusedError(errno.ECONNREFUSED)
        no_way = net.ConnectError(errno.ENETUNREACH)
        for address, error in (("192.0.2.1", refused), ("2001:db8::1", no_way)):
            attempt.connection_failed(address, error)
        self.assertIs(attempt.explained(no_way), refused)
        # Alone it is the host's only family, which this host may lack.
        for has_route, explained in ((True, None), (False, Obstacle.NO_IPV6)):
            alone = self.attempt()
            alone.connection_failed("2001:db8::1", no_way)
            with mock.patch.object(attempts, "has_route", return_value=has_route):
                told = alone.explained(no_way)
            self.assertIs(getattr(told, "obstacle", None), explained)
        # Nor does that nothing is left.
        out = net.ConnectBindError(errno.EMFILE)
        attempt.connection_failed("192.0.2.1", out)
        self.assertIs(attempt.explained(out), out)

    def test_called_off_between(self) -> None:
        """Of a host's addresses, what one of them said is told, or that one is silent.

        While the well-known file is asked for, it is that which does not come.
        """
        refused = net.ConnectionRefusedError(errno.ECONNREFUSED)
        no_way = net.ConnectError(errno.ENETUNREACH)
        timed_out = net.TCPTimedOutError(errno.ETIMEDOUT)
        for met, last, doing, expected in (
            ([refused], CancelledError(), "", net.ConnectionRefusedError),
            ([refused], net.TimeoutError(), "", net.ConnectionRefusedError),
            ([timed_out, refused], timed_out, "", net.ConnectionRefusedError),
            ([no_way], CancelledError(), "", net.TimeoutError),
            ([no_way, timed_out], no_way, "", net.TCPTimedOutError),
            ([refused], CancelledError(), "is_fetching", ObstacleError),
            ([refused, refused], CancelledError(), "is_fetching", ObstacleError),
            ([refused], net.TimeoutError(), "is_of_file", net.TimeoutError),
        ):
            addresses = [f"192.0.2.{number}" for number in range(3)]
            attempt = self.attempt(connecting=2, a=addresses)
            vars(attempt).update({doing: True} if doing else {})
            for address, error in zip(addresses, met, strict=False):
                attempt.connection_failed(address, error)
            self.assertIsInstance(attempt.explained(last), expected)

    def test_own_proxy(self) -> None:
        """That our own proxy is not connected to, or says nothing, is told as that."""
        attempt = self.attempt(proxy=["192.0.2.1"])
        lost = self.attempt(proxy=ObstacleError(Obstacle.NO_SUCH_HOST))
        for each in (attempt, lost):
            each.proxy_hosts.add("proxy.example")
        refused = net.ConnectionRefusedError(errno.ECONNREFUSED)
        attempt.connection_failed("192.0.2.1", refused)
        nowhere = net.DNSLookupError("no results for hostname lookup: proxy.example")
        asked = self.attempt()
        asked.is_at_proxy = True
        for made, error in (
            (attempt, refused),
            (lost, nowhere),
            (asked, net.ConnectionLost()),
            (asked, CancelledError()),
            (asked, SSL.Error()),
            (asked, ValueError("no HTTP")),
        ):
            found = made.explained(error)
            assert isinstance(found, ObstacleError)
            self.assertIs(found.obstacle, Obstacle.OWN_PROXY)
            assert found.__cause__ is not None
        answer = ProxyConnectError("Unexpected status on CONNECT: b'502'")
        self.assertIs(asked.explained(answer), answer)

    def test_waits(self) -> None:
        """What it waits for when it is called off is what stops it."""
        for waiting, obstacle in (
            ({"looked_up": ["a.example"], "is_fetching": True}, Obstacle.DNS_NO_ANSWER),
            ({"is_fetching": True, "is_shaking_hands": True}, Obstacle.LATE_FILE),
            ({"is_shaking_hands": True}, Obstacle.LATE_HANDSHAKE),
        ):
            attempt = self.attempt()
            vars(attempt).update(waiting)
            told = attempt.explained(CancelledError())
            self.assertIs(getattr(told, "obstacle", None), obstacle)
        attempt, called_off = self.attempt(), CancelledError()
        self.assertIs(attempt.explained(called_off), called_off)
        attempt = self.attempt(connecting=1)
        self.assertIsInstance(attempt.explained(called_off), net.TimeoutError)
        attempt.connected()
        self.assertIs(attempt.explained(called_off), called_off)
