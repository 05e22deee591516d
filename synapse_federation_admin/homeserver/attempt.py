# SPDX-License-Identifier: Apache-2.0
"""One request to another server: until when it may take, and what it meets on its way.

Twisted and Synapse tell the last of what has stopped a request, and sometimes only that
its time is over. What it was doing then, and what it met before, is known here: of our
own requests, and of Synapse's.
"""

import logging
import socket
from typing import Any

from synapse.util.gai_resolver import HostResolution
from twisted.internet import error as net
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import (
    IConnector,
    IHostnameResolver,
    IHostResolution,
    IResolutionReceiver,
)
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from synapse_federation_admin.homeserver.bounded_reactor import BoundedReactor
from synapse_federation_admin.homeserver.errors import (
    BAD_HOST,
    NO_RESULTS,
    NO_WAY,
    FileAnswer,
    Obstacle,
    ObstacleError,
    ProxyConnectError,
    WithoutFileError,
    has_route,
    innermost,
    is_out_of_resources,
    number_of,
)
from synapse_federation_admin.homeserver.lookups import SynapseLookUps

logger = logging.getLogger(__name__)

# A timer that ends with the time may be that much early.
_OVER_S = 0.001

_KINDS = {
    frozenset({IPv4Address}): socket.AF_INET,
    frozenset({IPv6Address}): socket.AF_INET6,
}


@implementer(IHostnameResolver)
class Attempt(BoundedReactor):
    """What the agents of one request have for a reactor.

    Attributes:
        delegated_to: What the well-known file gives as `m.server`, if that is no server
            name.
        is_delegated_to_us: What it gives, if that is the name of this homeserver.
        file: What was met in place of the file, if requests go on without it.
        file_urls: Where it was asked for, more than one by redirects.
        has_services: Whether there are SRV records.
        is_service_refused: Whether their SRV records say that there is no service.
        is_fetching: Whether the request waits for that file.
        is_of_file: Whether that is all that it asks for.
        is_shaking_hands: Whether the connection made last is in its TLS handshake.
        is_at_proxy: Whether it waits for this homeserver's own proxy to connect.
        looked_up: The names that are being looked up.
        proxy_hosts: The host of that proxy, once it was looked up.
    """

    def __init__(
        self,
        reactor: Any,
        look_ups: SynapseLookUps,
        *,
        ends_s: float = float("inf"),
        max_lifetime_s: float | None = None,
    ) -> None:
        """Begin it.

        Args:
            reactor: The reactor that does everything.
            look_ups: Looks names up.
            ends_s: The reactor's time from which on it connects to nothing, and looks
                nothing up.
            max_lifetime_s: A connection older than this is dropped; see
                `BoundedReactor`.
        """
        super().__init__(reactor, max_lifetime_s=max_lifetime_s)
        self.delegated_to: str | None = None
        self.is_delegated_to_us: str | None = None
        self.file: FileAnswer | None = None
        self.file_urls: list[bytes] = []
        self.has_services = False
        self.is_service_refused = False
        self.is_fetching = False
        self.is_of_file = False
        self.is_shaking_hands = False
        self.is_at_proxy = False
        self.looked_up: list[str] = []
        self.proxy_hosts: set[str] = set()
        self._look_ups = look_ups
        self._ends_s = ends_s
        # Of each host that was looked up: why it has no address, if it has none.
        self._hosts: dict[str, ObstacleError | None] = {}
        # To which host an address belongs, what came of connections, and how many are
        # being made.
        self._host_of: dict[str, str] = {}
        self._refused: list[tuple[str, BaseException]] = []
        self._connecting = 0
        # What it was doing when its time was over.
        self._late: BaseException | None = None

    # -- what Twisted and Synapse ask of a reactor ---------------------------------

    @property
    def left_s(self) -> float:
        """How much of its time is left, in seconds; 0 if it is over."""
        left_s: float = self._ends_s - self._reactor.seconds()
        return left_s if left_s > _OVER_S else 0

    def require_time(self) -> None:
        """Begin nothing more when the time is over.

        Raises:
            ObstacleError: It is; of what it was over.
            TimeoutError: It is; of a connection (Twisted's).
        """
        if self.left_s == 0:
            if self._late is None and self.is_fetching:
                self._late = ObstacleError(Obstacle.LATE_FILE)
            raise self._late or net.TimeoutError("The time is over")

    @property
    def nameResolver(self) -> IHostnameResolver:
        """What looks host names up: this, but for a test harness."""
        self.require_time()
        own: IHostnameResolver = self
        return own if self._look_ups.is_real else self._reactor.nameResolver

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,  # noqa: N803  # Twisted's name
        hostName: str,  # noqa: N803
        portNumber: int = 0,  # noqa: N803
        addressTypes: Any = None,  # noqa: N803
        transportSemantics: Any = "TCP",  # noqa: N803
    ) -> IHostResolution:
        """Look up: see `twisted.internet.interfaces.IHostnameResolver`."""
        resolution = HostResolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        self.looked_up.append(hostName)

        def deliver(found: Any) -> None:
            self._hosts[hostName] = None
            # Synapse looks each of them up in its blocklist at once.
            for family, _, _, _, address in found[: self._look_ups.most]:
                kind = IPv6Address if family == socket.AF_INET6 else IPv4Address
                self._host_of[address[0]] = hostName
                resolutionReceiver.addressResolved(kind(transportSemantics, *address))

        def complete(_: object) -> None:
            self.looked_up.remove(hostName)
            resolutionReceiver.resolutionComplete()

        def failed(failure: Failure) -> None:
            error = failure.value
            self._hosts[hostName] = (
                error
                if isinstance(error, ObstacleError)
                else ObstacleError(Obstacle.DNS_SERVER_FAILURE, hostName)
            )
            if self.left_s == 0 and self._late is None:
                self._late = self._hosts[hostName]

        self._look_ups.addresses(
            hostName,
            portNumber,
            self.left_s,
            _KINDS.get(frozenset(addressTypes or ()), socket.AF_UNSPEC),
        ).addCallbacks(deliver, failed).addBoth(complete)
        return resolution

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: ClientFactory,
        timeout: float = 30,
        **kwargs: Any,
    ) -> IConnector:
        """Connect: see `twisted.internet.interfaces.IReactorTCP.connectTCP`."""
        self.require_time()
        self.is_at_proxy = False
        self._connecting += 1
        timeout = min(timeout, self.left_s)
        return super().connectTCP(host, port, factory, timeout=timeout, **kwargs)

    @property
    def proxy_side(self) -> "_ProxySide":
        """The reactor for connections to this homeserver's own proxy."""
        return _ProxySide(self)

    def connected(self) -> None:
        """Take note that an address was connected to: others do not matter then."""
        self._connecting = 0
        self._refused.clear()

    def connection_failed(self, address: str, error: BaseException) -> None:
        """Take note that an address was not connected to."""
        if isinstance(error, net.UserError):
            # It was called off.
            return
        self._connecting -= 1
        self._refused.append((address, error))
        if self.left_s == 0 and self._late is None:
            self._late = error

    def file_fetched(self) -> None:
        """Begin with what comes after the well-known file, if there is time for it."""
        if self.left_s > 0:
            self.is_fetching = False
            self._refused.clear()
            self._connecting = 0

    def addresses_of(self, host: str) -> tuple[str, ...]:
        """Return the addresses of a host that was looked up, blocked or not."""
        return tuple(a for a, of in self._host_of.items() if of == host)

    # -- what it was stopped by ----------------------------------------------------

    @property
    def wrong_delegation(self) -> ObstacleError | None:
        """What is wrong with the name to which requests go; None if nothing is.

        Whatever answers them there, that it does not answer well is why.
        """
        if self.delegated_to is not None:
            return ObstacleError(Obstacle.BAD_DELEGATION, self.delegated_to)
        if self.is_delegated_to_us is not None:
            return ObstacleError(Obstacle.OWN_NAME, self.is_delegated_to_us)
        return None

    def explained(self, error: BaseException) -> BaseException:
        """Return what has stopped the request: what is known here, or the error."""
        why = self._explained(error)
        cause = innermost(why)
        if (
            self.file is None
            or self.has_services
            or isinstance(cause, CancelledError)
            or is_out_of_resources(cause)
        ):
            return why
        return WithoutFileError(self.file, cause)

    def _explained(self, error: BaseException) -> BaseException:
        cause = innermost(error)
        if is_out_of_resources(cause):
            return cause
        if (wrong := self.wrong_delegation) is not None:
            return wrong
        if self.is_service_refused:
            return ObstacleError(Obstacle.NO_SERVICE)
        if isinstance(cause, net.DNSLookupError):
            return self._why_no_address(cause)
        if isinstance(cause, net.ConnectError | net.ConnectingCancelledError):
            return self._why_not_connected(cause)
        if isinstance(cause, CancelledError):
            return self._late or self._what_is_late() or error
        if isinstance(cause, ValueError) and str(cause).startswith(BAD_HOST):
            # Where SRV records or the file lead to: the name itself was looked at.
            return ObstacleError(Obstacle.NO_HOST_NAME, str(cause)[len(BAD_HOST) :])
        if self.is_at_proxy:
            return ObstacleError(Obstacle.OWN_PROXY, cause=cause)
        if isinstance(cause, net.ConnectionClosed) and self.is_dropped:
            return ObstacleError(Obstacle.NO_END)
        if isinstance(cause, net.ConnectionClosed) and self.is_shaking_hands:
            return ObstacleError(Obstacle.CLOSED_IN_HANDSHAKE)
        return error

    def _why_no_address(self, cause: BaseException) -> BaseException:
        found = NO_RESULTS.search(str(cause))
        host = found[1].rstrip(".") if found else ""
        if host in self._hosts:
            why = self._hosts[host] or ObstacleError(Obstacle.BLOCKED, host)
            if host in self.proxy_hosts:
                return ObstacleError(Obstacle.OWN_PROXY, host, why)
            return why
        return self._late or cause

    def _why_not_connected(self, cause: BaseException) -> BaseException:
        address = next((a for a, error in self._refused if error is cause), None)
        if address is None and isinstance(cause, ProxyConnectError):
            return cause
        if address is None:
            # It is that the time was over, before all addresses were tried.
            return self._what_is_late() or cause
        host = self._host_of.get(address, address)
        if host in self.proxy_hosts:
            return ObstacleError(Obstacle.OWN_PROXY, host, cause)
        address, cause = self._telling_most(host) or (address, cause)
        if number_of(cause) not in NO_WAY:
            return cause
        is_ipv6 = ":" in address
        if has_route(socket.AF_INET6 if is_ipv6 else socket.AF_INET):
            return cause
        obstacle = Obstacle.NO_IPV6 if is_ipv6 else Obstacle.NO_IPV4
        return ObstacleError(obstacle, host, cause)

    def _telling_most(self, host: str) -> tuple[str, BaseException] | None:
        """Return of a host's addresses that which tells most, and what it has met.

        Twisted tells what it has met last: one that refuses, where it has just waited
        for another one, or has no way to it.
        """
        met = [each for each in self._refused if self._host_of.get(each[0]) == host]
        return min(met, key=lambda each: _tells_little(each[1]), default=None)

    def _what_is_late(self) -> BaseException | None:
        """Return what the request waits for, but for the answer."""
        if self.looked_up:
            host = self.looked_up[-1]
            why = ObstacleError(Obstacle.DNS_NO_ANSWER, host)
            if host in self.proxy_hosts:
                return ObstacleError(Obstacle.OWN_PROXY, host, why)
            return why
        if self.is_at_proxy:
            return ObstacleError(Obstacle.OWN_PROXY, cause=net.TimeoutError())
        if self._refused:
            first = self._refused[0][0]
            host = self._host_of.get(first, first)
            _, met = self._telling_most(host) or self._refused[0]
            if self.is_fetching and not _tells_little(met):
                return ObstacleError(Obstacle.LATE_FILE)
            if self._connecting <= 0:
                return met
            is_less = self.is_of_file or number_of(met) in NO_WAY
            return net.TimeoutError() if is_less else met
        if self._connecting:
            return net.TimeoutError()
        if self.is_fetching:
            return ObstacleError(Obstacle.LATE_FILE)
        if self.is_shaking_hands:
            return ObstacleError(Obstacle.LATE_HANDSHAKE)
        return None


def _tells_little(error: BaseException) -> int:
    """Return how little it tells that an address was not connected to, from 0 on."""
    if number_of(error) in NO_WAY:
        return 2
    return int(isinstance(error, net.TimeoutError | net.TCPTimedOutError))


@implementer(IHostnameResolver)
class _ProxySide(BoundedReactor):
    """The reactor of an attempt, for connections to this homeserver's own proxy."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt._reactor, max_lifetime_s=attempt.max_lifetime_s)
        self._attempt = attempt

    @property
    def nameResolver(self) -> IHostnameResolver:
        """What looks host names up: this."""
        return self

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,  # noqa: N803  # Twisted's name
        hostName: str,  # noqa: N803
        *args: Any,
        **kwargs: Any,
    ) -> IHostResolution:
        """Look up: see `twisted.internet.interfaces.IHostnameResolver`."""
        self._attempt.proxy_hosts.add(hostName)
        resolver = self._attempt.nameResolver
        return resolver.resolveHostName(resolutionReceiver, hostName, *args, **kwargs)

    def connectTCP(self, *args: Any, **kwargs: Any) -> IConnector:
        """Connect: see `twisted.internet.interfaces.IReactorTCP.connectTCP`."""
        connector = self._attempt.connectTCP(*args, **kwargs)
        self._attempt.is_at_proxy = True
        return connector
