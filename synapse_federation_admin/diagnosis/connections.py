# SPDX-License-Identifier: Apache-2.0
"""The stage `connections`: each address by itself, with TLS and one request."""

from functools import partial
from itertools import zip_longest
from typing import Any

import attr
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.web.client import URI, Agent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from synapse_federation_admin import limits
from synapse_federation_admin.diagnosis.answers import (
    VERSION_PATH,
    Answer,
    ask,
    date_of,
    read_version,
)
from synapse_federation_admin.diagnosis.findings import (
    Connection,
    ConnectionsFindings,
    StageOutcome,
    VersionFindings,
)
from synapse_federation_admin.diagnosis.resolution import AddressesFindings, Target
from synapse_federation_admin.diagnosis.stages import Stage, StageName
from synapse_federation_admin.diagnosis.tls import (
    Handshake,
    by_their_clock,
    ending_soon,
)
from synapse_federation_admin.diagnosis.way import TimeIsOver, Way, side_by_side
from synapse_federation_admin.failures.bounds import bounded
from synapse_federation_admin.failures.classify import failure_of
from synapse_federation_admin.failures.kinds import (
    Failure,
    FailureKind,
    Link,
    Reason,
)
from synapse_federation_admin.failures.responses import reason_of_bytes
from synapse_federation_admin.homeserver.server_name import ServerName

# The share of the time of a diagnosis: to connect, and for all of it.
_SHARE_CONNECT = 0.25
_SHARE = 0.4


# With these there is no connection: the last tell the least.
_NOT_CONNECTED = (
    FailureKind.CONNECTION_REFUSED,
    FailureKind.CONNECTION_TIMEOUT,
    FailureKind.UNREACHABLE,
)


# This host has no route to any address of the family.
_NO_ROUTE = (Reason.NO_IPV4, Reason.NO_IPV6)


async def check_connections(
    way: Way, name: ServerName, addresses: AddressesFindings
) -> Stage:
    """Connect to each address, and ask for the version there.

    Args:
        way: The way out.
        name: The name that was resolved: of that are `Host`, SNI and certificate.
        addresses: To which hosts that has led.
    """

    async def connect(planned: Connection) -> Connection:
        if planned.outcome is StageOutcome.SKIPPED:
            return planned
        links = addresses.links(planned.host, planned.port)
        return without_route(await _Attempt(way, name, planned, links).connect())

    connections = await side_by_side(
        *(
            partial(connect, planned)
            for planned in plan(addresses.targets, name)[: limits.DIAGNOSED_ADDRESSES]
        )
    )
    known = sum(1 if t.via_proxy else t.addresses_total for t in addresses.targets)
    not_looked_up = addresses.targets_total - len(addresses.targets)
    findings = ConnectionsFindings(
        tuple(connections), max(0, known - len(connections)) + not_looked_up
    )
    return conclude(findings)


def plan(targets: tuple[Target, ...], name: ServerName) -> list[Connection]:
    """Return what is to be connected to: of each host the first, the second, ..."""
    by_target: list[list[Connection]] = []
    for target in targets:
        connection = Connection(
            address=None,
            host=target.host,
            port=target.port,
            host_header=name.netloc,
            sni=None if name.is_literal else name.host,
            outcome=StageOutcome.SKIPPED if target.error else StageOutcome.FAILED,
            error=target.error,
        )
        by_target.append(
            [connection]
            if target.via_proxy
            else [attr.evolve(connection, address=a.address) for a in target.addresses]
        )
    return [
        connection
        for rank in zip_longest(*by_target)
        for connection in rank
        if connection is not None
    ]


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _OneEndpoint:
    """Connects to one place, whatever the URL says, and keeps how the answer begins.

    Attributes:
        heard: The first bytes, also of what is no answer over HTTP; none: nothing came.
    """

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint
        self.heard = b""

    def endpointForURI(self, _uri: URI) -> IStreamClientEndpoint:
        return self

    def connect(self, factory: IProtocolFactory) -> "Deferred[IProtocol]":
        """Connect: see `IStreamClientEndpoint`."""
        return self._endpoint.connect(factory).addCallback(self._listen)

    def _listen(self, protocol: Any) -> IProtocol:
        receive = protocol.dataReceived

        def received(data: bytes) -> None:
            self.heard = self.heard or data[: limits.WORD]
            receive(data)

        protocol.dataReceived = received
        listening: IProtocol = protocol
        return listening


class _Attempt:
    """Makes one connection."""

    def __init__(
        self,
        way: Way,
        name: ServerName,
        connection: Connection,
        links: tuple[Link, ...],
    ) -> None:
        self._way = way
        self._links = links
        self._name = name
        self._connection = connection
        self._handshake = Handshake(way, name)
        self._attempt = way.outbound.attempt(way.left_ms(_SHARE))
        endpoint = way.outbound.endpoint(
            connection.address,
            connection.host,
            connection.port,
            name=name.host,
            observer=self._handshake,
            timeout_s=way.left_ms(_SHARE_CONNECT) / 1000,
            attempt=self._attempt,
        )
        self._endpoint = _OneEndpoint(endpoint)
        self._agent: IAgent = Agent.usingEndpointFactory(
            way.homeserver.reactor, self._endpoint
        )

    async def connect(self) -> Connection:
        """Return the connection with all that came of it."""
        begun_ms = self._way.now_ms
        answer: Answer | None = None
        error: Failure | None = None
        try:
            answer = await self._way.within(self._way.left_ms(_SHARE), self._ask)
        except (TimeIsOver, CancelledError):
            error = self._met(CancelledError())
        except Exception as e:
            error = self._met(e)
        handshake = self._handshake
        tls, begun = handshake.findings, handshake.begun_ms
        connection = attr.evolve(
            self._connection,
            connect_ms=None if begun is None else round(begun - begun_ms),
            tls=tls,
        )
        is_accepted = tls is not None and not (tls.is_verified and tls.problems)
        if not is_accepted:
            problem = tls.problems[0] if tls and tls.problems else error
            if tls and problem and answer:
                now_ms = self._way.homeserver.now_ms()
                date_ts = date_of(answer.headers)
                problem = by_their_clock(problem, tls.certificate, date_ts, now_ms)
            return attr.evolve(connection, error=self._placed(problem))
        assert handshake.completed_ms is not None
        duration_ms = self._way.since(handshake.completed_ms)
        version = (
            VersionFindings(duration_ms, error=error)
            if answer is None
            else read_version(answer, duration_ms, self._way.homeserver.now_ms())
        )
        version = attr.evolve(version, error=self._placed(version.error))
        return attr.evolve(connection, outcome=StageOutcome.OK, version=version)

    async def _ask(self) -> Answer:
        host, user_agent = self._connection.host_header, self._way.outbound.user_agent
        # As Synapse writes it, also with the port that HTTPS has anyway.
        headers = Headers({"Host": [host], "User-Agent": [user_agent]})
        url = f"https://{host}{VERSION_PATH}"
        return await ask(self._agent, url, headers, limits.VERSION_BYTES)

    def _met(self, error: Exception) -> Failure:
        """Tell why there was no answer."""
        failure = failure_of(self._attempt.explained(error))
        if failure.reason is Reason.CLOSED and self._endpoint.heard:
            return failure.but(reason_of_bytes(self._endpoint.heard))
        return failure

    def _placed(self, failure: Failure | None) -> Failure | None:
        """Add where it was met."""
        if failure is None:
            return None
        address = bounded(self._connection.address or self._connection.host)
        return failure.but(
            host=failure.facts.host or self._name.host,
            address=address,
            port=self._connection.port,
            via=self._links,
        )


def without_route(connection: Connection) -> Connection:
    """Excuse an address of a family to which this host has no route.

    Synapse uses the others.
    """
    error = connection.error
    if connection.address and error and error.reason in _NO_ROUTE:
        return attr.evolve(connection, outcome=StageOutcome.SKIPPED)
    return connection


def _how_far(error: Failure | None) -> int:
    """Tell how far a connection came: the less, the farther."""
    kind = error.kind if error else None
    return _NOT_CONNECTED.index(kind) + 1 if kind in _NOT_CONNECTED else 0


def conclude(findings: ConnectionsFindings) -> Stage:
    """Return the stage: whether connections work, and whether all of them do."""
    name = StageName.CONNECTIONS
    tried = [c for c in findings.connections if c.outcome is not StageOutcome.SKIPPED]
    if not tried:
        first = findings.connections[0].error if findings.connections else None
        return Stage.failed(name, first or Failure(FailureKind.UNREACHABLE), findings)
    # Synapse takes the next address of a host where it is not connected, and then tells
    # what it has met of the first host.
    hosts = list(dict.fromkeys(c.host for c in tried))
    tried.sort(key=lambda c: (hosts.index(c.host), _how_far(c.error)))
    stage = Stage.of_all(name, [c.error for c in tried], findings)
    if stage.outcome is StageOutcome.OK:
        soon = [
            failure
            for c in tried
            if c.tls and c.tls.is_verified
            if (failure := ending_soon(c.tls.certificate))
        ]
        if soon:
            first = min(soon, key=lambda failure: failure.facts.left_ms)
            return Stage.failed(name, first, findings, StageOutcome.WARNING)
    return stage
