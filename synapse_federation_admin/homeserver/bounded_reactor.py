# SPDX-License-Identifier: Apache-2.0
"""A reactor whose connections have an end: in bytes received, and in time.

Synapse's federation client bounds the body of a successful answer. It does not bound
the body of an error, nor the headers of any answer, and after its own timeout it goes
on reading. A hostile server could fill the homeserver's memory with one answer, or keep
a connection for ever. Here the connection itself is bounded, below TLS and HTTP.
"""

from collections import OrderedDict
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import UserError
from twisted.internet.interfaces import (
    IAddress,
    IConnector,
    IDelayedCall,
    IHostnameResolver,
    IHostResolution,
    IProtocol,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    ITCPTransport,
)
from twisted.internet.protocol import ClientFactory
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from zope.interface import implementer

# Host names of which it is remembered whether they have addresses.
_MAX_RESOLVED = 1000

# Addresses of one host name that are passed on: a hostile one has thousands, and
# Synapse looks each of them up in its IP blocklist at once.
_MAX_ADDRESSES = 100


@implementer(IReactorPluggableNameResolver)
class BoundedReactor:
    """Passes everything on to another reactor, and bounds the connections it makes."""

    def __init__(
        self,
        reactor: Any,
        *,
        max_received_bytes: int,
        max_lifetime_s: float,
        resolver: IHostnameResolver | None = None,
    ) -> None:
        """Wrap a reactor.

        Args:
            reactor: The reactor that does everything.
            resolver: What looks up names; by default the reactor's own.
            max_received_bytes: A connection over which more comes in is dropped. What
                counts are the bytes on the wire, TLS handshake included.
            max_lifetime_s: A connection older than this is dropped, idle or not.
        """
        self._reactor = reactor
        self.max_received_bytes = max_received_bytes
        self.max_lifetime_s = max_lifetime_s
        self._resolver = resolver
        self._resolved: OrderedDict[str, bool] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        """Return what the wrapped reactor has."""
        return getattr(self._reactor, name)

    @property
    def nameResolver(self) -> "_RecordingResolver":
        """What looks host names up."""
        resolver = self._resolver or self._reactor.nameResolver
        return _RecordingResolver(resolver, self._resolved)

    def has_addresses(self, host: str) -> bool:
        """Tell whether a host name led to addresses when it was last looked up."""
        return self._resolved.get(host, False)

    def connectTCP(
        self, host: str, port: int, factory: ClientFactory, *args: Any, **kwargs: Any
    ) -> IConnector:
        """Connect: see `twisted.internet.interfaces.IReactorTCP.connectTCP`."""
        bounded = _BoundedFactory(factory, self)
        connector: IConnector = self._reactor.connectTCP(
            host, port, bounded, *args, **kwargs
        )
        return connector

    def connectUNIX(
        self, address: str, factory: ClientFactory, *args: Any, **kwargs: Any
    ) -> IConnector:
        """Connect: see `twisted.internet.interfaces.IReactorUNIX.connectUNIX`."""
        bounded = _BoundedFactory(factory, self)
        connector: IConnector = self._reactor.connectUNIX(
            address, bounded, *args, **kwargs
        )
        return connector


@implementer(IReactorPluggableNameResolver)
class EndingReactor:
    """Passes everything on to another reactor, and connects until a time only."""

    def __init__(self, reactor: Any, ends_s: float) -> None:
        """Wrap a reactor.

        Args:
            reactor: The reactor that does everything.
            ends_s: The time, by its `seconds()`, from which on every connection, and
                every look-up of a name, fails at once.
        """
        self._reactor = reactor
        self._ends_s = ends_s

    def __getattr__(self, name: str) -> Any:
        """Return what the wrapped reactor has."""
        return getattr(self._reactor, name)

    @property
    def is_over(self) -> bool:
        """Whether the time has come."""
        return bool(self._reactor.seconds() >= self._ends_s)

    @property
    def nameResolver(self) -> "IHostnameResolver":
        """What looks host names up."""
        return _NoResolver() if self.is_over else self._reactor.nameResolver

    def connectTCP(self, *args: Any, **kwargs: Any) -> IConnector:
        """Connect: see `twisted.internet.interfaces.IReactorTCP.connectTCP`.

        Raises:
            UserError: The time is over.
        """
        if self.is_over:
            raise UserError("The time is over")
        connector: IConnector = self._reactor.connectTCP(*args, **kwargs)
        return connector


@implementer(IHostnameResolver)
class _NoResolver:
    """Finds nothing."""

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,  # noqa: N803  # Twisted's name
        hostName: str,  # noqa: N803
        *_args: Any,
        **_kwargs: Any,
    ) -> IHostResolution:
        """Find nothing: see `twisted.internet.interfaces.IHostnameResolver`."""
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        resolutionReceiver.resolutionComplete()
        return resolution


@implementer(IHostnameResolver)
class _RecordingResolver:
    """Looks host names up, and remembers of the last ones whether they have addresses.

    Whoever filters the addresses tells the same of none that is left as of none at all.
    """

    def __init__(
        self, resolver: IHostnameResolver, resolved: OrderedDict[str, bool]
    ) -> None:
        self._resolver = resolver
        self._resolved = resolved

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,  # noqa: N803  # Twisted's name
        hostName: str,  # noqa: N803
        portNumber: int = 0,  # noqa: N803
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Look up: see `twisted.internet.interfaces.IHostnameResolver`."""
        address = _literal(hostName, portNumber)
        if address is not None:
            # There is nothing to look up, and so no need for a thread.
            resolution = _Resolution(hostName)
            resolutionReceiver.resolutionBegan(resolution)
            resolutionReceiver.addressResolved(address)
            resolutionReceiver.resolutionComplete()
            return resolution
        self._resolved[hostName] = False
        self._resolved.move_to_end(hostName)
        if len(self._resolved) > _MAX_RESOLVED:
            self._resolved.popitem(last=False)
        receiver = _RecordingReceiver(resolutionReceiver, hostName, self._resolved)
        return self._resolver.resolveHostName(
            receiver, hostName, portNumber, *args, **kwargs
        )


def _literal(host: str, port: int) -> IPv4Address | IPv6Address | None:
    """Return the address that a host name is; None if it has to be looked up."""
    if isIPAddress(host):
        return IPv4Address("TCP", host, port)
    return IPv6Address("TCP", host, port) if isIPv6Address(host) else None


@implementer(IHostResolution)
class _Resolution:
    """A look-up that is over at once."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """There is nothing to cancel."""


@implementer(IResolutionReceiver)
class _RecordingReceiver:
    def __init__(
        self,
        receiver: IResolutionReceiver,
        host_name: str,
        resolved: OrderedDict[str, bool],
    ) -> None:
        self._receiver = receiver
        self._host_name = host_name
        self._resolved = resolved
        self._left = _MAX_ADDRESSES

    def resolutionBegan(self, resolution: IHostResolution) -> None:
        self._receiver.resolutionBegan(resolution)

    def addressResolved(self, address: IAddress) -> None:
        if self._host_name in self._resolved:
            self._resolved[self._host_name] = True
        if self._left > 0:
            self._left -= 1
            self._receiver.addressResolved(address)

    def resolutionComplete(self) -> None:
        self._receiver.resolutionComplete()


class _BoundedProtocol(ProtocolWrapper):
    """Counts what comes in over a connection, and drops it when it is enough.

    Without waiting for the other side to agree: a polite end of a TLS connection waits
    for the peer, who may never answer and never stop sending.
    """

    factory: "_BoundedFactory"

    def __init__(self, factory: "_BoundedFactory", protocol: IProtocol) -> None:
        super().__init__(factory, protocol)  # type: ignore[arg-type]  # it is one of a subclass of its own
        self._bytes_left = factory.reactor.max_received_bytes
        self._end: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Begin to count the time."""
        self._end = self.factory.reactor.callLater(
            self.factory.reactor.max_lifetime_s, self._drop
        )
        super().connectionMade()  # type: ignore[no-untyped-call]  # Twisted's

    def dataReceived(self, data: bytes) -> None:
        """Pass data on while there is not too much of it."""
        self._bytes_left -= len(data)
        if self._bytes_left >= 0:
            super().dataReceived(data)  # type: ignore[no-untyped-call]  # Twisted's
        else:
            self._drop()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # no default: always given
        """Stop counting."""
        if self._end is not None and self._end.active():
            self._end.cancel()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # Twisted's

    def _drop(self) -> None:
        assert ITCPTransport.providedBy(self.transport)
        self.transport.abortConnection()


class _BoundedFactory(WrappingFactory):
    protocol = _BoundedProtocol
    noisy = False

    def __init__(self, factory: ClientFactory, reactor: BoundedReactor) -> None:
        super().__init__(factory)  # type: ignore[no-untyped-call]  # Twisted's
        self.reactor = reactor

    def buildProtocol(self, addr: IAddress | None) -> _BoundedProtocol | None:  # type: ignore[override]  # None is in IProtocolFactory
        """Wrap what the wrapped factory makes, if it wants the connection at all."""
        protocol = self.wrappedFactory.buildProtocol(addr)
        return None if protocol is None else _BoundedProtocol(self, protocol)
