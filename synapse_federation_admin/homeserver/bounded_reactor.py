# SPDX-License-Identifier: Apache-2.0
"""A reactor whose connections have an end: in bytes received, and in time.

Synapse's federation client bounds the body of a successful answer. It does not bound
the body of an error, nor the headers of any answer, and after its own timeout it goes
on reading. A hostile server could fill the homeserver's memory with one answer, or keep
a connection for ever. Here the connection itself is bounded, below TLS and HTTP.
"""

from typing import Any

from twisted.internet.interfaces import (
    IAddress,
    IConnector,
    IDelayedCall,
    IHostnameResolver,
    IProtocol,
    IReactorPluggableNameResolver,
    ITCPTransport,
)
from twisted.internet.protocol import ClientFactory
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.errors import stumbled_in


@implementer(IReactorPluggableNameResolver)
class BoundedReactor:
    """Passes everything on to another reactor, and bounds the connections it makes."""

    def __init__(self, reactor: Any, *, max_lifetime_s: float | None) -> None:
        """Wrap a reactor.

        Args:
            reactor: The reactor that does everything.
            max_lifetime_s: A connection older than this is dropped, idle or not, and so
                is one over which too much comes in: what counts are the bytes on the
                wire, TLS handshake included. None: connections have no end.
        """
        self._reactor = reactor
        self.max_lifetime_s = max_lifetime_s
        # Whether more came in over the newest connection.
        self.is_dropped = False

    def __getattr__(self, name: str) -> Any:
        """Return what the wrapped reactor has."""
        return getattr(self._reactor, name)

    @property
    def nameResolver(self) -> IHostnameResolver:
        """What looks host names up."""
        resolver: IHostnameResolver = self._reactor.nameResolver
        return resolver

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

    def connected(self) -> None:
        """Hear that an address was connected to."""

    def connection_failed(self, address: str, error: BaseException) -> None:
        """Hear of an address that was not connected to."""


class _BoundedProtocol(ProtocolWrapper):
    """Counts what comes in over a connection, and drops it when it is enough.

    Without waiting for the other side to agree: a polite end of a TLS connection waits
    for the peer, who may never answer and never stop sending.
    """

    factory: "_BoundedFactory"

    def __init__(self, factory: "_BoundedFactory", protocol: IProtocol) -> None:
        super().__init__(factory, protocol)  # type: ignore[arg-type]  # it is one of a subclass of its own
        self._bytes_left = limits.CONNECTION_BYTES
        self._end: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Begin to count the time."""
        self.factory.reactor.is_dropped = False
        max_lifetime_s = self.factory.reactor.max_lifetime_s
        assert max_lifetime_s is not None
        self._end = self.factory.reactor.callLater(max_lifetime_s, self._drop)
        super().connectionMade()  # type: ignore[no-untyped-call]  # Twisted's

    def dataReceived(self, data: bytes) -> None:
        """Pass data on while there is not too much of it."""
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self.factory.reactor.is_dropped = True
            self._drop()
            return
        try:
            super().dataReceived(data)  # type: ignore[no-untyped-call]  # Twisted's
        except IndexError as e:
            # Twisted stumbles over a notice of TLS that ends a handshake; the reactor
            # would log that as an error of its own, as it does with one of ours.
            if not stumbled_in(e).startswith("twisted."):
                raise
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

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Wrap what the wrapped factory makes, if it wants the connection at all."""
        self.reactor.connected()
        protocol = self.wrappedFactory.buildProtocol(addr)
        if protocol is None or self.reactor.max_lifetime_s is None:
            return protocol
        return _BoundedProtocol(self, protocol)

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        """Tell of it."""
        address = getattr(connector.getDestination(), "host", "")
        assert reason.value is not None
        self.reactor.connection_failed(address, reason.value)
        self.wrappedFactory.clientConnectionFailed(connector, reason)
